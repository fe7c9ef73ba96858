"""Each loss against loops on random cases, void, absent classes, half precision; no host sync, one graph."""

import copy, json, pickle, random
from dataclasses import asdict, replace
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from idrnet_nb.method.layers import mean_loss, pixel_losses
from idrnet_nb.training.losses import Criterion, _weight_tensor, balanced_weights, focal, hard_mean, lovasz, soft_dice

WORDS = ('ce', 'focal', 'dice', 'lovasz', 'ce+dice', '0.5*ce+1.5*lovasz')


def case(seed, dtype=torch.float32, ignore=255):
    g, r = torch.Generator().manual_seed(seed), random.Random(seed)
    b, k, h, w = r.randint(1, 3), r.randint(1, 5), r.randint(1, 6), r.randint(1, 6)
    label = torch.randint(0, r.randint(1, k), (b, h, w), generator=g)
    label[torch.rand(b, h, w, generator=g) < r.choice([0, 0, 0.3, 0.9, 1.1])] = ignore  # the last: all void
    return (r.choice([0.1, 1, 5]) * torch.randn(b, k, h, w, generator=g)).to(dtype), label


def pixels(logits, label, ignore=255):  # (probabilities, class) of each labelled pixel
    p = logits.double().softmax(1)
    return [
        (p[b, :, y, x], int(c))
        for (b, y, x), c in zip(
            torch.cartesian_prod(*(torch.arange(n) for n in label.shape)).reshape(-1, 3).tolist(), label.flatten()
        )
        if c != ignore
    ]


def dice_loop(px, k):
    out = []
    for c in {c for _, c in px}:
        out.append(1 - 2 * sum(p[c] for p, t in px if t == c) / (sum(p[c] for p, _ in px) + sum(t == c for _, t in px)))
    return sum(out) / len(out) if out else 0.0


def lovasz_loop(px, k):  # Jaccard loss of the sets of the 1, 2, … worst pixels
    out = []
    for c in {c for _, c in px}:
        worst = sorted(((1 - p[c] if t == c else p[c]).item(), t == c) for p, t in px)[::-1]
        true, value, before = sum(t for _, t in worst), 0.0, 0.0
        for i, (error, _) in enumerate(worst):
            missed = sum(t for _, t in worst[: i + 1])
            loss = 1 - (true - missed) / (true + (i + 1 - missed))
            value, before = value + error * (loss - before), loss
        out.append(value)
    return sum(out) / len(out) if out else 0.0


def focal_loop(p, gamma=2.0):
    return (1 - p) ** gamma * -p.log()


@pytest.mark.parametrize('part', range(4))
def test_equal_to_loops(part):
    "In both precisions; the void id may lie above, right after or below the classes."
    for seed in range(60 * part, 60 * part + 60):
        void = (255, -1, 5)[seed % 3]
        logits, label = case(seed, ignore=void)
        px, k = pixels(logits, label, void), logits.shape[1]
        n = max(1, len(px))
        want = dict(
            ce=sum(-p[c].log() for p, c in px) / n,
            focal=sum(focal_loop(p[c]) for p, c in px) / n,
            dice=dice_loop(px, k),
            lovasz=lovasz_loop(px, k),
        )
        want['0.5*ce+2*dice'] = 0.5 * want['ce'] + 2 * want['dice']
        for name, v in want.items():
            for z, rtol, atol in (logits, 1e-4, 4e-5), (logits.double(), 1e-9, 1e-9):
                got = Criterion(name)(z, label, void).double()
                torch.testing.assert_close(
                    got,
                    torch.as_tensor(v, dtype=torch.float64),
                    rtol=rtol,
                    atol=atol,
                    msg=lambda m: f'{name}, case {seed}: {m}',
                )


def test_usual_is_the_models():
    for seed in range(30):
        logits, label = case(seed)
        assert torch.equal(Criterion()(logits, label), mean_loss(pixel_losses(logits, label), label))
        w = tuple((torch.arange(logits.shape[1]) + 1.0).tolist())
        if (label != 255).any():
            torch.testing.assert_close(
                Criterion(class_weights=w)(logits, label),
                F.cross_entropy(logits, label, torch.tensor(w), ignore_index=255),
            )


