"""Files that leave Python: the same answer on every size, nothing on disk when it is not, no trace of the machine. IDRNET_FULL=1 tries every framework and timm's networks."""

import copy, json, math, os, sys
import pytest, torch
import torch.nn.functional as F
from torch import nn
from idrnet_nb.method.spatial_context import PPM, pool_regions, region_weights
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import seed_everything
from idrnet_nb.models.export import export_onnx, export_program, least_side
from idrnet_nb.method.layers import upsample
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor

FULL = os.environ.get('IDRNET_FULL') == '1'
full = pytest.mark.skipif(not FULL, reason='set IDRNET_FULL=1')
K = 5
SMALL = dict(width=12, attention_width=6, aux_width=8)


def shaken(framework, idr=True, backbone='tiny', k=K, **settings):
    "A model in which nothing is 0 or 1 by accident and every class is predicted somewhere, in training mode."
    seed_everything(0)
    model = build_segmentor(framework, backbone, k, idr=idr, **{**SMALL, **settings})
    for m in (model if backbone == 'tiny' else model.head).modules():
        m.momentum = 1.0  # norms: the statistics of one batch
    for name, b in model.named_buffers():
        if name.endswith(('memory', 'relation_mean', 'relation_var')):
            b.normal_()
    with torch.no_grad():
        model(pictures(2, 96, 128))
        model.eval()
        for part, name in (model.head.coarse_classifier, 'coarse_logits'), (model.head.classifier, 'logits'):
            if part is not None:
                part.logits.bias -= getattr(model(pictures(2, 96, 128)), name).mean((0, 2, 3))
    return model.train()


