"""What if: deletions against loops and against the training's own diagnostics, for every framework;
nothing that was learnt moves; the explorer and its figures."""

import io, math, sys
from dataclasses import asdict
import pytest, torch
import torch.nn.functional as F
from PIL import Image
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import seed_everything
from idrnet_nb.method.layers import pixel_losses
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import EvalProtocol, load_model, probabilities, save_model
from idrnet_nb.experiments.explorer import explorer, explorer_static, show_changed
from idrnet_nb.experiments.what_if import HOWS, Probe, changed_by, what_if, what_if_all
from idrnet_nb.experiments.what_if_result import WhatIf

K, SMALL, SIZE = 5, dict(width=8, attention_width=6, aux_width=8), (33, 47)
SPACE = LabelSpace('five', ('sky', 'road', 'car', 'tree', 'pole'), palette(K))
CASES = [(f, i) for f in FRAMEWORKS for i in (False, True, 'attention')]


@pytest.fixture(autouse=True)
def no_windows():
    import matplotlib

    matplotlib.use('Agg')
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


def make(framework='fcn', idr=True, seed=0):
    "A model whose norms, tables and memory have seen something, and that predicts many classes."
    seed_everything(seed)
    model = build_segmentor(framework, 'tiny', K, idr=idr, **SMALL, dropout=0.0)
    for _ in range(6):
        model(patches(3), torch.randint(K, (3, *SIZE)))
    model.eval()
    with torch.no_grad():
        for key, part in (('coarse_logits', model.head.coarse_classifier), ('logits', model.head.classifier)):
            if part is None:
                continue
            part.logits.weight.mul_(4)
            part.logits.bias.sub_(getattr(model(patches(4)), key).mean((0, 2, 3)))
        if model.head.idr is not None:
            for t in (*model.relations, model.head.idr.memory):
                t.add_(0.4 * torch.randn_like(t))
    return model


def patches(n, size=SIZE, seed=0):
    "Images of coloured patches."
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(256 * torch.rand(n, 3, 4, 5, generator=g), size, mode='nearest')


def some(model, seed=0):
    "An image for which the model predicts two classes or more, in every way of deleting."
    for s in range(seed, seed + 9):
        x = patches(1, seed=s)[0]
        probe = Probe(model, x)
        if all(len(probe.present(h)) > 1 for h in hows(model)):
            return x
    raise AssertionError('the model predicts one class everywhere')


def hows(model):
    return HOWS if model.head.idr is not None else HOWS[1:]


def truth(seed=3):
    y = torch.randint(K, SIZE, generator=torch.Generator().manual_seed(seed))
    y[0, :9] = 255
    return y


