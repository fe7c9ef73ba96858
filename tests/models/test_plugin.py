"""IDR in other people's models: the same prediction at first, a loss that falls, relation matrices that move,
off again, on disk; and the diagnostics by plain loops."""

import copy, json, pickle, subprocess, sys
from functools import partial
import pytest, torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from idrnet_nb.common.device import seed_everything
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.models.plugin import IDRHead, add_idr, get_idr, idr_loss, remove_idr
from idrnet_nb.models.plugin_files import load_plugged, save_plugged
from idrnet_nb.models.plugin_module import IDRClassifier
from idrnet_nb.models.plugin_seam import find_seam
from processes import in_processes

K = 4

# --- tiny models of four libraries


def smp_unet(k=K):
    smp = pytest.importorskip('segmentation_models_pytorch')
    return smp.Unet('resnet18', encoder_weights=None, classes=k, encoder_depth=3, decoder_channels=(16, 8, 8))


def tv_fcn(k=K, aux=True):
    tv = pytest.importorskip('torchvision')
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    body = IntermediateLayerGetter(tv.models.resnet18(weights=None), {'layer1': 'aux', 'layer2': 'out'})
    return FCN(body, FCNHead(128, k), FCNHead(64, k) if aux else None)


STAGES = dict(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16])


def hf_segformer(k=K, **config):
    hf = pytest.importorskip('transformers')
    return hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(num_labels=k, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **STAGES, **config)
    )


def hf_upernet(k=K, **config):
    hf = pytest.importorskip('transformers')
    body = hf.ConvNextConfig(out_features=['stage1', 'stage2', 'stage3', 'stage4'], **STAGES)
    return hf.UperNetForSemanticSegmentation(
        hf.UperNetConfig(
            backbone_config=body,
            hidden_size=16,
            num_labels=k,
            use_auxiliary_head=True,
            auxiliary_in_channels=16,
            **config,
        )
    )


LIBRARIES = dict(
    smp=(smp_unet, 'segmentation_head.0', 8),
    torchvision=(tv_fcn, 'classifier.4', 1),
    segformer=(hf_segformer, 'decode_head.classifier', 2),
    upernet=(hf_upernet, 'decode_head.classifier', 2),
)  # maker, seam, pool
each_library = pytest.mark.parametrize('name', LIBRARIES)


def make(name, **settings):
    return LIBRARIES[name][0](**settings)


def is_hf(name):
    return name in ('segformer', 'upernet')


def scores(out):
    return out if isinstance(out, torch.Tensor) else out['out'] if 'out' in out else out.logits


def resized(out, size):
    return F.interpolate(scores(out), size, mode='bilinear', align_corners=False)


def answer(model, x):
    with torch.no_grad():
        return scores(model.eval()(x))


def whole_loss(name, model, x, y, **args):
    "What a user would write; models of transformers have it in their answer."
    if is_hf(name) and not args:
        return model(x, labels=y).loss
    return F.cross_entropy(resized(model(x), y.shape[-2:]), y, ignore_index=255) + idr_loss(model, y, **args)


def batch(b=2, h=32, w=32, k=K):
    "Pictures with something to learn, and void pixels."
    y = (
        torch.randint(0, k, (b, -(-h // 8), -(-w // 8)))
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)[:, :h, :w]
        .contiguous()
    )
    x = F.one_hot(y, k).movedim(-1, 1)[:, :3].float() + 0.2 * torch.randn(b, 3, h, w)
    y[:, :2] = 255
    return x, y


def toy(k=K, c=6):
    return nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, k, 1))


def tables(model):
    return {n: b.clone() for n, b in get_idr(model).idr.named_buffers(recurse=False)}


