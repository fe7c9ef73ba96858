"""The rows of nbs/results/softmax_order.csv: softmax at the input's size, softmax on the network's own grid, or logits, with the same weights.

    python tools/softmax_order.py world --seeds 5
    python tools/softmax_order.py stanford_background --root stanford --weights mobilenetv2_100_imagenet.safetensors

A model is trained for a short time and then judged in six ways: three words of `EvalProtocol.average`, each with one look and with several. Rows are
added to the CSV, which nbs/4_training/09_inference.ipynb reads; a run that is repeated belongs in another file."""
import argparse, json, time
from dataclasses import asdict
from pathlib import Path

import torch

from idrnet_nb.experiments.compare import build
from idrnet_nb.experiments.tasks import dataset_task, toy_world_task
from idrnet_nb.training.inference import EvalProtocol, probabilities
from idrnet_nb.training.metrics import Meter
from idrnet_nb.experiments.results import append_rows, provenance
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.trainer import train

RESULTS = Path(__file__).resolve().parents[1]/'nbs'/'results'
COLUMNS = ('date', 'commit', 'task', 'note', 'arm', 'seed', 'looks', 'average', 'miou', 'aacc', 'same', 'seconds',
           'config', 'version', 'torch', 'python', 'device')
WORDS = ('probabilities', 'grid_probabilities', 'logits')
LOOKS = {'once': {}, 'scales .75 1 1.25, mirrored': dict(scales=(.75, 1., 1.25), flip=True)}

def plan(name, root, weights):
    "The data, the settings of the model, and how it is trained."
    if name=='world':
        return toy_world_task(2000, 200), dict(width=48, attention_width=24, aux_width=16), TrainConfig(steps=200, batch_size=8, lr=3e-3)
    model = dict(backbone='mobilenetv2_100', weights=weights, output_stride=16, width=64, attention_width=32, aux_width=32)
    return dataset_task(name, root, (120, 160)), model, TrainConfig(steps=80, batch_size=8, lr=1e-3, backbone_lr=.5, channels_last=True)

def judge(model, task, protocol):
    "Predictions of all unseen images, their scores in percent, and the seconds that inference took."
    meter, preds, seconds = Meter(task.space.num_classes), [], 0.
    for image,label in task.test:
        start = time.perf_counter()
        preds.append(probabilities(model, image[None], protocol, label.shape).argmax(1)[0])
        seconds += time.perf_counter()-start
        meter.update(preds[-1][None], label[None])
    scores = meter.scores()
    return preds, dict(miou=round(scores['miou'], 4), aacc=round(scores['aacc'], 4), seconds=round(seconds, 2))

def share_of_same(preds, others):
    "Percent of all pixels that have the same class in both."
    same = sum((a==b).sum().item() for a,b in zip(preds, others))
    return round(100*same/sum(a.numel() for a in preds), 4)

def run(arm, task, model_settings, config):
    "The rows of one model."
    model = build(arm, task, config.seed, **model_settings)
    train(model, task.train, config, 'cpu', False)
    base = task.protocol or EvalProtocol()
    about = dict(train={n:v for n,v in asdict(config).items() if n!='seed'}, model={n:getattr(v, 'name', v) for n,v in model_settings.items()})
    for looks,change in LOOKS.items():
        first = None
        for average in WORDS:
            protocol = base.but(average=average, **change)
            preds, scores = judge(model, task, protocol)
            first = first or preds
            row = dict(task=task.name, note=f'{task.note}, {config.steps} steps of {config.batch_size}', arm=arm, seed=config.seed, looks=looks,
                       average=average, **scores, same=share_of_same(preds, first), config=json.dumps({**about, 'protocol':asdict(protocol)}))
            yield row | provenance(torch.device('cpu'))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('task', choices=('world', 'stanford_background'))
    p.add_argument('--root', type=Path, help='folder of the pictures, where they are not made up')
    p.add_argument('--weights', type=Path, help='safetensors file of the backbone')
    p.add_argument('--arms', nargs='+', default=['fcn+idr'])
    p.add_argument('--seeds', type=int, default=3, help='so many, from 0')
    p.add_argument('--out', type=Path, default=RESULTS/'softmax_order.csv')
    a = p.parse_args()
    torch.set_num_threads(1)
    for seed in range(a.seeds):
        for arm in a.arms:
            task, settings, config = plan(a.task, a.root, a.weights)
            for row in run(arm, task, settings, TrainConfig(**{**asdict(config), 'seed':seed})):
                append_rows(a.out, [row], COLUMNS)
                print(f'{arm} seed {seed}  {row["looks"]:28} {row["average"]:19} mIoU {row["miou"]:.2f}  same {row["same"]:.2f} %  {row["seconds"]:.1f} s', flush=True)

if __name__=='__main__': main()
