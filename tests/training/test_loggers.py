"""Loggers get what the log gets, and images beside the scores; they change nothing, and a missing package is named."""

import random
import sys
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from idrnet_nb.data.labels import colour_map
from idrnet_nb.method.toy_world import TOY_WORLD, ToyWorld
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.inference import Evaluator, predict
from idrnet_nb.training.logger import read_log
from idrnet_nb.training.loggers import (
    MlflowLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
    prediction_panel,
)
from idrnet_nb.training.trainer import train

CONFIG = TrainConfig(steps=4, batch_size=2, warmup=0, log_every=2)
DATA = ToyWorld(6, size=32)


class Spy:
    "A logger that draws random numbers, as some do for the names of their runs."

    def __init__(self):
        self.calls = []

    def begin(self, settings):
        random.random(), np.random.rand(), torch.rand(1)
        self.calls.append(('begin', settings))

    def log(self, step, values, images):
        random.random(), torch.rand(1)
        self.calls.append((step, values, images))

    def end(self):
        self.calls.append('end')


def small():
    torch.manual_seed(0)
    return build_segmentor('fcn', 'tiny', 12, width=8, attention_width=4, aux_width=4)


def run(out=None, loggers=(), **how):
    model = small()
    train(model, DATA, CONFIG, 'cpu', False, out=out, loggers=loggers, **how)
    return model


def test_what_a_logger_gets(tmp_path):
    spy, eval_fn = Spy(), Evaluator(ToyWorld(4, size=32, seed=1))
    model = run(tmp_path / 'a', [spy], eval_fn=eval_fn, save_every=2)
    begin, *calls, end = spy.calls
    assert end == 'end' and begin[0] == 'begin'
    assert begin[1]['config']['steps'] == 4 and begin[1]['images'] == 6 and begin[1]['steps_done'] == 0
    assert begin[1]['model'] == model.to_config() and begin[1]['out'] == str(tmp_path / 'a')
    logged = [
        {k: v for k, v in line.items() if isinstance(v, float) and k != 'time'} for line in read_log(tmp_path / 'a')
    ]
    assert [call[1] for call in calls] == [values for values in logged if values]
    assert [call[0] for call in calls] == [0, 1, 2, 3, 3]
    assert [sorted(call[2]) for call in calls if 'score' in call[1]] == [[f'validation/{i}' for i in (0, 2, 3)]] * 2
    assert all(not call[2] for call in calls if 'loss' in call[1])
    plain = run(tmp_path / 'b', eval_fn=eval_fn, save_every=2)
    assert all(torch.equal(x, plain.state_dict()[name]) for name, x in model.state_dict().items())


def test_without_a_folder():
    spy = Spy()
    run(None, [spy])
    assert [call[0] for call in spy.calls[:-1]] == ['begin', 0, 2, 3] and spy.calls[0][1]['out'] is None


def test_ended_where_a_training_breaks():
    spy = Spy()
    with pytest.raises(ZeroDivisionError):
        train(small(), DATA, CONFIG, 'cpu', False, lambda step: 1 / 0, loggers=[spy])
    assert spy.calls[-1] == 'end'


def test_the_panels():
    "Image, true mask, prediction; of a Subset, too; colours of the label space."
    model, data = small().eval(), ToyWorld(9, size=32)
    data.space = TOY_WORLD
    panels = Evaluator(Subset(data, [8, 4, 2])).images(model, count=1)
    (name, panel), (image, label) = panels.popitem(), data[4]
    assert name == 'validation/1' and panel.shape == (32, 96, 3) and panel.dtype == np.uint8
    plain = image.permute(1, 2, 0).double().numpy()
    assert np.array_equal(panel[:, :32], plain.round())
    for mask, part in ((label, panel[:, 32:64]), (predict(model, image[None])[0], panel[:, 64:])):
        mixed = (plain + colour_map(mask.numpy(), TOY_WORLD.palette, TOY_WORLD.ignore)) / 2
        assert np.abs(part - mixed).max() <= 1
    items = [data[i] for i in range(3)]  # nobody knows their classes' colours
    assert len(Evaluator(items).images(model)) == 3 and len(Evaluator(items).images(model, count=9)) == 3
    assert prediction_panel(torch.zeros(3, 1024, 50), *[torch.zeros(1024, 50).long()] * 2, TOY_WORLD).shape == (
        512,
        75,
        3,
    )