def state(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def same_state(model, before):
    return list(model.state_dict()) == list(before) and all(t.equal(before[n]) for n, t in model.state_dict().items())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- the four libraries


@each_library
def test_same_answer_at_first(name):
    model, (x, _) = make(name), batch()
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()  # a frozen norm stays frozen
    modes, before = [(m, m.training) for m in model.modules()], state(model)
    plain = answer(copy.deepcopy(model), x)
    assert add_idr(model) is model and all(m.training == t for m, t in modes)
    assert {n.replace('.seam.', '.'): t for n, t in model.state_dict().items()}.keys() >= before.keys()
    assert all(
        t.equal(before[n.replace('.seam.', '.')])
        for n, t in model.state_dict().items()
        if n.replace('.seam.', '.') in before
    )  # statistics too
    assert (
        isinstance(model.get_submodule(LIBRARIES[name][1]), IDRClassifier)
        and get_idr(model).settings['pool'] == LIBRARIES[name][2]
    )
    torch.testing.assert_close(answer(model, x), plain, rtol=1e-6, atol=1e-6)
    assert type(model(x)) is type(make(name).eval()(x))


@each_library
def test_ten_steps(name):
    model, (x, y) = add_idr(make(name)).train(), batch(4)
    opt, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(10):
        loss = whole_loss(name, model, x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert all(abs(v) < 1e4 for v in losses) and losses[-1] < losses[0]
    idr = get_idr(model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in idr.parameters()) and all(
        b.isfinite().all() for b in model.buffers()
    )
    for table in idr.relations:
        assert (table - torch.eye(K)).abs().max() > 0.1 and table[~torch.eye(K).bool()].any()
    assert idr.idr.memory.any() and idr.idr.deletion_count.sum().sub(40).abs() < 1e-3 and idr.last is None


@each_library
def test_save_and_load(name, tmp_path):
    model, (x, y) = add_idr(make(name), width=8, dim=6, stride=4, keep_answer=False, dropout=0.2).train(), batch()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        opt.zero_grad()
        whole_loss(name, model, x, y).backward()
        opt.step()
    path = save_plugged(model, tmp_path / 'm.safetensors')
    other = load_plugged(make(name), path)
    assert (
        answer(other, x).equal(answer(model, x))
        and get_idr(other).settings == get_idr(model).settings
        and same_state(other, state(model))
    )
    whole_loss(name, other.train(), x, y).backward()  # it goes on learning, with its hook


@each_library
def test_off_again(name):
    model, (x, y) = make(name), batch()
    keys, plain = list(model.state_dict()), answer(model, x)
    assert list(remove_idr(add_idr(model)).state_dict()) == keys and answer(model, x).equal(plain)
    opt = torch.optim.SGD(add_idr(model).train().parameters(), 0.1)
    whole_loss(name, model, x, y).backward()
    opt.step()
    remove_idr(model)
    fresh = make(name)
    fresh.load_state_dict(model.state_dict())
    assert (
        list(model.state_dict()) == keys
        and answer(fresh, x).equal(answer(model, x))
        and not answer(model, x).equal(plain)
    )
    if is_hf(name):
        torch.manual_seed(1)
        out = model.train()(x, labels=y)
        torch.manual_seed(1)
        torch.testing.assert_close(out.loss, fresh.train()(x, labels=y).loss)  # the hook is gone
    assert not model._forward_hooks and not model._forward_hooks_with_kwargs


@each_library
def test_copy_after_a_training_forward(name):
    model, (x, y) = add_idr(make(name)).train(), batch()
    model(x)
    other = copy.deepcopy(model)
    assert get_idr(other).last is None and get_idr(model).last is not None
    whole_loss(name, other, x, y).backward()
    assert get_idr(model).relations[0].equal(torch.eye(K)) and not get_idr(other).relations[0].equal(torch.eye(K))
    remove_idr(other)
    if is_hf(name):
        assert len(model._forward_hooks) == 1 and not other._forward_hooks
    idr_loss(model, y)
    if is_hf(name):
        return  # transformers hooks its own layers in a way that cannot be pickled
    again = pickle.loads(pickle.dumps(model))
    assert answer(again, x).equal(answer(model, x))
    whole_loss(name, again.train(), x, y).backward()


@each_library
def test_sizes_batch_one_and_void(name):
    model = add_idr(make(name)).train()
    if name == 'upernet':  # its pooled branches cannot train on one picture, with or without us
        for m in model.decode_head.modules():
            if isinstance(m, nn.BatchNorm2d) and m not in set(get_idr(model).modules()):
                m.eval()
    h, w = (40, 24) if name == 'smp' else (45, 61)
    x, y = batch(1, h, w)
    loss = whole_loss(name, model, x, y)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    before = tables(model)
    model(x)
    void = idr_loss(model, torch.full_like(y, 255))
    assert void.item() == 0 and all(b.equal(before[n]) for n, b in tables(model).items() if n != 'deletion_count')
    (void + 0 * scores(model(x)).sum()).backward()
    assert answer(model, x).shape[-2:] == scores(model(x)).shape[-2:] and answer(model, x).isfinite().all()


@pytest.mark.parametrize(
    'at', ['unetplusplus', 'fpn', 'pspnet', 'deeplabv3plus', 'upernet', 'segformer', 'linknet', 'manet']
)
def test_other_models_of_smp(at):
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = smp.create_model(at, 'resnet18', encoder_weights=None, classes=K).eval()
    x = torch.randn(1, 3, 64, 64)
    plain = answer(model, x)
    assert find_seam(model) == 'segmentation_head.0'
    torch.testing.assert_close(answer(add_idr(model), x), plain, rtol=1e-5, atol=1e-5)


def test_deeplab_keeps_its_auxiliary_answer_and_lraspp_is_asked_about():
    tv = pytest.importorskip('torchvision').models.segmentation
    model = tv.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=K, aux_loss=True).eval()
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    assert find_seam(model) == 'classifier.4'
    after = add_idr(model)(x)
    assert list(after) == ['out', 'aux'] and after['aux'].equal(before['aux'])
    with pytest.raises(ValueError, match="LRASPP is no model that we know; say at='path'.*high_classifier"):
        add_idr(tv.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=K))


def test_a_subclass_is_known():
    class Mine(type(smp_unet())):
        pass

    assert (
        find_seam(Mine('resnet18', encoder_weights=None, classes=K, encoder_depth=3, decoder_channels=(16, 8, 8)))
        == 'segmentation_head.0'
    )


