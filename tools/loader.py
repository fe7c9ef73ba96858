"""Does the training wait for its images? What the loader gives against what the step takes, in
images a second.

    python tools/loader.py                              all rows: minutes on a quiet machine
    python tools/loader.py --rows 180x240 --workers 0   one row

Twenty-four made-up images of 480 x 640 (JPEG, quality 92) with palette masks are read, augmented
and collated as in training (`SegmentationDataset` with `Augment` through `sampler.batches`) with 0,
1 and 2 workers. The step is forward, backward and optimiser of the model that they feed, on a batch
that lies ready: fcn with IDR on MobileNetV2 (width 128, stride 16) for three crops, and on
ResNet-50 (stride 8) by the published recipe; a row that does not fit into memory is left out and
named. Loader, step and both together take turns, --rounds times, each for --seconds and two batches
at least. What workers had fetched before the clock ran is not counted: their first batches are
thrown away. Rows go to nbs/results/loader.csv, a row that is measured again replaces its older
self; nbs/3_data/13_dataset.ipynb shows the table. Its columns:

    row, model, crop, batch, workers    what was measured; crop is h x w, batch in images
    loader, step, together              images a second, median of the rounds: read only; trained on
                                        only; read and trained on
    loader_low, loader_high             slowest and fastest round
    step_low, step_high
    ratio                               loader / step: above 1 the step is never kept waiting, if it
                                        leaves the workers a core
    waits                               percent of its images a second that training loses to
                                        reading: 100 (1 - together / step); around 0 is noise
    rounds, seconds                     how it was measured
    date … device, timm                 as in the other results; the device says how many threads
                                        the step has"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
import torch

sys.path.insert(0, str(Path(__file__).parent))
from record import here, put
from idrnet_nb.common.device import pick_device, seed_everything
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.sampler import batches
from idrnet_nb.training.schedule import param_groups

OUT = Path(__file__).resolve().parents[1] / 'nbs' / 'results' / 'loader.csv'
SPACE = LABEL_SPACES['pascal_voc']
RATES = ('loader', 'step', 'together')
COLUMNS = (
    'row',
    'model',
    'crop',
    'batch',
    'workers',
    *RATES,
    'loader_low',
    'loader_high',
    'step_low',
    'step_high',
    'ratio',
    'waits',
    'rounds',
    'seconds',
    *here(),
)
KEY = ('row', 'workers', 'device')


def laptop(size):
    options = dict(width=128, output_stride=16)
    return (
        'fcn+idr mobilenetv2_100',
        'mobilenetv2_100',
        options,
        4,
        size,
        dict(scale=(0.75, 1.5), bounds=size, keep_ratio=False),
    )


ROWS = {  # row -> (model, its backbone, options, batch, crop, other settings of Augment)
    '180x240': laptop((180, 240)),
    '360x480': laptop((360, 480)),
    '512x512': laptop((512, 512)),
    'r50': ('fcn+idr resnet50c', 'resnet50c', dict(output_stride=8), 2, (512, 512), dict(bounds=(512, 2048))),
}


class Step:
    "Forward, backward and optimiser of a model; `batch` lies ready."

    def __init__(self, row, device):
        _, backbone, options, n, size, _ = ROWS[row]
        seed_everything(0)
        self.device = device
        model = build_segmentor('fcn', backbone, SPACE.num_classes, **options)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(param_groups(self.model, TrainConfig()))
        self.batch = (
            torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8),
            torch.randint(0, SPACE.num_classes, (n, *size)),
        )
        for _ in range(2):
            self(*self.batch)  # buffers and moments are made

    def __call__(self, images, label):
        images = images.to(self.device, memory_format=torch.channels_last)
        loss = self.model(images, label.to(self.device)).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == 'cuda':
            torch.cuda.synchronize()


def rate(source, use, seconds, n):
    """Images a second of `use(batch)` on batches of `n` from an iterator, for so many seconds and
    two batches at least."""
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < seconds:
        use(next(source))
        count += 1
    return n * count / (time.perf_counter() - start)


def loaded_rate(pairs, n, workers, use, seconds):
    "`rate` of batches that a loader reads; what it fetches before the clock runs is thrown away."
    source = batches(pairs, n, workers=workers)
    try:
        for _ in range(1 + 2 * workers):
            next(source)
        return rate(source, use, seconds, n)
    finally:
        source.close()


def always(batch):
    while True:
        yield batch


def measure(row, pairs, workers, device, rounds=3, seconds=1.0):
    "A row of the table per number of workers; all of them, the step, and both together take turns."
    name, _, _, n, size, _ = ROWS[row]
    step = Step(row, device)
    found = {w: {k: [] for k in RATES} for w in workers}

    def train(batch):
        step(*batch)

    def read(batch):
        pass

    for _ in range(rounds):
        for w, rates in found.items():
            rates['loader'].append(loaded_rate(pairs, n, w, read, seconds))
            rates['step'].append(rate(always(step.batch), train, seconds, n))
            rates['together'].append(loaded_rate(pairs, n, w, train, seconds))
    steps = sorted(x for rates in found.values() for x in rates['step'])
    about = dict(row=row, model=name, crop=f'{size[0]}x{size[1]}', batch=n)
    return [line({**about, 'workers': w}, {**rates, 'step': steps}, rounds, seconds) for w, rates in found.items()]


def line(about, rates, rounds, seconds):
    "A row of the table: medians, slowest and fastest rounds, what follows from them."
    middle = {k: statistics.median(v) for k, v in rates.items()}
    spread = {}
    for k in ('loader', 'step'):
        spread[f'{k}_low'] = min(rates[k])
        spread[f'{k}_high'] = max(rates[k])
    return {
        **about,
        **{k: round(v, 2) for k, v in {**middle, **spread}.items()},
        'ratio': round(middle['loader'] / middle['step'], 2),
        'waits': round(100 * (1 - middle['together'] / middle['step']), 1),
        'rounds': rounds,
        'seconds': seconds,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', nargs='+', choices=ROWS, default=[*ROWS])
    p.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--seconds', type=float, default=1.0, help='of each measurement')
    p.add_argument('--threads', type=int, help='of the step on a CPU; torch decides if not given')
    p.add_argument('--device', default='auto')
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    device, missed = pick_device(a.device), []
    with tempfile.TemporaryDirectory() as folder:
        root = write_fake_dataset('pascal_voc', Path(folder) / 'VOC2012', SPACE, 24, 1, (480, 640))
        images = DATASETS['pascal_voc'].load(root, 'train')
        for row in a.rows:
            *_, crop, augment = ROWS[row]
            pairs = SegmentationDataset(images, SPACE, augment=Augment(crop, **augment))
            try:
                found = measure(row, pairs, a.workers, device, a.rounds, a.seconds)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and 'memory' not in str(error):
                    raise
                missed.append(row)
                continue
            put(a.out, [{**r, **here(device)} for r in found], KEY, COLUMNS)
            for r in found:
                print(
                    f'{row:8} {r["workers"]} workers  loader {r["loader"]:7.1f}  '
                    f'step {r["step"]:7.1f}  together {r["together"]:7.1f} images/s  '
                    f'loader/step {r["ratio"]:.2f}  waits {r["waits"]:.0f} %',
                    flush=True,
                )
    if missed:
        print(f'not enough memory for {", ".join(missed)}')


if __name__ == '__main__':
    main()
