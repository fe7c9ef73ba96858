"""What each recipe costs: counted for all, timed for those that are named. Adds rows to
nbs/results/recipes.csv; a row that is there is not made again (remove it to have it made anew), so
that the tool can be stopped and continued.

    python tools/cost.py                                      # count all recipes: half an hour
    python tools/cost.py --counted laptop_fcn_camvid          # count these only
    python tools/cost.py --timed laptop_fcn_camvid --batch 8  # time a short run on this machine
    python tools/cost.py --timed idrnet_upernet_resnet50os8_ade20k --device cuda \\
        --note 'one H100, others idle'

Columns: date, commit, version, torch, python, device (`results.provenance`; on a CPU with its
threads), recipe, kind (counted or timed), processes (the batch is shared by so many), batch (images
on one device), pictures (of the training set), parameters, tflops (one step on one device), steps
(of the whole training), exaflops (of the whole training, all devices), peak_bytes, peak (counted:
held by tensors in the recipe's precision; measured: of CUDA's allocator), amp_bytes (counted under
bf16), seconds (median of a step), spread (largest over smallest), picture_seconds, hours (of the
whole training, one device), scaled (True: timed with another batch than the recipe's, hours go by
images), note."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from idrnet_nb.common.device import pick_device
from idrnet_nb.experiments.results import provenance, read_rows, write_rows
from idrnet_nb.experiments.runner import do_all
from idrnet_nb.training.recipes import RECIPES
from idrnet_nb.training.costs import cost, timed

FILE = Path(__file__).resolve().parents[1] / 'nbs' / 'results' / 'recipes.csv'
COLUMNS = (
    'date',
    'commit',
    'version',
    'torch',
    'python',
    'device',
    'recipe',
    'kind',
    'processes',
    'batch',
    'pictures',
    'parameters',
    'tflops',
    'steps',
    'exaflops',
    'peak_bytes',
    'peak',
    'amp_bytes',
    'seconds',
    'spread',
    'picture_seconds',
    'hours',
    'scaled',
    'note',
)
PICTURES = dict(
    camvid=367,
    ade20k=20210,
    cityscapes=2975,
    coco_stuff_10k=9000,
    coco_stuff_164k=118287,
    pascal_voc=1464,
    pascal_context_59=4998,
    pascal_context_60=4998,
    lip=30462,
    cihp=28280,
    atr=16000,
    stanford_background=572,
    ccp59=800,
    ccp16=800,
)  # images to train on


def add(row, file=None):
    file = file or FILE
    write_rows(file, [*map(complete, read_rows(file, COLUMNS)), row], COLUMNS)


def rounded(found):
    return {name: float(f'{v:.5g}') if isinstance(v, float) else v for name, v in found.items()}


def complete(row):
    "A counted row of an earlier version of this tool, with what follows from the rest of it."
    if row['kind'] != 'counted' or row.get('steps'):
        return row
    pictures = PICTURES[RECIPES[row['recipe']].data]
    steps = RECIPES[row['recipe']].config(pictures).steps
    exaflops = float(row['tflops']) * int(row['processes']) * steps / 1e6
    return dict(row, pictures=pictures, steps=steps, exaflops=f'{exaflops:.5g}', peak='counted')


def make(runs, fn, file):
    "Add the row of each run to the file, and print it."

    def write(run, row):
        add(row, file)
        shown = ('processes', 'batch', 'tflops', 'peak_bytes', 'amp_bytes', 'picture_seconds', 'hours')
        return ' '.join([row['recipe'], row['kind'], *(f'{k} {row[k]}' for k in shown if k in row)])

    do_all(runs, fn, write)


def count(names, file=None):
    there = {(row['recipe'], int(row['processes'])) for row in read_rows(file or FILE) if row['kind'] == 'counted'}
    runs = []
    for name in names:
        batch_size = RECIPES[name].train.batch_size
        shared = batch_size % 8 == 0 and not name.startswith('laptop')  # no laptop has eight GPUs
        wanted = (1, 8) if shared else (1,)
        runs += [dict(what=name, processes=n) for n in wanted if (name, n) not in there]

    def count_one(run):
        recipe = RECIPES[run['what']]
        in_bf16 = replace(recipe, train=replace(recipe.train, amp='bf16'))
        found = cost(in_bf16, PICTURES[recipe.data], processes=run['processes'])
        where = dict(provenance(torch.device('cpu')), device='none: fake tensors')
        return dict(where, recipe=run['what'], kind='counted', peak='counted', note='', **rounded(found))

    make(runs, count_one, file)


def time(names, device, batch, steps, note, file=None):
    device = pick_device(device)
    where = provenance(device)
    there = {
        (r['recipe'], r['batch'])
        for r in read_rows(file or FILE)
        if r['kind'] == 'timed' and r['device'] == where['device']
    }
    runs = [
        dict(what=name)
        for name in names
        if not any(recipe == name and str(batch or size) == size for recipe, size in there)
    ]

    def time_one(run):
        recipe = RECIPES[run['what']]
        pictures = PICTURES[recipe.data]
        found = timed(recipe, device, batch, steps, pictures)
        return dict(
            where, recipe=run['what'], kind='timed', processes=1, pictures=pictures, note=note, **rounded(found)
        )

    make(runs, time_one, file)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--counted', nargs='+', default=[], metavar='RECIPE')
    p.add_argument('--timed', nargs='+', default=[], metavar='RECIPE')
    p.add_argument('--batch', type=int)
    p.add_argument('--steps', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--device', default='auto')
    p.add_argument('--note', default='')
    p.add_argument('--file', type=Path, default=FILE)
    a = p.parse_args()
    unknown = sorted({*a.timed, *a.counted} - set(RECIPES))
    if unknown:
        p.error(f'no such recipes: {", ".join(unknown)}')
    torch.set_num_threads(a.threads)
    if a.counted or not a.timed:
        count(a.counted or RECIPES, a.file)
    time(a.timed, a.device, a.batch, a.steps, a.note, a.file)


if __name__ == '__main__':
    main()
