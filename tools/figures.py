"""Small figures of a comparison for the notebooks.

    python tools/figures.py RUN NAME --data world|camvid|… [--root DIR --size HxW]

writes nbs/figs/NAME_*.png (≤ 40 KB each); for the toy world and CamVid also the learnt mean
relation matrices of all seeds of the last variant as nbs/results/NAME_tables.json."""

import argparse
import io
import json
from pathlib import Path
import matplotlib

matplotlib.use('agg')
from PIL import Image

from idrnet_nb.cli.parse_values import parse_size
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.experiments.compare_page import show_panels, show_relations
from idrnet_nb.experiments.tasks import camvid_task, dataset_task, toy_world_task
from idrnet_nb.training.inference import load_model

NBS = Path(__file__).resolve().parents[1] / 'nbs'


def shrink(fig, path, limit=40_000):
    "Save with fewer dots and colours until the file is small enough."
    for dpi in range(100, 30, -6):
        drawn, small = io.BytesIO(), io.BytesIO()
        fig.savefig(drawn, format='png', dpi=dpi)
        image = Image.open(drawn).convert('RGB').quantize(128, dither=Image.Dither.NONE)
        image.save(small, format='png', optimize=True)
        if small.tell() <= limit:
            break
    path.write_bytes(small.getvalue())
    print(f'{path}: {small.tell() // 1024} KB at {dpi} dpi')


def relations(folder, space):
    "The mean relation matrix of a saved model, as lists."
    model, _ = load_model(folder, space)
    return [[round(x, 4) for x in row] for row in model.relations[0].tolist()]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', type=Path)
    p.add_argument('name')
    p.add_argument('--data', choices=('world', *DATASETS), default='world')
    p.add_argument('--root', type=Path)
    p.add_argument('--size', type=parse_size, default=(64, 64))
    p.add_argument('--arms', nargs='+', default=['fcn', 'fcn+attention', 'fcn+idr'])
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    if a.data == 'world':
        task = toy_world_task(1, 8, a.size[0])
    elif a.data == 'camvid':
        task = camvid_task(a.root, a.size)
    else:
        task = dataset_task(a.data, a.root, a.size)
    models = {arm: load_model(a.run / f'{arm}-{a.seed}', task.space)[0] for arm in a.arms}
    last = a.arms[-1]
    (NBS / 'figs').mkdir(exist_ok=True)
    shrink(show_panels(task, models, n=3), NBS / 'figs' / f'{a.name}_panels.png')
    shrink(show_relations(task, models[last].relations[0]), NBS / 'figs' / f'{a.name}_relations.png')
    if a.data in ('world', 'camvid') and a.name == a.data:
        folders = sorted(a.run.glob(f'{last}-*'))
        by_seed = {folder.name.split('-')[-1]: relations(folder, task.space) for folder in folders}
        found = {'arm': last, 'classes': task.space.classes, 'mean_table_by_seed': by_seed}
        (NBS / 'results' / f'{a.name}_tables.json').write_text(json.dumps(found))


if __name__ == '__main__':
    main()
