"""A model in float64 reckons in float64: every tensor of a training step, and the whole step against loops over images, classes and pixels."""

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idrnet_nb.models.backbone import Backbone
from idrnet_nb.method.grouping import memory_sums
from idrnet_nb.models.head import FRAMEWORKS, HeadConfig, SegHead
from idrnet_nb.models.segmentor import Segmentor, build_segmentor
from idrnet_nb.training.inference import EvalProtocol, probabilities
from idrnet_nb.method.deletion import update_relation
from idrnet_nb.training.losses import Criterion
from test_twins import judge_brick, judge_context, judge_memory, judge_stats, judge_sums, judge_tables, num, pixels

K = 5
SMALL = dict(width=8, attention_width=4, aux_width=4, dropout=0.0)
TINY_SWIN = dict(
    name='swin_tiny_patch4_window7_224',
    pad_to=1,
    embed_dim=12,
    depths=(1, 1, 2, 1),
    num_heads=(2, 2, 4, 4),
    window_size=4,
)


class Watch(TorchDispatchMode):
    "Keeps the name of every operation that makes floats of less than 64 bits."

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(
            isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64 for t in tree_leaves(out)
        ):
            self.found.add(str(func))
        return out


def batch(h=32, w=40, b=3):
    images = torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8)
    label = torch.randint(0, K + 1, (b, h, w))
    return images, torch.where(label == K, 255, label)


def watched_step(model, **head_args):
    "One training step in float64, and the operations in it that were not."
    model = model.double().train()
    images, label = batch()
    noise = torch.rand(len(images), K, dtype=torch.float64)  # what is drawn inside is float32, and only chooses
    with Watch() as watch:
        out = model(images, label, uniform=noise, upsample_logits=False, **head_args)
        out.loss.backward()
    assert out.loss.dtype == torch.float64 and all(
        p.grad is None or p.grad.dtype == torch.float64 for p in model.parameters()
    )
    return watch.found


def test_the_watch_sees():
    with Watch() as watch:
        0.9 ** torch.arange(3)
    assert watch.found


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_every_framework_reckons_in_float64(framework):
    assert not watched_step(build_segmentor(framework, 'tiny', K, **SMALL, deletions=2))


@pytest.mark.parametrize(
    'backbone',
    [dict(name='resnet18', output_stride=8), dict(name='mobilenetv2_050'), TINY_SWIN],
    ids=lambda b: b['name'],
)
def test_backbones_reckon_in_float64(backbone):
    config = HeadConfig(K, **FRAMEWORKS['upernet'], **SMALL)
    mask = (
        {'aten.scalar_tensor.default', 'aten.where.self'} if 'swin' in backbone['name'] else set()
    )  # of shifted windows: 0 and -100, exact in every float
    assert watched_step(Segmentor(Backbone(**backbone), config)) <= mask


CRITERIA = (
    Criterion('ce', class_weights=(1, 2, 3, 4, 0.5)),
    Criterion('ce', ohem=0.7, ohem_least=9),
    Criterion('focal+.5*dice+lovasz'),
)


@pytest.mark.parametrize('criterion', CRITERIA, ids=lambda c: c.loss)
def test_losses_reckon_in_float64(criterion):
    assert not watched_step(build_segmentor('fcn', 'tiny', K, **SMALL), criterion=criterion)


@pytest.mark.parametrize('average', ['probabilities', 'grid_probabilities', 'logits'])
def test_inference_reckons_in_float64(average):
    model = build_segmentor('fcn', 'tiny', K, **SMALL).double().eval()
    images = batch()[0].double()
    for p in (
        EvalProtocol(average=average),
        EvalProtocol((24, 30), window=(16, 16), scales=(0.75, 1.0), flip=True, average=average),
    ):
        with Watch() as watch:
            assert probabilities(model, images, p).dtype == torch.float64
        assert not watch.found


# --- against loops


def off(got, want):
    return abs(num(got) - want).max() / max(abs(want).max(), 0.1)


@pytest.mark.parametrize('momentum', [0.1, 0.3, 0.5, 1.0])
def test_tables_move_as_in_a_loop(momentum):
    "Nine images, two classes deleted: rows move up to nine times."
    table, change, seen = torch.randn(K, K).double(), torch.randn(9, K).double(), torch.rand(9, K) < 0.8
    deleted = torch.randint(0, 2, (9,))
    got = update_relation(table, change, deleted, seen, momentum)
    assert (
        got.dtype == torch.float64
        and off(got, judge_tables(num(table), num(change), deleted.tolist(), seen, momentum)) < 1e-14
    )


