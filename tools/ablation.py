"""The rows of nbs/results/ablation.csv and ablation_pairs.csv. A row that is there is not made
again, so that the tool can be stopped and continued.

    python tools/ablation.py world --seeds 5       # one switch at a time, toy world
    python tools/ablation.py decide --seeds 5      # learnt relations or not, where nothing but the
                                                   # relations brings context: four times the seeds
    python tools/ablation.py questions watch       # where do relations matter; are they true
    python tools/ablation.py real --root stanford_background=stanford \\
        --weights mobilenetv2_100_imagenet.safetensors
    python tools/ablation.py pairs                 # the differences again, from what is in --out

Several groups may run at once in processes of their own if each has a --file of its own; `--merge
FILE …` then puts their rows together."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from idrnet_nb.experiments.ablation import ABLATIONS, ablation_pairs, ablations, run_ablation, run_watch
from idrnet_nb.experiments.benchmark import SUITES
from idrnet_nb.experiments.results import read_rows, write_rows
from idrnet_nb.experiments.runner import key, run_missing
from idrnet_nb.experiments.pair_rows import update_pairs
from idrnet_nb.experiments.trials import COLUMNS, check_weights

RESULTS = Path(__file__).resolve().parents[1] / 'nbs' / 'results'
ASKED = ('attention', 'full', 'identity', 'no refiner', 'no refiner, identity')
SWITCHES = tuple(v for v in ABLATIONS if not v.startswith('noisy'))
NOISY = tuple(v for v in ABLATIONS if v.startswith('noisy'))
# Nothing but the relations brings context from class to class.
DECIDING = tuple(v for v in ABLATIONS if v.startswith('no refiner'))
REAL = (
    'plain',
    'attention',
    'full',
    'identity',
    'random',
    'transposed',
    'own only',
    'no refiner',
    'no refiner, identity',
    'no refiner, own only',
)


def groups(seeds):
    "name -> (runs, whether they are watched)."
    world, stanford = (replace(t, frameworks=('fcn',), seeds=seeds) for t in SUITES['real'][:2])
    longer = replace(world, train=dict(world.train, steps=600))
    frozen = replace(stanford, size=(96, 128), train=dict(stanford.train, frozen=True))
    questions = [
        *ablations(replace(world, size=(32, 32)), ASKED),
        *ablations(world, ASKED, extra=12),
        *ablations(world, ASKED, extra=48),
        *ablations(replace(world, pictures=(100, 200)), ASKED),
        *ablations(world, NOISY),
        *ablations(longer, ASKED),
    ]
    watch = [*ablations(world, ('full',), every=25), *ablations(world, ('full',), extra=1, follow=[9, 10], every=25)]
    return dict(
        world=(ablations(world, SWITCHES), False),
        decide=(ablations(replace(world, seeds=4 * seeds), DECIDING), False),
        questions=(questions, False),
        watch=(watch, True),
        real=(ablations(frozen, REAL), False),
    )


def merge(files, into, plan):
    "Rows of all files, each run once, in the order of the plan, others after them."
    place = {key(run): i for i, run in enumerate(plan)}
    rows = {row['run']: row for file in (*files, into) for row in read_rows(file)}
    ordered = sorted(rows.values(), key=lambda row: place.get(row['run'], len(place)))
    write_rows(into, ordered, COLUMNS)


def parse_args(names):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('groups', nargs='*', metavar='GROUP', help=f'{", ".join(names)}; pairs: none of them')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--device', default='auto')
    p.add_argument('--root', action='append', default=[], metavar='DATA=FOLDER')
    p.add_argument('--weights', type=Path)
    p.add_argument('--out', type=Path, default=Path('runs/ablation'), help='folder for the counts of the images')
    p.add_argument('--file', type=Path, default=RESULTS / 'ablation.csv')
    p.add_argument('--merge', nargs='*', type=Path, default=[], metavar='FILE')
    a = p.parse_args()
    unknown = sorted(set(a.groups) - {*names, 'pairs'})
    if unknown:
        p.error(f'no groups {unknown}; there are {", ".join(names)}, pairs')
    missing = [str(file) for file in a.merge if not file.exists()]
    if missing:
        p.error(f'--merge: {", ".join(missing)} not found')
    return a


def main():
    a = parse_args([*groups(1)])
    torch.set_num_threads(1)
    known = groups(a.seeds)
    plan = list({key(run): run for runs, _ in known.values() for run in runs}.values())
    where = dict(out=a.out, device=a.device)
    roots = dict(word.split('=', 1) for word in a.root)
    for name in a.groups:
        if name == 'pairs':
            continue
        runs, watched = known[name]
        if watched:
            fn = partial(run_watch, **where)
        else:
            check_weights(read_rows(a.file, COLUMNS), runs, a.weights)
            fn = partial(run_ablation, roots=roots, weights=a.weights, **where)
        run_missing(runs, fn, a.file, COLUMNS, a.jobs)
    if a.merge:
        merge(a.merge, a.file, plan)
    if a.file == RESULTS / 'ablation.csv':
        made = ablation_pairs([run for run in plan if 'every' not in run], a.out)
        rows = update_pairs(RESULTS / 'ablation_pairs.csv', made)
        print(f'{len(made)} differences made anew, {len(rows)} in all')


if __name__ == '__main__':
    main()
