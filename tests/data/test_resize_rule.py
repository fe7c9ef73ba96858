"""One rule for resizing in training, evaluation and prediction: an image has one size, whoever asks."""

import io, json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import seed_everything
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.transforms import fit_size
from idrnet_nb.training.inference import EvalProtocol, evaluate, load_model, probabilities, save_model
from idrnet_nb.training.recipes import RECIPES, Recipe, for_space, laptop, mini
from idrnet_nb.training.trainer import train

K = 3
SPACE = LabelSpace('frames', ('ground', 'upright', 'lying'), tuple(map(tuple, palette(K).tolist())))


def sizes(n):
    "Sizes of all kinds: upright and lying, square, one pixel wide, panoramas."
    r = np.random.default_rng(0)
    some = [(1, 1), (1, 5000), (5000, 1), (7, 7), (240, 320), (320, 240), (1024, 2048), (3000, 4000), (4000, 3000)]
    some += [tuple(r.integers(1, 3000, 2).tolist()) for _ in range(n - len(some))]
    return some + [(w, h) for h, w in some]


def upright(size):
    return (size[0] > size[1]) - (size[0] < size[1])


# --- sizes


def trained_size(recipe, size):
    "What `Augment` makes of an image at factor 1, before it crops."
    a = recipe.augment
    return fit_size(size, a.bounds, a.keep_ratio) if a.bounds else tuple(size)


EVERY = {
    **RECIPES,
    **{f'mini_{name}': mini(r) for name, r in RECIPES.items()},
    **{f'own_{name}': for_space(r, SPACE) for name, r in RECIPES.items()},
    'own': laptop(SPACE),
    'tall': laptop(SPACE, size=(320, 200)),
}


@pytest.mark.parametrize('name', EVERY)
def test_a_recipe_judges_at_the_size_it_trains_at(name):
    recipe = EVERY[name]
    same = recipe.augment.bounds and sorted(recipe.augment.bounds) == sorted(recipe.protocol.resize)
    for size in sizes(40):
        trained, judged = trained_size(recipe, size), recipe.protocol.fit(size)
        if recipe.augment.keep_ratio == recipe.protocol.keep_ratio:
            assert upright(trained) * upright(judged) >= 0, size  # no image is laid on its side
        if same:
            assert trained == judged, size


def test_which_recipes_the_rule_changes():
    "Those that force images to a size that is not square; the published ones have none."
    turned = {name for name, r in RECIPES.items() if r.protocol.turn}
    assert turned == {name for name in RECIPES if name.startswith('laptop_')}
    assert all(
        r.protocol.keep_ratio or len(set(r.protocol.resize)) == 1 for name, r in RECIPES.items() if name not in turned
    )


@pytest.mark.parametrize('bounds', [(512, 2048), (240, 320), (320, 240), (473, 473), (1, 1)], ids=str)
def test_protocol_and_training_share_the_rule(bounds):
    for size in sizes(200):
        assert EvalProtocol(bounds, keep_ratio=True).fit(size) == fit_size(size, bounds)
        assert EvalProtocol(bounds, turn=True).fit(size) == fit_size(size, bounds, False)
        assert EvalProtocol(bounds).fit(size) == bounds  # a size is a size, unless somebody asks
        assert EvalProtocol(turn=True).fit(size) == size  # nothing to turn


def test_turned_is_turned():
    "An image and the same on its side get the same pixels."
    for h, w in sizes(200):
        if h != w:
            assert (
                EvalProtocol((240, 320), turn=True).fit((w, h)) == EvalProtocol((240, 320), turn=True).fit((h, w))[::-1]
            )


# --- words and files


def test_it_is_said_and_saved():
    p = EvalProtocol((240, 320), turn=True)
    assert str(p).startswith('resized to 240x320, upright ones to 320x240; ') and str(
        EvalProtocol((240, 320))
    ).startswith('resized to 240x320; ')
    assert str(EvalProtocol((64, 64), turn=True)) == str(EvalProtocol((64, 64)))  # where there is nothing to turn
    assert str(p.but(keep_ratio=True)) == str(EvalProtocol((240, 320), keep_ratio=True))
    assert EvalProtocol(**json.loads(json.dumps(asdict(p)))) == p
    old = asdict(p)
    del old['turn']
    assert EvalProtocol(**json.loads(json.dumps(old))) == EvalProtocol(
        (240, 320)
    )  # a model is judged as it was when it was saved


@pytest.mark.parametrize('name', ['laptop_fcn_camvid', 'idrnet_fcn_resnet50os8_ade20k', 'our_fcn_resnet50os8_ccp16'])
def test_a_recipe_of_before_is_judged_as_it_is_trained(name):
    old = RECIPES[name].to_json()
    del old['protocol']['turn']
    assert Recipe.from_json(json.loads(json.dumps(old))) == RECIPES[name]


# --- pixels


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def portrait(i, h=64, w=48):
    "Boxes on grey, half as long again as wide; which way they stand is their class, and nothing else tells it."
    r = np.random.default_rng(i)
    image, label = np.full((h, w, 3), 128, np.uint8), np.zeros((h, w), np.uint8)
    for _ in range(6):
        kind = int(r.integers(1, 3))
        a, b = (16, 11) if kind == 1 else (11, 16)
        y, x = r.integers(0, h - a), r.integers(0, w - b)
        if label[y : y + a, x : x + b].any():
            continue
        image[y : y + a, x : x + b], label[y : y + a, x : x + b] = (250, 250, 60), kind
    return dict(id=str(i), image=dict(bytes=png(image), path=f'{i}.png'), label=dict(bytes=png(label), path=f'{i}.png'))


def test_upright_images_are_judged_as_they_are_learnt(tmp_path):
    "The same weights, judged at the size of training and at that size laid on its side, which makes upright boxes of lying ones."
    recipe = laptop(SPACE, 'fcn', (48, 64), backbone='tiny', epochs=30, width=16)
    seed_everything(0)
    model = recipe.build()
    data, unseen = (
        recipe.pairs([portrait(i) for i in range(48)]),
        SegmentationDataset([portrait(i) for i in range(900, 924)], SPACE),
    )
    train(model, data, recipe.config(len(data), lr=5e-3), 'cpu', False)
    turned, laid = (
        evaluate(model, unseen, protocol=p).scores()['miou'] for p in (recipe.protocol, recipe.protocol.but(turn=False))
    )
    assert turned > laid + 8, (turned, laid)
    save_model(model, tmp_path, SPACE, protocol=asdict(recipe.protocol))  # and predicted so, too
    again, p = load_model(tmp_path)[0], EvalProtocol(**load_model(tmp_path)[0].about['protocol'])
    image = unseen[0][0]
    seen = []
    again.backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    assert probabilities(again, image[None], p).shape == (1, K, 64, 48) and seen == [(64, 48)]
