"""Does the training wait for its pictures? What the loader gives against what the step takes, in pictures a second.

    python tools/loader.py                              all rows: some minutes on a quiet machine; nothing else should run
    python tools/loader.py --rows 180x240 --workers 0   one row

Twenty-four made-up pictures of 480 x 640 (JPEG, quality 92) with palette masks are read, augmented and collated as in training (`SegmentationDataset` with
`Augment` through `sampler.batches`) with 0, 1 and 2 workers. The step is forward, backward and optimiser of the model that they feed, on a batch
that lies ready: fcn with IDR on MobileNetV2 (width 128, stride 16) for three crops, and on ResNet-50 (stride 8) by the published recipe; a row that
does not fit into memory is left out and named. Loader, step and both together take turns, --rounds times, each for --seconds and two batches at least.
What workers had fetched before the clock ran is not counted: their first batches are thrown away. Rows go to nbs/results/loader.csv, a row that is
measured again replaces its older self; nbs/3_data/10_dataset.ipynb shows the table. Its columns:

    row, model, crop, batch, workers    what was measured; crop is h x w, batch in pictures
    loader, step, together              pictures a second, median of the rounds: read only; trained on only; read and trained on
    loader_low, loader_high             slowest and fastest round
    step_low, step_high
    ratio                               loader / step: above 1 the step is never kept waiting, if it leaves the workers a core
    waits                               percent of its pictures a second that training loses to reading: 100 (1 - together / step); around 0 is noise
    rounds, seconds                     how it was measured
    date … device, timm                 as in the other tables of results; the device says how many threads the step has"""
import argparse, statistics, sys, tempfile, time
from pathlib import Path
import timm, torch

sys.path.insert(0, str(Path(__file__).parent))
from record import put
from idrnet_nb.experiments.results import provenance
from idrnet_nb.common.device import pick_device, seed_everything
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.sampler import batches
from idrnet_nb.training.schedule import param_groups

def here(device): return {**provenance(device), 'timm':timm.__version__}

OUT = Path(__file__).resolve().parents[1]/'nbs'/'results'/'loader.csv'
SPACE = LABEL_SPACES['pascal_voc']
RATES = ('loader','step','together')
COLUMNS = ('row','model','crop','batch','workers',*RATES,'loader_low','loader_high','step_low','step_high','ratio','waits','rounds','seconds',*here(torch.device('cpu')))
KEY = ('row','workers','device')

def laptop(size): # name of the model, its backbone, options, batch, crop, other settings of Augment
    return 'fcn+idr mobilenetv2_100', 'mobilenetv2_100', dict(width=128, output_stride=16), 4, size, dict(scale=(.75,1.5), bounds=size, keep_ratio=False)
ROWS = {f'{h}x{w}':laptop((h,w)) for h,w in ((180,240),(360,480),(512,512))} | {
    'r50':('fcn+idr resnet50c', 'resnet50c', dict(output_stride=8), 2, (512,512), dict(bounds=(512,2048)))}

class Step:
    "Forward, backward and optimiser of a model; `batch` lies ready."
    def __init__(self, row, device):
        _, backbone, options, n, size, _ = ROWS[row]
        seed_everything(0)
        self.device = device
        self.model = build_segmentor('fcn', backbone, SPACE.num_classes, **options).to(device, memory_format=torch.channels_last).train()
        self.opt = torch.optim.AdamW(param_groups(self.model, TrainConfig()))
        self.batch = torch.randint(0, 256, (n,3,*size), dtype=torch.uint8), torch.randint(0, SPACE.num_classes, (n,*size))
        self(*self.batch); self(*self.batch) # buffers and moments are made
    def __call__(self, images, label):
        loss = self.model(images.to(self.device, memory_format=torch.channels_last), label.to(self.device)).loss
        self.opt.zero_grad(); loss.backward(); self.opt.step()
        if self.device.type=='cuda': torch.cuda.synchronize()

def rate(source, use, seconds, n):
    "Pictures a second of `use(batch)` on batches of `n` from an iterator, for so many seconds and two batches at least."
    start, count = time.perf_counter(), 0
    while count<2 or time.perf_counter()-start<seconds:
        use(next(source)); count += 1
    return n*count/(time.perf_counter()-start)

def fed(pairs, n, workers, use, seconds):
    "`rate` of batches that a loader reads; what it fetches before the clock runs is thrown away."
    source = batches(pairs, n, workers=workers)
    try:
        for _ in range(1+2*workers): next(source)
        return rate(source, use, seconds, n)
    finally: source.close()

def always(batch):
    while True: yield batch

def measure(row, pairs, workers, device, rounds=3, seconds=1.):
    "A row of the table for each number of workers; all of them, the step, and both together take turns."
    name,_,_,n,size,_ = ROWS[row]
    step, found = Step(row, device), {w:{k:[] for k in RATES} for w in workers}
    train = lambda batch: step(*batch)
    for _ in range(rounds):
        for w,rates in found.items():
            rates['loader'].append(fed(pairs, n, w, lambda batch: None, seconds))
            rates['step'].append(rate(always(step.batch), train, seconds, n))
            rates['together'].append(fed(pairs, n, w, train, seconds))
    alone = sorted(x for rates in found.values() for x in rates['step'])
    return [line(dict(row=row, model=name, crop=f'{size[0]}x{size[1]}', batch=n, workers=w), {**rates, 'step':alone}, rounds, seconds) for w,rates in found.items()]

def line(about, rates, rounds, seconds):
    middle = {k:statistics.median(v) for k,v in rates.items()}
    spread = {f'{k}_{end}':f(rates[k]) for k in RATES[:2] for end,f in (('low',min),('high',max))}
    return {**about, **{k:round(v, 2) for k,v in {**middle, **spread}.items()}, 'ratio':round(middle['loader']/middle['step'], 2),
            'waits':round(100*(1-middle['together']/middle['step']), 1), 'rounds':rounds, 'seconds':seconds}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', nargs='+', choices=ROWS, default=[*ROWS]); p.add_argument('--workers', type=int, nargs='+', default=[0,1,2])
    p.add_argument('--rounds', type=int, default=3); p.add_argument('--seconds', type=float, default=1., help='of each measurement')
    p.add_argument('--threads', type=int, help='of the step on a CPU; torch decides if not given'); p.add_argument('--device', default='auto')
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    device, missed = pick_device(a.device), []
    with tempfile.TemporaryDirectory() as folder:
        rows = DATASETS['pascal_voc'].load(write_fake_dataset('pascal_voc', Path(folder)/'VOC2012', SPACE, 24, 1, (480,640)), 'train')
        for row in a.rows:
            pairs = SegmentationDataset(rows, SPACE, augment=Augment(ROWS[row][4], **ROWS[row][5]))
            try: found = measure(row, pairs, a.workers, device, a.rounds, a.seconds)
            except (MemoryError, RuntimeError) as e:
                if not isinstance(e, MemoryError) and 'memory' not in str(e): raise
                missed.append(row); continue
            put(a.out, [{**r, **here(device)} for r in found], KEY, COLUMNS)
            for r in found:
                print(f'{row:8} {r["workers"]} workers  loader {r["loader"]:7.1f}  step {r["step"]:7.1f}  together {r["together"]:7.1f} pictures/s'
                      f'  loader/step {r["ratio"]:.2f}  waits {r["waits"]:.0f} %', flush=True)
    if missed: print(f'not enough memory for {", ".join(missed)}')

if __name__ == '__main__': main()
