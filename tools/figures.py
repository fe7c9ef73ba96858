"""Small figures of a comparison for the notebooks: `python tools/figures.py RUN NAME --data world|camvid|… [--root DIR --size HxW]` writes nbs/figs/NAME_*.png
(≤ 40 KB each); for the world and CamVid also the learnt mean tables of all seeds of the last arm as nbs/results/NAME_tables.json."""
import argparse, io, json
from pathlib import Path
import matplotlib
matplotlib.use('agg')
from PIL import Image
from idrnet_nb.cli.values import parse_size
from idrnet_nb.experiments.compare import (camvid_task, dataset_task, show_panels, show_relations,
    toy_world_task)
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.training.inference import load_model

def shrink(fig, path, limit=40_000):
    "Save with fewer dots and colours until the file is small enough."
    for dpi in range(100, 30, -6):
        memory = io.BytesIO(); fig.savefig(memory, format='png', dpi=dpi)
        small = io.BytesIO(); Image.open(memory).convert('RGB').quantize(128, dither=Image.Dither.NONE).save(small, format='png', optimize=True)
        if small.tell() <= limit: break
    path.write_bytes(small.getvalue()); print(f'{path}: {small.tell()//1024} KB at {dpi} dpi')

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('run', type=Path); p.add_argument('name')
    p.add_argument('--data', choices=('world',*DATASETS), default='world'); p.add_argument('--root', type=Path); p.add_argument('--size', type=parse_size, default=(64,64))
    p.add_argument('--arms', nargs='+', default=['fcn','fcn+attention','fcn+idr']); p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    if a.data=='world': task = toy_world_task(1, 8, a.size[0])
    else: task = camvid_task(a.root, a.size) if a.data=='camvid' else dataset_task(a.data, a.root, a.size)
    models = {arm:load_model(a.run/f'{arm}-{a.seed}', task.space)[0] for arm in a.arms}
    out = Path(__file__).resolve().parent.parent/'nbs'/'figs'; out.mkdir(exist_ok=True)
    shrink(show_panels(task, models, n=3), out/f'{a.name}_panels.png')
    shrink(show_relations(task, models[a.arms[-1]].relations[0]), out/f'{a.name}_relations.png')
    if a.data not in ('world','camvid') or a.name!=a.data: return
    runs = sorted(a.run.glob(f'{a.arms[-1]}-*'))
    tables = {d.name.split('-')[-1]:[[round(x, 4) for x in row] for row in load_model(d, task.space)[0].relations[0].tolist()] for d in runs}
    (out.parent/'results'/f'{a.name}_tables.json').write_text(json.dumps({'arm':a.arms[-1], 'classes':task.space.classes, 'mean_table_by_seed':tables}))

if __name__=='__main__': main()
