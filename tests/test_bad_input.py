"""What a user may get wrong: each case works, or fails with a message that says what, where and what to do."""

import json, math
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from idrnet_nb import cli
from idrnet_nb.models.backbone import Backbone
from idrnet_nb.models.weights import load_weights
from idrnet_nb.experiments.compare import COLUMNS
from idrnet_nb.experiments.results import append_rows, read_rows
from idrnet_nb.common.checks import IGNORE
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import pick_device
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.readers import read_image
from idrnet_nb.method.layers import pixel_losses
from idrnet_nb.models.head import FRAMEWORKS, HeadConfig, SegHead
from idrnet_nb.method.idr import IDRContext
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import evaluate, load_model, probabilities, save_model
from idrnet_nb.method.deletion import class_loss_stats, update_relation
from idrnet_nb.training.metrics import Meter
from idrnet_nb.method.relation import interact, relation_weights
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.trainer import train

K, SMALL = 4, dict(width=8, attention_width=4, aux_width=4)
CHANNELS = (4, 6, 6, 8)


def model_of(framework='fcn', k=K, **settings):
    return build_segmentor(framework, num_classes=k, **{**SMALL, **settings})


def head_of(framework='fcn', k=K, **settings):
    return SegHead(CHANNELS, HeadConfig(k, **{**FRAMEWORKS[framework], **SMALL, **settings}))


def pyramid(b=2, channels=CHANNELS):
    return [torch.randn(b, c, n, n) for c, n in zip(channels, (8, 4, 2, 2))]


def space_of(k, name='made up'):
    return LabelSpace(name, tuple(f'class {i}' for i in range(k)), tuple(map(tuple, palette(k).tolist())))


def pictures(b=2, h=16, w=16):
    return 255 * torch.rand(b, 3, h, w)


def labels(b=2, h=16, w=16, k=K):
    return torch.randint(k, (b, h, w))


def state(idr):
    return {n: x.clone() for n, x in idr.named_buffers(recurse=False)}


def unchanged(idr, before, *but):
    return all(x.equal(before[n]) for n, x in idr.named_buffers(recurse=False) if n not in but)


def finite(idr):
    return all(x.isfinite().all() for x in idr.buffers(recurse=False))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def saved(tmp_path):
    "A folder with a model of K classes."
    return save_model(model_of(), tmp_path / 'model', space_of(K))


# --- K that differ
def test_tables_of_another_k():
    idr = IDRContext(K, 8)
    with pytest.raises(
        ValueError, match=r'coarse logits have 5 classes, the relation matrices have 4.*num_classes=5.*label set'
    ):
        idr(torch.randn(1, 8, 2, 2), torch.randn(1, 5, 2, 2))
    with pytest.raises(ValueError, match=r'features \(1, 9, 2, 2\).*\(1, 4, 2, 2\).*8 channels'):
        idr(torch.randn(1, 9, 2, 2), torch.randn(1, 4, 2, 2))
    with pytest.raises(ValueError, match='equal height and width'):
        idr(torch.randn(1, 8, 2, 3), torch.randn(1, 4, 3, 2))


@pytest.mark.parametrize('shape', [(5, 5), (3, 3), (4, 5), (5, 4)])
def test_table_and_presence(shape):
    for positive in (True, False):
        with pytest.raises(
            ValueError, match=rf'matrix of shape \({shape[0]}, {shape[1]}\) does not fit 4 classes.*another label set'
        ):
            relation_weights(torch.eye(*shape), torch.ones(1, K).bool(), positive)
    with pytest.raises(ValueError, match='another label set'):
        interact(torch.randn(1, K, 3), torch.randn(K, 3), torch.eye(*shape), torch.ones(1, K).bool())


# --- labels
@pytest.mark.parametrize('bad', [K, -1, 254, -100])
def test_label_ids(bad):
    model, label = model_of(), labels()
    label[0, 0, :3] = bad
    label[1, 5] = IGNORE
    here = rf'ids outside 0\.\.3 and not ignore \(255\): {bad} \(3 pixels\).*label space'
    for mode in (True, False):
        with pytest.raises(ValueError, match=here):
            model.train(mode)(pictures(), label)
    before = state(model.head.idr)
    data = [(p.byte(), l) for p, l in zip(pictures(), label)]
    with pytest.raises(ValueError, match=f'labels of step 0: {here}'):
        train(model, data, TrainConfig(steps=1, batch_size=2), 'cpu', progress=False)
    with pytest.raises(ValueError, match=rf'labels of images 0\.\.: {here}'):
        evaluate(model, data)
    with pytest.raises(ValueError, match=rf'label has ids \[{bad}\], there are classes 0\.\.3'):
        Meter(K).update(label.clamp(0, K - 1), label)
    assert unchanged(model.head.idr, before)