def pictures(b, h, w, dtype=torch.uint8):
    "Coloured tiles and noise."
    rng = torch.Generator().manual_seed(h * w)
    tiles = (
        torch.randint(0, 200, (b, 3, -(-h // 8), -(-w // 8)), generator=rng)
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)[..., :h, :w]
    )
    return (tiles + torch.randint(0, 56, (b, 3, h, w), generator=rng)).to(dtype)


@torch.no_grad()
def off(run, model, *size, dtype=torch.uint8):
    "Largest difference over largest logit."
    x = pictures(*size, dtype)
    want, got = copy.deepcopy(model).eval()(x).logits, run(x)
    assert got.shape == want.shape == (size[0], K, *size[1:])
    return ((got - want).abs().max() / want.abs().max()).item()


def onnx_run(path):
    session = pytest.importorskip('onnxruntime').InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(['logits'], {'pictures': x.numpy()})[0])


def test_the_models_here_see_every_class():
    for framework in FRAMEWORKS:
        with torch.no_grad():
            out = shaken(framework).eval()(pictures(1, 65, 97))
        assert len(out.coarse_logits.argmax(1).unique()) >= 4 and len(out.logits.argmax(1).unique()) >= 4, framework


# --- averages of regions as matrices


@pytest.mark.parametrize('s', (1, 2, 3, 5, 6, 9))
def test_region_weights_are_the_rule(s):
    for n in range(1, 41):
        want = torch.zeros(s, n)
        for i in range(s):
            low, high = i * n // s, -(-(i + 1) * n // s)
            for p in range(low, high):
                want[i, p] = 1 / (high - low)
        torch.testing.assert_close(region_weights(n, s), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize('h,w', ((1, 1), (2, 9), (6, 6), (7, 5), (33, 12)))
def test_pool_regions_and_its_gradient_are_torchs(h, w):
    for s in (1, 2, 3, 6, 7):
        a = torch.randn(2, 3, h, w, dtype=torch.double, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        mine, theirs = pool_regions(a, s), F.adaptive_avg_pool2d(b, s)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        weight = torch.randn_like(mine)
        (mine * weight).sum().backward()
        (theirs * weight).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_pool_regions_rounds_once(dtype):
    x = (torch.randn(2, 8, 37, 50, generator=torch.Generator().manual_seed(0)) * 3 + 9).to(dtype)
    for s in (1, 2, 3, 6):
        exact = F.adaptive_avg_pool2d(x.double(), s)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            got = pool_regions(x, s)
        assert got.dtype == dtype and ((got.double() - exact) / exact).abs().max() <= torch.finfo(dtype).eps / 2 * 1.001


def test_ppm_takes_maps_smaller_than_its_regions():
    ppm = PPM(4, 3).eval()
    for size in ((1, 1), (2, 5), (6, 3)):
        assert ppm(torch.randn(1, 4, *size)).shape == (1, 3, *size)


# --- a program


def grids(least):
    return [
        (1, least, least),
        (2, least + 1, 4 * least),
        (1, 12, 9),
        (3, 11, 23),
        (1, 24, 24),
        (1, 23, 25),
        (2, 40, 12),
        (1, 65, 33),
        (1, 97, 64),
    ]


ARMS = [(f, i) for f in FRAMEWORKS for i in (True, 'attention', False)]
FEW = [('upernet', True), ('ocrnet', 'attention'), ('segformer', False)]


@pytest.mark.parametrize('framework,idr', ARMS if FULL else FEW)
def test_program_answers_every_size(framework, idr, tmp_path):
    "Sizes on which some grid is as large as a region count of PPM, or one map as another, are among them."
    model = shaken(framework, idr)
    run = export_program(model, tmp_path / 'm.pt2').module()
    assert all(off(run, model, b, max(h, 5), max(w, 5)) <= 1e-6 for b, h, w in grids(5))
    again = torch.export.load(tmp_path / 'm.pt2').module()
    assert all(off(again, model, *size) <= 1e-6 for size in ((1, 5, 6), (2, 31, 50), (4, 16, 20)))


def test_program_of_a_real_backbone(tmp_path):
    model = shaken('pspnet', backbone='resnet18')
    assert least_side(model) == 33
    run = export_program(model, tmp_path / 'm.pt2', dtype=torch.float32, sizes=((1, 33, 40),)).module()
    for size in ((1, 33, 33), (2, 64, 96), (1, 97, 65), (1, 96, 192), (1, 192, 193)):
        assert off(run, model, *size, dtype=torch.float32) <= 1e-6
    with pytest.raises((AssertionError, RuntimeError), match='33'):
        run(pictures(1, 32, 40).float())  # smaller than allowed: refused, not wrong


class Ceiling(nn.Module):
    "Rounds its size up in Python, as timm does."

    channels, strides, pad_to, mean, std = [4, 4], [3, 3], 3, (0.0,) * 3, (255.0,) * 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return [
            F.interpolate(self.conv(x), (math.ceil(x.shape[2] / 3), math.ceil(x.shape[3] / 3)), mode='bilinear')
        ] * 2


def test_ceil_can_be_saved(tmp_path):
    model = shaken('fcn', False, Ceiling())
    before = export_program(model, tmp_path / 'm.pt2').module()
    after = torch.export.load(tmp_path / 'm.pt2').module()
    for size in ((1, 4, 4), (2, 9, 31), (1, 30, 11)):
        assert off(before, model, *size) <= 1e-6 and off(after, model, *size) <= 1e-6


def test_model_is_left_as_it_is(tmp_path):
    model = shaken('fcn')
    model.head.bottleneck.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    program = export_program(model, sizes=((1, 5, 6),))
    assert not [n for n in program.state_dict if '.aux.' in n]  # only training needs it
    assert modes == [m.training for m in model.modules()] and model.head.aux_classifier is not None
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_upsample_is_not_settled_by_the_example():
    class Up(nn.Module):
        def forward(self, x, y):
            return upsample(x, y.shape[-2:])

    any_ = torch.export.Dim.DYNAMIC
    a, b = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)  # equal in the example only
    run = torch.export.export(
        Up(), (a, b), dynamic_shapes=({2: any_, 3: any_}, {2: any_, 3: any_}), strict=False
    ).module()
    for size in ((5, 6), (10, 7)):
        torch.testing.assert_close(run(a, torch.zeros(1, 2, *size)), upsample(a, size))


# --- an ONNX file

SPACE = LabelSpace('world', ('cup', 'table', 'sink', 'wall', 'floor'), palette(K))


def words(path):
    return path.read_bytes().decode('latin1')


def test_onnx_file(tmp_path):
    onnx = pytest.importorskip('onnx')
    model, path = shaken('upernet'), tmp_path / 'm.onnx'
    found = export_onnx(model, path, SPACE)
    assert len(found) == 3 and any(h % 2 and w % 2 for _, h, w in found) and 0 <= max(found.values()) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ['m.onnx']  # the weights are inside, nothing is left over
    run = onnx_run(path)
    for size in ((1, 1, 1), (1, 3, 90), (2, 12, 24), (5, 33, 65), (1, 96, 96)):
        assert off(run, model, *size) < 1e-5
    file = onnx.load(path)
    ends = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*file.graph.input, *file.graph.output)
    }
    assert ends == dict(pictures=['batch', 3, 'height', 'width'], logits=['batch', K, 'height', 'width'])
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    about = {p.key: p.value for p in file.metadata_props}
    assert LabelSpace.from_json(json.loads(about['label_space'])) == SPACE and 'RGB' in about['input']
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert here not in words(path) and '.py' not in words(path) and 'site-packages' not in words(path)
    assert not {'Loop', 'If', 'Scan'} & {n.op_type for n in file.graph.node}


