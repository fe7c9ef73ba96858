"""The exported forms against judges that say it as a person would: loops over pictures, classes and pixels, in float64.
Random shapes: K from 1 to 60, batch 1, absent classes, one-class pictures, nothing but void; float32 and bfloat16."""

import math, random, statistics, zlib
from collections import Counter, defaultdict
from typing import NamedTuple
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, seed, settings, strategies as st
from idrnet_nb.method.attention import attend
from idrnet_nb.method.spatial_context import pool_regions
from idrnet_nb.method.grouping import class_features, group, memory_sums, one_hot_members, pixel_weights, update_memory
from idrnet_nb.method.idr import IDRContext
from idrnet_nb.method.deletion import class_loss_stats, sample_deleted, zero_context, update_relation, remove_class
from idrnet_nb.method.relation import class_context, interact, relation_weights, to_pixels

# --- cases
KINDS = 'ordinary', 'one class', 'absent classes', 'all void'


class Case(NamedTuple):
    b: int
    k: int
    c: int
    h: int
    w: int
    seed: int
    dtype: str
    kind: str

    @property
    def bf16(self):
        return self.dtype == 'bfloat16'

    def rng(self):
        return torch.Generator().manual_seed(self.seed)


CASES = st.builds(
    Case,
    b=st.integers(1, 4),
    k=st.integers(1, 60),
    c=st.integers(1, 6),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(['float32', 'bfloat16']),
    kind=st.sampled_from(KINDS),
)
RUN = defaultdict(set)  # test -> the cases it has run
TWINS, PLAIN = [], {}  # with and without hypothesis