def test_another_ignore_id():
    model, label = model_of(ignore=-100), labels()
    label[0, :8] = -100
    assert model.train()(pictures(), label).loss.isfinite()
    label[1, 0, 0] = 255
    with pytest.raises(ValueError, match=r'not ignore \(-100\): 255 \(1 pixels\)'):
        model(pictures(), label)


@pytest.mark.parametrize('size', [dict(h=8), dict(w=17), dict(b=1)], ids=str)
def test_label_of_another_size(size):
    label = labels(**size)
    with pytest.raises(
        ValueError, match=r'images \(2, 3, 16, 16\) and labels .* differ in size; resize labels with nearest'
    ):
        model_of()(pictures(), label)
    if 'b' in size:
        return
    data = [(p.byte(), l) for p, l in zip(pictures(), label)]
    with pytest.raises(ValueError, match='differ in size'):
        train(model_of(), data, TrainConfig(steps=1, batch_size=2), 'cpu', progress=False)
    with pytest.raises(ValueError, match='differ in size'):
        evaluate(model_of(), data)


def test_labels_of_another_kind():
    with pytest.raises(ValueError, match=r'labels must be `b H W` integers, got \(2, 16, 16\) of torch.float32'):
        model_of()(pictures(), labels().float())
    with pytest.raises(ValueError, match=r'for 2 images, got \(1, 16, 16\)'):
        head_of()(pyramid(), labels(b=1))


def two_sizes():
    return [(p[..., :w].byte(), l[:, :w]) for p, l, w in zip(pictures(), labels(), (16, 12))]


def test_pictures_of_several_sizes_one_by_one():
    assert len(evaluate(model_of(), two_sizes(), batch_size=1)) == 2


def test_pictures_of_several_sizes_in_a_batch():
    data = two_sizes()
    with pytest.raises((ValueError, RuntimeError), match='(?i)crop|resize|batch_size'):
        train(model_of(), data, TrainConfig(steps=1, batch_size=2), 'cpu', progress=False)
    with pytest.raises((ValueError, RuntimeError), match='(?i)crop|resize|batch_size'):
        evaluate(model_of(), data, batch_size=2)


# --- pyramids
@pytest.mark.parametrize(
    'framework,channels',
    [
        ('fcn', (4, 6, 6, 9)),
        ('fcn', (4, 6, 7, 8)),
        ('fcn', (8,)),
        ('fcn', ()),
        ('upernet', (5, 6, 6, 8)),
        ('upernet', (6, 6, 8)),
    ],
)
def test_pyramid_of_other_channels(framework, channels):
    with pytest.raises(
        ValueError,
        match=rf'pyramid has channels \[{", ".join(map(str, channels))}\], the head was built for \[4, 6, 6, 8\]',
    ):
        head_of(framework)(pyramid(channels=channels), labels())


def test_maps_nobody_reads():
    "All but UPerNet read the last two maps only."
    assert head_of()(pyramid(channels=(6, 8)), labels()).loss.isfinite()


@pytest.mark.parametrize('shape', [(3, 16, 16), (2, 1, 16, 16), (2, 4, 16, 16), (2, 16, 16, 3)])
def test_no_rgb_picture(shape):
    with pytest.raises(
        ValueError, match='must be `b 3 H W` RGB.*grey and RGBA images: idrnet_nb.data.readers.read_image'
    ):
        model_of()(torch.rand(shape))


def test_empty_picture():
    with pytest.raises(ValueError, match=r'image is empty, shape \(2, 3, 0, 16\)'):
        model_of()(pictures(h=0))


# --- nan
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_nan_in_the_picture(value):
    model, x = model_of().train(), pictures()
    x[1, 2, 3, :4] = value
    before = state(model.head.idr)
    with pytest.raises(FloatingPointError, match='input images: 4 of 1536 values are nan or infinite'):
        model(x, labels())
    with pytest.raises(FloatingPointError, match='input images: 4 of 1536'):
        model.eval()(x)
    assert unchanged(model.head.idr, before)