# --- transformers: the loss in the answer


@pytest.mark.parametrize('name', ['segformer', 'upernet'])
def test_labels_however_they_are_given(name):
    model, (x, y) = add_idr(make(name)), batch()
    calls = [dict(labels=y), dict(labels=y, return_dict=False), dict(pixel_values=x, labels=y)]
    places = (x, y) if name == 'segformer' else (x, None, None, y)
    want = None
    for i, kwargs in enumerate([*calls, {}]):
        twin = copy.deepcopy(model).train()
        torch.manual_seed(5)
        out = twin(*(places if not kwargs else () if 'pixel_values' in kwargs else (x,)), **kwargs)
        loss = out[0]
        assert isinstance(out, tuple) == (kwargs.get('return_dict') is False) and get_idr(twin).last is None
        want = loss if want is None else want
        torch.testing.assert_close(loss, want)
        if not isinstance(out, tuple):
            assert out.loss is out['loss'] and out.logits is out['logits']
    own, extra = remove_idr(copy.deepcopy(model)).train(), copy.deepcopy(model).train()
    torch.manual_seed(5)
    extra(x)
    torch.manual_seed(5)
    part = idr_loss(extra, y)
    assert part > 0.1 and abs(want - own(x, labels=y).loss - part) < 0.3  # dropout differs, and P_o from P_c
    with pytest.raises(RuntimeError, match='labels= have it in their loss already'):
        model.train()(x, labels=y)
        idr_loss(model, y)


@pytest.mark.parametrize('name', ['segformer', 'upernet'])
def test_evaluation_and_no_labels_are_as_ever(name):
    model, (x, y) = make(name).eval(), batch()
    before = model(x, labels=y)
    add_idr(model)
    still = tables(model)
    out = model(x, labels=y)
    torch.testing.assert_close(out.loss, before.loss)
    torch.testing.assert_close(out.logits, before.logits, rtol=1e-5, atol=1e-6)
    assert model.train()(x).loss is None
    model.eval()(x)
    with pytest.raises(RuntimeError, match='no forward in training mode'):
        idr_loss(model, y)
    assert all(b.equal(still[n]) for n, b in tables(model).items())


@pytest.mark.parametrize(
    'maker,word', [(hf_segformer, 'semantic_loss_ignore_index'), (hf_upernet, 'loss_ignore_index')]
)
def test_their_id_of_void(maker, word):
    model, (x, y) = add_idr(maker(**{word: 0})).train(), batch()
    y[y == 255] = 0
    assert model(x, labels=y).loss.isfinite()
    relations, memory = get_idr(model).relations[0], get_idr(model).idr.memory
    off = relations - relations.diag().diag()
    assert (
        not off[:, 0].any() and not memory[0].any() and off[:, 1:].any() and memory[1:].any()
    )  # class 0 is void: nobody learns of it


# --- the diagnostics, by plain loops


def loops(idr, feat, R, coarse, label, deleted, keep, logits, before, ignore):
    "IDRNET diagnostics, steps 1 to 4, pixel by pixel and class by class, on the plug's own definition of R and P_c."
    pool, (b, c, h, w), (H, W), K = idr.settings['pool'], R.shape, label.shape[-2:], coarse.shape[1]
    small = torch.zeros(b, K, h, w)
    for i in range(h):
        for j in range(w):
            small[:, :, i, j] = coarse[:, :, i * pool : (i + 1) * pool, j * pool : (j + 1) * pool].mean((2, 3))
    Q, M = before['memory'], {n: before[f'relation_{n}'].clone() for n in ('mean', 'var')}
    Z = torch.zeros(b, 6 * c, h, w)
    for n in range(b):
        a, d = small[n].argmax(0), int(deleted[n])
        V = sorted({int(v) for v in a.flatten()})
        g = {}
        for k in V:
            where = a == k
            weight = small[n, k][where].softmax(0)
            g[k] = torch.cat([(R[n][:, where] * weight).sum(1), Q[k]])
        rest, heard = [k for k in V if k != d], {}
        for k in V:
            heard[k] = torch.zeros(4 * c)
            if k == d or not rest:
                continue
            score = M['mean'][k][rest]
            soft = (torch.where(score > 0, score, torch.tensor(-1e9))).softmax(0)
            vary = M['var'][k][rest].softmax(0)
            heard[k] = torch.cat([sum(s * g[j] for s, j in zip(t, rest)) for t in (soft, vary)])
        for i in range(h):
            for j in range(w):
                Z[n, :, i, j] = torch.cat([R[n, :, i, j], Q[a[i, j]], heard[int(a[i, j])]])
    R_id = idr.idr.attention(Z)

    def up(m):
        large = F.interpolate(m, (h * pool, w * pool), mode='bilinear', align_corners=False)
        return large[:, :, : feat.shape[-2], : feat.shape[-1]]

    y = idr.final.hidden.conv(torch.cat([feat, up(R), up(R_id)], 1))
    lost = idr.final.logits(idr.final.hidden.norm(y).relu() * keep) + (coarse if idr.settings['keep_answer'] else 0)

    def each(s):
        large = F.interpolate(s, (H, W), mode='bilinear', align_corners=False)
        return F.cross_entropy(large, label, ignore_index=ignore, reduction='none')

    l, l_ = each(logits), each(lost)
    for n in range(b):
        d = int(deleted[n])
        for k in range(K):
            omega = (label[n] == k) & (label[n] != ignore)
            if omega.sum() > 0:
                M['mean'][d, k] = 0.9 * M['mean'][d, k] + 0.1 * (l_[n][omega].mean() - l[n][omega].mean())
            if omega.sum() > 1:
                M['var'][d, k] = 0.9 * M['var'][d, k] + 0.1 * (
                    l_[n][omega].var(unbiased=False) - l[n][omega].var(unbiased=False)
                )
    new, big = Q.clone(), F.interpolate(R, (H, W), mode='bilinear', align_corners=False)
    for k in range(K):
        omega = (label == k) & (label != ignore)
        if omega.any():
            new[k] = 0.9 * Q[k] + 0.1 * big.movedim(1, -1)[omega].mean(0)
    return M, new


