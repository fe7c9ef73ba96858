"""A/B test of the plugin on the toy world: somebody's model as it is, and with IDR put in.

    python tools/plug_ab.py local --out nbs/results/plug.csv --steps 200
    python tools/plug_ab.py local --out nbs/results/plug.csv --steps 200 --before 200 \\
        --arms plain idr 'idr, as published' 'idr, D2 of zeros'
    python tools/plug_ab.py unet --out nbs/results/plug.csv --steps 300 --arms plain idr

`local` is a hand-written network that sees seven pixels around it, `unet` one of
segmentation_models.pytorch. With --before the model is trained as it is first, and IDR is put in
then. Same first weights, same images in the same order, same schedule, one thread. Rows are added
to the CSV, which nbs/2_models/14_plugin.ipynb reads; a run that is repeated belongs in another
file."""

import argparse
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn

from idrnet_nb.common.checks import IGNORE
from idrnet_nb.common.device import seed_everything
from idrnet_nb.experiments.compare import COLUMNS
from idrnet_nb.training.metrics import relation_auroc
from idrnet_nb.experiments.results import append_rows, provenance, to_cells
from idrnet_nb.experiments.runner import do_all
from idrnet_nb.experiments.tasks import toy_world_task
from idrnet_nb.method.layers import upsample
from idrnet_nb.models.plugin import add_idr, get_idr, idr_loss
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.metrics import Meter
from idrnet_nb.training.sampler import batches
from idrnet_nb.training.schedule import param_groups, poly

ARMS = {  # variant -> (settings of add_idr, settings of idr_loss)
    'plain': None,
    'idr': ({}, {}),
    'idr, tables frozen': ({}, dict(relation_momentum=0.0)),
    'idr, as published': (dict(keep_answer=False), {}),
    'idr, D2 of zeros': ({}, {}),
}


def local_net(k):
    def block(in_channels, out_channels, stride):
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.BatchNorm2d(out_channels), nn.ReLU()
        )

    return nn.Sequential(block(3, 24, 2), block(24, 32, 2), block(32, 32, 1), nn.Conv2d(32, k, 1))


def unet(k):
    import segmentation_models_pytorch as smp

    return smp.Unet('resnet18', encoder_weights=None, classes=k)


MODELS = {'local': (local_net, '3'), 'unet': (unet, None)}  # name -> (function, where IDR is put in)


def plain(name, k, seed):
    "The same model for every variant of a seed."
    seed_everything(seed)
    return MODELS[name][0](k)


def plug(name, model, arm):
    "The model with IDR, as the variant says."
    if ARMS[arm] is None:
        return model
    final = get_idr(add_idr(model, at=MODELS[name][1], **ARMS[arm][0])).final
    if arm == 'idr, D2 of zeros':
        final.hidden.conv.reset_parameters()
        nn.init.zeros_(final.logits.weight)
        nn.init.zeros_(final.logits.bias)
    return model


def predict(model, images):
    "Logits at the size of the images."
    return upsample(model((images.float() - 127.5) / 63.75), images.shape[-2:])


def learn(model, arm, data, config, seed):
    "Train in place, images in the order of `seed`; the last loss of the model's own logits."
    optimizer = torch.optim.AdamW(param_groups(model, config))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly(step, config))
    model.train()
    for _, (images, label) in zip(range(config.steps), batches(data, config.batch_size, seed)):
        own = F.cross_entropy(predict(model, images), label, ignore_index=IGNORE)
        loss = own if ARMS[arm] is None else own + idr_loss(model, label, **ARMS[arm][1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return own.item()


@torch.no_grad()
def judge(model, task):
    "Scores on the unseen images."
    model.eval()
    meter = Meter(task.space.num_classes)
    for at in range(0, len(task.test), 20):
        images, label = map(torch.stack, zip(*task.test[at : at + 20]))
        meter.update(predict(model, images).argmax(1), label)
    return meter.scores()


def run(name, arm, task, config, before=0):
    "One row of results, and the settings of the plugin."
    start = time.perf_counter()
    model = plain(name, task.space.num_classes, config.seed)
    if before:
        learn(model, 'plain', task.train, replace(config, steps=before), 1000 + config.seed)
        name_shown = f'trained {name}'
    else:
        name_shown = name
    model = plug(name, model, arm)
    loss = learn(model, arm, task.train, config, config.seed)
    found = judge(model, task)
    row = dict(
        arm=name_shown if arm == 'plain' else f'{name_shown} + {arm}',
        seed=config.seed,
        miou=found['miou'],
        aacc=found['aacc'],
        iou=found['iou'],
        loss=loss,
        lookalike_miou=sum(found['iou'][c] for c in task.focus) / len(task.focus),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=round(time.perf_counter() - start, 1),
    )
    if arm == 'plain':
        return to_cells(row), None
    if 'frozen' not in arm:
        row['relation_auroc'] = relation_auroc(get_idr(model).relations[0], task.truth)
    return to_cells(row), get_idr(model).settings


def library(name):
    if name != 'unet':
        return 'none'
    import segmentation_models_pytorch as smp

    return f'segmentation_models_pytorch {smp.__version__}'


def row_of(about, name, task, config, before):
    "A row of the CSV; `about`: variant and seed."
    config = replace(config, seed=about['seed'])
    row, settings = run(name, about['arm'], task, config, before)
    after = f' after {before} plain ones' if before else ''
    said = dict(
        train={n: v for n, v in asdict(config).items() if n != 'seed'},
        model=dict(name=name, library=library(name)),
        before=before,
        plug=settings,
    )
    return dict(
        task=task.name,
        config=json.dumps(said),
        **row,
        **provenance(torch.device('cpu')),
        note=f'{task.note}, {config.steps} steps of {config.batch_size}{after}',
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', choices=MODELS)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--arms', nargs='+', choices=ARMS, default=[*ARMS])
    p.add_argument('--steps', type=int, default=200)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--lr', type=float, default=3e-3)
    p.add_argument('--before', type=int, default=0, help='steps of plain training before IDR is put in')
    p.add_argument('--train', type=int, default=2000, help='images to learn from')
    p.add_argument('--test', type=int, default=200, help='unseen images')
    a = p.parse_args()
    torch.set_num_threads(1)
    task = toy_world_task(a.train, a.test)
    config = TrainConfig(steps=a.steps, batch_size=a.batch, lr=a.lr)

    def write(about, row):
        append_rows(a.out, [row], COLUMNS)
        return f'mIoU {row["miou"]:.1f}  look-alikes {row["lookalike_miou"]:.1f}  {row["seconds"]:.0f} s'

    runs = [dict(arm=arm, seed=seed) for seed in a.seeds for arm in a.arms]
    do_all(runs, partial(row_of, name=a.model, task=task, config=config, before=a.before), write)


if __name__ == '__main__':
    main()
