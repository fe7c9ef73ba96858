"""A model starts from a saved one: what fits is copied, classes by their name, and what is new is told."""

import pytest
import torch
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.method.toy_world import TOY_WORLD, ToyWorld
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.fine_tune import class_axes, start_from
from idrnet_nb.training.inference import save_model
from idrnet_nb.training.trainer import train

SMALL = dict(width=8, attention_width=4, aux_width=4)


def small(k=12, framework='fcn', seed=0, **settings):
    torch.manual_seed(seed)
    return build_segmentor(framework, 'tiny', k, **{**SMALL, **settings})


def labels(*names):
    return LabelSpace('made up', names, tuple((i, 9, 9) for i in range(len(names))))


def state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def filled(model):
    "Every number of the state is another one."
    with torch.no_grad():
        for n, x in enumerate(model.state_dict().values()):
            if x.is_floating_point():
                x.copy_(torch.arange(x.numel()).reshape(x.shape) + 1000.0 * (n + 1))
    return model


@pytest.mark.parametrize('framework', FRAMEWORKS)
@pytest.mark.parametrize('idr', [True, False])
def test_class_axes(framework, idr):
    "Held against the shapes of a model that is built with 5 classes, where no other size is 5; chance stays."
    model = small(5, framework, idr=idr)
    before = torch.get_rng_state()
    axes = class_axes(model)
    assert torch.equal(before, torch.get_rng_state())
    assert axes == {n: x.shape.count(5) for n, x in model.state_dict().items() if 5 in x.shape and 'head' in n}


def test_the_same_classes(tmp_path):
    old = filled(small())
    save_model(old, tmp_path, TOY_WORLD)
    for space in (TOY_WORLD, None):
        model = small(seed=1)
        start = start_from(model, tmp_path, space)
        assert all(torch.equal(x, old.state_dict()[n]) for n, x in model.state_dict().items())
        assert start.share == 1 and not start.new and not start.by_class and len(start.classes) == 12


def test_classes_by_name(tmp_path):
    "As many classes, of other names and in another order: nothing goes to a wrong id."
    old, here, there = filled(small(4)), labels('Tree', 'cow', 'sky ', 'hay'), labels('sky', 'car', 'tree', 'road')
    save_model(old, tmp_path, there)
    model = small(4, seed=1)
    before, axes = state(model), class_axes(model)
    start = start_from(model, tmp_path, here)
    pairs = {0: 2, 2: 0}  # id here: id there
    for name, x in model.state_dict().items():
        was, saved = before[name], old.state_dict()[name]
        if name not in axes:
            assert torch.equal(x, saved)
            continue
        for i in range(4):
            if axes[name] == 1:
                assert torch.equal(x[i], saved[pairs[i]] if i in pairs else was[i]), name
                continue
            for j in range(4):
                both = i in pairs and j in pairs
                assert x[i, j] == (saved[pairs[i], pairs[j]] if both else was[i, j]), name
    assert start.classes == ['tree', 'sky'] and sorted(start.by_class) == sorted(axes) and not start.new
    assert 0.9 < start.share < 1 and 'entries of 2 classes of the same name (tree, sky)' in str(start)


def test_no_class_in_common_and_not_known(tmp_path):
    old = filled(small(4))
    save_model(old, tmp_path, labels(*'abcd'))
    for space in (labels(*'efghi'), None):
        model = small(5, seed=1)
        before = state(model)
        start = start_from(model, tmp_path, space)
        assert sorted(start.new) == sorted(class_axes(model)) and not start.classes
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in start.new)
        assert torch.equal(model.head.bottleneck.conv.weight, old.head.bottleneck.conv.weight) and 'new are' in str(
            start
        )


def test_what_does_not_fit_is_new(tmp_path):
    "Another framework, without IDR: the backbone fits."
    save_model(small(), tmp_path, TOY_WORLD)
    start = start_from(small(framework='pspnet', idr=False), tmp_path, TOY_WORLD)
    assert 'backbone.net.stages.0.0.weight' in start.copied
    assert any(name.startswith('head.context') for name in start.new)


def test_nearly_nothing_fits(tmp_path):
    save_model(small(), tmp_path, TOY_WORLD)
    torch.manual_seed(0)
    other = build_segmentor('fcn', 'resnet18', 12, width=32, attention_width=4, aux_width=4)
    before = state(other)
    with pytest.raises(ValueError, match='only . % of the weights fit .*take the backbone and the framework'):
        start_from(other, tmp_path, TOY_WORLD)
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())
    with pytest.raises(ValueError, match='the model has 12 classes, label space .made up. has 2'):
        start_from(small(), tmp_path, labels('a', 'b'))


def test_from_a_training(tmp_path):
    "The best checkpoint of a training that has no saved model yet."
    config = TrainConfig(steps=2, batch_size=2, ema=0.5)
    scores = iter([1.0, 0.0])
    model = small()
    how = dict(save_every=1, eval_fn=lambda m: next(scores), card=dict(space=TOY_WORLD))
    train(model, ToyWorld(4, size=32), config, 'cpu', False, out=tmp_path, **how)
    other = small(seed=1)
    assert start_from(other, tmp_path, TOY_WORLD, which='best').share == 1
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())