@pytest.mark.parametrize('i', range(4))
def test_nan_in_the_pyramid(i):
    maps, head = pyramid(), head_of('upernet').train()
    maps[i][0, 1, 1, 1] = math.nan
    before = state(head.idr)
    with pytest.raises(FloatingPointError, match=f'pyramid map {i}: 1 of {maps[i].numel()} values'):
        head(maps, labels())
    assert unchanged(head.idr, before)


@pytest.mark.parametrize('part', ['final', 'aux', 'coarse'])
def test_nan_in_a_loss(part):
    head = head_of().train()
    classifier = dict(final=head.classifier, aux=head.aux_classifier, coarse=head.coarse_classifier)[part]
    with torch.no_grad():
        classifier.logits.bias[0] = math.nan
    before = state(head.idr)
    with pytest.raises(FloatingPointError, match=f'loss part.*{part!r}'):
        head(pyramid(), labels())
    assert unchanged(head.idr, before) and finite(head.idr)


def test_training_that_diverges():
    data = [(p.byte(), l) for p, l in zip(pictures(), labels())]
    with pytest.raises(FloatingPointError, match='nan or infinite; lower the learning rate|lower lr'):
        train(model_of(), data, TrainConfig(steps=20, batch_size=2, lr=1e30, warmup=0), 'cpu', progress=False)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_learning_refuses_nan(value):
    "Off the CPU nobody looks: what is not finite must not enter the tables or the memory, and the rest is learnt."
    idr = IDRContext(K, 8)
    loss, lost, label, deleted = torch.rand(2, 4, 4), torch.rand(2, 4, 4), labels(h=4, w=4), torch.tensor([0, 2])
    before = state(idr)
    for bad in ((loss * value, lost), (loss, lost * value), (loss * value, lost * value)):
        idr.learn_relations(deleted, *bad, label)
        assert unchanged(idr, before, 'deletion_count')
    idr.learn_memory(value * torch.randn(2, 8, 2, 2), label)
    assert unchanged(idr, before, 'deletion_count')
    label[0], label[0, 0, 0] = 1, 3  # the one pixel of class 3
    loss[0, 0, 0] = value
    label[1] = 1
    idr.learn_relations(deleted, loss, lost, label)
    assert finite(idr) and idr.relation_mean[0, 3] == 0 and idr.relation_mean[0, 1] != 0
    feat = torch.randn(2, 8, 2, 2)
    feat[0, 5, 0, 0] = value
    idr.learn_memory(feat, label)
    assert finite(idr) and idr.memory[1, :5].all()


@pytest.mark.parametrize('where', ['picture', 'features', 'coarse', 'final'])
def test_unchecked_nan_leaves_the_state_alone(where, monkeypatch):
    "The same through a whole training step, the checks switched off as they are off the CPU."
    for module in ('head', 'segmentor'):
        monkeypatch.setattr(f'idrnet_nb.models.{module}.check_finite', lambda *_: None)
    model, x = model_of().train(), pictures()
    model(x, labels())
    head = model.head
    before = state(head.idr)
    if where == 'picture':
        x[0, 0, 0, 0] = math.nan
    with torch.no_grad():
        if where == 'features':
            head.bottleneck.conv.weight.fill_(math.nan)
        if where in ('coarse', 'final'):
            dict(coarse=head.coarse_classifier, final=head.classifier)[where].logits.bias.fill_(math.nan)
    assert model(x, labels()).loss.isnan()
    assert finite(head.idr) and unchanged(
        head.idr, before, 'deletion_count', *(['memory'] if where in ('coarse', 'final') else [])
    )


