"""Every backbone at full size, with random weights: does what the module says of itself hold?

    python tools/zoo.py                   all, one at a time (minutes, 4 GB of memory)
    python tools/zoo.py --only resnet50   those of one timm name

Each is built, run forward and backward on two images in training, and on images of odd sides in
evaluation. Its maps must have the channels and strides that it says, every parameter a finite
gradient. A row each in nbs/results/backbones.csv; licence and Hub name are those that timm states
for its default weights, which are not downloaded."""

import argparse
import gc
import sys
from pathlib import Path
import torch

sys.path.insert(0, str(Path(__file__).parent))
from record import here, put
from idrnet_nb.common.device import seed_everything
from idrnet_nb.models.backbone import Backbone, published

OUT = Path(__file__).resolve().parents[1] / 'nbs' / 'results' / 'backbones.csv'
SIZES = (65, 97), (33, 32), (64, 96)  # the first is trained on
COLUMNS = (
    'family',
    'network',
    'output_stride',
    'form',
    'channels',
    'strides',
    'parameters',
    'sizes',
    'failed',
    'licence',
    'hub',
    *here(),
)
KEY = ('network', 'output_stride', 'form')


def sizes_of(start, letters, end):
    return [f'{start}{x}{end}' for x in letters]


ZOO = [  # family, timm's names, output strides (None: the family's own)
    ('ResNet', ('resnet18', 'resnet50', 'resnet101', 'resnet50c', 'resnet101c'), (8, 16, 32)),
    ('HRNet', ('hrnet_w18', 'hrnet_w48'), (None,)),
    ('Swin', sizes_of('swin_', ('tiny', 'small', 'base', 'large'), '_patch4_window7_224'), (None,)),
    ('ConvNeXt', sizes_of('convnext_', ('tiny', 'small', 'base', 'large'), ''), (None,)),
    ('ConvNeXt V2', sizes_of('convnextv2_', ('tiny', 'base', 'large'), ''), (None,)),
    ('MobileNet', ('mobilenetv2_100', 'mobilenetv3_large_100', 'mobilenetv3_small_100'), (None,)),
    (
        'EfficientNet',
        ('efficientnet_b0', 'efficientnet_b1', 'efficientnet_b2', 'efficientnet_lite0', 'tf_efficientnetv2_s'),
        (None,),
    ),
    ('ConvNeXt', ('convnext_tiny',), (8,)),
    ('MobileNet', ('mobilenetv2_100',), (8,)),
    ('EfficientNet', ('efficientnet_b0',), (8,)),
]


def plan(only=None):
    "(family, network, output stride, concat) of each row; HRNet twice."
    rows = []
    for family, names, strides in ZOO:
        for name in names:
            if only not in (None, name):
                continue
            for stride in strides:
                rows.append((family, name, stride, False))
                if family == 'HRNet':
                    rows.append((family, name, stride, True))
    return rows


def faults(net):
    "What does not hold, in words; nothing where all does."
    wrong = []

    def check(mode, maps, b, size):
        found = [tuple(m.shape) for m in maps]
        stated = [(b, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(net.channels, net.strides)]
        if found != stated:
            wrong.append(f'{mode} {size}: {found}, said {stated}')
        if not all(m.isfinite().all() for m in maps):
            wrong.append(f'{mode} {size}: not finite')

    maps = net.train()(torch.randn(2, 3, *SIZES[0]))
    check('training', maps, 2, SIZES[0])
    sum((m * torch.randn_like(m)).mean() for m in maps).backward()
    bad = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if bad:
        wrong.append(f'no finite gradient: {len(bad)} ({bad[0]})')
    net.eval()
    with torch.no_grad():
        for size in SIZES:
            check('evaluation', net(torch.randn(1, 3, *size)), 1, size)
    return '; '.join(wrong)


def row(family, name, stride, concat):
    "One network, built, tried and forgotten."
    seed_everything(0)
    net = Backbone(name, output_stride=stride, concat=concat)
    found, note = faults(net), published(name)
    return dict(
        family=family,
        network=name,
        output_stride=net.steps[-1],
        form='side by side' if concat else 'maps',
        channels=' '.join(map(str, net.channels)),
        strides=' '.join(map(str, net.strides)),
        parameters=sum(p.numel() for p in net.parameters()),
        sizes=' '.join(f'{h}x{w}' for h, w in SIZES),
        failed=found,
        licence=note.get('licence', ''),
        hub=note.get('hub', ''),
        **here(),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', help="one of timm's names")
    p.add_argument('--out', type=Path, default=OUT, help='the CSV; rows measured again are replaced')
    a = p.parse_args()
    todo = plan(a.only)
    if not todo:
        names = dict.fromkeys(name for _, name, _, _ in plan())
        sys.exit(f'no {a.only!r} here; there are {", ".join(names)}')
    failed = 0
    for one in todo:
        r = row(*one)
        gc.collect()
        put(a.out, [r], KEY, COLUMNS)
        failed += bool(r['failed'])
        print(
            f'{r["network"]:30} {r["form"]:13} strides {r["strides"]:12} '
            f'channels {r["channels"]:22} {int(r["parameters"]) / 1e6:7.1f} M  '
            f'{r["failed"] or "ok"}',
            flush=True,
        )
    sys.exit(f'{failed} of {len(todo)} failed' if failed else 0)


if __name__ == '__main__':
    main()
