"""A real photograph in which context decides: nbs/figs/context_photo.png and nbs/results/context_photo.csv.

    python tools/context_photo.py --root stanford --weights mobilenetv2_100_imagenet.safetensors

Three heads are trained on Stanford Background: plain FCN, FCN + IDR, FCN with IDR's self-attention alone. All read the
same early map of a frozen backbone (`ShortSighted`), from which the plain FCN sees a small window around each pixel.
That is made so: on a whole backbone, which sees far by itself, the benchmark found no gain on photographs.

The photograph is chosen by a rule (`choose`) among the unseen images, because context decides there. So the CSV also
says what the three give on all unseen images ('model', 'difference'), in how many of their regions context gains or
loses clearly, and where it loses most ('opposite'). A run that is in --out is not trained again.

The rule was changed twice after results had been seen: by the gain of IDR alone it chose an image in which attention
alone failed (selection, not evidence), so that both heads with context must gain now, with every seed; then "ambiguous"
was added: given the patch alone, another class is the most frequent. The image is an illustration; the averages are not
chosen."""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from scipy import ndimage
from PIL import Image
from torch import nn

from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.visualize import legend_patch, show_image, show_mask
from idrnet_nb.experiments.compare import run_variant
from idrnet_nb.experiments.results import provenance, to_cells, write_rows
from idrnet_nb.experiments.statistics import paired
from idrnet_nb.experiments.tasks import Task
from idrnet_nb.models.backbone import Backbone
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.inference import predict
from idrnet_nb.training.metrics import Meter

NBS = Path(__file__).resolve().parents[1] / 'nbs'
DATA = 'stanford_background'
SIZE = 192, 256  # images and labels are resized to it, pixels
WINDOW = 48  # side of the patch that is shown alone, pixels
LEAST_REGION = 0.03  # share of the image
CLEARLY = 20  # points: a gain or a loss that is counted, where every seed has it
ARMS = 'fcn', 'fcn+idr', 'fcn+attention'
BACKBONE = 'mobilenetv2_100'
SETTINGS = dict(
    train=dict(steps=240, batch_size=8, lr=3e-3, frozen=True),
    model=dict(width=64, attention_width=64, aux_weight=0.0),
)
KINDS = 'model', 'difference', 'chosen', 'opposite'  # of rows
COLUMNS = (
    'date',
    'commit',
    'task',
    'note',
    'kind',
    'arm',
    'against',
    'seen',
    'seed',
    'image',
    'class',
    'share',
    'images',
    'miou',
    'aacc',
    'region_right',
    'gain',
    'low',
    'high',
    't_low',
    't_high',
    'regions',
    'regions_gained',
    'regions_lost',
    'iou',
    'loss',
    'parameters',
    'seconds',
    'config',
    'version',
    'torch',
    'python',
    'device',
)


class ShortSighted(nn.Module):
    """The map of stride 8 of a frozen backbone. A cell of it depends on 59×59 pixels, and with the head's 3×3
    convolution on 75×75, so that the plain FCN must recognise a place by itself; the deeper layers are not used.
    The map of an image is computed once and kept, for all epochs and all heads."""

    def __init__(self, weights):
        super().__init__()
        self.backbone = Backbone(BACKBONE, weights=weights, maps=3)
        self.channels, self.steps = self.backbone.channels[:1], self.backbone.steps[:1]
        self.pad_to = self.steps[0]
        self.mean, self.std, self.config = self.backbone.mean, self.backbone.std, self.backbone.config
        self.kept = {}

    def forward(self, x):  # `b 3 h w` -> one map, `b c h w`
        keys = [hash(image.numpy().tobytes()) for image in x]
        for key, image in zip(keys, x):
            if key not in self.kept:
                self.kept[key] = self.backbone(image[None])[0][0].contiguous()
        return [torch.stack([self.kept[key] for key in keys])]


class Region(NamedTuple):
    "Connected pixels of one class in one image, and the window whose centre is the region's innermost pixel."

    image: int
    class_id: int
    pixels: np.ndarray  # `h w`, bool
    window: tuple  # (top, left) of a square of `WINDOW` pixels

    @property
    def crop(self):
        top, left = self.window
        return slice(top, top + WINDOW), slice(left, left + WINDOW)