@pytest.mark.parametrize('name', WORDS)
def test_void_is_as_if_it_were_not_there(name):
    for seed in range(40):
        logits, label = case(seed)
        a, b = (torch.cat([logits, x], -1) for x in (logits.flip(0), 9 * logits))
        wide = torch.cat([label, torch.full_like(label, 255)], -1)
        assert torch.allclose(Criterion(name)(a, wide), Criterion(name)(b, wide)) and torch.allclose(
            Criterion(name)(a, wide), Criterion(name)(logits, label), atol=1e-6
        )


@pytest.mark.parametrize('name', WORDS)
@pytest.mark.parametrize('how', [{}, dict(gamma=0.5), dict(class_weights=(1.0, 2.0, 3.0), ohem=0.7, ohem_least=4)])
def test_gradients(name, how):
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 3, 4))
    label[0, 0] = 255
    z = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: Criterion(name, **how)(z, label), z)
    for void in torch.full_like(label, 255), label:
        x = (60 * torch.randn(2, 3, 3, 4)).requires_grad_()
        Criterion(name, **how)(x, void).backward()  # very sure, or nothing to learn from
        assert x.grad.isfinite().all() and ((void == 255).all() <= (x.grad == 0).all())


def test_lovasz_is_the_jaccard_loss_of_sure_answers():
    for seed in range(200):
        logits, label = case(seed)
        said, valid = logits.argmax(1), label != 255
        sure = 1e4 * F.one_hot(said, logits.shape[1]).movedim(-1, 1).float()
        present = [c for c in range(logits.shape[1]) if (label == c).any()]
        ious = [
            (((said == c) & (label == c)).sum() / (((said == c) | (label == c)) & valid).sum()).item() for c in present
        ]
        assert abs(lovasz(sure, label).item() - (1 - sum(ious) / len(ious) if ious else 0)) < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', WORDS)
def test_half_precision(name, dtype):
    logits, label = torch.randn(2, 4, 40, 50), torch.randint(0, 4, (2, 40, 50))
    low = Criterion(name)(logits.to(dtype), label)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, Criterion(name)(logits.to(dtype).float(), label))


@pytest.mark.parametrize('name', WORDS)
def test_one_graph_and_no_look_at_values(name):
    c, (logits, label) = (
        Criterion(name, (1.0, 2.0, 3.0), 0.7, 9),
        (torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))),
    )
    torch.testing.assert_close(
        torch.compile(c.__call__, fullgraph=True, backend='eager')(logits, label), c(logits, label)
    )
    with FakeTensorMode():  # a value that reached the host would raise
        z = torch.empty(2, 3, 5, 6, requires_grad=True)
        c(z, torch.empty(2, 5, 6, dtype=torch.long)).backward()
        assert z.grad.shape == z.shape


def test_full_precision_inside_autocast():
    for name in WORDS:
        logits, label = torch.randn(2, 4, 20, 30).bfloat16(), torch.randint(0, 4, (2, 20, 30))
        c = Criterion(name, (1.0, 2.0, 3.0, 4.0), 0.7, 9)
        grads = []
        for on in (False, True):
            z = logits.clone().requires_grad_()
            with torch.autocast('cpu', torch.bfloat16, enabled=on):
                loss = c(z, label)
            loss.backward()
            grads.append((loss.detach(), z.grad))
        assert (
            loss.dtype == torch.float32
            and torch.equal(grads[0][0], grads[1][0])
            and torch.equal(grads[0][1], grads[1][1])
        ), name


def test_lovasz_of_many_pixels():
    "What a pixel adds is less than a float32 Jaccard index can show; its gradient must not be a difference of two of them."
    torch.manual_seed(0)
    z, label, grads = 2 * torch.randn(1, 2, 400, 400), (torch.rand(1, 400, 400) < 0.3).long(), []
    for dtype in (torch.float32, torch.float64):
        x = z.to(dtype, copy=True).requires_grad_()
        lovasz(x, label).backward()
        grads.append(x.grad.double())
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[1].norm()


