"""A results table on disk: a CSV in which a row that is measured again replaces the old one. For tools/zoo.py and tests/test_battery.py."""
import csv, subprocess
from pathlib import Path
import timm, torch

import idrnet_nb
from idrnet_nb.compare import circumstances, read_results
from idrnet_nb.core import write_atomic

def here(device='cpu'):
    "Date, commit (with a + where the package was changed since), versions and device, for the end of a row."
    where = circumstances(torch.device(device))
    if where['commit'] != 'none' and subprocess.run(['git','diff','--quiet','HEAD','--','.'], cwd=Path(idrnet_nb.__file__).parent).returncode: where['commit'] += '+'
    return {**where, 'timm': timm.__version__}

def put(path, rows, key, columns):
    "Add `rows` (dicts); one with the same `key` columns takes the old one's place. The file is written whole or not touched. ValueError for other columns."
    path, name = Path(path), lambda r: tuple(str(r[k]) for k in key)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {name(r): r for r in (read_results(path) if path.exists() else [])}
    table.update({name(r): r for r in rows})
    if odd := {c for r in table.values() for c in r} - set(columns): raise ValueError(f'{str(path)!r}: columns {sorted(odd)} are not among {", ".join(columns)}')
    def write(temp):
        with open(temp, 'w', newline='', encoding='utf-8') as f:
            out = csv.DictWriter(f, columns, lineterminator='\n'); out.writeheader(); out.writerows(table.values())
    write_atomic(path, write)
