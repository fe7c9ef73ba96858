"""A CSV in which a row that is measured again replaces the old one. For tools/zoo.py,
tools/loader.py and tests/models/test_battery.py."""

import timm
import torch

from idrnet_nb.common.files import file_lock
from idrnet_nb.experiments.results import provenance, read_rows, write_rows


def here(device='cpu'):
    "Date, commit (with a + where the package has changed since), versions and device of a row."
    return {**provenance(torch.device(device)), 'timm': timm.__version__}


def put(path, rows, key, columns):
    """Add `rows` (dicts); one with the same `key` columns takes the old one's place. The file is
    written wholly or not touched. ValueError for other columns."""
    with file_lock(path):
        found = {}
        for row in (*read_rows(path, columns), *rows):
            found[tuple(str(row[name]) for name in key)] = row
        write_rows(path, list(found.values()), columns)