def test_program_file_names_no_machine(tmp_path):
    import zipfile

    export_program(shaken('fcn', idr=False), tmp_path / 'm.pt2', SPACE, sizes=((1, 5, 5),))
    with zipfile.ZipFile(tmp_path / 'm.pt2') as z:
        inside = b''.join(z.read(n) for n in z.namelist()).decode('latin1')
    assert (
        'site-packages' not in inside
        and 'idrnet.py' not in inside
        and os.path.dirname(os.path.abspath(__file__)) not in inside
    )
    assert 'floor' in inside


class Moody(nn.Module):
    "Computes with image sizes in Python."

    channels, strides, pad_to, mean, std = [4, 4], [4, 4], 4, (0.0,) * 3, (255.0,) * 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x):
        return [self.conv(x).flip(-1) if x.shape[2] > x.shape[3] else self.conv(x)] * 2


def test_another_answer_is_not_kept(tmp_path):
    pytest.importorskip('onnxruntime')
    model, path = shaken('fcn', False, Moody()), tmp_path / 'm.onnx'
    path.write_text('the old one')
    with pytest.raises(RuntimeError, match='differs from the model by .* on 2 images'):
        export_onnx(model, path)
    assert path.read_text() == 'the old one' and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RuntimeError, match='(does not run|of the largest logit) on 2 images'):
        export_program(model, tmp_path / 'm.pt2')
    with torch.no_grad():
        model.head.classifier.logits.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match='nan of the largest logit'):
        export_program(model, tmp_path / 'm.pt2')
    assert len(list(tmp_path.iterdir())) == 1


class Stubborn(Moody):
    "Reads a value."

    def forward(self, x):
        return [self.conv(x) * (1 if x.max().item() > 0 else 2)] * 2


def test_what_torch_cannot_follow_is_said(tmp_path):
    with pytest.raises(NotImplementedError, match="cannot export backbone 'Stubborn'"):
        export_program(shaken('fcn', False, Stubborn()))


@pytest.mark.parametrize('missing', ('onnx', 'onnxruntime', 'onnxscript'))
def test_missing_extra_is_named(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} is missing: pip install 'idrnet_nb\[export\]'"):
        export_onnx(shaken('fcn'), tmp_path / 'm.onnx')
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    model = shaken('fcn')
    two = LabelSpace('two', ('a', 'b'), palette(2))
    for error, words_, call in (
        (ValueError, 'has 5 classes, label space', lambda: export_program(model, tmp_path / 'm.pt2', two)),
        (ValueError, 'should end in .pt2', lambda: export_program(model, tmp_path / 'm.pt')),
        (ValueError, 'should end in .onnx', lambda: export_onnx(model, tmp_path / 'm')),
        (FileNotFoundError, 'make it first', lambda: export_onnx(model, tmp_path / 'no' / 'm.onnx')),
        (ValueError, 'torch.uint8 or torch.float32', lambda: export_program(model, dtype=torch.float16)),
        (TypeError, 'a Segmentor is needed, this is SegHead', lambda: export_program(model.head)),
        (TypeError, '_orig_mod', lambda: export_program(torch.compile(model))),
    ):
        with pytest.raises(error, match=words_):
            call()
    assert not list(tmp_path.iterdir())


