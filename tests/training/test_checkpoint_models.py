"""Checkpoints are models: read by step, the best or the last, from a folder or a file, while the training is not yet done."""

import json
from dataclasses import replace
import pytest
import torch
from idrnet_nb.method.toy_world import TOY_WORLD, ToyWorld
from idrnet_nb.models.segmentor import Segmentor, build_segmentor
from idrnet_nb.training.checkpoint import load_checkpoint
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.inference import EvalProtocol, load_model, save_model, trained_size
from idrnet_nb.training.trainer import train

CONFIG = TrainConfig(steps=4, batch_size=2, warmup=0)
DATA = ToyWorld(6, size=32)
CARD = dict(space=TOY_WORLD, size=(32, 32), protocol=EvalProtocol(flip=True))


class Killed(BaseException):
    pass


def small(width=8):
    torch.manual_seed(0)
    return build_segmentor('fcn', 'tiny', 12, width=width, attention_width=4, aux_width=4)


def kill_after(steps):
    def on_step(step):
        if step + 1 == steps:
            raise Killed

    return on_step


def run(out, config=CONFIG, kill_at=None, **how):
    model, scores = small(), iter([0.5, 0.9, 0.1, 0.2])
    how = {**dict(card=CARD, save_every=1, eval_fn=lambda m: next(scores)), **how}
    try:
        train(model, DATA, config, 'cpu', False, kill_at and kill_after(kill_at), out, **how)
    except Killed:
        pass
    return model


def same(model, weights):
    return all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize('ema', [None, 0.5])
def test_a_checkpoint_is_a_model(ema, tmp_path):
    run(tmp_path, replace(CONFIG, ema=ema), kill_at=4)
    for which, step in ((1, 1), ('best', 2), ('last', 3)):
        state = load_checkpoint(tmp_path / 'checkpoints', step)['state']
        wanted = {name: state['ema'][f'module.{name}'] for name in state['model']} if ema else state['model']
        for source, which in ((tmp_path, which), (tmp_path / 'checkpoints' / f'step-{step:08d}.safetensors', None)):
            model, space = load_model(source, which=which)
            assert same(model, wanted) and not model.training and space == TOY_WORLD
            assert EvalProtocol(**model.about['protocol']) == CARD['protocol']
            assert trained_size(source) == (32, 32)
    assert ema is None or not same(model, state['model'])


def test_a_checkpoint_says_of_which_classes_it_is(tmp_path):
    run(tmp_path)
    farm = replace(TOY_WORLD, name='farm', classes=tuple('abcdefghijkl'))
    with pytest.raises(ValueError, match="trained for label set 'world'"):
        load_model(tmp_path, farm, which='last')


def test_the_best_is_what_is_saved_at_the_end(tmp_path):
    "A saved model beside its checkpoints; which=None is the model, and a resumed training does not touch its settings."
    model = run(tmp_path)
    save_model(model, tmp_path, TOY_WORLD, (32, 32), results=[dict(miou=1.0)])
    assert same(load_model(tmp_path)[0], load_model(tmp_path, which='best')[0].state_dict())
    assert same(load_model(tmp_path / 'model.safetensors')[0], model.state_dict())
    before = (tmp_path / 'config.json').read_text()
    run(tmp_path, resume=True)
    assert (tmp_path / 'config.json').read_text() == before and 'results' in json.loads(before)


def test_written_before_the_first_step(tmp_path):
    run(tmp_path, kill_at=1)
    assert json.loads((tmp_path / 'config.json').read_text())['space']['name'] == 'world'
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors, but .*which='best'"):
        (tmp_path / 'checkpoints').mkdir(exist_ok=True)
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match='there are: none'):
        load_model(tmp_path, which='best')


def test_what_is_missing_is_said(tmp_path):
    run(tmp_path, card=None)
    file = tmp_path / 'checkpoints' / 'step-00000004.safetensors'
    for source, which in ((tmp_path, 'best'), (file, None)):
        with pytest.raises(ValueError, match=r'has checkpoints but no config.json.*card=dict\(space='):
            load_model(source, which=which)
    with pytest.raises(FileNotFoundError, match='no checkpoint .*step-00000099'):
        load_model(tmp_path / 'checkpoints' / 'step-00000099.safetensors')
    other = tmp_path / 'weights.safetensors'
    other.write_bytes(b'')
    with pytest.raises(ValueError, match='is no checkpoint of a training'):
        load_model(other)
    with pytest.raises(ValueError, match="which='newest'"):
        save_model(small(), tmp_path, TOY_WORLD)
        load_model(tmp_path, which='newest')


def test_a_checkpoint_of_another_model(tmp_path):
    run(tmp_path)
    settings = json.loads((tmp_path / 'config.json').read_text())
    settings['head']['width'] = 12
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r'step-00000004.*config.json.: the checkpoint is of another model: head.bottleneck'
    ):
        load_model(tmp_path, which='last')


@pytest.mark.parametrize(
    'card,text',
    [
        (dict(size=(32, 32)), 'lacks the classes'),
        (dict(space=replace(TOY_WORLD, classes=('a', 'b'), palette=((0, 0, 0), (1, 1, 1)), raw_to_train=None)), '2'),
        (dict(space=TOY_WORLD, protocol=dict(scales=())), 'scales is empty'),
    ],
)
def test_a_wrong_card(card, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        run(tmp_path / 'run', card=card)
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ValueError, match='need a folder: give out='):
        train(small(), DATA, CONFIG, 'cpu', False, card=CARD)


def test_a_training_beside_a_model_is_not_written_over(tmp_path):
    run(tmp_path)
    before = (tmp_path / 'config.json').read_text()
    with pytest.raises(FileExistsError):
        train(small(16), DATA, CONFIG, 'cpu', False, out=tmp_path, card=CARD)
    assert (tmp_path / 'config.json').read_text() == before
    assert isinstance(load_model(tmp_path, which='last')[0], Segmentor)