# --- void
def test_void_picture_in_a_batch():
    "It counts for nothing: losses are means over the other picture, its row stays, the memory hears the other alone."
    head, label, deleted = head_of(dropout=0.0).train(), labels(), torch.tensor([0, 2])
    label[1] = IGNORE
    out = head(pyramid(), label, deleted=deleted)
    each = pixel_losses(out.logits[:1], label[:1])
    assert out.losses['final'].allclose(each.mean()) and out.loss.isfinite()
    idr = head.idr
    for table in (idr.relation_mean, idr.relation_var):
        assert table[1:].equal(torch.eye(K)[1:]) and not table[0].equal(torch.eye(K)[0])
    other = IDRContext(K, 8)
    other.learn_memory(out.feats[:1], label[:1])
    assert other.memory.allclose(idr.memory) and idr.memory.any()
    assert idr.deletion_count.sub(1e-6).round().tolist() == [1, 0, 1, 0]  # it was deleted all the same
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_void_picture_in_the_statistics():
    loss, label, deleted = torch.rand(2, 9), labels(2, 3, 3).flatten(1), torch.tensor([1, 1])
    label[0] = IGNORE
    (mean, var, n), alone = class_loss_stats(loss, label, K), class_loss_stats(loss[1:], label[1:], K)
    assert not mean[0].any() and not var[0].any() and not n[0].any()
    for x, y in zip((mean, var, n), alone):
        assert x[1:].equal(y)
    table = torch.randn(K, K)
    assert update_relation(table, mean, deleted, n > 0).equal(
        update_relation(table, alone[0], deleted[1:], alone[2] > 0)
    )


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_nothing_but_void(framework):
    model = model_of(framework).train()
    before = state(model.head.idr)
    out = model(pictures(), labels().fill_(IGNORE))
    assert out.loss == 0 and out.logits.isfinite().all()
    out.loss.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    assert unchanged(model.head.idr, before, 'deletion_count')
    assert model.eval()(pictures(), labels().fill_(IGNORE)).loss == 0


def test_void_in_evaluation():
    meter = evaluate(model_of(), [(pictures(1)[0].byte(), labels(1)[0].fill_(IGNORE))])
    assert len(meter) == 1 and not meter.total.any() and math.isnan(meter.scores()['miou'])


# --- small things
@pytest.mark.parametrize(
    'settings',
    [dict(context='aspp'), dict(context='ppm'), dict(context='aspp', fpn=True), dict(context='ppm', fpn=True)],
    ids=str,
)
def test_batch_one_in_training(settings):
    "The pooled branch has one value a channel then, which a norm cannot train on."
    model = model_of('fcn', **settings).train()
    out = model(pictures(1), labels(1))
    out.loss.backward()
    assert out.logits.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(x.isfinite().all() for x in model.buffers())


@pytest.fixture(scope='module')
def resnet():
    return Backbone('resnet18', pretrained=False)


SIZES = (1, 1), (2, 3), (3, 7)


@pytest.mark.parametrize('backbone', ['tiny', 'resnet18'])
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_smaller_than_the_stride(framework, backbone, request):
    net = request.getfixturevalue('resnet') if backbone == 'resnet18' else 'tiny'
    model = model_of(framework, backbone=net)
    for h, w in SIZES:
        out = model.train()(pictures(2, h, w), labels(2, h, w))
        assert out.logits.shape == (2, K, h, w) and out.logits.isfinite().all() and out.loss.isfinite()
        out = model.eval()(pictures(1, h, w)).logits
        assert out.shape == (1, K, h, w) and out.isfinite().all()
        assert probabilities(model, pictures(1, h, w), scales=(0.5, 1.0), flip=True).isfinite().all()
    assert finite(model.head.idr)


@pytest.mark.parametrize('backbone', ['tiny', 'resnet18'])
def test_one_small_picture_in_training(backbone, request):
    "One value a channel: the head can do with it, the backbone's norms cannot."
    model = model_of(backbone=request.getfixturevalue('resnet') if backbone == 'resnet18' else 'tiny').train()
    try:
        out = model(pictures(1, 2, 2), labels(1, 2, 2))
    except ValueError as e:
        assert 'batch' in str(e) and 'stride' in str(e), f'says not what to do: {e}'
    else:
        assert out.loss.isfinite()


def test_no_pictures_at_all():
    try:
        out = model_of().train()(pictures(0), labels(0))
    except ValueError as e:
        assert 'images' in str(e)
    else:
        assert out.loss == 0