@pytest.mark.parametrize('size', [(13, 10), (31, 47), (5, 3)])
def test_memory_sums_are_those_of_a_loop(size):
    feat, label = torch.randn(2, 4, 5, 3).double(), torch.randint(-1, K, (2, *size))
    sums, count = judge_sums(feat, label.numpy(), K)
    got = memory_sums(feat, label, K)
    assert off(got[0], sums) < 1e-13 and off(got[1], count) == 0


def losses_of_pixels(logits, label):
    "`b k h w` array, `b H W` -> `b n`, 0 where void."
    big = F.interpolate(torch.from_numpy(logits), label.shape[-2:], mode='bilinear', align_corners=False)
    log = big.numpy() - np.log(np.exp(big.numpy()).sum(1, keepdims=True))
    out = np.zeros(label.shape)
    for i, y, x in np.ndindex(*label.shape):
        if label[i, y, x] != 255:
            out[i, y, x] = -log[i, label[i, y, x], y, x]
    return pixels(out)


def classified(d, x):
    "Norm, ReLU and scores of `b c n`; what the classifier D does without dropout."
    y = judge_brick(d.hidden, x)
    return np.stack([num(d.logits.weight)[:, :, 0, 0] @ one for one in y]) + num(d.logits.bias)[None, :, None]


def test_a_whole_step_is_that_of_a_loop():
    "Loss, tables, memory and counter after one step, from the features and the coarse logits on."
    head = SegHead([3, 4], HeadConfig(K, aux_weight=0.0, **SMALL)).double().train()
    idr = head.idr
    with torch.no_grad():
        for name in ('relation_mean', 'relation_var', 'memory'):
            getattr(idr, name).normal_()
    old = {n: num(t).copy() for n, t in idr.named_buffers(recurse=False)}
    maps, label = [torch.randn(3, 3, 12, 14).double(), torch.randn(3, 4, 6, 7).double()], batch(23, 29)[1]
    deleted = torch.tensor([0, 0, 1])
    frozen = [
        (m, m.running_mean.clone(), m.running_var.clone()) for m in head.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    out = head(maps, label, deleted=deleted)
    for m, mean, var in frozen:
        m.running_mean, m.running_var = mean, var
    idr_before = {n: num(t).copy() for n, t in idr.named_buffers(recurse=False)}
    for n, t in idr.named_buffers(recurse=False):
        t.copy_(torch.from_numpy(old[n]))
    feat, coarse = pixels(num(out.feats)), pixels(num(out.coarse_logits))
    grid = out.feats.shape[-2:]
    logits, heard = [], []
    for gone in (None, deleted.tolist()):
        refined, talk = judge_context(idr, feat, coarse, gone)
        logits.append(classified(head.classifier, np.concatenate([feat, refined], 1)).reshape(len(label), K, *grid))
        heard.append(talk)
    assert off(out.context, heard[0]) < 1e-13 and off(out.deletion.context, heard[1]) < 1e-13
    loss, lost = (losses_of_pixels(z, label.numpy()) for z in logits)
    valid = (label != 255).sum().item()
    want = loss.sum() / valid + 0.4 * losses_of_pixels(num(out.coarse_logits), label.numpy()).sum() / valid
    assert abs(out.loss.item() - want) < 1e-13 * want
    flat = label.flatten(1).tolist()
    (mean, var, n), (mean_, var_, _) = judge_stats(loss, flat, K), judge_stats(lost, flat, K)
    assert (
        off(
            torch.from_numpy(idr_before['relation_mean']),
            judge_tables(old['relation_mean'], mean_ - mean, deleted.tolist(), n > 0, 0.1),
        )
        < 1e-13
    )
    assert (
        off(
            torch.from_numpy(idr_before['relation_var']),
            judge_tables(old['relation_var'], var_ - var, deleted.tolist(), n > 1, 0.1),
        )
        < 1e-13
    )
    assert (
        off(
            torch.from_numpy(idr_before['memory']),
            judge_memory(old['memory'], *judge_sums(out.feats, label.numpy(), K), 0.1),
        )
        < 1e-13
    )
    count = old['deletion_count']
    assert idr_before['deletion_count'].tolist() == [count[0] + 2, count[1] + 1, *count[2:]]
