"""Backbones on real weights and on bad input. Real files: IDRNET_DATA, default ../shared/data from the project's root."""

import functools, os, subprocess, sys
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from torch import nn
from idrnet_nb.models.any_size import crop, pad_to_multiple
from idrnet_nb.models.backbone import Backbone
from idrnet_nb.models.receptive_field import TinyBackbone, field_box, gradient_field, receptive_field
from idrnet_nb.models.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = (
    Path(os.environ.get('IDRNET_DATA', ROOT.parent / 'shared' / 'data'))
    / 'weights'
    / 'mobilenetv2_100_imagenet.safetensors'
)
SIZES = [(65, 97), (33, 32), (7, 5), (1, 1), (96, 64)]


@pytest.fixture
def real():
    if not WEIGHTS.is_file():
        pytest.skip(f'no {WEIGHTS.name}: set IDRNET_DATA to the folder of real data')
    return WEIGHTS


def want(net, size):
    return [(c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(net.channels, net.strides)]


# --- real weights
def test_real_weights_load_whole(real):
    net = Backbone('mobilenetv2_100', weights=real)
    names = {k for k in net.net.state_dict() if not k.endswith('num_batches_tracked')}
    assert load_weights(net.net, real) == len(names) == 255  # 0 missing, 0 unexpected
    assert net.mean == net.std == (127.5,) * 3 and net.options == {'pad_type': 'same'}
    from safetensors.torch import load_file

    have = net.net.state_dict()
    assert all(torch.equal(v, have[k]) for k, v in load_file(real).items())


def test_real_weights_are_real(real):
    "Units of the last norms are alive and differ; a random network's norms are all 0 and 1."
    net = Backbone('mobilenetv2_100', weights=real).eval()
    assert net.net.bn1.running_var.std() > 1e-3
    x = torch.rand(1, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert all(m.isfinite().all() and m.std() > 0.01 for m in net(x))


def test_padding_rule_matters(real):
    "The note in the file is needed: another padding rule takes the same weights without a word and gives other maps."
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    a, b = (
        Backbone('mobilenetv2_100', weights=real).eval(),
        Backbone('mobilenetv2_100', weights=real, pad_type='').eval(),
    )
    with torch.no_grad():
        assert (a(x)[-1] - b(x)[-1]).abs().max() > 0.1


def test_real_weights_at_output_stride_8(real):
    net = Backbone('mobilenetv2_100', weights=real, output_stride=8).eval()
    assert net.strides == [4, 8, 8, 8] and net.pad_to == 8
    with torch.no_grad():
        assert [tuple(m.shape[1:]) for m in net(torch.zeros(1, 3, 65, 97))] == want(net, (65, 97))


def test_real_weights_in_another_network(real):
    with pytest.raises(ValueError, match="'mobilenetv2_100'.*not for backbone 'resnet18'"):
        Backbone('resnet18', weights=real)
    with pytest.raises(ValueError, match=r'missing: \d+ \(.*unexpected: \d+ \('):
        load_weights(TinyBackbone(), real)


def test_real_weights_cut_short(real, tmp_path):
    bad = tmp_path / 'cut.safetensors'
    bad.write_bytes(real.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r'cut\.safetensors.*cut short'):
        Backbone('mobilenetv2_100', weights=bad)


# --- bad weights files, on a small network
@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return TinyBackbone(width=4)


def weights(net):
    return {k: v.clone() + 1 for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    'spoil,message',
    [
        (lambda w: w | {'fc.weight': torch.zeros(3)}, r'unexpected: 1 \(fc\.weight\)'),
        (lambda w: {k: v for k, v in w.items() if k != 'stages.3.1.bias'}, r'missing: 1 \(stages\.3\.1\.bias\)'),
        (
            lambda w: w | {'stages.0.1.bias': torch.zeros(5)},
            r'wrong shape: 1 \(stages\.0\.1\.bias: file \(5,\), module \(4,\)\)',
        ),
        (lambda w: w | {'stages.0.1.bias': torch.full((4,), torch.inf)}, r'not finite: 1 \(stages\.0\.1\.bias\)'),
        (lambda w: w | {'stages.0.1.bias': torch.zeros(4, dtype=torch.int)}, r'wrong dtype: 1'),
        (lambda w: {f'net.{k}': v for k, v in w.items()}, r'missing: 40 \(.*, …\); unexpected: 48'),
    ],
)
def test_unfit_weights_change_nothing(tiny, tmp_path, spoil, message):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    save_file(spoil(weights(tiny)), tmp_path / 'w.safetensors')
    with pytest.raises(ValueError, match=message) as e:
        load_weights(tiny, tmp_path / 'w.safetensors')
    assert 'w.safetensors' in str(e.value) and 'nothing was loaded' in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


@pytest.mark.parametrize('spoil', [lambda b: b[:-1], lambda b: b[:7], lambda b: b'', lambda b: b'PK\x03\x04' + b])
def test_unreadable_weights(tiny, tmp_path, spoil):
    file = tmp_path / 'w.safetensors'
    save_file(weights(tiny), file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=r'w\.safetensors.*cannot be read'):
        load_weights(tiny, file)
    with pytest.raises(ValueError, match=r'w\.safetensors.*cannot be read'):
        Backbone('tiny', weights=file, width=4)


def test_missing_weights_file(tiny, tmp_path):
    for path in tmp_path / 'no.safetensors', tmp_path:
        with pytest.raises(FileNotFoundError, match='weights: no file'):
            load_weights(tiny, path)
        with pytest.raises(FileNotFoundError, match='weights: no file'):
            Backbone('tiny', weights=path)


def test_half_precision_file_is_widened(tiny, tmp_path):
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in weights(tiny).items()}, tmp_path / 'w.safetensors'
    )
    load_weights(tiny, tmp_path / 'w.safetensors')
    assert tiny.stages[0][0].weight.dtype == torch.float32