# --- pictures on disk, through the command line
def shade(mode, h=20, w=30):
    ramp = np.linspace(0, 1, h * w).reshape(h, w)
    if mode == '16 bit':
        return Image.fromarray((65535 * ramp).astype(np.uint16))
    grey = Image.fromarray((255 * ramp).astype(np.uint8))
    return grey if mode == 'L' else grey.convert('RGBA' if mode == 'RGBA' else 'RGB').convert(mode)


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'P', '1', 'CMYK', '16 bit'])
def test_kinds_of_pictures(mode, saved, tmp_path, capsys):
    path = tmp_path / f'picture.{"tif" if mode == "CMYK" else "png"}'
    shade(mode).save(path)
    rgb = read_image(path)
    assert rgb.shape == (20, 30, 3) and rgb.dtype == np.uint8
    if mode not in ('P', '1', 'CMYK'):
        assert abs(rgb.astype(int) - np.array(shade('RGB')).astype(int)).max() <= 1
    assert (
        cli.main(['predict', '--weights', str(saved), '--device', 'cpu', '--out', str(tmp_path / 'out'), str(path)])
        == 0
    )
    written = [tmp_path / 'out' / f'picture_{kind}.png' for kind in ('colour', 'overlay', 'index')]
    assert capsys.readouterr().out.splitlines()[:3] == list(map(str, written))
    assert all(Image.open(p).size == (30, 20) for p in written) and np.array(Image.open(written[-1])).max() < K


def fails(args, capsys, *words):
    "The command says what is wrong, in one line, and exits 2."
    assert cli.main([*map(str, args)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f'idrnet {args[0]}: error: ') and 'Traceback' not in err
    for word in words:
        assert word in err, f'{word!r} is not in {err!r}'


def test_predict_broken_picture(saved, tmp_path, capsys):
    call = ['predict', '--weights', saved, '--device', 'cpu', '--out', tmp_path / 'out']
    (tmp_path / 'words.jpg').write_text('no picture')
    shade('RGB').save(tmp_path / 'whole.jpg')
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:400])
    fails([*call, tmp_path / 'words.jpg'], capsys, 'words.jpg', 'it is no image')
    fails([*call, tmp_path / 'cut.jpg'], capsys, 'cut.jpg', 'cut short or broken')
    fails([*call, tmp_path / 'none.jpg'], capsys, 'none.jpg', 'no file')
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def tree(tmp_path):
    "A CamVid-like tree of JPEG pictures; train/p1.jpg is cut short."
    for split in ('train', 'test'):
        for d in (split, f'{split}annot'):
            (tmp_path / 'cam' / d).mkdir(parents=True)
        for i in range(3):
            shade('RGB').save(tmp_path / 'cam' / split / f'p{i}.jpg')
            Image.fromarray(np.full((20, 30), i, np.uint8)).save(tmp_path / 'cam' / f'{split}annot' / f'p{i}.png')
    broken = tmp_path / 'cam' / 'train' / 'p1.jpg'
    broken.write_bytes(broken.read_bytes()[:400])
    return tmp_path / 'cam'


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_jpeg_in_the_training_folder(tree, workers, capsys, tmp_path):
    space = LABEL_SPACES['camvid']
    data = SegmentationDataset(
        DATASETS['camvid'].load(tree, 'train'), space, size=(16, 16), augment=Augment(crop=(16, 16))
    )
    with pytest.raises(ValueError, match=r'(?s)image: .*p1\.jpg.* cannot be read: it is cut short or broken'):
        train(model_of(k=11), data, TrainConfig(steps=1, batch_size=3, workers=workers), 'cpu', progress=False)
    if workers:
        return
    small = [
        '--width',
        8,
        '--size',
        '16x16',
        '--steps',
        1,
        '--batch',
        3,
        '--quiet',
        '--device',
        'cpu',
        '--out',
        tmp_path / 'run',
    ]
    fails(['train', '--data', 'camvid', '--root', tree, *small], capsys, 'p1.jpg', 'cut short or broken')
    assert not any((tmp_path / 'run').rglob('*.safetensors'))  # a log, and nothing that could be taken for a model


# --- weights
def test_truncated_weights(saved, capsys, tmp_path):
    file = saved / 'model.safetensors'
    whole = file.read_bytes()
    for n in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r'model\.safetensors.* cannot be read as safetensors.*cut short'):
            load_model(saved)
    shade('L').save(tmp_path / 'a.png')
    fails(
        ['predict', '--weights', saved, '--device', 'cpu', tmp_path / 'a.png'], capsys, 'model.safetensors', 'cut short'
    )
    file.unlink()
    with pytest.raises(FileNotFoundError, match='no file .*model.safetensors'):
        load_model(saved)


