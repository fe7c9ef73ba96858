"""The rows of nbs/results/relations.csv: six ways to find which class matters to which, in the toy world, whose
true relations are known, and on CamVid, where only their stability can be measured.

    python tools/relation_measures.py --seeds 3
    python tools/relation_measures.py --seeds 3 --camvid FOLDER --weights mobilenetv2_100_imagenet.safetensors

For each variant and seed a model is trained as `idrnet compare --data world` trains it, and then asked about unseen
images. The ways: the mean matrix that IDR learnt in training; deletion from the context, the features, the image;
attention weights (weight that a cell of one class gives to a cell of the other, over the mean weight); and
co-occurrence in the labels (lift), which asks no model. Of each: `auroc`, how well it ranks the true relations;
`halves`, the correlation of its matrices on the even and the odd images; `seeds`, the mean correlation with its
matrices of the other seeds; all without the diagonal. Rows are added to the CSV, which
nbs/5_experiments/29_relations.ipynb reads; a run that is repeated belongs in another file."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from idrnet_nb.experiments.batched_deletion import ClassDeleter
from idrnet_nb.experiments.compare import relation_auroc, run_variant
from idrnet_nb.experiments.relations import ChangeLog, Changes, Relations
from idrnet_nb.experiments.results import append_rows, provenance
from idrnet_nb.experiments.tasks import camvid_task, toy_world_task
from idrnet_nb.training.config import TrainConfig

RESULTS = Path(__file__).resolve().parents[1] / 'nbs' / 'results'
COLUMNS = (
    'date',
    'commit',
    'task',
    'note',
    'arm',
    'seed',
    'measure',
    'images',
    'auroc',
    'halves',
    'seeds',
    'settled',
    'settled_true',
    'miou',
    'seconds',
    'config',
    'version',
    'torch',
    'python',
    'device',
)
MEASURES = ('learnt', 'context', 'features', 'image', 'attention weights', 'co-occurrence')
ARMS = ('fcn+idr', 'fcn+attention')
WORLD = dict(train=dict(steps=200, batch_size=16, lr=3e-3), model=dict(width=64, attention_width=64, aux_width=32))
CAMVID = dict(
    train=dict(steps=360, batch_size=8, lr=1e-3, backbone_lr=0.5, channels_last=True),
    model=dict(backbone='mobilenetv2_100', width=128, attention_width=64, aux_width=64, output_stride=16),
)


def ask(model, task, how, images):
    "A matrix by deletion, those of the two halves of the images, and the result."
    log = ChangeLog(None, {})
    log.ask(ClassDeleter(model, task.space, how), task.test, images, progress=False)
    changes, names = Changes.of(log.lines, task.space.num_classes), task.space.classes
    halves = [Changes(*(x[changes.image % 2 == part] for x in changes)) for part in (0, 1)]
    found = Relations.of(changes, names, how)
    return found.mean, [Relations.of(half, names, how, resamples=2).mean for half in halves], found


@torch.no_grad()
def attention(model, task, images):
    "A matrix of attention weights, key class by query class, and those of the two halves of the images."
    module = model.head.attention if model.head.idr is None else model.head.idr.attention
    kept, k = {}, task.space.num_classes
    hooks = [
        getattr(module, name)[1].register_forward_hook(lambda m, a, out, name=name: kept.update({name: out}))
        for name in ('query', 'key')
    ]
    sums, counts = torch.zeros(2, k, k), torch.zeros(2, k, k)
    for i in range(images):
        pred = model.eval()(task.test[i][0][None]).logits.argmax(1, keepdim=True)
        query, key = (kept[name].flatten(2)[0] for name in ('query', 'key'))
        weights = (query.T @ key / len(query) ** 0.5).softmax(-1)  # query cells × key cells
        cells = F.interpolate(pred.float(), kept['query'].shape[-2:], mode='nearest').long().flatten()
        member = F.one_hot(cells, k).float()
        pairs = member.sum(0)[:, None] * member.sum(0)
        sums[i % 2] += member.T @ weights.T @ member / pairs.clamp(min=1) * len(cells) - (pairs > 0).float()
        counts[i % 2] += pairs > 0
    for hook in hooks:
        hook.remove()
    return sums.sum(0) / counts.sum(0), list(sums / counts), None


def together(task, images):
    "How much likelier two classes are in one image than by chance, and the same of the two halves of the images."
    k = task.space.num_classes
    labels = [task.test[i][1] for i in range(images)]
    there = torch.stack([torch.bincount(label[label < k], minlength=k) > 0 for label in labels]).float()

    def lift(x):
        return (x.T @ x / len(x)) / (x.mean(0)[:, None] * x.mean(0)) - 1

    return lift(there), [lift(there[part::2]) for part in (0, 1)], None


def correlation(a, b):
    "Of two matrices, off the diagonal, over the pairs that both have."
    both = a.isfinite() & b.isfinite() & ~torch.eye(len(a), dtype=torch.bool)
    return round(float(np.corrcoef(a[both], b[both])[0, 1]), 3)


def measure(arm, seed, images, task, settings, weights=None):
    "(row, matrix) of each way to ask one model."
    config = TrainConfig(**settings['train'], seed=seed)
    model, scores = run_variant(arm, task, config, 'cpu', False, weights=weights, **settings['model'])
    for name in MEASURES if model.head.idr is not None else MEASURES[2:]:
        start = time.perf_counter()
        if name == 'learnt':
            matrix, halves, found = model.relations[0], None, None
        elif name == 'attention weights':
            matrix, halves, found = attention(model, task, images)
        elif name == 'co-occurrence':
            matrix, halves, found = together(task, images)
        else:
            matrix, halves, found = ask(model, task, name, images)
        row = dict(task=task.name, note=task.note, arm=arm, seed=seed, measure=name)
        row |= dict(miou=round(scores['miou'], 2))
        if task.truth is not None:
            row |= dict(auroc=round(relation_auroc(matrix.nan_to_num(0), task.truth), 4))
        if halves:
            row |= dict(images=images, halves=correlation(*halves))
        if found:
            row |= dict(settled=int(found.settled.sum()))
        if found and task.truth is not None:
            row |= dict(settled_true=int((found.settled & task.truth).sum()))
        row |= dict(seconds=round(time.perf_counter() - start, 1), config=json.dumps(settings))
        print(arm, seed, name, row.get('auroc', ''), row.get('halves', ''), flush=True)
        yield {**row, **provenance(torch.device('cpu'))}, matrix


def with_seeds(made):
    "Rows that say how well their matrix agrees with those of the other seeds."
    for row, matrix in made:
        same = [m for r, m in made if r['measure'] == row['measure'] and r['seed'] != row['seed']]
        if same and row['measure'] != 'co-occurrence':  # which is the same for all seeds
            row['seeds'] = round(float(np.mean([correlation(matrix, m) for m in same])), 3)
    return [row for row, _ in made]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    p.add_argument('--seeds', type=int, default=3, help='so many, from 0')
    p.add_argument('--images', type=int, default=120, help='unseen images that are asked about')
    p.add_argument('--camvid', type=Path, help='folder of CamVid, instead of the toy world')
    p.add_argument('--weights', type=Path, help='safetensors file of the backbone for CamVid')
    p.add_argument('--out', type=Path, default=RESULTS / 'relations.csv')
    a = p.parse_args()
    torch.set_num_threads(1)
    task, settings = (camvid_task(a.camvid, (120, 160)), CAMVID) if a.camvid else (toy_world_task(), WORLD)
    for arm in a.arms:
        runs = [measure(arm, seed, a.images, task, settings, a.weights) for seed in range(a.seeds)]
        made = [item for run in runs for item in run]
        append_rows(a.out, with_seeds(made), COLUMNS)


if __name__ == '__main__':
    main()
