"""What comes in at the model's doors: saved settings, images, labels, the ignore index. It is taken as a user means it, or named."""

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from idrnet_nb.method.grouping import memory_sums
from idrnet_nb.common.checks import IGNORE, check_ignore, check_labels
from idrnet_nb.data.labels import LabelSpace, colour_map, palette
from idrnet_nb.method.layers import mean_loss, pixel_losses
from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy
from idrnet_nb.models.head import HeadConfig, SegHead
from idrnet_nb.method.idr import IDRContext
from idrnet_nb.models.segmentor import Segmentor, build_segmentor
from idrnet_nb.training.inference import EvalProtocol, evaluate, load_model, probabilities, save_model, trained_size
from idrnet_nb.method.deletion import class_loss_stats
from idrnet_nb.training.losses import Criterion, hard_mean, lovasz, soft_dice
from idrnet_nb.training.metrics import Meter, boundary_counts, confusion_matrix
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.trainer import train

K, SMALL = 3, dict(width=8, attention_width=4, aux_width=4)
SPACE = LabelSpace('made up', ('a', 'b', 'c'), tuple(map(tuple, palette(3).tolist())), {0: 0, 1: 1, 2: 2, 9: 255})


def model_of(k=K, **settings):
    return build_segmentor('fcn', num_classes=k, backbone_args=dict(width=4), **{**SMALL, **settings})


def images_of(b=2, h=16, w=24):
    return torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8)


def labels_of(b=2, h=16, w=24, k=K):
    return torch.randint(0, k, (b, h, w))


# --- every field of config.json, of every other type
PROTOCOL = dict(
    resize=[32, 48],
    keep_ratio=True,
    window=[16, 16],
    step=[8, 8],
    scales=[0.5, 1.0],
    flip=True,
    flip_pairs=[[0, 1]],
    average='logits',
)
GONE = object()
VALUES = (None, 'x', '', [], ['x'], [1], {}, {'a': 1}, True, 7, -1, 1.5, 10**12, GONE)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    save_model(model_of(), folder, SPACE, (32, 48), protocol=PROTOCOL, results=[dict(data='x', miou=50.0)])
    return folder, json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')


def leaves(value, at=()):
    "Paths of all values, of tables and lists too."
    if at:
        yield at
    if isinstance(value, dict):
        for k, v in value.items():
            yield from leaves(v, (*at, k))
    if isinstance(value, list):
        for i, v in enumerate(value[:2]):
            yield from leaves(v, (*at, i))


def mutated(config, at, value):
    config = copy.deepcopy(config)
    *way, last = at
    inner = config
    for step in way:
        inner = inner[step]
    if value is not GONE:
        inner[last] = value
    elif isinstance(inner, list):
        inner.pop(last)
    else:
        del inner[last]
    return config


def put(folder, config, weights):
    text = json.dumps(config)
    (folder / 'config.json').write_text(text)
    save_file(weights, folder / 'model.safetensors', metadata=dict(config=text))


WORDS = dict(palette='colour', num_classes='classes', fpn='pyramid')  # said in words


def kind(x):
    return 'number' if isinstance(x, (int, float)) and not isinstance(x, bool) else type(x).__name__


def named(error, at, same_kind):
    "Does the error say which file, and which key of it? A number of the right type may be found out by the weights alone."
    if same_kind and 'model.safetensors' in error and 'does not fit Segmentor' in error:
        return True
    key = next(k for k in reversed(at) if isinstance(k, str))
    return 'config.json' in error and (key in error or WORDS.get(key, key) in error)


PARTS = ('format', 'version', 'backbone', 'head', 'space', 'protocol', 'size', 'results')


