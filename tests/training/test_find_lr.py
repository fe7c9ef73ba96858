"""The learning-rate range test: the rates it takes, where it stops, what it proposes; it leaves no trace."""

import math
import random
from dataclasses import replace
import numpy as np
import pytest
import torch
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.find_lr import LrRange, find_lr
from idrnet_nb.training.trainer import TrainState, train

CONFIG = TrainConfig(batch_size=2, lr=0.123, backbone_lr=0.1)
DATA = ToyWorld(6, size=32)


def small():
    torch.manual_seed(0)
    return build_segmentor('fcn', 'tiny', 12, width=8, attention_width=4, aux_width=4)


def test_leaves_no_trace():
    model = small()
    before = {name: x.clone() for name, x in [*model.named_parameters(), *model.named_buffers()]}
    chance = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    find_lr(model, DATA, replace(CONFIG, ema=0.9, frozen=True), 'cpu', steps=4, progress=False)
    assert all(torch.equal(x, before[name]) for name, x in [*model.named_parameters(), *model.named_buffers()])
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and model.training
    assert torch.equal(chance[0], torch.get_rng_state())
    assert chance[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_rates_rise_by_the_same_factor(monkeypatch):
    "From start to end; the backbone's by its share; config.lr, warm-up and schedule do not matter."
    rates, step = [], TrainState.train_step

    def spy(self, images, labels):
        rates.append({group['lr'] for group in self.optimiser.param_groups})
        return step(self, images, labels)

    monkeypatch.setattr(TrainState, 'train_step', spy)
    found = find_lr(small(), DATA, CONFIG, 'cpu', 1e-5, 1e-3, 5, progress=False)
    assert found.lr == pytest.approx([1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3])
    assert [max(r) for r in rates] == found.lr and [min(r) / max(r) for r in rates] == pytest.approx([0.1] * 5)
    assert not found.diverged


def test_the_losses_are_those_of_a_training():
    "With rates that change nothing, the losses of the same batches."
    found = find_lr(small(), DATA, replace(CONFIG, optimiser='sgd'), 'cpu', 1e-30, 1e-29, 4, progress=False)
    config = replace(CONFIG, optimiser='sgd', lr=1e-30, steps=4, log_every=1)
    assert found.raw == [r['loss'] for r in train(small(), DATA, config, 'cpu', False)]


def test_stops_where_it_breaks(monkeypatch):
    def losses(values):
        values = iter(values)

        def step(self, images, labels):
            value = next(values)
            if math.isnan(value):
                raise FloatingPointError('no number')
            return dict(loss=torch.tensor(value))

        monkeypatch.setattr(TrainState, 'train_step', step)
        return find_lr(small(), DATA, CONFIG, 'cpu', 1e-4, 1.0, 9, progress=False)

    found = losses([4.0, 4, 3, 2, 1, 1, 1, 9, 9])
    assert found.diverged and found.raw == [4, 4, 3, 2, 1, 1, 1, 9]
    assert found.lowest == 5 and found.proposal == pytest.approx(found.lr[5] / 10)
    found = losses([4.0, 3, math.nan])
    assert found.diverged and found.raw == [4, 3] and 'lr=' in str(found)
    found = losses([math.nan])
    assert found.diverged and found.proposal is None and 'no proposal' in str(found)
    assert losses([4.0, 5, 6, 7, 8, 8, 8, 8, 8]).proposal is None


def test_proposes_a_rate_that_trains():
    found = find_lr(small(), DATA, replace(CONFIG, backbone_lr=1.0), 'cpu', steps=40, progress=False)
    assert 1e-4 < found.proposal < 0.1
    config = replace(CONFIG, backbone_lr=1.0, steps=20, log_every=1)
    ends = [train(small(), DATA, replace(config, lr=lr), 'cpu', False)[-1]['loss'] for lr in (found.proposal, 1e-6)]
    assert ends[0] < 0.8 * ends[1]


def test_plot():
    import matplotlib.pyplot as plt

    for found in (LrRange([1e-3, 1e-2, 1e-1], [3.0, 2.0, 2.5], False, 1), LrRange([], [], True)):
        ax = found.plot().axes[0]
        assert ax.get_xscale() == 'log' and ax.get_xlabel() == 'learning rate'
    plt.close('all')


@pytest.mark.parametrize(
    'how', [dict(start=0), dict(start=1, end=0.1), dict(steps=1), dict(end=math.inf), dict(steps=2.5)]
)
def test_no_range(how):
    with pytest.raises(ValueError, match='rates rise from above 0'):
        find_lr(small(), DATA, CONFIG, 'cpu', progress=False, **how)


def test_wrong_data_are_named():
    with pytest.raises(ValueError, match=r'labels of step 0.*\(step 0: image'):
        find_lr(small(), [(image, label + 9) for image, label in DATA], CONFIG, 'cpu', steps=3, progress=False)
    balanced = replace(CONFIG, class_weights='balanced')
    assert len(find_lr(small(), DATA, balanced, 'cpu', steps=3, progress=False).raw) == 3