def frozen(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


# ---- every framework


@pytest.mark.parametrize('framework,idr', CASES)
def test_every_framework(framework, idr):
    model = make(framework, idr)
    x, y = some(model), truth()
    model.train()
    model.backbone.eval()
    was, modes, chance = frozen(model), [m.training for m in model.modules()], torch.get_rng_state()
    for how in hows(model):
        for d in Probe(model, x).present(how):
            r = what_if(model, x, d, y, SPACE, how)
            assert [m.training for m in model.modules()] == modes
            torch.testing.assert_close(r.before, probabilities(model.eval(), x[None])[0])
            model.train()
            model.backbone.eval()
            torch.testing.assert_close(r.after.sum(0), torch.ones(SIZE))
            assert not r.after.requires_grad
            assert r.after.shape == (K, *SIZE) and r.deleted == d and r.how == how
            assert r.name == SPACE.classes[d] and r.name in str(r)
        assert (r.before != r.after).any()
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(t, was[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert (r.row is None) == (model.head.idr is None)


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_context_is_the_diagnostics_of_training(framework):
    "The relation matrices change, in a training step whose norms stand still, by what what_if_all returns."
    model = make(framework)
    x, y = some(model), truth()
    asked = what_if_all(model, x, y, SPACE)
    there = Probe(model, x).present('context')
    assert asked[there].isfinite().all() and asked[there].abs().max() > 1e-4
    assert asked.isnan().all(1).sum() == K - len(there)
    was, start = frozen(model), model.relations[0].clone()
    for d in there:
        model.load_state_dict(was)
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.eval()
        model(x[None], y[None], deleted=torch.tensor([d]))
        moved = (model.relations[0] - 0.9 * start) / 0.1
        torch.testing.assert_close(moved[d], asked[d], atol=2e-4, rtol=1e-3)
        others = [c for c in range(K) if c != d]
        torch.testing.assert_close(model.relations[0][others], start[others])


def loops(model, x, d=None):
    "Steps 2 to 9 for an FCN, one image whose sides are multiples of the stride, by loops; d: deleted."
    head, idr = model.head, model.head.idr
    maps = model.backbone((x[None] - model.mean) / model.std)
    R = head.bottleneck(maps[-1])
    P = head.coarse_classifier(R)[0]
    (_, C, h, w), spots = R.shape, [(i, j) for i in range(R.shape[2]) for j in range(R.shape[3])]
    a = {p: int(P[(slice(None), *p)].argmax()) for p in spots}
    V = [k for k in sorted(set(a.values())) if k != d]
    g = {}
    for k in V:
        mine = [p for p in spots if a[p] == k]
        weight = torch.stack([P[(k, *p)] for p in mine]).softmax(0)
        g[k] = sum(s * torch.cat([R[(0, slice(None), *p)], idr.memory[k]]) for s, p in zip(weight, mine))

    def gather(i, relation, positive):
        if i == d or not V:
            return torch.zeros(2 * C)
        row = [float(relation[i, j]) for j in V]
        if positive:
            row = [v if v > 0 else -1e30 for v in row]
        top = max(row)
        e = [math.exp(v - top) for v in row]
        return sum(v / sum(e) * g[j] for v, j in zip(e, V))

    E = {
        i: torch.cat([gather(i, idr.relation_mean, True), gather(i, idr.relation_var, False)]) for i in set(a.values())
    }
    Z = torch.zeros(1, 6 * C, h, w)
    for p in spots:
        Z[(0, slice(None), *p)] = torch.cat([R[(0, slice(None), *p)], idr.memory[a[p]], E[a[p]]])
    logits = head.classifier(torch.cat([R, idr.attention(Z)], 1))
    return F.interpolate(logits, x.shape[-2:], mode='bilinear', align_corners=False)[0].softmax(0)


@pytest.mark.parametrize('seed', range(3))
def test_context_by_loops(seed):
    model = make(seed=seed)
    model.backbone.pad_to = 1
    x = some(model, seed)[:, :32, :44]
    with torch.no_grad():
        torch.testing.assert_close(Probe(model, x).before, loops(model, x), atol=1e-5, rtol=1e-4)
        for d in Probe(model, x).present('context'):
            torch.testing.assert_close(what_if(model, x, d).after, loops(model, x, d), atol=1e-5, rtol=1e-4)


def test_only_one_class():
    "Deleting the only class leaves no context, no other class to average, and finite predictions."
    model = make()
    with torch.no_grad():
        model.head.coarse_classifier.logits.bias[2] += 1e4
        model.head.classifier.logits.bias[2] += 5
    model.backbone.pad_to = 1
    x = patches(1, (32, 44))[0]
    with torch.no_grad():
        want = loops(model, x, 2)
    torch.testing.assert_close(what_if(model, x, 2).after, want, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        model.head.classifier.logits.bias[2] += 1e4
    for how in HOWS:
        assert what_if(model, x, 2, how=how).after.isfinite().all()
    with pytest.raises(ValueError, match='does not predict'):
        what_if(model, x, 1)
    flat = torch.full((3, 20, 20), 90.0)
    r = what_if(model, flat, 2, how='picture')
    torch.testing.assert_close(r.before, r.after)
    assert len(explorer_static(model, x, truth()[:32, :44], SPACE).axes) == 8  # two lines of four


# ---- features and picture, by loops


@pytest.mark.parametrize('framework,idr', [('upernet', False), ('fcn', True), ('segformer', False)])
def test_features_by_loops(framework, idr):
    model = make(framework, idr)
    x = some(model)
    probe = Probe(model, x)
    for d in probe.present('features'):
        erased = probe.erase(d)
        with torch.no_grad():
            want = probe.to_probabilities(probe.predict(erased).logits)
        torch.testing.assert_close(probe.without(d, 'features'), want)
        deleted = probe.before.argmax(0) == d
        for m, new in zip(probe.pyramid, erased):
            (H, W), (h, w) = probe.padded_size, m.shape[2:]
            side = H // h
            assert side * h == H and side * w == W
            share, weight = torch.zeros(h, w), torch.zeros(h, w)
            for i in range(h):
                for j in range(w):
                    cell = deleted[i * side : (i + 1) * side, j * side : (j + 1) * side]
                    if cell.numel():
                        share[i, j], weight[i, j] = cell.float().mean(), (~cell).sum()
            mean = (m[0] * weight).sum((1, 2)) / weight.sum()
            want = m[0] * (1 - share) + mean[:, None, None] * share
            torch.testing.assert_close(new[0], want, atol=1e-4, rtol=1e-4)


def test_picture_by_hand():
    model = make('pspnet', False)
    x = some(model)
    for d in Probe(model, x).present('picture'):
        gone = probabilities(model, x[None])[0].argmax(0) == d
        painted = x.clone()
        painted[:, gone] = x[:, ~gone].mean(1, keepdim=True)
        want = probabilities(model, painted[None])[0]
        torch.testing.assert_close(what_if(model, x, d, how='picture').after, want, atol=1e-5, rtol=1e-4)


# ---- what it says


def test_losses_and_moves():
    model = make()
    x, y = some(model), truth()
    y[y == 4] = 255
    d = Probe(model, x).present('context')[0]
    r = what_if(model, x, d, y, SPACE)
    each = pixel_losses(model(x[None]).logits, y[None])[0]
    for c in range(K):
        if (y == c).any():
            torch.testing.assert_close(r.loss_before[c], each[y == c].mean(), atol=1e-5, rtol=1e-4)
        else:
            assert r.loss_before[c].isnan() and r.loss_after[c].isnan()
    assert f'{int(r.changed.sum())} of {33 * 47} pixels' in str(r)
    assert r.share == pytest.approx(r.changed.float().mean().item())
    pairs = [(int(a), int(b)) for a, b in zip(r.before.argmax(0)[r.changed], r.after.argmax(0)[r.changed])]
    most = max(pairs, key=pairs.count)
    assert f'{pairs.count(most)} {SPACE.classes[most[0]]} → {SPACE.classes[most[1]]}' in str(r)
    assert 'loss of pole' not in str(r) and 'loss of sky' in str(r) and repr(r) == str(r)
    torch.testing.assert_close(r.row, model.relations[0][d])
    assert r.row.data_ptr() != model.relations[0][d].data_ptr()


@pytest.mark.parametrize('size', [(1, 1), (3, 50), (17, 4), (64, 64)])
@pytest.mark.parametrize('kind', ['uint8', 'array', 'file', 'turned'])
def test_sizes_and_kinds(size, kind, tmp_path):
    model = make()
    x = patches(1, size)[0].to(torch.uint8)
    image = dict(
        uint8=x, array=x.permute(1, 2, 0).numpy(), file=tmp_path / 'x.png', turned=x.numpy() if size[1] != 3 else x
    )[kind]
    if kind == 'file':
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(image)
    for how in HOWS:
        r = what_if(model, image, Probe(model, x.float()).present(how)[0], how=how)
        assert r.after.shape == (K, *size) and torch.equal(r.image, x.float())
        torch.testing.assert_close(r.before, probabilities(model, x[None])[0])


def test_protocol_and_space_travel(tmp_path):
    model, p = make(), EvalProtocol((24, 40))
    save_model(model, tmp_path / 'm', SPACE, (24, 40), protocol=asdict(p))
    again, _ = load_model(tmp_path / 'm')
    x = some(again)
    for how in HOWS:
        d = Probe(again, x).present(how)[0]
        r = what_if(again, x, SPACE.classes[d], how=how)
        torch.testing.assert_close(r.before, probabilities(model, x[None], p)[0])
        assert r.space.name == 'five' and r.after.shape == (K, *SIZE)
    r = what_if(again, x, d, how='picture', protocol=EvalProtocol())
    torch.testing.assert_close(r.before, probabilities(model, x[None])[0])


@pytest.mark.parametrize('seed', (0, 2, 3))
def test_changed_by_loops(seed):
    model = make('deeplabv3', seed=seed)
    x = some(model, 10 * seed)
    coarse, final, who = changed_by(model, x, SPACE)
    probe = Probe(model, x)
    after = {d: what_if(model, x, d).after for d in probe.present('context')}
    assert (coarse != final).any() and torch.equal(final, probe.before.argmax(0))
    for i in range(SIZE[0]):
        for j in range(i % 2, SIZE[1], 2):
            f = int(final[i, j])
            falls = {d: float(probe.before[f, i, j] - p[f, i, j]) for d, p in after.items()}
            best = max(falls.values())
            if coarse[i, j] == f:
                assert who[i, j] == 255
            elif best <= 0:
                assert who[i, j] == K
            else:
                assert falls[int(who[i, j])] == best
    assert len(show_changed(model, x, truth(), SPACE).axes) == 5
    assert len(changed_by(make('ocrnet', False), x)) == 3  # OCR has a coarse prediction, too


# ---- mistakes


@pytest.mark.parametrize(
    'change,said',
    [
        (dict(delete='raod'), 'there are road'),
        (dict(delete='x'), 'there are sky'),
        (dict(delete=5), '0..4'),
        (dict(delete=-1), '0..4'),
        (dict(delete=1.5), '0..4'),
        (dict(delete=True), '0..4'),
        (dict(delete=None), '0..4'),
        (dict(how='soul'), 'context, features, picture'),
        (dict(image=torch.zeros(1, 3, 8, 8)), '`3 h w`'),
        (dict(image=torch.zeros(4, 8, 8)), '`3 h w`'),
        (dict(image=torch.zeros(3, 0, 8)), '`3 h w`'),
        (dict(label=torch.zeros(8, 8).long()), '33x47'),
        (dict(label=torch.zeros(SIZE)), 'float32'),
        (dict(label=torch.full(SIZE, 7)), 'ids outside'),
        (dict(space=LabelSpace('two', ['a', 'b'], palette(2))), '2 classes, the model 5'),
        (dict(model=torch.nn.Linear(1, 1)), 'not a Segmentor'),
        (dict(model='plain', how='context'), 'no IDR'),
    ],
)
def test_mistakes(change, said):
    model = make(idr=change.get('model') != 'plain')
    args = dict(model=model, image=some(model), delete=1, label=truth(), space=SPACE)
    args |= {k: v for k, v in change.items() if v != 'plain' or k != 'model'}
    with pytest.raises(ValueError, match=said.replace('.', r'\.').replace('(', r'\(')):
        what_if(**args)


def test_more_mistakes(tmp_path):
    model = make()
    x = some(model)
    absent = next(c for c in range(K + 1) if c not in Probe(model, x).present('context'))
    if absent < K:
        with pytest.raises(ValueError, match='coarse prediction'):
            what_if(model, x, absent, space=SPACE)
    with pytest.raises(ValueError, match='no class .road.; there are class 0'):  # nobody said the names
        what_if(model, x, 'road')
    with pytest.raises(FloatingPointError, match='nan'):
        what_if(model, x * torch.nan, 1)
    with pytest.raises(FileNotFoundError):
        what_if(model, tmp_path / 'none.png', 1)
    with pytest.raises(ValueError, match='needs the truth'):
        what_if_all(model, x, None)
    with pytest.raises(ValueError, match='IDR or OCR'):
        show_changed(make(idr=False), x)


def test_modes_come_back_after_an_error():
    model = make().train()
    model.backbone.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        what_if(model, patches(1)[0], 1)
    assert model.training and model.head.training


# ---- the explorer


@pytest.mark.parametrize('idr', [True, False])
@pytest.mark.parametrize('known', [True, False])
def test_twin_draws(idr, known):
    model = make(idr=idr)
    x = some(model)
    y = truth() if known else None
    fig = explorer_static(model, x, y, SPACE, most=2)
    fig.savefig(out := io.BytesIO(), format='png')
    assert Image.open(out).format == 'PNG'
    there = Probe(model, x).present('context' if idr else 'features')
    columns = max(4 if known else 3, 2 + known + idr)  # the legend of the losses has a place of its own
    assert len(fig.axes) == columns * (1 + min(2, len(there)))
    r = what_if(model, x, there[0], y, SPACE)
    assert isinstance(r, WhatIf) and len([a for f in r.show().subfigs for a in f.axes]) == 4 + known + known + idr


def test_explorer():
    pytest.importorskip('ipywidgets')
    model = make()
    x = some(model)
    data = [(x, truth()), (some(model, 60), None)]  # the second without a truth
    box = explorer(model, data, SPACE)
    (index, delete, how), shown, words = box.children[0].children, box.children[1], box.children[2]
    assert delete.value == Probe(model, x).present('context')[1]  # the first is often the background
    was = frozen(model)
    for i in (0, 1):
        index.value = i
        for h in HOWS:
            how.value = h
            there = Probe(model, data[i][0]).present(h)
            assert list(delete.options) == [(SPACE.classes[c], c) for c in there]
            for _, c in delete.options:
                delete.value = c
                assert words.value == f'<pre>{what_if(model, data[i][0], c, data[i][1], SPACE, h)}</pre>'
                if h != 'context':
                    break
            assert shown.value[:4] == b'\x89PNG'
    assert all(torch.equal(t, was[n]) for n, t in model.state_dict().items())


def test_explorer_without_widgets(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError, match='pip install ipywidgets'):
        explorer(make(), [(patches(1)[0], None)])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    "A model kept in half precision predicts for float images, and can be asked what if."
    model = build_segmentor('fcn', num_classes=4, width=16, attention_width=8, aux_width=8).eval().to(dtype)
    image = torch.rand(3, 40, 48) * 255
    assert model(image[None]).logits.dtype == dtype
    there = probabilities(model, image[None]).argmax(1).unique()[0].item()
    r = what_if(model, image, there, space=LabelSpace('four', tuple('abcd'), palette(4)), how='features')
    assert r.after.isfinite().all() and r.deleted == there