@pytest.mark.parametrize('part', PARTS)
def test_every_field_of_config_json(saved, part):
    "An error that names file and field, or a model as good as it was; never another error."
    folder, config, weights = saved
    free = {
        ('version',),
        ('space', 'name'),
        ('results',),
    }  # any text, any number of measurements; their columns are free
    wrong = []
    for at in [a for a in leaves(config) if a[0] == part]:
        old = config
        for step in at:
            old = old[step]
        for value in VALUES:
            if value is not GONE and value == old and kind(value) == kind(old):
                continue
            put(folder, mutated(config, at, value), weights)
            for read in (load_model, Segmentor.from_pretrained):
                try:
                    got = read(folder)
                except ValueError as e:
                    plausible = value is GONE or kind(value) == kind(old) or old is None or isinstance(old, bool)
                    if not named(str(e), at, plausible):
                        wrong.append((at, value, 'says not where', str(e)[:120]))
                except Exception as e:
                    wrong.append((at, value, type(e).__name__, str(e)[:120]))
                else:
                    model = got if read is not load_model else got[0]
                    other_kind = (
                        value is not GONE and value is not None and kind(value) != kind(old) and old is not None
                    )
                    if (
                        other_kind
                        and not (read is not load_model and part == 'protocol')
                        and not any(at[: len(f)] == f for f in free)
                    ):
                        wrong.append((at, value, 'was taken'))
                    try:
                        model(images_of(1))
                    except Exception as e:
                        wrong.append((at, value, 'answers not', type(e).__name__, str(e)[:120]))
    put(folder, config, weights)
    assert not wrong, '\n'.join(map(str, wrong[:20]))


@pytest.mark.parametrize('part', ['backbone', 'head', 'space', 'protocol'])
def test_fields_that_nobody_knows(saved, part):
    folder, config, weights = saved
    put(folder, {**config, part: {**config[part], 'telescope': 3}}, weights)
    try:
        with pytest.raises(ValueError, match=r'(?s)config\.json.*telescope'):
            load_model(folder)
    finally:
        put(folder, config, weights)


@pytest.mark.parametrize('part', ['backbone', 'head', 'space', 'format', 'protocol', 'size', 'results', 'version'])
def test_parts_that_are_missing(saved, part):
    folder, config, weights = saved
    put(folder, {k: v for k, v in config.items() if k != part}, weights)
    try:
        if part in ('backbone', 'head', 'space', 'format'):
            with pytest.raises(ValueError, match=rf"lacks \['{part}'\]"):
                load_model(folder)
        else:
            load_model(folder), trained_size(folder)
    finally:
        put(folder, config, weights)


def test_numbers_of_another_type_are_no_save_of_these_weights(saved):
    "1, 1.0 and true are equal in Python, and three things in settings."
    folder, config, weights = saved
    put(folder, config, weights)
    for part, change in (('head', dict(width=8.0)), ('head', dict(idr=1)), ('backbone', dict(concat=0))):
        (folder / 'config.json').write_text(json.dumps({**config, part: {**config[part], **change}}))
        with pytest.raises(ValueError, match=f'from different saves, they differ in {part}.{next(iter(change))}'):
            load_model(folder)
    put(folder, config, weights)