def detached(values):
    "A tuple of tensors and of such tuples, cut off from their graph."
    return type(values)(*(v.detach() if isinstance(v, torch.Tensor) else detached(v) for v in values))


@pytest.mark.parametrize(
    'pool,keep,ignore', [(1, True, 255), (2, True, 255), (2, False, 255), (3, True, 200), (8, False, 255)]
)
def test_diagnostics_are_those_of_the_loops(pool, keep, ignore):
    torch.manual_seed(pool)
    k, c = 5, 6
    idr = IDRClassifier(nn.Conv2d(c, k, 3, padding=1), width=7, dim=5, pool=pool, keep_answer=keep, dropout=0.4).train()
    for t in (idr.idr.relation_mean, idr.idr.relation_var, idr.idr.memory):
        nn.init.normal_(t)
    nn.init.normal_(idr.final.logits.weight)
    model, feat, label = nn.Sequential(idr), torch.randn(3, c, 9, 10), torch.randint(0, k, (3, 17, 19))
    label[:, :4] = ignore
    label[2] = 3
    label[2, 0, 0] = 0
    model(feat)
    last, before = copy.deepcopy(detached(idr.last)), tables(model)
    pred, coarse, keep_mask = last.grouping.pred, last.fixed.coarse_logits, last.fixed.dropout_mask
    deleted = torch.stack([pred[0, 0], pred[1, -1], pred[2, 0]])
    loss = idr_loss(model, label, ignore=ignore, deleted=deleted)
    want = F.cross_entropy(
        F.interpolate(coarse, label.shape[-2:], mode='bilinear', align_corners=False), label, ignore_index=ignore
    )
    torch.testing.assert_close(loss.detach(), 0.4 * want)
    with torch.no_grad():
        M, memory = loops(idr, feat, last.feats, coarse, label, deleted, keep_mask, last.logits, before, ignore)
    for n in ('mean', 'var'):
        torch.testing.assert_close(getattr(idr.idr, f'relation_{n}'), M[n], rtol=1e-4, atol=1e-5)
        assert (M[n] - before[f'relation_{n}']).abs().max() > 0.01
    torch.testing.assert_close(idr.idr.memory, memory, rtol=1e-4, atol=1e-5)
    assert (
        (idr.idr.deletion_count - before['deletion_count']).round().long().equal(torch.bincount(deleted, minlength=k))
    )
    assert (keep_mask == 0).any() and not idr.final.logits.weight.grad


def test_only_the_deletion_differs():
    "Refinement that can change nothing, heavy dropout: no class's loss moves; the norms' statistics saw one forward."
    model, (x, y) = add_idr(toy(), at='3', width=8, dropout=0.5).train(), batch()
    nn.init.zeros_(get_idr(model).idr.attention.out.norm.weight)
    nn.init.normal_(get_idr(model).final.logits.weight)
    for _ in range(3):
        model(x)
        idr_loss(model, y)
    assert not get_idr(model).relations[0][~torch.eye(K).bool()].any()
    assert {b.item() for n, b in get_idr(model).named_buffers() if n.endswith('num_batches_tracked')} == {3}


def test_momenta_uniform_and_weight():
    x, y = batch()
    for args in (dict(relation_momentum=0.0), dict(memory_momentum=0.0), dict(coarse_weight=0.0)):
        model = add_idr(toy(), at='3').train()
        model(x)
        loss, context = idr_loss(model, y, **args), get_idr(model).idr
        assert context.relation_mean.equal(torch.eye(K)) == ('relation_momentum' in args) and (
            not context.memory.any()
        ) == ('memory_momentum' in args)
        assert (loss == 0) == ('coarse_weight' in args)
    picks = []
    for junk in (1, 2):
        torch.manual_seed(0)
        model = add_idr(toy(), at='3', dropout=0.0).train()
        model(x)
        torch.manual_seed(junk)
        idr_loss(model, y, uniform=torch.linspace(0, 1, 2 * K).view(2, K))
        picks.append(get_idr(model).idr.deletion_count)
    assert picks[0].equal(picks[1])


