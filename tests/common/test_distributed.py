"""Several processes (gloo) move relation matrices, memory and counts exactly as one process with the whole batch
does; all end with the same bits; and what they exchange for it is what the lesson says."""

import sys
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from idrnet_nb.common.distributed import all_gather_packed, all_reduce_packed
from idrnet_nb.method import idr
from idrnet_nb.models.head import HeadConfig, SegHead
from processes import in_processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
import exchange  # noqa: E402

K, CHANNELS, WIDTH, IMAGES = 4, [6, 7], 8, 4
LEARNT = 'relation_mean', 'relation_var', 'memory', 'deletion_count'


def make():
    torch.manual_seed(0)
    model = SegHead(CHANNELS, HeadConfig(K, width=WIDTH, attention_width=6, aux_width=8, dropout=0.0))
    for m in model.modules():  # norms that look at their own process only would differ: use the running statistics
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    torch.manual_seed(1)
    pyramid, label = [torch.randn(IMAGES, c, 5, 6) for c in CHANNELS], torch.randint(0, 3, (IMAGES, 20, 24))
    label[2:, :5] = 3  # class 3 is seen by some processes alone
    return model, pyramid, label, torch.tensor([0, 1, 1, 2])


def state(model):
    return {n: getattr(model.idr, n).tolist() for n in LEARNT}


def train(rank, world, form):
    "(state, gradients, calls) after two steps with DDP, in which no buffer is sent from process 0 to the others."
    model, pyramid, label, deleted = make()
    part = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def step():
        wrapped([p[part] for p in pyramid], label[part], deleted=deleted[part]).loss.backward()

    gather, add_up = exchange.FORMS[form]
    with patch.multiple(idr, all_gather_packed=gather, all_reduce_packed=add_up):
        step()
    calls, _ = exchange.counted(form, step)
    return state(model), {n: p.grad.tolist() for n, p in model.named_parameters()}, calls


def pack(rank):
    "Tensors of each type, gathered and added up; and what was given stays as it was."
    floats, ids = torch.full((2, 3), rank + 0.5, dtype=torch.float64), torch.tensor([rank, 2**24 - rank])
    found = [*all_gather_packed(floats, ids), *all_reduce_packed(floats, ids)]
    assert floats.eq(rank + 0.5).all() and ids.tolist() == [rank, 2**24 - rank]
    return [(str(x.dtype), x.tolist()) for x in found]


def work(rank, world):
    return {**{form: train(rank, world, form) for form in exchange.FORMS}, 'pack': pack(rank)}


@lru_cache
def trained(world):
    "What `train` and `pack` return in each of so many processes."
    return in_processes(work, world, world=world)


each_world = pytest.mark.parametrize('world', [2, 4])


@each_world
@pytest.mark.parametrize('form', exchange.FORMS)
def test_processes_are_one(world, form):
    got = [of_rank[form] for of_rank in trained(world)]
    model, pyramid, label, deleted = make()
    for _ in range(2):
        model(pyramid, label, deleted=deleted)
    want = state(model)
    for n in LEARNT:
        assert all(moved[n] == got[0][0][n] for moved, *_ in got), f'{n} differs between the processes'
        torch.testing.assert_close(torch.tensor(got[0][0][n]), torch.tensor(want[n]), rtol=1e-5, atol=1e-5)
    assert any(want['memory'][3]) and want['relation_mean'] != torch.eye(K).tolist()
    for n, grad in got[0][1].items():
        for _, grads, _ in got[1:]:
            torch.testing.assert_close(torch.tensor(grad), torch.tensor(grads[n]))


@each_world
def test_two_calls_are_six(world):
    "Matrices and counts to the bit; the memory to rounding, since sums are made in another order."
    six, two = (trained(world)[0][form][0] for form in exchange.FORMS)
    for n in LEARNT:
        assert n == 'memory' or six[n] == two[n], n
    torch.testing.assert_close(torch.tensor(six['memory']), torch.tensor(two['memory']))


@each_world
def test_bytes(world):
    "Counted by replacing torch's functions; here by formula, of float32 (4 bytes) and int64 (8)."
    b = IMAGES // world
    calls = {form: trained(world)[0][form][2] for form in exchange.FORMS}
    relations, memory = 4 * b * (3 * K + 1), 4 * K * (WIDTH + 1)
    assert calls['two calls'] == [('all_gather', relations), ('all_reduce', memory)]
    each = [4 * b * K] * 3 + [8 * b] + [4 * K * WIDTH, 4 * K]
    assert calls['six calls'] == [('all_gather', n) for n in each]
    assert exchange.sent(calls['two calls'], world) == (world - 1) * relations + 2 * memory * (world - 1) // world
    assert exchange.sent(calls['six calls'], world) == (world - 1) * sum(each)


def test_packed():
    a, b = (of_rank['pack'] for of_rank in trained(2))
    assert a == b
    assert [kind for kind, _ in a] == ['torch.float64', 'torch.int64'] * 2
    gathered, ids, added, added_ids = (x for _, x in a)
    assert gathered == [[0.5] * 3] * 2 + [[1.5] * 3] * 2 and added == [[2.0] * 3] * 2
    assert ids == [0, 2**24, 1, 2**24 - 1] and added_ids == [1, 2**25 - 1]