def test_weights_are_made_once():
    z, label, w = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4)), (0.137, 2.5, 0.61)  # of no other test
    c, want = Criterion(class_weights=w), F.cross_entropy(z, label, torch.tensor(w))
    with FakeTensorMode():
        c(torch.empty(2, 3, 4, 4), torch.empty(2, 4, 4, dtype=torch.long))  # keeps nothing that has no values
    with torch.inference_mode():
        torch.testing.assert_close(c(z, label), want)
    before = _weight_tensor.cache_info()
    x = z.clone().requires_grad_()
    c(x, label).backward()
    after = _weight_tensor.cache_info()  # nor what cannot be learnt with
    assert x.grad.isfinite().all() and (after.hits - before.hits, after.misses - before.misses) == (1, 0)
    assert _weight_tensor(w, torch.float64, z.device).dtype == torch.float64
    assert c(z.to('meta'), label.to('meta')).device.type == 'meta'
    torch.testing.assert_close(c(z, label), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('name', WORDS)
def test_no_sync_on_cuda(name):
    c, z, label = (
        Criterion(name, (1.0, 2.0, 3.0), 0.7, 9),
        torch.randn(2, 3, 5, 6).cuda().requires_grad_(),
        torch.randint(0, 3, (2, 5, 6)).cuda(),
    )
    c(z, label)
    torch.cuda.set_sync_debug_mode('error')
    try:
        c(z, label).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_one_program_for_several_criteria():
    torch._dynamo.reset()
    z, label = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    f = torch.compile(lambda c, z, y: c(z, y), fullgraph=True, backend='eager')
    for c in (
        Criterion(),
        Criterion('focal', gamma=1.5),
        Criterion('0.3*ce+focal', (1.0, 2.0, 3.0)),
        Criterion('0.7*ce+focal', (3.0, 2.0, 0.1), 0.5, 3, 2.5),
    ):
        torch.testing.assert_close(f(c, z, label), c(z, label))


def test_hard_and_weighted_pixels():
    for seed in range(210):
        logits, label = case(seed, torch.float64)
        each = pixel_losses(logits, label)
        px, k = pixels(logits, label), logits.shape[1]
        r = random.Random(seed)
        weights = None if seed % 3 == 0 else tuple(r.choice((0.0, 0.1, 2.0, 3.0)) for _ in range(k))
        for below, least in ((0.7, 1), (0.2, 3), (0.0, 2), (0.4, 0), (None, 1)):
            sure = sorted(p[c].item() for p, c in px)
            kept = [
                (p[c], weights[c] if weights else 1.0)
                for p, c in px
                if below is None or p[c] < below or least and p[c].item() <= sure[min(least, len(sure)) - 1] + 1e-12
            ]
            mass = sum(w for _, w in kept) or 1.0
            want, want_focal = (sum(w * focal_loop(p, g) for p, w in kept) / mass for g in (0.0, 1.5))
            assert abs(hard_mean(each, label, 255, weights, below, least) - want) < 1e-12, seed
            for name, v in ('ce', want), ('focal', want_focal):
                assert abs(Criterion(name, weights, below, least, 1.5)(logits, label) - v) < 1e-9, (name, seed)


def test_what_is_said():
    for bad in ('', 'hinge', 'ce+hinge', '2ce', 'ce,dice', '-ce'):
        with pytest.raises(ValueError, match='write a sum of'):
            Criterion(bad)
    with pytest.raises(ValueError, match='2 class_weights for 3 classes'):
        Criterion(class_weights=(1.0, 2.0))(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long())
    with pytest.raises(ValueError, match='differ in size'):
        Criterion()(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4).long())
    nan = float('nan')
    for bad, word in (
        (dict(ohem=7.0), 'a probability'),
        (dict(ohem=nan), 'ohem=nan'),
        (dict(class_weights=(1.0, nan)), 'from 0 up'),
        (dict(gamma=-1.0), 'gamma=-1'),
        (dict(ohem_least=-1), 'ohem_least=-1'),
    ):
        with pytest.raises(ValueError, match=word):
            Criterion(**bad)
    for bad in ((1, -1), (0, 0), (1, float('nan')), ((1, 2),)):
        with pytest.raises(ValueError, match='no pixel counts'):
            balanced_weights(bad)
    assert (
        balanced_weights((1, 1, 1), 'median') == (1.0, 1.0, 1.0)
        and focal(torch.tensor([0.0]), 2.0).item() == 0
        and soft_dice(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1).long()).item() < 1e-6
    )