# --- images
def normalised(x):
    return (x.float() - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(3, 1, 1)


BAD_SCALES = {
    '0..1': (lambda x: x / 255, r'from 0 to 1.*images\*255'),
    '0..1 double': (lambda x: x.double() / 255, r'images\*255'),
    '0..1 half': (lambda x: (x / 255).half(), r'images\*255'),
    '0..1, dark': (lambda x: x / 255 * 0.3, r'images\*255'),
    '-1..1': (lambda x: x / 127.5 - 1, 'Leave the normalisation out'),
    'normalised': (normalised, 'Leave the normalisation out'),
    'mean taken off': (lambda x: x.float() - 110, 'Leave the normalisation out'),
    '16 bit': (lambda x: x.float() * 257, 'Divide them by 257'),
    '16 bit integers': (lambda x: x.int() * 257, 'Divide them by 257'),
    'negative integers': (lambda x: x.short() - 110, 'Leave the normalisation out'),
}


@pytest.mark.parametrize('name', BAD_SCALES)
def test_images_of_another_scale(name):
    change, word = BAD_SCALES[name]
    model, x, y = model_of(), change(images_of()), labels_of()
    model.eval()(images_of())  # what was seen before makes no difference
    for door in (
        lambda: model.eval()(x),
        lambda: model.train()(x, y),
        lambda: probabilities(model, x),
        lambda: probabilities(model, x, EvalProtocol((8, 8))),
        lambda: evaluate(model, list(zip(x, y))),
        lambda: evaluate(model, list(zip(x, y)), protocol=EvalProtocol((8, 8), window=(4, 4))),
        lambda: train(model_of(), list(zip(x, y)), TrainConfig(steps=1, batch_size=2), 'cpu', progress=False),
    ):
        with pytest.raises(ValueError, match=word):
            door()


@pytest.mark.parametrize(
    'kind',
    [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float32, torch.float64, torch.bfloat16],
)
def test_numbers_of_any_type(kind):
    model, x, y = model_of().eval(), images_of(), labels_of()
    want = model(x).logits
    x = x.to(kind)
    if kind is torch.bfloat16:
        want = model(x.float()).logits
    torch.testing.assert_close(model(x).logits, want)
    torch.testing.assert_close(probabilities(model, x), want.softmax(1))
    assert evaluate(model, list(zip(x, y))).total.sum() == y.numel()


@pytest.mark.filterwarnings('error')
def test_black_and_dark_images_are_images():
    model, y = model_of(dropout=0.0), labels_of()
    dark = torch.rand(2, 3, 16, 24)
    for x in (0 * dark, images_of() * 0, (images_of() > 250).byte()):  # all of them may come in training and prediction
        model.eval()(x), probabilities(model, x), evaluate(model, list(zip(x, y))), model_of().train()(x, y)
    bright = 255 * torch.rand(2, 3, 16, 24)
    bright[:, :, :8, :8] = dark[:, :, :8, :8]  # a dark corner, alone in a window
    (
        probabilities(model, bright, window=(8, 8), step=(8, 8)),
        evaluate(model, list(zip(bright, y)), window=(8, 8), step=(8, 8)),
    )
    evaluate(model, [(bright[0], y[0]), (dark[0], y[0])], batch_size=1)  # a night among days
    model.eval()(images_of() - 5.0)  # as bicubic resizing leaves it, a little below 0 and above 255
    assert model.looks_at_values


def test_a_dark_crop_ends_no_training():
    "The first batch tells how images are scaled; a later one that is dark is warned of, once."
    model, y, bright, dark = model_of().train(), labels_of(), 255 * torch.rand(2, 3, 16, 24), torch.rand(2, 3, 16, 24)
    with pytest.raises(ValueError, match=r'images\*255'):
        model(dark, y)
    model(bright, y)
    with pytest.warns(UserWarning, match=r'images\*255'):
        model(dark, y)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(dark, y), model(bright, y)
    with pytest.raises(ValueError, match=r'images\*255'):
        model.eval()(dark)


def test_images_of_black_and_white():
    "Values 0 and 1 alone may be a scaled drawing, or a black photograph with noise: a warning."
    with pytest.warns(UserWarning, match='nearly black'):
        model_of().eval()((images_of() > 127).float())


SHAPES = {
    'one image': (lambda x: x[0], r'images\[None\]'),
    'an array of Pillow': (lambda x: x[0].permute(1, 2, 0), r'permute\(2,0,1\)\[None\]'),
    'channels last': (lambda x: x.permute(0, 2, 3, 1), r'permute\(0,3,1,2\)'),
    'grey': (lambda x: x[:, :1], r'expand\(-1,3,-1,-1\)'),
    'RGBA': (lambda x: torch.cat([x, x[:, :1]], 1), r'images\[:,:3\]'),
    'numpy': (lambda x: x.numpy(), 'from_numpy'),
    'list': (lambda x: list(x), 'must be a tensor'),
    'bool': (lambda x: x > 0, 'torch.bool'),
    'complex': (lambda x: x + 0j, 'complex'),
    'no images': (lambda x: x[:0], 'no images, the batch is empty'),
    'grey without channel': (lambda x: x[:, 0], 'must be `b 3 H W` RGB'),
    'five axes': (lambda x: x[None], 'must be `b 3 H W` RGB'),
}


@pytest.mark.parametrize('name', SHAPES)
def test_images_of_another_shape(name):
    change, word = SHAPES[name]
    for door in (
        model_of().eval(),
        model_of().train(),
        lambda x: probabilities(model_of(), x),
        lambda x: probabilities(model_of(), x, EvalProtocol((8, 8))),
    ):
        with pytest.raises(ValueError, match=word):
            door(change(images_of()))


@pytest.mark.parametrize('size', [(0, 5), (-1, 5), (5,), 7, 'ab', (2.5, 5), (None, 5), (1, 2, 3)], ids=str)
def test_sizes_of_the_answer(size):
    for door in (
        lambda: model_of().eval()(images_of(), size=size),
        lambda: probabilities(model_of(), images_of(), size=size),
    ):
        with pytest.raises(ValueError, match=re.escape(f'size={size}')):
            door()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs two devices')
def test_two_devices():
    model = model_of().eval()
    with pytest.raises(ValueError, match='images are on cuda:0, the model is on cpu'):
        model(images_of().cuda())
    with pytest.raises(ValueError, match='labels are on cuda:0'):
        model(images_of(), labels_of().cuda())
    model.cuda()
    with pytest.raises(ValueError, match=r'images\*255'):
        model((images_of() / 255).cuda())
    with pytest.raises(ValueError, match=r'images\*255'):
        probabilities(model, (images_of() / 255).cuda())
    images, labels = images_of().cuda(), labels_of().cuda()  # a copy from the host waits by itself
    torch.cuda.set_sync_debug_mode('error')
    try:
        model.train()(images, labels, upsample_logits=False)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_a_backbone_that_wants_other_numbers():
    with pytest.raises(ValueError, match='multiply both by 255'):
        build_segmentor('fcn', backbone_args=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), **SMALL)
    ints = build_segmentor(
        'fcn', backbone_args=dict(mean=(0, 0, 0), std=(255, 255, 255)), **SMALL
    )  # whole numbers are numbers
    assert ints.mean.dtype == torch.float32
    x = images_of() + 0.5
    assert not torch.equal(ints.eval()(x).logits, ints(x.floor()).logits)


