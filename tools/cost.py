"""What each recipe costs: counted for all, timed for those that are named. Adds rows to nbs/results/recipes.csv; rows that are there are not made again.

    python tools/cost.py                                                   # count all recipes: minutes, no GPU needed
    python tools/cost.py --timed laptop_fcn_camvid --batch 8               # time a short run on this machine
    python tools/cost.py --timed idrnet_upernet_resnet50os8_ade20k --device cuda --note 'one H100, others idle'

Columns: date, commit, version, torch, python, device (`compare.circumstances`), recipe, kind (counted or timed), processes (the recipe's batch is shared by
so many), batch (pictures on one device), parameters, tflops (one step on one device), peak_bytes (counted: held by tensors in float32; timed: of CUDA's
allocator), seconds (median of a step), spread (largest over smallest), picture_seconds, note."""
import argparse, csv
from pathlib import Path

import torch

from idrnet_nb.compare import circumstances
from idrnet_nb.core import pick_device, write_atomic
from idrnet_nb.recipe import RECIPES, cost, timed

FILE = Path(__file__).resolve().parents[1]/'nbs'/'results'/'recipes.csv'
COLUMNS = ('date','commit','version','torch','python','device','recipe','kind','processes','batch','parameters','tflops','peak_bytes','seconds','spread','picture_seconds','note')

def rows():
    if not FILE.exists(): return []
    with open(FILE, newline='') as f: return list(csv.DictReader(f))

def add(row):
    old = rows()
    def write(path):
        with open(path, 'w', newline='') as f:
            out = csv.DictWriter(f, COLUMNS, lineterminator='\n'); out.writeheader(); out.writerows([*old, row])
    write_atomic(FILE, write)
    print(row['recipe'], row['kind'], *(f'{k} {row[k]}' for k in ('processes','batch','tflops','peak_bytes','picture_seconds') if k in row), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--timed', nargs='+', default=[], metavar='RECIPE'); p.add_argument('--batch', type=int); p.add_argument('--steps', type=int, default=3)
    p.add_argument('--device', default='auto'); p.add_argument('--note', default='')
    a = p.parse_args()
    if unknown := set(a.timed)-set(RECIPES): p.error(f'no such recipes: {", ".join(sorted(unknown))}')
    where = circumstances(pick_device(a.device))
    for name in a.timed:
        found = timed(RECIPES[name], a.device, a.batch, a.steps)
        add(dict(where, recipe=name, kind='timed', processes=1, note=a.note, **{k:round(v,4) if isinstance(v,float) else v for k,v in found.items()}))
    if a.timed: return
    there = {(r['recipe'],r['processes']) for r in rows() if r['kind']=='counted'}
    for name,recipe in RECIPES.items():
        for n in (1,8) if recipe.train.batch_size%8==0 and not name.startswith('laptop') else (1,):
            if (name,str(n)) in there: continue
            found = cost(recipe, recipe.train.batch_size//n)
            add(dict(where, device='none: fake tensors', recipe=name, kind='counted', processes=n, **{k:round(v,4) if isinstance(v,float) else v for k,v in found.items()}))

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