# --- every argument: obeyed, or refused with the reason before the first minute of work


def calls(tmp_path):
    "Both functions by one name, with a path of the right ending."
    return dict(
        program=lambda model, path=tmp_path / 'm.pt2', **args: export_program(model, path, **args),
        onnx=lambda model, path=tmp_path / 'm.onnx', **args: export_onnx(model, path, **args),
    )


WRONG = [  # argument, value, error, words
    ('space', 'toy', TypeError, 'is no LabelSpace'),
    ('space', {'classes': ['a']}, TypeError, 'is no LabelSpace'),
    ('space', LabelSpace('two', ('a', 'b'), palette(2)), ValueError, 'has 5 classes'),
    ('dtype', torch.float16, ValueError, 'torch.uint8 or torch.float32'),
    ('dtype', torch.float64, ValueError, 'torch.uint8 or torch.float32'),
    ('dtype', 'half', ValueError, 'not half'),
    ('dtype', None, ValueError, 'not None'),
    ('sizes', (), ValueError, 'at least one'),
    ('sizes', [], ValueError, 'at least one'),
    ('sizes', 3, ValueError, r'\(\(b, height, width\)'),
    ('sizes', (1, 33, 40), ValueError, 'not .b, height, width'),
    ('sizes', ((1, 33),), ValueError, 'not .b, height, width'),
    ('sizes', ((0, 33, 40),), ValueError, 'above 0'),
    ('sizes', ((1, 33.0, 40),), ValueError, 'whole numbers'),
    ('sizes', ((1, -3, 40),), ValueError, 'above 0'),
    ('sizes', ('big',), ValueError, 'not .b, height, width'),
    ('tolerance', math.nan, ValueError, 'number from 0 up'),
    ('tolerance', math.inf, ValueError, 'number from 0 up'),
    ('tolerance', -1e-4, ValueError, 'number from 0 up'),
    ('tolerance', 'low', ValueError, 'number from 0 up'),
    ('tolerance', True, ValueError, 'number from 0 up'),
    ('tolerance', None, ValueError, 'number from 0 up'),
    ('path', 3, TypeError, 'is no path'),
    ('path', '', ValueError, 'should end in'),
    ('path', 'm', ValueError, 'should end in'),
    ('path', 'm.pth', ValueError, 'should end in'),
]