def photo_task(root) -> Task:
    "Stanford Background, images and labels at `SIZE`; only mirrored in training, so that maps can be kept."
    known = DATASETS[DATA]
    rows, unseen = known.load(root, 'train'), known.load(root, 'val')
    augment = Augment(scale=(1.0, 1.0), photometric=False, flip_pairs=known.flip_pairs, ignore=known.space.ignore)
    return Task(
        DATA,
        known.space,
        train=SegmentationDataset(rows, known.space, SIZE, augment),
        test=SegmentationDataset(unseen, known.space, SIZE),
        note=f'{SIZE[0]}x{SIZE[1]}, mirrored, map of stride 8 of a frozen backbone; {len(unseen)} val images at this size',
        size=SIZE,
    )


def regions(labels, num_classes) -> Iterator[Region]:
    "All regions of at least `LEAST_REGION` of their image that fill most of their window."
    for i, label in enumerate(labels):
        for c in range(num_classes):
            parts, count = ndimage.label(label == c)
            for part in range(1, count + 1):
                pixels = parts == part
                if pixels.mean() < LEAST_REGION:
                    continue
                depth = ndimage.distance_transform_edt(pixels)
                y, x = np.unravel_index(depth.argmax(), depth.shape)
                corner = tuple(
                    int(np.clip(at - WINDOW // 2, 0, side - WINDOW)) for at, side in zip((y, x), label.shape)
                )
                region = Region(i, c, pixels, corner)
                if pixels[region.crop].mean() > 0.75:
                    yield region


def run(arm, seed, task, found, backbone):
    "Train one head; row of results, predictions of all unseen images, and of each window alone (plain FCN)."
    config = TrainConfig(**SETTINGS['train'], seed=seed)
    model, scores = run_variant(arm, task, config, 'cpu', False, backbone=backbone, **SETTINGS['model'])
    images = torch.stack([task.test[i][0] for i in range(len(task.test))])
    whole = torch.cat([predict(model, part) for part in images.split(8)]).byte().numpy()
    alone = np.zeros((0, WINDOW, WINDOW), np.uint8)
    if arm == 'fcn':
        windows = [images[r.image][:, r.crop[0], r.crop[1]][None] for r in found]
        alone = torch.cat([predict(model, window) for window in windows]).byte().numpy()
    return {**scores, **provenance(torch.device('cpu'))}, whole, alone


def run_all(task, found, seeds, backbone, out):
    "(arm, seed) -> row, predictions, windows alone; read from `out` where they are there."
    made = {}
    out.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        for seed in range(seeds):
            file = out / f'{arm}-{seed}.npz'
            if not file.exists():
                row, whole, alone = run(arm, seed, task, found, backbone)
                np.savez_compressed(file, row=json.dumps(row), whole=whole, alone=alone)
            kept = np.load(file)
            made[arm, seed] = json.loads(str(kept['row'])), kept['whole'], kept['alone']
            print(arm, seed, round(made[arm, seed][0]['miou'], 2), flush=True)
    return made


def right(pred, region, crop=(slice(None), slice(None))):
    "Percent of the region's pixels that are predicted right; of those in a crop."
    inside = region.pixels[crop]
    return 100 * (pred[inside] == region.class_id).mean()


def measured(made, found, seeds):
    "`region seed`, percent of each region's pixels that are right: by arm, and from the window alone."
    table = {arm: np.array([[right(made[arm, s][1][r.image], r) for s in range(seeds)] for r in found]) for arm in ARMS}
    table['alone'] = np.array(
        [[right(made['fcn', s][2][i], r, r.crop) for s in range(seeds)] for i, r in enumerate(found)]
    )
    return table


def choose(table, misnamed, gain_of_image):
    """The regions, best first: by the gain of a head with context over the plain FCN, the smallest of both such heads
    and all seeds, among those of which the plain FCN, from the window alone, calls more pixels by another class with
    every seed, and whose whole image gains, again with each head and seed."""
    gain = np.concatenate([table[arm] - table['fcn'] for arm in ARMS[1:]], 1).min(1)
    fits = misnamed & (gain_of_image.min(1) > 0)
    return np.where(fits, gain, -np.inf).argsort()[::-1]


def misnamed(made, found, seeds):
    "`region` bool: from the window alone the most frequent prediction is another class than the true one, each seed."
    alone = [made['fcn', s][2] for s in range(seeds)]
    return np.array([all(np.bincount(a[i].ravel()).argmax() != r.class_id for a in alone) for i, r in enumerate(found)])


def confusions(made, arm, seeds, labels, space):
    "`seed image class class` pixels."
    counts = []
    for s in range(seeds):
        meter = Meter(space.num_classes, space.ignore)
        meter.update(torch.from_numpy(made[arm, s][1]).long(), torch.from_numpy(labels))
        counts.append(meter.per_image.numpy())
    return np.stack(counts)


def pixels_right(counts):
    "`seed image`, percent."
    return 100 * counts.trace(axis1=2, axis2=3) / counts.sum((2, 3))


def answers(pred, space, most=2):
    "The classes that a prediction consists of, most frequent first: 'water 80 %, road 20 %'."
    shares = np.bincount(pred.ravel(), minlength=space.num_classes) / pred.size
    order = shares.argsort()[::-1][:most]
    return ', '.join(f'{space.classes[c]} {100 * shares[c]:.0f} %' for c in order if shares[c] > 0.05)


def mark(ax, region, colours=('black', 'white')):
    "A rectangle around the window, seen on light and on dark."
    top, left = region.window
    for colour, width in zip(colours, (3.4, 1.4)):
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), WINDOW, WINDOW, fill=False, ec=colour, lw=width))


