"""The rows of nbs/results/softmax_order.csv: softmax at the input's size, softmax on the network's
own grid, or logits, with the same weights.

    python tools/softmax_order.py world --seeds 5
    python tools/softmax_order.py stanford_background --root stanford \\
        --weights mobilenetv2_100_imagenet.safetensors

A model is trained for a short time and then judged in six ways: three words of
`EvalProtocol.average`, each at one scale and at several. Rows are added to the CSV, which
nbs/4_training/13_inference.ipynb reads; a run that is repeated belongs in another file."""

import argparse
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from idrnet_nb.experiments.compare import build
from idrnet_nb.experiments.results import append_rows, provenance
from idrnet_nb.experiments.runner import do_all
from idrnet_nb.experiments.tasks import dataset_task, toy_world_task
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.inference import EvalProtocol, probabilities
from idrnet_nb.training.metrics import Meter
from idrnet_nb.training.trainer import train

RESULTS = Path(__file__).resolve().parents[1] / 'nbs' / 'results'
COLUMNS = (
    'date',
    'commit',
    'task',
    'note',
    'arm',
    'seed',
    'looks',
    'average',
    'miou',
    'aacc',
    'same',
    'seconds',
    'config',
    'version',
    'torch',
    'python',
    'device',
)
WORDS = ('probabilities', 'grid_probabilities', 'logits')
LOOKS = {'once': {}, 'scales .75 1 1.25, mirrored': dict(scales=(0.75, 1.0, 1.25), flip=True)}


def plan(name, root, weights):
    "The data, the settings of the model, and how it is trained."
    if name == 'world':
        model = dict(width=48, attention_width=24, aux_width=16)
        return toy_world_task(2000, 200), model, TrainConfig(steps=200, batch_size=8, lr=3e-3)
    model = dict(
        backbone='mobilenetv2_100', weights=weights, output_stride=16, width=64, attention_width=32, aux_width=32
    )
    config = TrainConfig(steps=80, batch_size=8, lr=1e-3, backbone_lr=0.5, channels_last=True)
    return dataset_task(name, root, (120, 160)), model, config


def judge(model, task, protocol):
    "Predictions of all unseen images; their scores in percent, and the seconds of inference."
    meter, preds, seconds = Meter(task.space.num_classes), [], 0.0
    for image, label in task.test:
        start = time.perf_counter()
        preds.append(probabilities(model, image[None], protocol, label.shape).argmax(1)[0])
        seconds += time.perf_counter() - start
        meter.update(preds[-1][None], label[None])
    scores = meter.scores()
    return preds, dict(miou=round(scores['miou'], 4), aacc=round(scores['aacc'], 4), seconds=round(seconds, 2))


def share_of_same(preds, others):
    "Percent of all pixels that have the same class in both."
    same = sum((a == b).sum().item() for a, b in zip(preds, others))
    return round(100 * same / sum(a.numel() for a in preds), 4)


def run(arm, task, model_settings, config):
    "The rows of one model."
    model = build(arm, task, config.seed, **model_settings)
    train(model, task.train, config, 'cpu', False)
    base = task.protocol or EvalProtocol()
    settings = dict(
        train={name: value for name, value in asdict(config).items() if name != 'seed'},
        model={name: getattr(value, 'name', value) for name, value in model_settings.items()},
    )
    note = f'{task.note}, {config.steps} steps of {config.batch_size}'
    for looks, changes in LOOKS.items():
        first = None
        for average in WORDS:
            protocol = base.but(average=average, **changes)
            preds, scores = judge(model, task, protocol)
            first = first or preds
            yield dict(
                task=task.name,
                note=note,
                arm=arm,
                seed=config.seed,
                looks=looks,
                average=average,
                **scores,
                same=share_of_same(preds, first),
                config=json.dumps({**settings, 'protocol': asdict(protocol)}),
                **provenance(torch.device('cpu')),
            )


def rows_of(about, name, root, weights):
    task, settings, config = plan(name, root, weights)
    return list(run(about['arm'], task, settings, replace(config, seed=about['seed'])))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('task', choices=('world', 'stanford_background'))
    p.add_argument('--root', type=Path, help='folder of the images, where they are not made up')
    p.add_argument('--weights', type=Path, help='safetensors file of the backbone')
    p.add_argument('--arms', nargs='+', default=['fcn+idr'])
    p.add_argument('--seeds', type=int, default=3, help='so many, from 0')
    p.add_argument('--out', type=Path, default=RESULTS / 'softmax_order.csv')
    a = p.parse_args()
    torch.set_num_threads(1)

    def write(about, rows):
        append_rows(a.out, rows, COLUMNS)
        return ''.join(
            f'\n  {r["looks"]:28} {r["average"]:19} mIoU {r["miou"]:.2f}  same {r["same"]:.2f} %  {r["seconds"]:.1f} s'
            for r in rows
        )

    runs = [dict(arm=arm, seed=seed) for seed in range(a.seeds) for arm in a.arms]
    do_all(runs, partial(rows_of, name=a.task, root=a.root, weights=a.weights), write)


if __name__ == '__main__':
    main()