def test_balanced_weights():
    "The formulas, number by number; classes that never occur weigh 1 and do not move the median."
    for seed in range(50):
        r = random.Random(seed)
        n = [r.choice([0, r.randint(1, 10 ** r.randint(1, 9))]) for _ in range(r.randint(1, 9))] + [5]
        share, total = [x / sum(n) for x in n], sorted(x / sum(n) for x in n if x)
        m = len(total)
        middle = (total[(m - 1) // 2] + total[m // 2]) / 2
        for how, f in (
            ('log', lambda s: 1 / torch.tensor(1.02 + s).double().log().item()),
            ('median', lambda s: middle / s),
        ):
            for got, s in zip(balanced_weights(n, how), share):
                assert abs(got - (f(s) if s else 1)) < 1e-4 * max(1, got), (how, seed)
        Criterion(class_weights=balanced_weights(n))  # may be given on as it is


def test_settings_travel():
    c = Criterion('0.5*ce + 1e-1*lovasz', [1, 2, 0.5], 0.7, 20, 3.0)
    z, label = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    for d in (
        copy.deepcopy(c),
        pickle.loads(pickle.dumps(c)),
        Criterion(**json.loads(json.dumps(asdict(c)))),
        eval(repr(c)),
        replace(c),
    ):
        assert d == c and hash(d) == hash(c) and torch.equal(d(z, label), c(z, label))
    assert torch.equal(replace(c, loss='dice')(z, label), soft_dice(z, label)) and c != replace(c, loss='dice')


# ---- cross-entropy of upsampled logits, tile by tile


@pytest.mark.parametrize('seed', range(40))
def test_tiles_are_the_whole_map(seed, monkeypatch):
    "Random sizes, up and down, several strips a picture: losses, mean and gradient are those of the long way."
    from idrnet_nb.method import layers
    from idrnet_nb.models import tiled_cross_entropy

    g = torch.Generator().manual_seed(seed)
    n = lambda low, high: int(torch.randint(low, high, (), generator=g))
    b, k, h, w, H, W = n(1, 4), n(1, 7), n(1, 9), n(1, 9), n(1, 40), n(1, 40)
    most = n(1, 300)
    real = tiled_cross_entropy.tiles
    monkeypatch.setattr(tiled_cross_entropy, 'tiles', lambda h, H, size, _: real(h, H, size, most * k))
    z = (3 * torch.randn(b, k, h, w, generator=g, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, k, (b, H, W), generator=g)
    y[torch.rand(y.shape, generator=g) < 0.3] = 255
    each = layers.pixel_losses(layers.upsample(z, (H, W)), y)
    mean = layers.mean_loss(each, y)
    (want,) = torch.autograd.grad(mean, z)
    ours, mine = tiled_cross_entropy.tiled_cross_entropy(z, y)
    (got,) = torch.autograd.grad(ours * 2, z)
    assert torch.allclose(mine, each) and torch.allclose(ours, mean) and torch.allclose(got, 2 * want, atol=1e-12)


def test_tiles_against_finite_differences():
    from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy

    z, y = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (1, 7, 8))
    assert torch.autograd.gradcheck(lambda z: tiled_cross_entropy(z, y)[0], z)
    (first,) = torch.autograd.grad(tiled_cross_entropy(z, y)[0], z, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()  # said, and not silently zero


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_tiles_under_autocast(dtype):
    from idrnet_nb.method.layers import mean_loss, pixel_losses, upsample
    from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy

    torch.manual_seed(0)
    z, y = torch.randn(2, 5, 4, 4).to(dtype).requires_grad_(), torch.randint(0, 5, (2, 16, 16))
    with torch.autocast('cpu', dtype=dtype):
        mean, each = tiled_cross_entropy(z, y)
    assert mean.dtype == each.dtype == torch.float32
    long = mean_loss(pixel_losses(upsample(z.float(), (16, 16)), y), y)
    assert torch.allclose(mean, long, atol=1e-5)
    (got,) = torch.autograd.grad(mean, z)
    assert got.dtype == dtype and torch.allclose(got.float(), torch.autograd.grad(long, z)[0].float(), atol=1e-3)


def test_tiles_under_a_loss_scale():
    "fp16 with GradScaler's scale to begin with: many pixels have a small slope each, and 65536 is more than fp16 can say."
    from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy

    torch.manual_seed(0)
    z, y = torch.randn(2, 30, 16, 16).half().requires_grad_(), torch.randint(0, 30, (2, 128, 128))
    (got,) = torch.autograd.grad(65536 * tiled_cross_entropy(z, y)[0], z)
    exact = z.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(65536 * tiled_cross_entropy(exact, y)[0], exact)
    assert got.dtype == torch.float16 and got.isfinite().all() and ((got.double() - want).norm() / want.norm() < 1e-3)


def test_labels_of_other_pictures():
    from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy

    with pytest.raises(ValueError, match='logits of 1 images, labels of 2'):
        tiled_cross_entropy(torch.randn(1, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long))


@pytest.mark.parametrize('compiled', [False, True])
def test_tiles_hold_little(compiled):
    "150 classes at eight times the grid: less than an eighth of what whole maps hold, also where a compiler builds the step."
    from idrnet_nb.method.layers import mean_loss, pixel_losses, upsample
    from idrnet_nb.models.tiled_cross_entropy import tiled_cross_entropy
    from idrnet_nb.models.profiling import peak_memory

    z, y = torch.randn(2, 150, 32, 32, requires_grad=True), torch.randint(0, 150, (2, 256, 256))
    whole = peak_memory(lambda: mean_loss(pixel_losses(upsample(z, (256, 256)), y), y).backward())
    f = torch.compile(tiled_cross_entropy, fullgraph=True, backend='aot_eager') if compiled else tiled_cross_entropy
    f(z, y)
    assert peak_memory(lambda: f(z, y)[0].backward()) < whole / 8


def test_a_grid_answer_has_the_same_losses():
    "`upsample_logits=False` leaves out large logits and nothing else."
    import copy
    from idrnet_nb.common.device import seed_everything
    from idrnet_nb.models.segmentor import build_segmentor

    seed_everything(0)
    one = build_segmentor('upernet', 'tiny', 5, width=8, attention_width=8, aux_width=8, dropout=0.0).train()
    two, x, y, noise = (
        copy.deepcopy(one),
        torch.randint(0, 256, (2, 3, 50, 61), dtype=torch.uint8),
        torch.randint(0, 5, (2, 50, 61)),
        torch.rand(2, 5),
    )
    a, b = one(x, y, uniform=noise), two(x, y, uniform=noise, upsample_logits=False)
    assert a.logits.shape[-2:] == (50, 61) != b.logits.shape[-2:] and torch.equal(a.loss, b.loss)
    a.loss.backward()
    b.loss.backward()
    assert all(
        p.grad is None and q.grad is None or torch.equal(p.grad, q.grad)
        for p, q in zip(one.parameters(), two.parameters())
    )
    assert all(torch.equal(p, q) for p, q in zip(one.buffers(), two.buffers()))


def test_tiles_read_nothing_from_the_device():
    "Tensors without values: whatever asked for one would raise."
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from idrnet_nb.models.tiled_cross_entropy import tile_by_tile

    with FakeTensorMode():
        z, y = torch.randn(2, 150, 16, 16), torch.randint(0, 150, (2, 128, 128))
        mean, each, slope = tile_by_tile(z, y, 255, True)
        with pytest.raises(DataDependentOutputException):
            mean.item()
    assert (mean.shape, each.shape, slope.shape) == ((), y.shape, z.shape)