def draw(region, image, label, preds, alone, percents, space):
    "The patch alone, the photograph it is cut from; truth, plain FCN, FCN + IDR."
    fig, axes = plt.subplots(2, 3, figsize=(7, 4.7))
    fig.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.01, hspace=0.4, wspace=0.05)
    patch, photo, names = axes[0]
    show_image(image[:, region.crop[0], region.crop[1]], patch)
    patch.set_title('What is this?', fontsize=11, fontweight='bold')
    says = f'plain FCN, from this patch alone:\n{alone}'
    patch.text(0.5, -0.05, says, transform=patch.transAxes, ha='center', va='top', fontsize=9)
    show_image(image, photo)
    photo.set_title('It was cut from here', fontsize=11, fontweight='bold')
    ids = np.unique(np.concatenate([label.ravel(), *map(np.ravel, preds)])).tolist()
    names.set_axis_off()
    names.legend(handles=[legend_patch(i, space) for i in ids], loc='center', fontsize=9, frameon=False)
    name = space.classes[region.class_id]
    titles = [f'truth: {name}']
    titles += [
        f'{who}: {percent:.0f} % of\nthe {name} right' for who, percent in zip(('plain FCN', 'FCN + IDR'), percents)
    ]
    for ax, mask, title in zip(axes[1], (label, *preds), titles):
        show_mask(mask, space, ax, legend=False)
        ax.set_title(title, fontsize=10)
    for ax in (photo, *axes[1]):
        mark(ax, region)
    return fig


def save(fig, path, space, limit=40_000):
    "As a PNG of 160 colours, those of the classes exact. ValueError for a file that is too large."
    drawn, small = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format='png', dpi=100)
    image = Image.open(drawn).convert('RGB')
    exact = [(255, 255, 255), *map(tuple, space.palette)]
    reduced = image.quantize(160 - len(exact), dither=Image.Dither.NONE)
    ids, rgb = np.array(reduced) + len(exact), np.asarray(image)
    for i, colour in enumerate(exact):
        ids[(rgb == colour).all(-1)] = i
    image = Image.fromarray(ids)
    image.putpalette([value for colour in exact for value in colour] + reduced.getpalette())
    image.save(small, format='png', optimize=True)
    if small.tell() > limit:
        raise ValueError(f'{path.name} has {small.tell()} bytes, above {limit}')
    path.write_bytes(small.getvalue())
    print(f'{path.name}: {small.tell() / 1000:.1f} kB')


def model_rows(made, images):
    "A row per trained model: its scores on all unseen images."
    return [
        dict(to_cells(row), kind='model', seen='image', images=images, seconds=round(row['seconds'], 1))
        for row, *_ in made.values()
    ]