def twin(test):
    "Run `test(case, rng)` on random cases and on the corners; keep count."

    def counted(case):
        test(case, case.rng())
        RUN[test.__name__].add(case)

    counted.__name__ = counted.__qualname__ = test.__name__
    for corner in (
        Case(1, 1, 1, 1, 1, 0, 'float32', 'all void'),
        Case(1, 60, 3, 2, 5, 1, 'bfloat16', 'absent classes'),
        Case(4, 2, 2, 3, 3, 2, 'float32', 'one class'),
    ):
        counted = example(corner)(counted)
    quiet = settings(
        max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    run = seed(zlib.crc32(test.__name__.encode()))(
        quiet(given(CASES)(counted))
    )  # other cases for each test, the same every day
    TWINS.append(run)
    PLAIN[test.__name__] = test
    return run


def randn(rng, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=rng).to(dtype)


def ids(case, rng, h, w, truth=False):
    "Class ids of the case's kind, `b h w`; in truth some pixels are void, or all."
    b, k = case.b, case.k
    x = torch.randint(k, (b, h, w), generator=rng)
    if case.kind == 'one class':
        x = torch.randint(k, (b, 1, 1), generator=rng).expand(b, h, w).clone()
    if case.kind == 'absent classes':
        x = torch.randperm(k, generator=rng)[: math.ceil(k / 3)][x % math.ceil(k / 3)]
    if not truth:
        return x
    void = 255 if case.seed % 2 else -100
    return x.masked_fill((torch.rand(b, h, w, generator=rng) < 0.2) | (case.kind == 'all void'), void)


def features(case, rng):
    return randn(rng, case.b, case.c, case.h, case.w, dtype=getattr(torch, case.dtype))


def scores(case, rng, said):
    "Coarse scores whose largest entry is at class `said`."
    return (randn(rng, case.b, case.k, case.h, case.w) + 9 * F.one_hot(said, case.k).permute(0, 3, 1, 2)).to(
        getattr(torch, case.dtype)
    )


def table_of(case, rng):
    "A table in which some entries are 0 and some rows have nothing above 0."
    t = randn(rng, case.k, case.k)
    t = torch.where(torch.rand(case.k, 1, generator=rng) < 0.3, -t.abs(), t)
    return t.masked_fill(torch.rand(case.k, case.k, generator=rng) < 0.1, 0)


def num(x):
    return x.detach().double().numpy()


def agree(got, want, tol=1e-5, least=0.1):
    "Equal up to `tol` of the largest entry (inputs are of size 1: an answer below `least` is what cancelling has left)."
    want = np.asarray(want)
    assert tuple(got.shape) == want.shape, f'{tuple(got.shape)} is not {want.shape}'
    if not want.size:
        return
    assert got.isfinite().all()
    worst = abs(num(got) - want).max() / max(abs(want).max(), least)
    assert worst <= tol, f'off by {worst:.1e} of the largest entry'


def close(case, fp32=1e-5):
    return 2e-2 if case.bf16 else fp32


# --- judges: numpy float64 in, numpy float64 out
def softmax(values):
    top = max(values)
    up = [math.exp(v - top) for v in values]
    return [u / sum(up) for u in up]


def pixels(x):
    return x.reshape(*x.shape[:-2], -1)  # `… h w` -> `… n`


def judge_means(feat, coarse, label, k):
    "`b c n`, `b k n`, `b n` -> `b k c`: of every class the mean of its pixels, weighted by how sure they are."
    b, c, _ = feat.shape
    out = np.zeros((b, k, c))
    for i in range(b):
        for j in range(k):
            mine = [p for p, l in enumerate(label[i]) if l == j]
            if not mine:
                continue
            for p, s in zip(mine, softmax([coarse[i, j, p] for p in mine])):
                out[i, j] += s * feat[i, :, p]
    return out


def judge_weights(table, present, positive):
    "`k k`, `b k` -> `b k k`: to whom each class listens."
    b, k = present.shape
    out = np.zeros((b, k, k))
    for n in range(b):
        here = [j for j in range(k) if present[n, j]]
        for i in range(k):
            heard = [j for j in here if table[i, j] > 0] if positive else here
            if heard:
                for j, s in zip(heard, softmax([table[i, j] for j in heard])):
                    out[n, i, j] = s
            else:
                for j in here:
                    out[n, i, j] = 1 / len(here)
    return out


def judge_heard(vectors, table, present, positive):
    "`b k d` -> `b k d`."
    weights, out = judge_weights(table, present, positive), np.zeros(vectors.shape)
    for n, i, j in zip(*weights.nonzero()):
        out[n, i] += weights[n, i, j] * vectors[n, j]
    return out


def judge_stats(loss, label, k):
    "`b n` twice -> means, population variances and counts, `b k`."
    b = len(loss)
    mean, var, count = np.zeros((b, k)), np.zeros((b, k)), np.zeros((b, k))
    for i in range(b):
        for j in range(k):
            mine = [float(x) for x, l in zip(loss[i], label[i]) if l == j]
            if mine:
                mean[i, j], var[i, j], count[i, j] = statistics.fmean(mine), statistics.pvariance(mine), len(mine)
    return mean, var, count


def judge_tables(table, change, deleted, seen, momentum):
    "Pictures one after the other."
    table = table.copy()
    for i, d in enumerate(deleted):
        for j in range(len(table)):
            if seen[i, j] and math.isfinite(change[i, j]):
                table[d, j] = (1 - momentum) * table[d, j] + momentum * change[i, j]
    return table


def judge_sums(feat, label, k):
    "`b c h w` tensor, `b H W` -> sums `k c` over upsampled features, counts `k`."
    big = num(F.interpolate(feat.double(), label.shape[-2:], mode='bilinear', align_corners=False))
    sums, count = np.zeros((k, feat.shape[1])), np.zeros(k)
    for i, y, x in np.ndindex(*label.shape):
        if 0 <= label[i, y, x] < k:
            sums[label[i, y, x]] += big[i, :, y, x]
            count[label[i, y, x]] += 1
    return sums, count


def judge_memory(memory, sums, count, momentum):
    out = memory.copy()
    for j in range(len(memory)):
        if count[j]:
            out[j] += momentum * (sums[j] / count[j] - memory[j])
    return out


def judge_picks(present, count, noise):
    "A race a picture: who is rarely deleted runs fast; the winner gets slower for the next picture."
    count, out = list(count), []
    for there, luck in zip(present, noise):
        time = {j: -math.log(min(max(luck[j], 1e-12), 1 - 1e-7)) * count[j] for j in range(len(count)) if there[j]}
        out.append(min(time, key=time.get))
        count[out[-1]] += 1
    return out


def judge_attention(query, key, value):
    "`b d p`, `b d q`, `b c q` -> `b c p`."
    out = np.zeros((len(query), value.shape[1], query.shape[2]))
    for i in range(len(query)):
        for p in range(query.shape[2]):
            say = softmax(
                [float(query[i, :, p] @ key[i, :, q]) / math.sqrt(query.shape[1]) for q in range(key.shape[2])]
            )
            for q, s in enumerate(say):
                out[i, :, p] += s * value[i, :, q]
    return out


def judge_brick(brick, x):
    "ConvNormAct of `b c n`: 1×1 convolution, norm by the batch in training (by the running statistics if there is one value only), ReLU."
    y = np.stack([num(brick.conv.weight)[:, :, 0, 0] @ one for one in x])
    mean, var = num(brick.norm.running_mean), num(brick.norm.running_var)
    if brick.training and y.shape[0] * y.shape[2] > 1:
        mean, var = y.mean((0, 2)), y.var((0, 2))
    part = lambda v: v[None, :, None]
    y = (y - part(mean)) / np.sqrt(part(var) + brick.norm.eps) * part(num(brick.norm.weight)) + part(
        num(brick.norm.bias)
    )
    return y.clip(0)


def judge_context(idr, feat, coarse, deleted=None):
    "IDRNet steps 4 to 8 on `b c n`, `b k n`, the 6C map built; returns `b c n` and what each class heard, `b k 4c`."
    (b, c, n), k, memory = feat.shape, coarse.shape[1], num(idr.memory)
    label = [[max(range(k), key=lambda j: coarse[i, j, p]) for p in range(n)] for i in range(b)]
    known = np.stack(
        [[np.concatenate([feat[i, :, p], memory[label[i][p]]]) for p in range(n)] for i in range(b)]
    ).transpose(0, 2, 1)
    present = np.array(
        [[j in set(label[i]) and (deleted is None or j != deleted[i]) for j in range(k)] for i in range(b)]
    )
    vectors = judge_means(known, coarse, label, k)
    heard = np.concatenate(
        [
            judge_heard(vectors, num(idr.relation_mean), present, True),
            judge_heard(vectors, num(idr.relation_var), present, False),
        ],
        2,
    )
    if deleted is not None:
        for i, d in enumerate(deleted):
            heard[i, d] = 0
    z = np.stack(
        [[np.concatenate([known[i, :, p], heard[i, label[i][p]]]) for p in range(n)] for i in range(b)]
    ).transpose(0, 2, 1)
    assert z.shape == (b, 6 * c, n)
    r = idr.attention
    q, key = [judge_brick(two[1], judge_brick(two[0], z)) for two in (r.query, r.key)]
    return judge_brick(r.out, judge_attention(q, key, judge_brick(r.value, z))), heard


# --- class by class
@twin
def test_class_means(case, rng):
    label = ids(case, rng, case.h, case.w, truth=True)  # void pixels belong to no class
    feat, coarse = features(case, rng), randn(rng, case.b, case.k, case.h, case.w).to(getattr(torch, case.dtype)) * 3
    member = one_hot_members(label.flatten(1), case.k)
    for i, j, p in np.ndindex(*member.shape):
        assert member[i, j, p].item() == (label[i].flatten()[p].item() == j)
    sums = pixel_weights(coarse.flatten(2), member).sum(-1)
    assert sums.allclose(member.any(-1).float(), atol=1e-6)
    agree(
        class_features(feat, coarse, member),
        judge_means(pixels(num(feat)), pixels(num(coarse)), label.flatten(1).tolist(), case.k),
        close(case),
    )


def somebody(case, rng):
    "Who is present, `b k`; in a void case nobody."
    return one_hot_members(ids(case, rng, case.h, case.w, truth=True).flatten(1), case.k).any(-1)


@twin
def test_relation_weights(case, rng):
    table, present = table_of(case, rng), somebody(case, rng)
    for positive in (True, False):
        got = relation_weights(table, present, positive)
        agree(got, judge_weights(num(table), present.numpy(), positive), 1e-5, least=1e-3)
        assert not got[~present.any(-1)].any()


@twin
def test_relate(case, rng):
    table, present = table_of(case, rng), somebody(case, rng)
    means, memory = randn(rng, case.b, case.k, case.c, dtype=getattr(torch, case.dtype)), randn(rng, case.k, case.c)
    both = np.concatenate([num(means), np.broadcast_to(num(memory), means.shape)], 2)
    want = [judge_heard(both, num(table), present.numpy(), positive) for positive in (True, False)]
    for positive, w in zip((True, False), want):
        agree(interact(means, memory, table, present, positive), w, close(case))
    agree(class_context(means, memory, table, table, present), np.concatenate(want, 2), close(case))


@twin
def test_to_pixels(case, rng):
    vectors, label = (
        randn(rng, case.b, case.k, case.c, dtype=getattr(torch, case.dtype)),
        ids(case, rng, case.h, case.w).flatten(1),
    )
    want = np.zeros((case.b, case.c, label.shape[1]))
    for i, p in np.ndindex(*label.shape):
        want[i, :, p] = num(vectors[i, label[i, p]])
    agree(to_pixels(vectors, label), want, 0)


@twin
def test_class_stats(case, rng):
    label = ids(case, rng, 2 * case.h, 3 * case.w, truth=True).flatten(1)
    loss = randn(rng, *label.shape).abs() * 3
    for got, want in zip(class_loss_stats(loss, label, case.k), judge_stats(num(loss), label.tolist(), case.k)):
        agree(got, want)


# --- what is learnt
@twin
def test_update_relations(case, rng):
    table, seen = table_of(case, rng), somebody(case, rng)
    deleted = torch.randint(min(case.k, 2), (case.b,), generator=rng)  # so that the same class is often deleted twice
    change, momentum = randn(rng, case.b, case.k), random.Random(case.seed).choice([0.1, 0.5, 1.0])
    change[torch.rand(change.shape, generator=rng) < 0.05] = [math.nan, math.inf, -math.inf][case.seed % 3]
    agree(
        update_relation(table, change, deleted, seen, momentum),
        judge_tables(num(table), num(change), deleted.tolist(), seen, momentum),
    )


@twin
def test_memory(case, rng):
    size = [random.Random(case.seed + i).randint(1, 12) for i in (0, 1)]  # finer or coarser than the features
    feat, label, memory = features(case, rng), ids(case, rng, *size, truth=True), randn(rng, case.k, case.c)
    sums, count = judge_sums(feat, label.numpy(), case.k)
    got = memory_sums(feat, label, case.k)
    agree(got[0], sums, least=1)
    agree(got[1], count, 0)
    new = update_memory(memory, *got, 0.3)
    agree(new, judge_memory(num(memory), sums, count, 0.3), 1e-5, least=1)
    assert new[count == 0].equal(memory[count == 0])


@twin
def test_pick_class(case, rng):
    present = one_hot_members(ids(case, rng, case.h, case.w).flatten(1), case.k).any(-1)
    count = 1e-6 + torch.randint(3, (case.k,), generator=rng)
    noise = torch.rand(case.b, case.k, generator=rng)
    assert sample_deleted(present, count, noise).tolist() == judge_picks(present.tolist(), num(count), num(noise))


@twin
def test_deletion(case, rng):
    present = one_hot_members(ids(case, rng, case.h, case.w).flatten(1), case.k).any(-1)
    deleted = present.float().multinomial(1, generator=rng)[:, 0]
    heard = randn(rng, case.b, case.k, 4 * case.c, dtype=getattr(torch, case.dtype))
    left, quiet = remove_class(present, deleted), zero_context(heard, deleted)
    for i, j in np.ndindex(case.b, case.k):
        assert left[i, j].item() == (present[i, j].item() and j != deleted[i].item())
        assert quiet[i, j].equal(heard[i, j] * 0 if j == deleted[i] else heard[i, j])


# --- context by place
@twin
def test_pool_regions(case, rng):
    x, s = features(case, rng), random.Random(case.seed).randint(1, 8)  # often more regions than pixels
    want = np.zeros((case.b, case.c, s, s))
    for i, j in np.ndindex(s, s):  # s×s boxes that may share a row or a column
        want[:, :, i, j] = num(x)[
            :, :, i * case.h // s : math.ceil((i + 1) * case.h / s), j * case.w // s : math.ceil((j + 1) * case.w / s)
        ].mean((2, 3))
    agree(pool_regions(x, s), want, close(case))


# --- the refiner, and all together
@twin
def test_attend(case, rng):
    p, q = case.h * case.w, case.h + case.w
    query, key, value = (
        randn(rng, case.b, d, n, dtype=getattr(torch, case.dtype)) for d, n in ((case.c, p), (case.c, q), (case.k, q))
    )
    agree(attend(query, key, value), judge_attention(num(query), num(key), num(value)), close(case), least=1)


def context_of(case, rng):
    "An IDRContext that has learnt something; trained by the batch in float32, with running statistics in bfloat16."
    torch.manual_seed(case.seed)
    idr = IDRContext(case.k, case.c, attention_channels=random.Random(case.seed).randint(1, 5)).train(not case.bf16)
    idr.relation_mean.copy_(table_of(case, rng))
    idr.relation_var.copy_(table_of(case, rng))
    idr.memory.copy_(randn(rng, case.k, case.c))
    for m in idr.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for x in (m.running_mean, m.weight.data, m.bias.data):
                x.copy_(0.3 * randn(rng, *x.shape) + (x is m.weight.data))
            m.running_var.copy_(0.5 + torch.rand(len(m.running_var), generator=rng))
    return idr


@twin
def test_context(case, rng):
    idr, feat, said = context_of(case, rng), features(case, rng), ids(case, rng, case.h, case.w)
    coarse, running = (
        scores(case, rng, said),
        lambda: [m.running_mean.clone() for m in idr.modules() if isinstance(m, torch.nn.BatchNorm2d)],
    )
    flat, tol = (pixels(num(feat)), pixels(num(coarse))), close(case, 2e-4)  # a norm over few values magnifies rounding
    with torch.autocast('cpu', torch.bfloat16, enabled=case.bf16):
        grouping, projected = group(feat, coarse), idr.attention.project(feat)
        before, deleted = running(), grouping.present.float().multinomial(1, generator=rng)[:, 0]
        unheard = idr.interact(grouping, deleted)
        gone = idr.refine(projected, grouping, unheard, update_stats=False)
        assert all(x.equal(y) for x, y in zip(before, running()))  # made-up inputs leave the norms alone
        out, heard = idr(feat, coarse), idr.interact(grouping)
    want, want_heard = judge_context(idr if case.bf16 else fresh(idr, before), *flat)
    agree(out.flatten(2), want, tol, least=1)
    agree(heard, want_heard, tol)
    want, want_heard = judge_context(idr if case.bf16 else fresh(idr, before), *flat, deleted.tolist())
    agree(gone.flatten(2), want, tol, least=1)
    agree(unheard, want_heard, tol)


def fresh(idr, running_means):
    "The module as it was before its norms moved (matters where there is one value only)."
    for m, x in zip((m for m in idr.modules() if isinstance(m, torch.nn.BatchNorm2d)), running_means):
        m.running_mean.copy_(x)
    return idr


@twin
def test_learning(case, rng):
    "Tables, counter and memory after a step, from per-pixel losses with and without the deleted class."
    idr, feat, label = context_of(case, rng), features(case, rng), ids(case, rng, 2 * case.h, case.w + 1, truth=True)
    loss, lost = (randn(rng, *label.shape).abs() for _ in range(2))
    deleted, old = (
        torch.randint(min(case.k, 2), (case.b,), generator=rng),
        {n: num(x).copy() for n, x in idr.named_buffers(recurse=False)},
    )
    flat = label.flatten(1).tolist()
    (mean, var, n), (mean_, var_, _) = (judge_stats(pixels(num(x)), flat, case.k) for x in (loss, lost))
    idr.learn_relations(deleted, loss, lost, label, 0.1)
    agree(idr.relation_mean, judge_tables(old['relation_mean'], mean_ - mean, deleted.tolist(), n > 0, 0.1))
    agree(idr.relation_var, judge_tables(old['relation_var'], var_ - var, deleted.tolist(), n > 1, 0.1))
    hits = Counter(deleted.tolist())
    agree(idr.deletion_count, [1e-6 + hits[j] for j in range(case.k)], 1e-6)
    idr.learn_memory(feat, label, 0.1)
    agree(idr.memory, judge_memory(old['memory'], *judge_sums(feat, label.numpy(), case.k), 0.1))
    if case.kind == 'all void':
        for name in ('relation_mean', 'relation_var', 'memory'):
            assert (num(getattr(idr, name)) == old[name]).all()


# --- did they really run?
@pytest.mark.parametrize('run', TWINS, ids=lambda t: t.__name__)
def test_cases_were_run(run):
    if not RUN[run.__name__]:
        run()  # this test alone was asked for
    cases = RUN[run.__name__]
    assert len(cases) >= 200
    assert {(c.dtype, c.kind) for c in cases} == {(d, kind) for d in ('float32', 'bfloat16') for kind in KINDS}
    assert {1, 60} <= {c.k for c in cases} and {1, 2} <= {c.b for c in cases} and len({c.k for c in cases}) >= 15


def test_cases_differ_from_test_to_test():
    for run in TWINS:
        if not RUN[run.__name__]:
            run()
    assert len(set.union(*RUN.values())) >= 1500


def test_judges_judge():
    "By hand: two pixels of class 0, scores 0 and log 3, so weights 1/4 and 3/4; then who listens to whom."
    means = judge_means(np.array([[[4.0, 8.0, 5.0]]]), np.array([[[0, math.log(3), 7], [0, 0, 0]]]), [[0, 0, 1]], 3)
    assert np.allclose(means[0, :, 0], [7, 5, 0])
    weights = judge_weights(np.array([[0, -1.0], [0, math.log(3)]]), np.array([[True, True], [False, False]]), True)
    assert np.allclose(weights[0], [[0.5, 0.5], [0, 1]]) and not weights[1].any()
    assert np.allclose(
        judge_weights(np.array([[0, math.log(3)]] * 2), np.ones((1, 2), bool), False)[0, 0], [0.25, 0.75]
    )
    assert judge_picks([[True, True]] * 2, [1, 1], [[0.5, 0.4]] * 2) == [
        0,
        1,
    ]  # the winner of the first race is slower in the second
