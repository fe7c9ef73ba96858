"""A whole life in a terminal, in Cityscapes' layout: check the data, train, be killed, resume, judge, predict, save, load."""

import re
import json, signal, subprocess, sys, time
import numpy as np
from PIL import Image
from idrnet_nb.training.checkpoint import checkpoints
from idrnet_nb.cli import main
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.training.inference import load_model
from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.training.logger import read_log


def idrnet(*words):
    return main([str(w) for w in words])


def test_a_whole_life(tmp_path, capfd):
    space, out = DATASETS['cityscapes'].space, tmp_path / 'run'
    root = write_fake_dataset('cityscapes', tmp_path / 'city', space, train=8, unseen=3, size=(48, 96))
    assert (
        idrnet('check-data', '--data', 'cityscapes', '--root', root, '--json', tmp_path / 'check.json', '--quiet') == 0
    )
    assert json.loads((tmp_path / 'check.json').read_text())['train']['pictures'] == 8
    words = [
        'train',
        '--data',
        'cityscapes',
        '--root',
        root,
        '--recipe',
        'laptop_fcn_cityscapes',
        '--mini',
        '--set',
        'epochs=12',
        'log_every=1',
        '--save-every',
        2,
        '--judge',
        'val',
        '--device',
        'cpu',
        '--quiet',
        '--out',
        out,
    ]
    child = subprocess.Popen(
        [sys.executable, '-c', 'import sys; from idrnet_nb.cli import main; sys.exit(main())', *map(str, words)]
    )
    while len(checkpoints(out / 'checkpoints')) < 2:
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len([l for l in read_log(out) if 'loss' in l])
    assert (
        0 < done < 24 and idrnet(*words) == 2 and 'resume' in capfd.readouterr().err
    )  # nobody asked to go on: nothing is written over
    assert idrnet(*words, '--resume') == 0 and [l['step'] for l in read_log(out) if 'loss' in l] == list(range(24))
    trained = capfd.readouterr().out
    assert idrnet('evaluate', '--model', out, '--data', 'cityscapes', '--root', root, '--device', 'cpu', '--quiet') == 0
    evaluated = capfd.readouterr().out
    scores = [re.search(r'^mIoU +([0-9.]+)', text, re.M)[1] for text in (evaluated, trained)]
    assert scores[0] == scores[1]
    pictures = sorted(root.glob('leftImg8bit/val/*/*.png'))
    assert idrnet('predict', '--model', out, '--out', tmp_path / 'seen', '--server', '--device', 'cpu', *pictures) == 0
    ids = np.array(Image.open(tmp_path / 'seen' / pictures[0].name))
    assert ids.shape == (48, 96) and {*np.unique(ids)} <= {
        raw for raw, train in space.raw_to_train.items() if train != 255
    }
    model, have = load_model(out, space)
    assert have.classes == space.classes and model.relations[0].shape == (19, 19)