def difference_rows(counts, table, images):
    "What a head with context gains over the plain FCN, on all unseen images and in all regions."
    rows = []
    for arm in ARMS[1:]:
        d = paired(counts[arm], counts['fcn'])
        found = {name: round(getattr(d, name), 2) for name in ('gain', 'low', 'high', 't_low', 't_high')}
        gain = table[arm] - table['fcn']
        gained, lost = int((gain.min(1) >= CLEARLY).sum()), int((gain.max(1) <= -CLEARLY).sum())
        row = dict(kind='difference', arm=arm, against='fcn', seen='image', images=images, **found)
        rows.append(dict(row, regions=len(gain), regions_gained=gained, regions_lost=lost))
    return rows


def region_rows(kind, i, found, table, counts, task):
    "Percent of one region that is right, of each head and seed; of the plain FCN also from the window alone."
    region = found[i]
    about = {'kind': kind, 'images': 1, 'image': task.test.rows[region.image]['id']}
    about |= {'class': task.space.classes[region.class_id], 'share': round(100 * float(region.pixels.mean()), 1)}
    rows = []
    for arm, percents in table.items():
        for seed, percent in enumerate(percents[i]):
            row = dict(about, arm=arm, seed=seed, seen='image', region_right=round(float(percent), 1))
            if arm == 'alone':
                row |= dict(arm='fcn', seen='window alone')
            else:
                row |= dict(aacc=round(float(pixels_right(counts[arm])[seed, region.image]), 2))
            rows.append(row)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', type=Path, required=True, help='folder of Stanford Background')
    p.add_argument('--weights', type=Path, required=True, help='safetensors file of the backbone')
    p.add_argument('--seeds', type=int, default=3, help='so many, from 0')
    p.add_argument('--out', type=Path, default=Path('runs/context_photo'), help='folder for the predictions')
    p.add_argument('--rank', type=int, default=0, help='draw the region that the rule puts at this place, from 0')
    a = p.parse_args()
    torch.set_num_threads(1)
    task = photo_task(a.root)
    labels = np.stack([task.test[i][1].numpy() for i in range(len(task.test))])
    found = list(regions(labels, task.space.num_classes))
    made = run_all(task, found, a.seeds, ShortSighted(a.weights), a.out)
    counts = {arm: confusions(made, arm, a.seeds, labels, task.space) for arm in ARMS}
    table = measured(made, found, a.seeds)
    gain_of_image = np.concatenate([pixels_right(counts[arm]) - pixels_right(counts['fcn']) for arm in ARMS[1:]])
    chosen = choose(table, misnamed(made, found, a.seeds), gain_of_image[:, [r.image for r in found]].T)[a.rank]
    region = found[chosen]
    gain = table['fcn+idr'][chosen] - table['fcn'][chosen]
    seed = gain.argsort()[len(gain) // 2]  # the middle one is drawn, not the best one
    preds = [made[arm, seed][1][region.image] for arm in ('fcn', 'fcn+idr')]
    alone = answers(made['fcn', seed][2][chosen], task.space)
    percents = [table[arm][chosen, seed] for arm in ('fcn', 'fcn+idr')]
    fig = draw(region, task.test[region.image][0], labels[region.image], preds, alone, percents, task.space)
    print(f'drawn: seed {seed}')
    save(fig, NBS / 'figs' / 'context_photo.png', task.space)

    opposite = np.concatenate([table[arm] - table['fcn'] for arm in ARMS[1:]], 1).max(1).argmin()
    rows = model_rows(made, len(labels)) + difference_rows(counts, table, len(labels))
    rows += region_rows('chosen', chosen, found, table, counts, task)
    rows += region_rows('opposite', opposite, found, table, counts, task)
    settings = dict(train=SETTINGS['train'], model=dict(SETTINGS['model'], backbone=BACKBONE))
    common = dict(task=task.name, note=task.note, config=json.dumps(settings), **provenance(torch.device('cpu')))
    write_rows(NBS / 'results' / 'context_photo.csv', [{**common, **row} for row in rows], COLUMNS)


if __name__ == '__main__':
    main()
