"""The rows of nbs/results/ablation.csv and ablation_pairs.csv. A row that is there is not made again, so that it can be stopped and begun again.

    python tools/ablation.py world --seeds 5       # one switch at a time, small world
    python tools/ablation.py decide --seeds 5      # learnt tables or not, where nothing but the tables brings context: four times the seeds
    python tools/ablation.py questions watch       # where do tables matter; do they tell the truth
    python tools/ablation.py real --root stanford_background=stanford --weights mobilenetv2_100_imagenet.safetensors
    python tools/ablation.py pairs                 # the differences again, from what is kept in --out

Several groups may run at once in processes of their own if each has a --file of its own; `--merge FILE …` then puts their rows together."""
import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from idrnet_nb.experiments.ablation import (ABLATIONS, ablation_pairs, ablations, run_ablation,
    run_watch)
from idrnet_nb.experiments.benchmark import SUITES
from idrnet_nb.experiments.runner import key, run_missing
from idrnet_nb.experiments.statistics import update_pairs
from idrnet_nb.experiments.trials import COLUMNS, check_weights
from idrnet_nb.experiments.results import read_rows, write_rows

RESULTS = Path(__file__).resolve().parents[1]/'nbs'/'results'
ASKED = ('attention', 'full', 'identity', 'no refiner', 'no refiner, identity')
SWITCHES = tuple(v for v in ABLATIONS if not v.startswith('noisy'))
NOISY = tuple(v for v in ABLATIONS if v.startswith('noisy'))
DECIDING = tuple(v for v in ABLATIONS if v.startswith('no refiner')) # nothing but the tables brings context from class to class
REAL = ('plain', 'attention', 'full', 'identity', 'random', 'transposed', 'own only', 'no refiner', 'no refiner, identity', 'no refiner, own only')

def groups(seeds): # name -> (runs, whether they are watched)
    world, stanford = (replace(t, frameworks=('fcn',), seeds=seeds) for t in SUITES['real'][:2])
    asked = [*ablations(replace(world, size=(32,32)), ASKED), *ablations(world, ASKED, extra=12), *ablations(world, ASKED, extra=48),
             *ablations(replace(world, pictures=(100,200)), ASKED), *ablations(world, NOISY),
             *ablations(replace(world, train=dict(world.train, steps=600)), ASKED)]
    decide = ablations(replace(world, seeds=4*seeds), DECIDING)
    watch = [*ablations(world, ('full',), every=25), *ablations(world, ('full',), extra=1, follow=[9,10], every=25)]
    real = ablations(replace(stanford, size=(96,128), train=dict(stanford.train, frozen=True)), REAL)
    return dict(world=(ablations(world, SWITCHES), False), decide=(decide, False), questions=(asked, False), watch=(watch, True), real=(real, False))

def merge(files, into, plan): # rows of all files, each run once, in the order of the plan, others after them
    place = {key(r):i for i,r in enumerate(plan)}
    rows = {r['run']:r for f in (*files, into) for r in read_rows(f)}
    write_rows(into, sorted(rows.values(), key=lambda r: place.get(r['run'], len(place))), COLUMNS)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('groups', nargs='*', metavar='GROUP', help='world, decide, questions, watch, real; pairs: none of them')
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--jobs', type=int, default=1); p.add_argument('--device', default='auto')
    p.add_argument('--root', action='append', default=[], metavar='DATA=FOLDER'); p.add_argument('--weights', type=Path)
    p.add_argument('--out', type=Path, default=Path('runs/ablation'), help="folder of the pictures' counts"); p.add_argument('--file', type=Path, default=RESULTS/'ablation.csv')
    p.add_argument('--merge', nargs='*', type=Path, default=[], metavar='FILE')
    a = p.parse_args()
    torch.set_num_threads(1)
    all_ = groups(a.seeds)
    plan, how = list({key(r):r for runs,_ in all_.values() for r in runs}.values()), dict(out=a.out, device=a.device)
    if odd := set(a.groups)-{*all_, 'pairs'}: p.error(f'no groups {sorted(odd)}; there are {", ".join(all_)}, pairs')
    if lost := [str(f) for f in a.merge if not f.exists()]: p.error(f'--merge: {", ".join(lost)} not found')
    for name in a.groups:
        if name=='pairs': continue
        runs, watched = all_[name]
        do = partial(run_watch, **how) if watched else partial(run_ablation, roots=dict(w.split('=', 1) for w in a.root), weights=a.weights, **how)
        if not watched: check_weights(read_rows(a.file, COLUMNS), runs, a.weights)
        run_missing(runs, do, a.file, COLUMNS, jobs=a.jobs)
    if a.merge: merge(a.merge, a.file, plan)
    if a.file==RESULTS/'ablation.csv':
        made = ablation_pairs([r for r in plan if 'every' not in r], a.out)
        print(f'{len(made)} differences made anew, {len(update_pairs(RESULTS/"ablation_pairs.csv", made))} in all')

if __name__=='__main__': main()