def test_truncated_config(saved):
    file = saved / 'config.json'
    file.write_text(file.read_text()[:50])
    with pytest.raises(ValueError, match=r'config\.json.* is no JSON.*copy the folder again'):
        load_model(saved)
    file.write_text('{"head": {}}')
    with pytest.raises(ValueError, match=r"config\.json.* lacks \['backbone'\]"):
        load_model(saved)


def test_a_model_without_a_label_set(tmp_path):
    model_of().save_pretrained(tmp_path / 'bare')
    with pytest.raises(ValueError, match=r"lacks \['space'\].*save_model\(model, folder, space\)"):
        load_model(tmp_path / 'bare')
    assert type(model_of()).from_pretrained(tmp_path / 'bare').head.config.num_classes == K


def test_files_of_others_are_not_overwritten(tmp_path):
    for name, text in (('README.md', '# mine'), ('config.json', '{"a": 1}')):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text(text)
        with pytest.raises(ValueError, match=f'{name} that does not belong to a saved model'):
            save_model(model_of(), tmp_path / name[:3], space_of(K))
        assert [p.name for p in (tmp_path / name[:3]).iterdir()] == [name] and (
            tmp_path / name[:3] / name
        ).read_text() == text


def test_saved_files_can_be_read_by_others(saved):
    import os

    umask = os.umask(0)
    os.umask(umask)
    assert {(saved / n).stat().st_mode & 0o777 for n in ('model.safetensors', 'config.json', 'README.md')} == {
        0o666 & ~umask
    }


@pytest.mark.parametrize('change', [dict(format='2'), dict(format=None), dict(head=None), dict(backbone=3)])
def test_odd_settings_are_value_errors(saved, change):
    from safetensors.torch import load_file, save_file
    import json

    save_file(load_file(saved / 'model.safetensors'), saved / 'model.safetensors')  # no settings inside
    (saved / 'config.json').write_text(json.dumps(json.loads((saved / 'config.json').read_text()) | change))
    with pytest.raises(ValueError, match='config.json'):
        type(model_of()).from_pretrained(saved)


def test_classes_of_label_space_and_head(saved):
    import json
    from safetensors.torch import load_file, save_file

    save_file(load_file(saved / 'model.safetensors'), saved / 'model.safetensors')
    config = json.loads((saved / 'config.json').read_text())
    config['space']['classes'].pop()
    config['space']['palette'].pop()
    (saved / 'config.json').write_text(json.dumps(config))
    for read in (load_model, type(model_of()).from_pretrained):
        with pytest.raises(ValueError, match=f'{K - 1} classes, the head {K}'):
            read(saved)


def test_unknown_arguments_are_not_swallowed(saved):
    with pytest.raises(TypeError, match='num_classes'):
        type(model_of()).from_pretrained(saved, num_classes=7)


@pytest.mark.parametrize(
    'part,word', [('', 'config.json'), ('head', 'depth'), ('backbone', 'depth'), ('space', 'depth')]
)
def test_config_of_another_kind(saved, part, word):
    file = saved / 'config.json'
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, part: {**config[part], 'depth': 3}} if part else [config]))
    with pytest.raises(ValueError, match=rf'(?s)config\.json.*{word}' if part else word):
        load_model(saved)


def test_backbone_weights_for_another_net(tmp_path):
    save_file(Backbone('tiny', width=8).net.state_dict(), tmp_path / 'w.safetensors')
    with pytest.raises(ValueError, match=r'does not fit TinyBackbone, nothing was loaded. wrong shape: .*file \(8, '):
        Backbone('tiny', weights=tmp_path / 'w.safetensors')


def test_another_label_set(saved, capsys):
    with pytest.raises(
        ValueError,
        match=r"trained for label set 'made up' \(4 classes\), not for 'camvid' \(11\).*relation matrices mean nothing",
    ):
        load_model(saved, LABEL_SPACES['camvid'])
    turned = LabelSpace('turned', space_of(K).classes[::-1], space_of(K).palette)
    with pytest.raises(ValueError, match=r"label set 'made up' \(4 classes\), not for 'turned' \(4\)"):
        load_model(saved, turned)
    with pytest.raises(ValueError, match=r"model has 4 classes, label space 'five' has 5"):
        save_model(load_model(saved)[0], saved, space_of(5, 'five'))
    fails(
        ['evaluate', '--model', saved, '--data', 'world', '--pictures', 1, 1, '--quiet', '--device', 'cpu'],
        capsys,
        "label set 'made up'",
        'relation matrices',
    )