# --- labels
KINDS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]


@pytest.mark.parametrize('kind', KINDS)
def test_labels_of_any_integers(kind):
    x, y = images_of(), labels_of()
    y[0, :3] = 255 if kind is not torch.int8 else 100
    ignore = 255 if kind is not torch.int8 else 100
    z, logits, small = y.to(kind), torch.randn(2, K, 16, 24), torch.randn(2, K, 4, 6)
    losses = [
        lambda y: pixel_losses(logits, y, ignore),
        lambda y: mean_loss(pixel_losses(logits, y, ignore), y, ignore),
        lambda y: tiled_cross_entropy(small, y, ignore)[0],
        lambda y: tiled_cross_entropy(logits, y, ignore)[0],
        lambda y: soft_dice(logits, y, ignore),
        lambda y: lovasz(logits, y, ignore),
        lambda y: hard_mean(logits[:, 0], y, ignore, (1.0, 2.0, 3.0), 0.5, 3),
    ]
    losses += [
        lambda y, c=c: Criterion(c, class_weights=(1.0, 2.0, 3.0))(logits, y, ignore)
        for c in ('ce', 'focal+dice', 'lovasz')
    ]
    for loss in losses:
        torch.testing.assert_close(loss(z), loss(y), rtol=0, atol=0)
    for count in (lambda y: confusion_matrix(y * 0, y, K, ignore), lambda y: boundary_counts(y * 0, y, K, 0.1, ignore)):
        if kind is not torch.uint16:
            assert torch.equal(count(z), count(y))
    meter = Meter(K, ignore, boundary=0.1)
    meter.update(y.clamp(max=2).to(kind), z)
    assert meter.total.sum() == (y != ignore).sum() == meter.total.diagonal().sum()
    deleted = torch.tensor([0, 1])
    for seed in (0, 1):
        idr, other = IDRContext(K, 8), IDRContext(K, 8)
        for one, label in ((idr, z), (other, y)):
            one.learn_memory(small.repeat(1, 3, 1, 1)[:, :8], label)
            one.learn_relations(deleted, logits[:, 0], logits[:, 1], label)
        assert all(torch.equal(a, b) for a, b in zip(idr.buffers(), other.buffers()))
    model = model_of(ignore=ignore, dropout=0.0)
    for m in (copy.deepcopy(model).train(), model.eval()):
        again = copy.deepcopy(m)
        noise = torch.rand(2, K)
        assert m(x, z, uniform=noise).loss == again(x, y, uniform=noise).loss and all(
            torch.equal(a, b) for a, b in zip(m.buffers(), again.buffers())
        )
    assert evaluate(model, list(zip(x, z))).total.equal(evaluate(model, list(zip(x, y))).total)
    if kind is torch.uint16:
        return  # which torch cannot pad or stack everywhere
    rows = [
        train(copy.deepcopy(model), list(zip(x, t)), TrainConfig(steps=2, batch_size=2), 'cpu', progress=False)
        for t in (z, y)
    ]
    assert rows[0] == rows[1]


