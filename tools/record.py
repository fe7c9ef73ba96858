"""A results table on disk: a CSV in which a row that is measured again replaces the old one. For tools/zoo.py and tests/test_battery.py."""
import timm, torch

from idrnet_nb.experiments.results import provenance, read_rows, write_rows

def here(device='cpu'):
    "Date, commit (with a + where the package was changed since), versions and device, for the end of a row."
    return {**provenance(torch.device(device)), 'timm': timm.__version__}

def put(path, rows, key, columns):
    "Add `rows` (dicts); one with the same `key` columns takes the old one's place. The file is written whole or not touched. ValueError for other columns."
    name = lambda r: tuple(str(r[k]) for k in key)
    write_rows(path, list({name(r): r for r in (*read_rows(path, columns), *rows)}.values()), columns)