def test_weights_of_another_k(saved, tmp_path):
    other = save_model(model_of(k=5), tmp_path / 'other', space_of(5))
    (saved / 'model.safetensors').write_bytes((other / 'model.safetensors').read_bytes())
    with pytest.raises(ValueError, match=r'from different saves, they differ in head.num_classes'):
        load_model(saved)
    save_file(
        load_file(other / 'model.safetensors'), saved / 'model.safetensors'
    )  # a file without settings inside, as other programs write it
    with pytest.raises(
        ValueError,
        match=r'model\.safetensors.*nothing was loaded. wrong shape: \d+ \(.*file \(5,.*module \(4,.*classes',
    ):
        load_model(saved)
    model = model_of()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    with pytest.raises(ValueError, match='does not fit Segmentor'):
        load_weights(model, other / 'model.safetensors')
    assert all(x.equal(before[n]) for n, x in model.state_dict().items())
    with pytest.raises(
        RuntimeError, match=r'(?s)relation_mean: .*shape torch.Size\(\[5, 5\]\).*torch.Size\(\[4, 4\]\)'
    ):
        model.load_state_dict(load_file(other / 'model.safetensors'))
    with pytest.raises(ValueError, match='unexpected: .*head.idr'):
        load_weights(model_of(idr=False), other / 'model.safetensors')


def test_no_model(tmp_path, capsys):
    shade('L').save(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match=r'there is no config.json; give the folder that save_pretrained wrote'):
        load_model(tmp_path)
    fails(
        ['predict', '--weights', tmp_path / 'nowhere', '--device', 'cpu', tmp_path / 'a.png'],
        capsys,
        'nowhere',
        'no config.json',
    )


# --- devices, results
@pytest.mark.skipif(torch.cuda.is_available(), reason='here that device exists')
def test_device_that_is_not_there(saved, tmp_path, capsys):
    with pytest.raises(RuntimeError, match="device 'cuda' is not available here; there is: .*cpu"):
        pick_device('cuda')
    shade('L').save(tmp_path / 'a.png')
    fails(
        ['predict', '--weights', saved, '--device', 'cuda', tmp_path / 'a.png'],
        capsys,
        "device 'cuda' is not available",
    )


def test_device_with_a_wrong_name(saved, tmp_path, capsys):
    with pytest.raises((ValueError, RuntimeError), match="device 'gpu'.*there is: .*cpu"):
        pick_device('gpu')
    shade('L').save(tmp_path / 'a.png')
    fails(['predict', '--weights', saved, '--device', 'gpu', tmp_path / 'a.png'], capsys, "device 'gpu'")


def test_results_with_other_columns(tmp_path):
    path = tmp_path / 'results.csv'
    append_rows(path, [dict(arm='fcn', seed=0)], COLUMNS)
    with pytest.raises(ValueError, match=r"no columns \['weather'\]; there are date, commit"):
        append_rows(path, [dict(arm='fcn', weather='rain')], COLUMNS)
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize('text', ['name,score\nme,1\n', 'name,score\n'], ids=['rows', 'header'])
def test_results_file_of_somebody_else(tmp_path, text):
    path = tmp_path / 'results.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'results\.csv.*name'):
        append_rows(path, [dict(arm='fcn', seed=0)], COLUMNS)
    assert path.read_text() == text


def test_results_file_is_looked_at_before_training(tmp_path, capsys):
    (tmp_path / 'r.csv').write_text('name,score\nme,1\n')
    small = [
        '--data',
        'world',
        '--pictures',
        4,
        2,
        '--size',
        32,
        '--width',
        8,
        '--steps',
        1,
        '--batch',
        2,
        '--arms',
        'fcn',
        '--seeds',
        1,
        '--jobs',
        1,
        '--quiet',
        '--device',
        'cpu',
    ]
    fails(['compare', *small, '--out', tmp_path / 'out', '--results', tmp_path / 'r.csv'], capsys, 'r.csv')
    assert not list((tmp_path / 'out').glob('fcn-*')), 'it trained first'