# --- how D2 starts


@pytest.mark.parametrize('c,width', [(6, 6), (7, 9), (1, 4), (8, 1), (16, 64)])
def test_twins(c, width):
    idr, feat = IDRClassifier(nn.Conv2d(c, K, 1), width=width), torch.randn(2, c, 5, 6)
    torch.testing.assert_close(idr.eval()(feat), idr.seam(feat), rtol=1e-5, atol=1e-6)
    y = torch.randint(0, K, (2, 5, 6))
    F.cross_entropy(idr(feat), y).backward()
    assert all(p.grad is not None for p in idr.parameters()) and idr.final.hidden.conv.weight.grad.abs().max() > 1e-4
    assert idr.bottleneck.conv.weight.grad.abs().max() < 1e-6  # the twins cancel what comes back, too, up to rounding …
    (opt := torch.optim.SGD(idr.parameters(), 0.1)).step()
    opt.zero_grad()
    assert (idr(feat) - idr.seam(feat)).abs().max() > 1e-4
    F.cross_entropy(idr(feat), y).backward()
    assert idr.bottleneck.conv.weight.grad.abs().max() > 1e-5  # … in the first step only


# --- what a notebook cannot see


def test_nothing_reads_a_value():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Sequential(nn.Conv2d(3, 6, 3), IDRClassifier(nn.Conv2d(6, K, 1), pool=2)).train()
        own = F.cross_entropy(model(torch.randn(2, 3, 12, 12)), torch.randint(0, K, (2, 10, 10)))
        loss = own + idr_loss(model, torch.randint(0, K, (2, 10, 10)))
        loss.backward()
        with pytest.raises(Exception):
            loss.item()


