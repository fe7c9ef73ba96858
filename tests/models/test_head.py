"""What no notebook can see: no host sync, no graph break, no wide maps, half precision, determinism, every framework."""

import copy
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from idrnet_nb.common.device import seed_everything
from idrnet_nb.method.grouping import Grouping
from idrnet_nb.models.head import FRAMEWORKS, HeadConfig, SegHead
from idrnet_nb.models.segmentor import build_segmentor

CHANNELS, K = [6, 6, 7, 9], 5
ARMS = [(f, i) for f in FRAMEWORKS for i in (False, 'attention', True)]
SMALL = dict(width=8, attention_width=6, aux_width=8)


def head(framework='upernet', idr=True, k=K, **settings):
    return SegHead(CHANNELS, HeadConfig(k, idr=idr, **{**SMALL, **FRAMEWORKS[framework], **settings}))


def batch(b=2, k=K, hw=(24, 32)):
    h, w = hw
    pyramid = [torch.randn(b, c, -(-h // s), -(-w // s)) for c, s in zip(CHANNELS, (2, 4, 8, 8))]
    label = torch.randint(0, k, (b, h, w))
    label[:, :3] = 255
    return pyramid, label


# --- nothing reaches the host, nothing breaks the graph


@pytest.mark.parametrize('framework,idr', ARMS)
def test_training_step_reads_no_value(framework, idr):
    "Forward with diagnostics under FakeTensorMode, where a tensor has no values: reading one raises."
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model, (pyramid, label) = head(framework, idr), batch()
        out = model(pyramid, label)
        assert out.loss.shape == ()
        assert (out.deletion is not None) == (idr is True)
        with pytest.raises(Exception):
            out.loss.item()  # fake tensors do refuse: the test can fail


@pytest.mark.parametrize(
    'framework', ('deeplabv3', 'upernet')
)  # the two that run through every stage; each takes its seconds
def test_no_graph_break(framework):
    seed_everything(0)
    model, (pyramid, label) = head(framework, dropout=0.0), batch()
    plain, noise = copy.deepcopy(model), torch.rand(2, K)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager' if framework == 'upernet' else 'eager')
    a, b = compiled(pyramid, label, uniform=noise), plain(pyramid, label, uniform=noise)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=1e-6)
    a.loss.backward()
    b.loss.backward()
    for (n, p), q in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=n)
    for n in ('relation_mean', 'relation_var', 'memory', 'deletion_count'):
        torch.testing.assert_close(getattr(model.idr, n), getattr(plain.idr, n), rtol=1e-4, atol=1e-5)
    assert (model.idr.relation_mean - torch.eye(K)).abs().max() > 0.01


def test_whole_segmentor_compiles():
    torch._dynamo.reset()
    model = build_segmentor('pspnet', 'tiny', K, **SMALL)
    images, label = torch.randint(0, 256, (2, 3, 30, 34), dtype=torch.uint8), torch.randint(0, K, (2, 30, 34))
    out = torch.compile(model, fullgraph=True, backend='eager')(images, label)
    assert out.logits.shape == (2, K, 30, 34) and out.loss.isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_no_sync_on_cuda(framework):
    model, (pyramid, label) = head(framework).cuda(), batch()
    pyramid, label, noise = [p.cuda() for p in pyramid], label.cuda(), torch.rand(2, K).cuda()
    model(pyramid, label, uniform=noise)
    torch.cuda.set_sync_debug_mode('error')
    try:
        model(pyramid, label, uniform=noise).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


# --- the wide maps are never made


class Shapes(TorchDispatchMode):
    "Notes the shape of every tensor that an operation makes."

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.seen.add(tuple(t.shape))
        return out


def test_no_wide_map_no_square_map_no_upsampled_features():
    seed_everything(0)
    model = SegHead(CHANNELS, HeadConfig(K, width=11, attention_width=7, aux_width=5))
    h, w, H, W = 6, 8, 45, 61
    pyramid, label = [torch.randn(2, c, h, w) for c in CHANNELS], torch.randint(0, K, (2, H, W))
    with Shapes() as shapes:
        model(pyramid, label).loss.backward()
    n = h * w
    assert (2, 11, h, w) in shapes.seen and (2, K, H, W) in shapes.seen  # it does see what is made
    wide = [s for s in shapes.seen if 66 in s and (n in s or s[-2:] == (h, w))]
    assert not wide, f'the 6C-channel map was built: {wide}'
    square = [s for s in shapes.seen if s.count(n) >= 2]
    assert not square, f'an N×N map was built: {square}'
    grown = [s for s in shapes.seen if 11 in s[1:2] and s[-2:] == (H, W)]
    assert not grown, f'features were upsampled: {grown}'


# --- half precision


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_autocast_20_steps(dtype):
    seed_everything(0)
    model = build_segmentor('upernet', 'tiny', K, **SMALL)
    opt = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    label = (images.float().mean(1) // 52).long().clamp(max=K - 1)
    losses = []
    for _ in range(20):
        with torch.autocast('cpu', dtype=dtype):
            out = model(images, label)
        assert all(l.isfinite() for l in out.losses.values())
        opt.zero_grad()
        out.loss.backward()
        opt.step()
        losses.append(out.loss.item())
    for n, b in model.named_buffers():
        assert b.isfinite().all(), n
    mean, var = model.relations
    assert mean.dtype == torch.float32 and (mean - torch.eye(K)).abs().max() > 0.1
    assert losses[-1] < losses[0]


# --- determinism, state, sizes


def test_two_runs_give_the_same_bits():
    def run():
        seed_everything(3)
        model = build_segmentor('deeplabv3', 'tiny', K, **SMALL)
        opt = torch.optim.AdamW(model.parameters(), 1e-3)
        images, label = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.randint(0, K, (2, 32, 32))
        for _ in range(3):
            opt.zero_grad()
            model(images, label).loss.backward()
            opt.step()
        return model.state_dict()

    a, b = run(), run()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_picking_obeys_the_noise():
    seed_everything(0)
    pyramid, label = batch()
    noise = torch.rand(2, K, generator=torch.Generator().manual_seed(1))
    picks = []
    for junk in (1, 2):
        model = head(dropout=0.0)
        model.load_state_dict(picks[0][1]) if picks else None
        torch.manual_seed(junk)
        state = copy.deepcopy(model.state_dict())
        picks.append((model(pyramid, label, uniform=noise).deletion.deleted, state))
    assert torch.equal(picks[0][0], picks[1][0])


@pytest.mark.parametrize('framework,idr', ARMS)
def test_battery(framework, idr):
    "Forward, backward, odd sizes, batch 1, one-class pictures, K of 1 and 2, evaluation that repeats itself, state that travels."
    seed_everything(0)
    for k in (1, 2):
        out = head(framework, idr, k)(*batch(1, k, (13, 19)))
        out.loss.backward()
        assert out.loss.isfinite() and out.logits.shape == (1, k, 13, 19)
    model = head(framework, idr)
    pyramid, label = batch(3, K, (17, 31))
    one_class = torch.full_like(label, 2)
    for target in (label, one_class, torch.full_like(label, 255)):
        out = model(pyramid, target)
        out.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    model.eval()
    with torch.no_grad():
        a, b, c = model(pyramid).logits, model(pyramid).logits, copy.deepcopy(model)(pyramid).logits
    assert torch.equal(a, b) and torch.equal(a, c)
    other = head(framework, idr).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(pyramid).logits, a)


def test_state_is_in_buffers():
    model = head()
    names = {n.split('.')[-1] for n, _ in model.named_buffers()}
    assert {'relation_mean', 'relation_var', 'memory', 'deletion_count'} <= names and {
        f'idr.{n}' for n in ('relation_mean', 'memory')
    } <= set(model.state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_batch_one_in_training_with_pooled_branches():
    for framework in ('pspnet', 'deeplabv3', 'upernet'):
        assert head(framework)(*batch(1)).loss.isfinite()


def test_plain_framework_is_the_module_switched_off():
    names = lambda idr: {n for n, _ in head('pspnet', idr).named_parameters()}
    extra = names(True) - names(False)
    assert names(False) < names(True) and all(n.startswith(('idr.', 'coarse_classifier.')) for n in extra)


@pytest.mark.parametrize(
    'setting',
    (
        dict(attention_on_context='before'),
        dict(attention_on_context='after'),
        dict(coarse_from='features'),
        dict(context='aspp', aspp_dilations=(1, 12, 24, 36)),
        dict(width=16),
        dict(fpn_width=12),
        dict(learn_tables=False),
    ),
)
def test_published_settings(setting):
    model = head('upernet', **setting)
    out = model(*batch())
    out.loss.backward()
    assert out.loss.isfinite() and all(p.grad is not None for p in model.parameters())
    moved = (model.idr.relation_mean - torch.eye(K)).abs().max() > 0
    assert moved == setting.get('learn_tables', True)


def test_both_directions_of_a_row():
    "Class i gathers from those who suffer when i is deleted: row i of the table, not column i."
    model = head('fcn').idr.eval()
    model.relation_mean.copy_(torch.eye(K))
    model.relation_mean[0, 1] = 30.0
    means, present = torch.randn(1, K, 8), torch.ones(1, K).bool()
    context = model.interact(Grouping(None, present, means))[0, :, :8]
    torch.testing.assert_close(context[0], means[0, 1])
    torch.testing.assert_close(context[1], means[0, 1])
    model.relation_mean.copy_(torch.eye(K))
    model.relation_mean[1, 0] = 30.0
    context = model.interact(Grouping(None, present, means))[0, :, :8]
    torch.testing.assert_close(context[0], means[0, 0])
    torch.testing.assert_close(context[1], means[0, 0])


def test_running_statistics_stay_clean_by_default():
    for track, times in ((False, 1), (True, 2)):
        model = head('fcn', track_deleted=track)
        model(*batch())
        counted = {n: b.item() for n, b in model.named_buffers() if n.endswith('num_batches_tracked')}
        assert (
            counted['idr.attention.out.norm.num_batches_tracked'] == times
            and counted['classifier.hidden.norm.num_batches_tracked'] == times
        )
        assert counted['bottleneck.norm.num_batches_tracked'] == 1