def test_an_ignore_index_that_a_byte_cannot_hold():
    "300 is 44 in a byte, and -100 is 156: labels are widened before anything is compared or padded."
    y = torch.full((2, 13, 13), 44, dtype=torch.uint8)
    assert confusion_matrix(y, y, 50, 300).sum() == y.numel() and mean_loss(torch.ones(2, 13, 13), y, 300) == 1
    model = model_of(50, ignore=300).eval()
    assert model(images_of(2, 13, 13), y).loss > 0
    y[:] = 156
    with pytest.raises(ValueError, match='156'):
        check_labels(y, 50, -100)


LABELS = {
    'fractions': (lambda y: y.float(), r'label\.long\(\)'),
    'bool': (lambda y: y > 0, 'class 1 of True'),
    'channel axis': (lambda y: y[:, None], r'label\[:,0\]'),
    'channel last': (lambda y: y[..., None], r'label\[\.\.\.,0\]'),
    'one-hot': (lambda y: torch.nn.functional.one_hot(y, K).movedim(-1, 1)[:, :2], r'label\.argmax\(1\)'),
    'one label': (lambda y: y[0], r'label\[None\]'),
    'numpy': (lambda y: y.numpy(), 'must be (a )?tensor'),
    'colours': (lambda y: y[..., None].repeat(1, 1, 1, 3), 'colour mask'),
}


@pytest.mark.parametrize('name', LABELS)
def test_labels_that_are_no_class_ids(name):
    change, word = LABELS[name]
    x, y, logits = images_of(), change(labels_of()), torch.randn(2, K, 16, 24)
    pyramid = [torch.randn(2, c, 4, 6) for c in (6, 8)]
    for door in (
        lambda: model_of().train()(x, y),
        lambda: model_of().eval()(x, y),
        lambda: SegHead((6, 8), HeadConfig(K, **SMALL))(pyramid, y),
        lambda: tiled_cross_entropy(logits, y),
        lambda: Criterion()(logits, y),
        lambda: Criterion('dice')(logits, y),
        lambda: soft_dice(logits, y),
        lambda: Meter(K).update(y, y),
    ):
        with pytest.raises(ValueError, match=word if door.__code__.co_names[0] != 'Meter' else f'{word}|whole numbers'):
            door()
    if name in ('numpy', 'one label'):
        return
    word = {'bool': r'bool.*label\.long\(\)', 'channel axis': r'label\[0\]', 'one-hot': r'label\.argmax\(0\)'}.get(
        name, word
    )  # an item has no batch axis
    with pytest.raises(ValueError, match=word):
        evaluate(model_of(), list(zip(x, y)))
    with pytest.raises(ValueError, match=word):
        train(model_of(), list(zip(x, y)), TrainConfig(steps=1, batch_size=2), 'cpu', progress=False)


# --- the ignore index is no class
MANY = 300