def test_compiled():
    torch._dynamo.reset()
    model, (x, y) = add_idr(toy(), at='3', width=8, dropout=0.0).train(), batch()
    twin, uniform = copy.deepcopy(model), torch.rand(2, K)
    fast = torch.compile(model, backend='eager', fullgraph=True)
    for _ in range(2):
        a, b = (F.cross_entropy(m(x), y, ignore_index=255) + idr_loss(m, y, uniform=uniform) for m in (fast, twin))
        torch.testing.assert_close(a, b)
    assert get_idr(fast) is get_idr(model)
    for n, b in tables(model).items():
        torch.testing.assert_close(b, tables(twin)[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
@pytest.mark.parametrize('inside', (True, False))
def test_autocast(dtype, inside):
    "The loss may be asked for after the autocast region, as accelerate does."
    model, (x, y) = add_idr(toy(), at='3').train(), batch()
    opt, losses = torch.optim.SGD(model.parameters(), 0.05), []
    for _ in range(5):
        with torch.autocast('cpu', dtype):
            out = model(x)
            if inside:
                extra = idr_loss(model, y)
        if not inside:
            extra = idr_loss(model, y)
        loss = F.cross_entropy(out.float(), y, ignore_index=255) + extra
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(b.isfinite().all() and b.dtype != dtype for b in tables(model).values())


def test_half_the_bits():
    model = add_idr(toy().bfloat16(), at='3')
    assert (
        all(p.dtype == torch.bfloat16 for p in model.parameters())
        and model.eval()(torch.randn(1, 3, 9, 9).bfloat16()).isfinite().all()
    )


def test_no_wide_map_on_the_fine_grid():
    "The features have 6 channels; on their grid nothing is made that is wider than features and scores."
    from torch.utils._python_dispatch import TorchDispatchMode

    class Shapes(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.seen |= {
                tuple(t.shape)
                for t in (out if isinstance(out, (tuple, list)) else [out])
                if isinstance(t, torch.Tensor)
            }
            return out

    model, y = add_idr(toy(), at='3', width=20, dim=21).train(), torch.randint(0, K, (2, 48, 40))
    with Shapes() as shapes:
        (F.cross_entropy(model(torch.randn(2, 3, 48, 40)), y) + idr_loss(model, y)).backward()
    assert (2, 20, 6, 5) in shapes.seen and (2, 6, 48, 40) in shapes.seen
    assert max(s[1] for s in shapes.seen if s[-2:] == (48, 40) and len(s) == 4) == 6
    assert not [s for s in shapes.seen if 120 in s[1:] and (30 in s or s[-2:] == (6, 5))], 'the 6C map was built'
    assert not [s for s in shapes.seen if s.count(48 * 40) > 1 or s.count(30) > 1], 'an N×N map was built'


def _work(rank):
    torch.manual_seed(0)
    model = add_idr(toy(), at='3', width=8)
    both = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    opt, (x, y) = torch.optim.SGD(both.parameters(), 0.1), batch()
    for _ in range(2):
        opt.zero_grad()
        whole_loss('', both, x, y).backward()
        opt.step()
    idr = get_idr(both)
    learnt = (*idr.relations, idr.idr.memory, idr.idr.deletion_count, idr.seam.weight, idr.final.logits.weight)
    return [t.tolist() for t in learnt]


def test_two_processes():
    "The coarse loss does not come out of the wrapped forward; yet weights, matrices and memory stay equal in both."
    one, other = in_processes(_work)
    assert one == other and abs(sum(one[3]) - 8) < 1e-3


def test_own_models():
    for framework in ('fcn', 'upernet'):
        model, (x, y) = (
            build_segmentor(framework, 'tiny', K, idr=False, width=8, attention_width=6, aux_width=4),
            batch(),
        )
        x = (100 * x + 50).clamp(0, 255)  # our own normalise themselves
        plain = model.eval()(x).logits
        assert find_seam(model) == 'head.classifier.logits' and find_seam(model.head) == 'classifier.logits'
        torch.testing.assert_close(add_idr(model)(x).logits, plain, rtol=1e-5, atol=1e-6)
        (model.train()(x, y).loss + idr_loss(model, y)).backward()
    with pytest.raises(ValueError, match='has IDR built in; build it with idr=False'):
        add_idr(build_segmentor('fcn', 'tiny', K, width=8, attention_width=6, aux_width=4))


def test_only_the_plug_learns():
    model, (x, y) = toy().requires_grad_(False), batch()
    add_idr(model, at='3').train()
    whole_loss('', model, x, y).backward()
    assert (
        all((p.grad is None) == (not p.requires_grad) for p in model.parameters())
        and get_idr(model).bottleneck.conv.weight.grad.any()
    )


def test_imports_nothing_of_theirs():
    theirs = ('segmentation_models_pytorch', 'transformers', 'torchvision')
    code = f'import sys, idrnet_nb.models.plugin_files; print([m for m in {theirs} if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )


# --- what a user may get wrong: a message that says so, and a model as it was


class Twice(nn.Module):
    def __init__(self, n=2):
        super().__init__()
        self.n, self.body, self.score = n, nn.Conv2d(3, 6, 3), nn.Conv2d(6, K, 1)

    def forward(self, x):
        for _ in range(self.n):
            out = self.score(self.body(x))
        return out if self.n else F.conv2d(self.body(x), self.score.weight)


def broken():
    model = toy()
    with torch.no_grad():
        model[3].bias[0] = torch.nan
    return model


WRONG = {  # what -> (model, arguments, error, words)
    'unknown model': (
        toy,
        {},
        ValueError,
        r"Sequential is no model that we know; say at='path'.*'3' \(6 to 4 channels\)",
    ),
    'wrong path': (
        smp_unet,
        dict(at='segmentation_head.O'),
        ValueError,
        r"nothing at 'segmentation_head.O'; near: \['segmentation_head",
    ),
    'no convolution': (
        toy,
        dict(at='1'),
        ValueError,
        r"'1' is a BatchNorm2d; the seam must be the Conv2d.*\['0', '3'\]",
    ),
    'not the last': (toy, dict(at='0'), ValueError, r"'0' gives 6 channels, the output of the model has \[4\]"),
    'one class': (partial(toy, k=1), dict(at='3'), ValueError, "'3' gives 1 class; IDR needs 2 or more"),
    'called twice': (Twice, dict(at='score'), ValueError, "calls 'score' 2 times"),
    'never called': (partial(Twice, 0), dict(at='score'), ValueError, "calls 'score' 0 times"),
    'another grid': (
        lambda: nn.Sequential(nn.Conv2d(3, K, 3, stride=2)),
        dict(at='0'),
        ValueError,
        r"turns a grid \(64, 64\) into \(31, 31\)",
    ),
    'nan': (broken, dict(at='3'), FloatingPointError, "add_idr: logits at '3': 4096 of 16384 values are nan"),
    'images it does not take': (
        toy,
        dict(at='3', example=torch.zeros(1, 1, 8, 8)),
        ValueError,
        r'fails on images \(1, 1, 8, 8\).*example=tensor',
    ),
    'stride': (toy, dict(at='3', stride=0), ValueError, 'stride=0.*must be positive'),
    'width': (toy, dict(at='3', width=-1), ValueError, 'width=-1.*must be positive'),
    'twice': (lambda: add_idr(toy(), at='3'), dict(at='3'), ValueError, "has IDR already, at '3'; call remove_idr"),
    'dropout': (toy, dict(at='3', dropout=7.0), ValueError, 'dropout'),
}


@pytest.mark.parametrize('what', WRONG)
def test_add_idr_refuses(what):
    make, args, error, words = WRONG[what]
    model = make().train()
    before, kinds = state(model), [type(m) for m in model.modules()]
    with pytest.raises(error, match=words):
        add_idr(model, **args)
    assert [type(m) for m in model.modules()] == kinds and all(m.training for m in model.modules())
    assert list(before) == list(model.state_dict()) and all(
        t.equal(before[n]) or t.isnan().any() for n, t in model.state_dict().items()
    )
    assert not any(m._forward_hooks for m in model.modules())


def test_images_of_the_right_kind():
    "Channels are those of the first convolution; a model that wants more than 64 pixels gets them; or the caller says."

    class Choosy(nn.Module):
        def __init__(self, least):
            super().__init__()
            self.least, self.seen, self.net = (
                least,
                [],
                nn.Sequential(nn.Conv2d(5, 6, 3, stride=4, padding=1), nn.Conv2d(6, K, 1)),
            )

        def forward(self, x):
            self.seen.append(tuple(x.shape))
            if x.shape[-1] < self.least:
                raise RuntimeError('too small')
            return self.net(x)

    model = add_idr(Choosy(100), at='net.1')
    assert model.seen == [(1, 5, 64, 64), (1, 5, 256, 256)] and get_idr(model).settings['pool'] == 2
    with pytest.raises(ValueError, match=r'fails on images \(1, 5, 256, 256\) \(RuntimeError: too small\)'):
        add_idr(Choosy(300), at='net.1')
    assert (
        get_idr(add_idr(Choosy(300), at='net.1', example=torch.zeros(2, 5, 400, 304), stride=16)).settings['pool'] == 4
    )


def test_no_idr():
    for f in (get_idr, remove_idr, lambda m: idr_loss(m, None), lambda m: save_plugged(m, 'x.safetensors')):
        with pytest.raises(ValueError, match=r'Sequential has no IDR; call add_idr\(model\) first'):
            f(toy())


def test_idr_loss_refuses():
    model, (x, y) = add_idr(toy(), at='3').train(), batch()
    before = tables(model)
    model(x)
    for wrong, words in (
        (y[:1], r'for the 2 images of the last forward, got \(1, 32, 32\)'),
        (y[:, None], r'got \(2, 1, 32, 32\)'),
        (y.float(), 'torch.float32'),
        (y > 0, 'torch.bool'),
        (y.clamp(max=K), rf'ids outside 0\.\.3 and not ignore \(255\): {K} \(128 pixels\)'),
        (y - 1, r'-1 \('),
    ):
        with pytest.raises(ValueError, match=words):
            idr_loss(model, wrong)
    assert all(b.equal(before[n]) for n, b in tables(model).items())
    assert idr_loss(model, y.to(torch.uint8)).isfinite()  # after all this the forward is still there, once
    for prepare in (lambda: None, lambda: (model(x), model.eval()(x)), lambda: model.eval()(x)):
        prepare()
        with pytest.raises(RuntimeError, match='no forward in training mode since the last call'):
            idr_loss(model, y)
    with pytest.raises(FloatingPointError, match='features at the seam'):
        model.train()(x * torch.nan)
    model(x)
    with torch.no_grad():
        get_idr(model).last.logits[0, 0, 0, 0] = torch.nan
    now = tables(model)
    with pytest.raises(FloatingPointError, match='logits at the seam: 1 of'):
        idr_loss(model, y)
    assert all(b.equal(now[n]) for n, b in tables(model).items())


def file_of(tmp_path, **note):
    path = save_plugged(add_idr(toy(), at='3', width=4), tmp_path / 'a.safetensors')
    if note:
        from safetensors import safe_open

        with safe_open(path, 'pt') as f:
            old = json.loads(f.metadata()['idrnet_nb.plug'])
        save_file(load_file(path), path, metadata={'idrnet_nb.plug': json.dumps({**old, **note})})
    return path


FILES = {  # what -> (model, note in the file, words)
    'classes': (partial(toy, 5), {}, r'saved from a Sequential with 4 classes, this Sequential has 5; build it with 4'),
    'channels': (
        partial(toy, 4, 9),
        {},
        r'saved from a Sequential with 4 classes, and does not fit this Sequential.*nothing was loaded.*wrong shape',
    ),
    'another architecture': (
        tv_fcn,
        {},
        r"saved from a Sequential with 4 classes and its seam at '3', where this FCN has no convolution",
    ),
    'newer format': (toy, dict(format=99), r'has format 99, .*reads up to 2; update idrnet_nb'),
    'settings nobody knows': (
        toy,
        dict(settings=dict(colour='red')),
        r'settings of its header are unknown or missing: colour',
    ),
    'plugged already': (lambda: add_idr(toy(), at='3'), {}, 'has IDR already'),
}


@pytest.mark.parametrize('what', FILES)
def test_load_plugged_refuses(what, tmp_path):
    make, note, words = FILES[what]
    path, model = file_of(tmp_path, **note), make()
    before = state(model)
    with pytest.raises(ValueError, match=words):
        load_plugged(model, path)
    assert same_state(model, before)


def test_broken_files(tmp_path):
    path, model = file_of(tmp_path), toy()
    before, whole = state(model), path.read_bytes()
    for n in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r'a\.safetensors.* cannot be read as safetensors.*cut short'):
            load_plugged(model, path)
    save_file(before, path)
    with pytest.raises(ValueError, match='was not written by save_plugged'):
        load_plugged(model, path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'no file .*a\.safetensors'):
        load_plugged(model, path)
    with pytest.raises(FileNotFoundError, match='no folder'):
        save_plugged(add_idr(toy(), at='3'), tmp_path / 'no' / 'a.safetensors')
    assert same_state(model, before) and not [*tmp_path.iterdir()]


def test_tied_weights_can_be_saved(tmp_path):
    def tied():
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, K, 1))
        model[1].weight = model[0].weight
        return model

    model, x = add_idr(tied(), at='2'), torch.randn(1, 3, 8, 8)
    assert answer(load_plugged(tied(), save_plugged(model, tmp_path / 'a.safetensors')), x).equal(answer(model, x))


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = file_of(tmp_path)
    before = path.read_bytes()

    def fail(tensors, p, **_):
        open(p, 'wb').write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr('safetensors.torch.save_file', fail)
    with pytest.raises(OSError, match='disk full'):
        save_plugged(add_idr(toy(), at='3'), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


# --- the head for a list of maps


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_head(framework):
    maps, y = (
        [torch.randn(2, c, n, n + 1) for c, n in ((5, 16), (6, 8), (7, 4), (8, 4))],
        torch.randint(0, K, (2, 32, 32)),
    )
    head = IDRHead([5, 6, 7, 8], K, framework, width=8, attention_width=6, aux_width=4)
    out = head(maps, y)
    out.loss.backward()
    assert out.loss.isfinite() and out.deletion is not None and set(out.losses) == {'aux', 'coarse', 'final'}
    assert head.eval()(dict(enumerate(maps)), size=(9, 9)).logits.shape == (2, K, 9, 9)
    for wrong, words in (
        (maps[1:], r'channels \[6, 7, 8\], the head was built for \[5, 6, 7, 8\]'),
        (maps + maps[:1], 'built for'),
        (maps[::-1], r'\[8, 7, 6, 5\]'),
        ([m[0] for m in maps], 'b c h w'),
        ([], r'channels \[\]'),
    ):
        with pytest.raises(ValueError, match=words):
            head(wrong, y)
    same = IDRHead([6, 6], K, width=8, attention_width=6, aux_width=4)
    with pytest.raises(ValueError, match='pixels wide; give the finest first'):
        same([torch.randn(1, 6, 2, 2), torch.randn(1, 6, 4, 4)])


def test_head_settings():
    with pytest.raises(ValueError, match="unknown framework 'unet'; there are fcn"):
        IDRHead([4, 4], K, 'unet')
    with pytest.raises(ValueError, match='two maps or more'):
        IDRHead([4], K)
    assert (
        IDRHead([4, 4], K, idr=False, width=4, aux_width=4).idr is None
        and IDRHead([4, 4], K, 'deeplabv3', width=4, attention_width=4, aux_width=4).config.context == 'aspp'
    )
    seed_everything(1)
    assert IDRHead([4, 4], K, width=4, attention_width=4, aux_width=4, dropout=0.3).config.dropout == 0.3


# --- found by a reader who tried


class Two(torch.nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.cls = torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        feat = self.body(x)
        return self.cls(feat) if self.reentrant is None else checkpoint(self.cls, feat, use_reentrant=self.reentrant)


def test_checkpointing_around_the_seam_is_refused():
    x, y = torch.randn(2, 3, 12, 12), torch.randint(0, 4, (2, 12, 12))
    model = add_idr(Two(), at='cls').train()
    model.reentrant = False
    loss = model(x).mean() + idr_loss(model, y)
    with pytest.raises(RuntimeError, match='gradient checkpointing around the seam'):
        loss.backward()
    model = add_idr(Two(), at='cls').train()
    model.reentrant = True
    model(x)
    with pytest.raises(RuntimeError, match='ran without gradients'):
        idr_loss(model, y)


def test_a_wrapper_is_not_saved(tmp_path):
    model = add_idr(Two(), at='cls')
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model)):
        with pytest.raises(ValueError, match='is a wrapper'):
            save_plugged(wrapped, tmp_path / 'w.safetensors')
    assert not list(tmp_path.iterdir())