# --- sizes
@functools.lru_cache
def built(name, *kw):
    return Backbone(name, **dict(kw)).eval()


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    'name,kw',
    [
        ('tiny', dict(width=4)),
        ('tiny', dict(width=4, output_stride=16)),
        ('resnet18', dict(output_stride=8)),
        ('mobilenetv2_100', {}),
        ('convnext_atto', {}),
        ('hrnet_w18_small', {}),
        ('swin_tiny_patch4_window7_224', dict(embed_dim=24, depths=(1, 1, 1, 1))),
    ],
)
def test_any_size(name, kw, size):
    net = built(name, *kw.items())
    with torch.no_grad():
        maps = net(torch.randn(2, 3, *size))
    assert [tuple(m.shape[1:]) for m in maps] == want(net, size) and len(maps) == 4
    assert all(m.isfinite().all() for m in maps)


def test_padding_never_touches_what_a_local_net_says():
    net = Backbone('tiny', width=4).eval()
    x = torch.randn(1, 3, 10, 13)
    with torch.no_grad():
        small, large = net(x)[-1], net(pad_to_multiple(x, 16, 7.0)[0])[-1]
    assert torch.equal(small[..., :2, :3], large[..., :2, :3])


def test_pad_and_crop_labels_keep_type():
    label = torch.randint(0, 9, (2, 5, 7))
    padded, size = pad_to_multiple(label, 8, 255)
    assert padded.dtype == label.dtype and padded.shape == (2, 8, 8) and (padded == 255).sum() == 2 * (64 - 35)
    assert torch.equal(crop(padded, size), label)


# --- names, strides, input
@pytest.mark.parametrize(
    'args,message',
    [
        (dict(name='resnet1000'), 'timm has no .resnet1000.*nearest'),
        (dict(name='resnet18', output_stride=4), "'resnet18' cannot have output_stride=4"),
        (dict(name='hrnet_w18_small', output_stride=8), "'hrnet_w18_small' cannot have output_stride=8"),
        (dict(name='tiny', output_stride=32), '4, 8 or 16'),
        (dict(name='resnet18', weights='w', pretrained=True), 'not both'),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        Backbone(**args)


@pytest.mark.parametrize(
    'x',
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_bad_pictures(x):
    with pytest.raises(ValueError, match="backbone 'tiny': expected float images `b 3 H W`"):
        Backbone('tiny', width=4)(x)


def test_empty_picture():
    with pytest.raises(ValueError, match='empty'):
        Backbone('tiny', width=4)(torch.zeros(1, 3, 0, 8))


# --- what is seen
@pytest.mark.parametrize('stride', [4, 8, 16])
def test_tiny_is_local(stride):
    net = TinyBackbone(stride, 8)
    for at in (0, 0), (1, 2):
        assert field_box(gradient_field(net, (64, 64), at)) == (at[0] * stride, at[1] * stride, stride, stride)


def test_rule_is_measurement():
    gen = torch.Generator().manual_seed(0)
    for _ in range(20):
        layers = [
            tuple(
                torch.stack([torch.randint(lo, hi, (), generator=gen) for lo, hi in ((1, 4), (1, 3), (1, 3))]).tolist()
            )
            for _ in range(3)
        ]
        net = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 8, 8, k, s, 0, d) for i, (k, s, d) in enumerate(layers)])
        assert field_box(gradient_field(net, (64, 64), (0, 0)))[2] == receptive_field(layers)[-1][0]


def test_tiny_needs_neither_timm_nor_torchvision():
    code = "import sys; from idrnet_nb.models.backbone import Backbone; Backbone('tiny'); print([m for m in ('timm','torchvision','fastcore') if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == '[]'


def test_compiles_without_reading_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert Backbone('tiny', width=4)(torch.zeros(2, 3, 9, 9))[-1].shape == (2, 16, 3, 3)