@pytest.mark.parametrize('how', ('program', 'onnx'))
@pytest.mark.parametrize('name,value,error,words_', WRONG, ids=lambda x: str(x)[:20])
def test_wrong_arguments(how, name, value, error, words_, tmp_path, monkeypatch):
    if how == 'onnx':
        pytest.importorskip('onnxruntime')
    monkeypatch.setattr('idrnet_nb.models.export.ExportModel.trace', lambda *a: pytest.fail('the work had begun'))
    with pytest.raises(error, match=words_):
        calls(tmp_path)[how](shaken('fcn', idr=False), **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('how,ending', (('program', '.pt2'), ('onnx', '.onnx')))
def test_wrong_places(how, ending, tmp_path, monkeypatch):
    if how == 'onnx':
        pytest.importorskip('onnxruntime')
    monkeypatch.setattr('idrnet_nb.models.export.ExportModel.trace', lambda *a: pytest.fail('the work had begun'))
    (tmp_path / f'folder{ending}').mkdir()
    (tmp_path / 'file').write_text('mine')
    call, model = calls(tmp_path)[how], shaken('fcn', idr=False)
    with pytest.raises(ValueError, match='is a folder; give the name of a file'):
        call(model, tmp_path / f'folder{ending}')
    with pytest.raises(FileNotFoundError, match='make it first'):
        call(model, tmp_path / 'no' / f'm{ending}')
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        call(model, tmp_path / 'file' / f'm{ending}')

    def never(*a, **k):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', never)
    with pytest.raises(OSError, match=r'nothing can be written to folder .*\(Permission denied\); give another'):
        call(model)
    assert (tmp_path / 'file').read_text() == 'mine'
    if how == 'onnx':
        with pytest.raises(TypeError, match='path=None is no path; give NAME.onnx'):
            call(model, None)


@pytest.mark.parametrize('how', ('program', 'onnx'))
def test_wrong_models(how, tmp_path):
    if how == 'onnx':
        pytest.importorskip('onnxruntime')
    model = shaken('fcn', idr=False)
    for wrong in (
        model.head,
        model.backbone,
        torch.compile(model),
        torch.nn.DataParallel(model),
        None,
        'models/mine',
        model.state_dict(),
    ):
        with pytest.raises(TypeError, match='a Segmentor is needed, this is'):
            calls(tmp_path)[how](wrong)
    assert not list(tmp_path.iterdir())


def test_sizes_below_the_least_are_refused(tmp_path):
    "By a program; an ONNX file takes all."
    with pytest.raises(ValueError, match=r'sizes has \(1, 4, 9\), the program takes images from 5 pixels a side'):
        export_program(shaken('fcn', idr=False), sizes=((1, 4, 9),))


@pytest.mark.parametrize('opset', (0, -1, 7, 12, 17, 99, 10**9))
def test_opset_out_of_range(opset, tmp_path):
    pytest.importorskip('onnxruntime')
    with pytest.raises(
        ValueError, match=rf'opset={opset} cannot be written; torch writes operators from 18 on, .* up to \d\d'
    ):
        export_onnx(shaken('fcn', idr=False), tmp_path / 'm.onnx', opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('opset', ('18', 18.0, True, [18]))
def test_opset_of_another_type(opset, tmp_path):
    pytest.importorskip('onnxruntime')
    with pytest.raises(TypeError, match='should be a whole number'):
        export_onnx(shaken('fcn', idr=False), tmp_path / 'm.onnx', opset=opset)


def opset_of(path):
    import onnx

    return [o.version for o in onnx.load(path).opset_import if not o.domain]


@pytest.mark.parametrize('opset', (18, 20))
def test_opset_is_obeyed(opset, tmp_path):
    pytest.importorskip('onnxruntime')
    model = shaken('fcn')
    export_onnx(model, tmp_path / 'm.onnx', opset=opset, sizes=((1, 13, 9),))
    assert opset_of(tmp_path / 'm.onnx') == [opset] and off(onnx_run(tmp_path / 'm.onnx'), model, 2, 31, 20) < 1e-5


def test_opset_is_obeyed_or_refused(tmp_path, capfd, monkeypatch):
    "The newest that onnx knows: what comes out has it, or nothing comes out. And so if torch falls back to another one."
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    newest, model = onnx.defs.onnx_opset_version(), shaken('fcn', idr=False)
    (tmp_path / 'm.onnx').write_text('the old one')
    try:
        export_onnx(model, tmp_path / 'm.onnx', opset=newest, sizes=((1, 13, 9),))
        assert opset_of(tmp_path / 'm.onnx') == [newest]
    except (ValueError, RuntimeError) as e:
        assert f'opset={newest} was requested, but' in str(e) or 'Give an older opset' in str(e)
        assert (tmp_path / 'm.onnx').read_text() == 'the old one' and len(list(tmp_path.iterdir())) == 1
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, 'export', lambda *a, **k: real(*a, **{**k, 'opset_version': 18}))
    with pytest.raises(ValueError, match='opset=19 was requested, but 18 came out.*give opset=18'):
        export_onnx(model, tmp_path / 'n.onnx', opset=19)
    assert 'Traceback' not in capfd.readouterr().err and not (tmp_path / 'n.onnx').exists()


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16, torch.float64))
def test_models_of_other_types_are_written_in_float32(dtype, tmp_path):
    "As documented; the comparison is with that copy, and the model stays what it is."
    model = shaken('fcn', idr=False).to(dtype).eval()
    run = export_program(model, tmp_path / 'm.pt2', sizes=((1, 9, 9),)).module()
    assert off(run, copy.deepcopy(model).float(), 2, 20, 31) <= 1e-6 and next(model.parameters()).dtype == dtype