def test_our_own_save_refuses_a_plugged_model(tmp_path):
    from idrnet_nb.models.segmentor import build_segmentor

    model = add_idr(build_segmentor('fcn', 'tiny', 4, idr=False, width=8, aux_width=8))
    with pytest.raises(ValueError, match='save_plugged'):
        model.save_pretrained(tmp_path / 'm')
    assert not (tmp_path / 'm').exists()


def test_a_transformers_model_inside_a_module_of_ones_own(tmp_path):
    transformers = pytest.importorskip('transformers')

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = transformers.SegformerForSemanticSegmentation(
                transformers.SegformerConfig(
                    num_labels=4,
                    depths=[1] * 4,
                    hidden_sizes=[8, 8, 16, 16],
                    num_attention_heads=[1, 1, 2, 2],
                    decoder_hidden_size=16,
                )
            )

        def forward(self, x, labels=None):
            return self.net(x, labels=labels)

    x, y = torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))
    model = add_idr(Mine(), at='net.decode_head.classifier').train()
    model(x, y).loss.backward()
    assert get_idr(model).idr.deletion_count.sum() > 1.9  # its diagnostics ran
    save_plugged(model, tmp_path / 'm.safetensors')
    again = load_plugged(Mine(), tmp_path / 'm.safetensors').train()
    again(x, y).loss.backward()
    assert get_idr(again).idr.deletion_count.sum() > 3.9
