"""One batch of every part is tried before the first step; the training that follows is the same, bit for bit."""

import random
from dataclasses import replace
import numpy as np
import pytest
import torch
from noisy_images import NoisyImages
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.inference import Evaluator
from idrnet_nb.training.logger import read_log
from idrnet_nb.training.trainer import train, try_one_batch

CONFIG = TrainConfig(steps=3, batch_size=2, warmup=0, log_every=1)


def images():
    return NoisyImages(ToyWorld(6, size=32), scale=10)


def small(framework='fcn'):
    torch.manual_seed(0)
    return build_segmentor(framework, 'tiny', 12, width=8, attention_width=4, aux_width=4)


def everything(model):
    "Weights, buffers that are not saved too, gradients, modes, and where all generators stand."
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: x.detach().clone() for name, x in tensors.items()},
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        model.has_seen_bright,
        (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    )


def equal(a, b):
    return all(torch.equal(x, b[0][name]) for name, x in a[0].items()) and a[1:] == b[1:]


CONFIGS = [
    CONFIG,
    replace(CONFIG, ema=0.9, accumulate=2, clip=1.0),
    replace(CONFIG, frozen=True, amp='bf16', channels_last=True),
]


@pytest.mark.parametrize('config', CONFIGS)
def test_a_trial_leaves_no_trace(config):
    model = small()
    model.head.aux_classifier.eval()
    before = everything(model)
    try_one_batch(model, images(), config, 'cpu', Evaluator(images()))
    assert equal(before, everything(model))


@pytest.mark.parametrize('config', [*CONFIGS, replace(CONFIG, workers=1)])
def test_the_training_is_the_same(config, tmp_path):
    ends = []
    for try_first in (True, False):
        model = small('upernet')
        out = tmp_path / str(try_first)
        records = train(
            model, images(), config, 'cpu', False, out=out, eval_fn=Evaluator(images()), try_first=try_first
        )
        lines = [{**line, 'time': None} for line in read_log(out)]
        ends.append((model.state_dict(), records, lines, torch.get_rng_state().tolist(), random.random()))
    assert all(torch.equal(x, ends[1][0][name]) for name, x in ends[0][0].items())
    assert ends[0][1:] == ends[1][1:]


def test_validation_is_tried_before_the_first_step(tmp_path):
    "A mask without a class, and an image that is no image: named with the item, before a step is taken."
    image, label = ToyWorld(1, size=32)[0]
    steps = []
    for bad, text in (((image, label + 40), 'labels of images 0'), ((image / 255, label), 'values from 0')):
        with pytest.raises(ValueError, match=f'^validation, item 0: .*{text}'):
            train(
                small(), images(), CONFIG, 'cpu', False, steps.append, tmp_path / 'run', eval_fn=Evaluator([bad, bad])
            )
    assert not steps
    train(small(), images(), CONFIG, 'cpu', False, steps.append, tmp_path / 'run')  # the folder can be used
    assert steps == [0, 1, 2]


def test_the_item_of_a_limited_part_is_named():
    good = [(torch.zeros(3, 32, 32), torch.zeros(32, 32).long())] * 7
    with pytest.raises(ValueError, match='^validation, item 7: '):
        Evaluator([*good, 0, *good], limit=1).try_one(small())


def test_a_resumed_training_is_not_tried(tmp_path):
    class OfTrain(Evaluator):
        tried = 0

        def try_one(self, model):
            OfTrain.tried += 1

    class Killed(BaseException):
        pass

    def kill(step):
        if step == 1:
            raise Killed

    how = dict(out=tmp_path, eval_fn=OfTrain(images()), save_every=1, resume=True)
    with pytest.raises(Killed):
        train(small(), images(), CONFIG, 'cpu', False, kill, **how)
    train(small(), images(), CONFIG, 'cpu', False, **how)
    assert OfTrain.tried == 1


def test_a_bad_loss_is_left_to_the_first_step(tmp_path):
    "It keeps the batch, or skips it."
    model = small()
    with torch.no_grad():
        model.head.classifier.logits.bias[0] = float('inf')
    assert try_one_batch(model, images(), CONFIG, 'cpu') is None
    with pytest.raises(FloatingPointError, match='step 0: .*its batch: image'):
        train(model, images(), CONFIG, 'cpu', False, out=tmp_path)
    assert list(tmp_path.glob('bad-step-00000000*'))


def test_limit_is_spread_and_always_the_same():
    data = ToyWorld(50, size=32)
    assert Evaluator(data, limit=5).indices == [5, 15, 25, 35, 45]
    for n in range(1, 50):
        indices = Evaluator(data, limit=n).indices
        assert len(set(indices)) == n and 0 <= min(indices) and max(indices) < 50
    model = small()
    part = [data[i] for i in (8, 25, 41)]
    assert Evaluator(data, limit=3)(model) == Evaluator(part)(model)
    assert Evaluator(data, limit=99)(model) == Evaluator(data)(model)