def test_a_plugged_model_is_written_with_its_plug(tmp_path):
    from idrnet_nb.models.plugin import add_idr, get_idr

    model = add_idr(shaken('fcn', idr=False), at='head.classifier.logits').eval()
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for p in get_idr(model).parameters():
            p.add_(torch.randn_like(p) * 0.3)
    assert (
        least_side(model) == 9 and least_side(shaken('fcn', idr=False)) == 5
    )  # the working grid of the plug is coarser
    run = export_program(model, tmp_path / 'm.pt2').module()
    for size in ((1, 9, 9), (2, 33, 20)):
        assert off(run, model, *size) <= 1e-6 and off(run, plain, *size) > 1e-3


def test_an_older_file_is_replaced_as_a_whole(tmp_path):
    for call, path in ((export_program, tmp_path / 'm.pt2'), (export_onnx, tmp_path / 'm.onnx')):
        if call is export_onnx:
            pytest.importorskip('onnxruntime')
        path.write_text('the old one')
        call(shaken('fcn', idr=False), str(path), sizes=((1, 9, 9),))
        assert path.stat().st_size > 10_000 and [p.name for p in tmp_path.iterdir() if p.suffix == path.suffix] == [
            path.name
        ]


# --- every framework, and networks of others


@full
@pytest.mark.parametrize('framework,idr', ARMS)
def test_onnx_of_every_framework(framework, idr, tmp_path):
    model = shaken(framework, idr)
    assert max(export_onnx(model, tmp_path / 'm.onnx').values()) < 5e-5
    assert all(off(onnx_run(tmp_path / 'm.onnx'), model, *size) < 5e-5 for size in grids(1))


NETWORKS = [
    ('resnet18', None),
    ('resnet18', 8),
    ('resnet50c', 8),
    ('mobilenetv2_050', None),
    ('mobilenetv2_050', 16),
    ('convnext_atto', None),
    ('convnext_atto', 8),
    ('hrnet_w18', None),
    ('swin_tiny_patch4_window7_224', None),
]


@full
@pytest.mark.parametrize('framework', ('fcn', 'upernet'))
@pytest.mark.parametrize('network,stride', NETWORKS)
def test_networks_of_others(network, stride, framework, tmp_path):
    model = shaken(framework, backbone=network, output_stride=stride)
    n = least_side(model)
    run = export_program(model, tmp_path / 'm.pt2').module()
    assert max(export_onnx(model, tmp_path / 'm.onnx').values()) < 1e-4
    other = onnx_run(tmp_path / 'm.onnx')
    for size in ((1, n, n), (2, n + 31, n + 64), (1, n + 63, n)):
        assert off(run, model, *size) < 1e-5 and off(other, model, *size) < 1e-4
    for size in ((1, 20, 31), (1, n - 1, 2 * n)):
        assert off(other, model, *size) < 1e-4  # an ONNX file takes small ones, too


# --- no graph breaks


def compiled_is_plain(framework, training, backend='aot_eager'):
    seed_everything(0)
    model = shaken(framework, dropout=0.0).train(training)
    plain, noise = copy.deepcopy(model), torch.rand(2, K)
    images, label = pictures(2, 30, 34), torch.randint(0, K, (2, 30, 34))
    args = dict(label=label, uniform=noise) if training else {}
    torch._dynamo.reset()
    with torch.set_grad_enabled(training):
        a, b = torch.compile(model, fullgraph=True, backend=backend)(images, **args), plain(images, **args)
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-5)
    if not training:
        return
    a.loss.backward()
    b.loss.backward()
    for (n, p), q in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=n)
    for (n, p), q in zip(model.named_buffers(), plain.buffers()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=n)


def test_inference_compiles():
    compiled_is_plain('pspnet', False, 'eager')


@full
@pytest.mark.parametrize('training', (True, False))
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_every_framework_compiles(framework, training):
    compiled_is_plain(framework, training)