class Fake:
    "A module that writes down how it is called."

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return Fake(f'{self.name}.{name}', self.calls)

    def __call__(self, *args, **how):
        self.calls.append((self.name, args, how))
        return Fake(f'{self.name}()', self.calls)


SETTINGS = dict(config=dict(steps=4, lr=0.1), images=6, steps_done=0)
IMAGE = np.zeros((2, 6, 3), np.uint8)


def calls_of(make, module, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, module, Fake('x', calls))
    logger = make()
    logger.begin(SETTINGS)
    logger.log(0, dict(loss=1.0), {})
    logger.log(1, dict(score=0.5), dict(a=IMAGE))
    logger.end()
    return calls


@pytest.mark.parametrize('kind', [WandbLogger, TrackioLogger])
def test_wandb_and_trackio(kind, monkeypatch):
    init, loss, image, score, end = calls_of(lambda: kind(project='mine'), kind.package, monkeypatch)
    assert init == ('x.init', (), dict(config=SETTINGS, project='mine'))
    assert loss == ('x.init().log', (dict(loss=1.0),), dict(step=0))
    assert image == ('x.Image', (IMAGE,), {})
    assert score[0] == 'x.init().log' and score[2] == dict(step=1)
    assert score[1][0]['score'] == 0.5 and score[1][0]['a'].name == 'x.Image()'
    assert end == ('x.init().finish', (), {})


def test_mlflow(monkeypatch):
    calls = calls_of(lambda: MlflowLogger(run_name='mine'), 'mlflow', monkeypatch)
    assert calls == [
        ('x.start_run', (), dict(run_name='mine')),
        ('x.log_params', (SETTINGS['config'],), {}),
        ('x.log_dict', (SETTINGS, 'settings.json'), {}),
        ('x.log_metrics', (dict(loss=1.0),), dict(step=0)),
        ('x.log_metrics', (dict(score=0.5),), dict(step=1)),
        ('x.log_image', (IMAGE,), dict(key='a', step=1)),
        ('x.end_run', (), {}),
    ]


def test_tensorboard(monkeypatch):
    calls = calls_of(lambda: TensorBoardLogger('boards'), 'torch.utils.tensorboard', monkeypatch)
    assert [(name.removeprefix('x.SummaryWriter'), args, how) for name, args, how in calls if 'text' not in name] == [
        ('', ('boards',), {}),
        ('().add_scalar', ('loss', 1.0, 0), {}),
        ('().flush', (), {}),
        ('().add_scalar', ('score', 0.5, 1), {}),
        ('().add_image', ('a', IMAGE, 1), dict(dataformats='HWC')),
        ('().flush', (), {}),
        ('().close', (), {}),
    ]


@pytest.mark.parametrize(
    'make,module,package',
    [
        (WandbLogger, 'wandb', 'wandb'),
        (TrackioLogger, 'trackio', 'trackio'),
        (MlflowLogger, 'mlflow', 'mlflow'),
        (lambda: TensorBoardLogger('x'), 'torch.utils.tensorboard', 'tensorboard'),
    ],
)
def test_a_missing_package_is_named(make, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f'needs the package {package}: pip install {package}'):
        make()


def test_no_logger(tmp_path):
    for wrong, text in ((Spy, 'a Spy without begin, log, end'), (SimpleNamespace(log=print), 'without begin, end')):
        with pytest.raises(ValueError, match=text):
            run(tmp_path / 'x', [wrong])
    assert not (tmp_path / 'x').exists()