def test_ignore_is_never_a_class():
    logits, small, y = torch.randn(1, MANY, 4, 4), torch.randn(1, MANY, 2, 2), torch.full((1, 4, 4), 255)
    word = rf'ignore=255 is the id of one of the {MANY} classes'
    for door in (
        lambda i=IGNORE: pixel_losses(logits, y, i),
        lambda i=IGNORE: tiled_cross_entropy(small, y, i),
        lambda i=IGNORE: tiled_cross_entropy(logits, y, i),
        lambda i=IGNORE: soft_dice(logits, y, i),
        lambda i=IGNORE: lovasz(logits, y, i),
        lambda i=IGNORE: Criterion()(logits, y, i),
        lambda i=IGNORE: Criterion('dice')(logits, y, i),
        lambda i=IGNORE: hard_mean(torch.ones(1, 4, 4), y, i, [1.0] * MANY),
        lambda i=IGNORE: confusion_matrix(y, y, MANY, i),
        lambda i=IGNORE: boundary_counts(y, y, MANY, ignore=i),
        lambda i=IGNORE: Meter(MANY, i),
        lambda i=IGNORE: check_labels(y, MANY, i),
        lambda i=IGNORE: colour_map(y[0], palette(MANY), i),
        lambda i=IGNORE: check_ignore(MANY, i, 'x'),
        lambda i=IGNORE: HeadConfig(MANY, ignore=i),
        lambda i=IGNORE: model_of(MANY, ignore=i),
    ):
        with pytest.raises(ValueError, match=word):
            door()
        for fine in (MANY, 10**6, -1, -100):
            door(fine)
    for small_k in (2, 255):
        check_ignore(small_k, IGNORE, 'x')
    assert pixel_losses(logits, y, -1).mean() > 0 and confusion_matrix(y, y, MANY, -1).sum() == 16  # class 255 counts


def test_more_than_255_classes_are_learnt(tmp_path):
    "Class 255 has a loss, is counted, and travels; ignored pixels are beyond."
    space = LabelSpace('many', [f'c{i}' for i in range(MANY)], palette(MANY), ignore=MANY)
    model, x, y = model_of(MANY, ignore=space.ignore), images_of(), torch.full((2, 16, 24), 255)
    y[0, :4] = MANY
    assert model.train()(x, y).loss > 0
    assert evaluate(model, list(zip(x, y))).total[255].sum() == (y == 255).sum()
    save_model(model, tmp_path / 'm', space)
    again, have = load_model(tmp_path / 'm')
    assert have.ignore == again.head.config.ignore == MANY


def test_statistics_of_more_classes_than_a_byte_has():
    loss, label = torch.rand(1, 6), torch.tensor([[0, 1, 1, 255, 254, 0]], dtype=torch.uint8)
    mean, _, n = class_loss_stats(loss, label, MANY)
    assert n[0, 255] == 1 and mean[0, 255] == loss[0, 3] and n.sum() == 6
    sums, n = memory_sums(torch.rand(1, 2, 2, 3), label.view(1, 2, 3), MANY)
    assert n[255] == 1 and np.isfinite(sums).all()


def test_what_comes_in_at_the_rim_is_of_the_space():
    "`Augment()` says 255, which is a class of a large space: `SegmentationDataset` gives it the space's own."
    from idrnet_nb.data.transforms import Augment
    from idrnet_nb.data.dataset import SegmentationDataset

    space = LabelSpace('many', [f'c{i}' for i in range(MANY)], palette(MANY), ignore=MANY)
    pairs = SegmentationDataset([], space, augment=Augment((40, 40), (0.5, 0.5), photometric=False, seed=3))
    assert pairs.augment.ignore == MANY and pairs.augment.seed == 3
    _, label = pairs.augment(torch.zeros(3, 32, 32, dtype=torch.uint8), torch.full((32, 32), 255), 0)
    assert label.unique().tolist() == [255, MANY]


def test_what_if_asks_for_the_same_images():
    from idrnet_nb.experiments.what_if import what_if

    with pytest.raises(ValueError, match=r'images\*255'):
        what_if(model_of().eval(), images_of(1)[0] / 255, 0)
