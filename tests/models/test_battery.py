"""One battery for every framework × backbone × idr.

A framework is taken from `idrnet_nb.models.head.FRAMEWORKS`: adding one there adds it here. A backbone is one line in BACKBONES below: a name for its
family, timm's name, an output stride (None: the family's own), options that make it small. A check is one function marked with `@check`.

`make test` runs FAST: every framework with and without IDR, every family once. The whole matrix, one after the other in one process:

    IDRNET_FULL=1 python -m pytest -q tests/models/test_battery.py

It writes nbs/results/battery.csv, a row a framework × backbone × idr, for every case of which all checks were run (`-k` narrows the cases)."""

import copy, functools, json, os, socket, sys, traceback
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from idrnet_nb.method import idr as idr_module
from idrnet_nb.models import head as head_module
from idrnet_nb.common.device import seed_everything
from idrnet_nb.method.layers import pixel_losses, upsample
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import Segmentor, build_segmentor

ROOT = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get('IDRNET_FULL'))
K, SMALL, SIZE = 5, dict(width=8, attention_width=6, aux_width=8), (33, 47)

BACKBONES = dict(  # family: timm's name, output stride, options
    tiny=('tiny', None, dict(width=4)),
    resnet=('resnet18', 8, dict(layers=(1, 1, 1, 1), channels=(8, 12, 16, 24))),
    resnetc=('resnet50c', 8, dict(layers=(1, 1, 1, 1), channels=(8, 12, 16, 24), stem_width=8)),
    resnett=('resnet10t', None, dict(channels=(8, 12, 16, 24), stem_width=8)),
    hrnet=('hrnet_w18_small', None, {}),
    swin=(
        'swin_tiny_patch4_window7_224',
        None,
        dict(embed_dim=12, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), drop_path_rate=0.0),
    ),
    convnext=('convnext_atto', None, dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))),
    convnextv2=('convnextv2_atto', None, dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))),
    mobilenetv2=('mobilenetv2_035', 16, {}),
    mobilenetv3=('mobilenetv3_small_050', None, {}),
    efficientnet=('efficientnet_b0', None, {}),
    efficientlite=('efficientnet_lite0', None, {}),
)
CHEAP = ('tiny', 'resnet')  # with idr='attention' as well


class Case(NamedTuple):
    framework: str
    backbone: str
    idr: object

    def __str__(self):
        return f'{self.framework}-{self.backbone}-' + {False: 'plain', True: 'idr'}.get(self.idr, self.idr)


ALL = [
    Case(f, b, i)
    for b in BACKBONES
    for f in FRAMEWORKS
    for i in (False, True, 'attention')
    if i != 'attention' or b in CHEAP
]
FAST = [
    Case([*FRAMEWORKS][n % len(FRAMEWORKS)], b, (n + n // len(FRAMEWORKS)) % 2 == 0) for n, b in enumerate(BACKBONES)
]
CASES = ALL if FULL else FAST

# ---- models and pictures


def make(case, k=K, **settings):
    "The model of a case, the same weights each time."
    seed_everything(0)
    name, stride, options = BACKBONES[case.backbone]
    return build_segmentor(
        case.framework, name, k, case.idr, output_stride=stride, backbone_args=dict(options), **SMALL, **settings
    )


def pictures(b=2, size=SIZE, k=K, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, 3, *size), dtype=torch.uint8, generator=draw), torch.randint(
        0, k, (b, *size), generator=draw
    )


def step(model, images, label):
    "One step of training; what the model said."
    opt = torch.optim.SGD(model.parameters(), 0.01)
    out = model.train()(images, label)
    opt.zero_grad()
    out.loss.backward()
    opt.step()
    return out


@functools.lru_cache(1)
def learnt(case):
    model = make(case)
    step(model, *pictures())
    return model.eval()


def fresh(case):
    return copy.deepcopy(learnt(case))


@torch.no_grad()
def answer(model, images):
    return model.eval()(images).logits


def state(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def check_gradients(model):
    wrong = {
        n: 'no gradient' if p.grad is None else 'not finite'
        for n, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    }
    assert not wrong, wrong


def check_finite(model):
    wrong = [n for n, t in model.state_dict().items() if not t.isfinite().all()]
    assert not wrong, wrong


def check_same(a, b):
    assert a.keys() == b.keys()
    wrong = [n for n in a if not torch.equal(a[n], b[n])]
    assert not wrong, wrong


# ---- the checks

CHECKS = {}


def check(f):
    CHECKS[f.__name__] = f
    return f


@check
def trains(case, tmp):
    "A step on pictures of odd sides: a finite gradient for every parameter, tables that move where there are some."
    model = make(case)
    out = step(model, *pictures())
    assert (
        out.logits.shape == (2, K, *SIZE) and out.loss.isfinite() and (out.deletion is not None) == (case.idr is True)
    )
    check_gradients(model)
    check_finite(model)
    if case.idr is True:
        assert not torch.equal(model.relations[0], torch.eye(K)) and model.head.idr.memory.abs().sum() > 0


@check
def odd_sizes(case, tmp):
    model = fresh(case)
    for size in (65, 31), (40, 64), (7, 5):
        out = answer(model, pictures(2, size)[0])
        assert out.shape == (2, K, *size) and out.isfinite().all(), size


@check
def one_picture(case, tmp):
    "Alone a picture gets the answer that it gets in company; and one picture can be trained on."
    model, (images, label) = fresh(case).double(), pictures()
    torch.testing.assert_close(answer(model, images[:1]), answer(model, images)[:1], rtol=1e-8, atol=1e-8)
    model = fresh(case)
    assert step(model, images[:1], label[:1]).loss.isfinite()
    check_gradients(model)
    check_finite(model)


@check
def few_classes(case, tmp):
    for k in (1, 2):
        model = build_segmentor(case.framework, copy.deepcopy(learnt(case).backbone), k, case.idr, **SMALL)
        out = step(model, *pictures(k=k))
        assert out.loss.isfinite() and (k > 1 or out.loss == 0)
        check_gradients(model)
        check_finite(model)
        assert answer(model, pictures()[0]).shape == (2, k, *SIZE)


@check
def one_class(case, tmp):
    model, (images, label) = fresh(case), pictures()
    assert step(model, images, torch.full_like(label, 2)).loss.isfinite()
    check_gradients(model)
    check_finite(model)


@check
def all_ignored(case, tmp):
    model, (images, label) = fresh(case), pictures()
    tables = [t.clone() for t in model.relations] if case.idr is True else []
    out = step(model, images, torch.full_like(label, 255))
    assert out.loss == 0
    check_gradients(model)
    check_finite(model)
    assert all(torch.equal(a, b) for a, b in zip(tables, model.relations if tables else ())), (
        'void pixels moved the tables'
    )


@check
def repeats(case, tmp):
    "Evaluation says the same twice, bit for bit, and moves nothing, labels or not."
    model, (images, label) = fresh(case), pictures()
    before, first = state(model), answer(model, images)
    with torch.no_grad():
        second = model(images, label)
    assert torch.equal(first, second.logits) and second.loss.isfinite() and second.deletion is None
    check_same(before, state(model))


@check
def saves(case, tmp):
    model, images = fresh(case), pictures()[0]
    model.save_pretrained(tmp)
    other = Segmentor.from_pretrained(tmp)
    check_same(state(model), state(other))
    assert torch.equal(answer(model, images), answer(other, images))
    assert json.dumps(model.to_config()) == json.dumps(other.to_config()) and not other.training


@check
def half_precision(case, tmp):
    model, (images, label) = fresh(case), pictures()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        step(model, images, label)
    check_gradients(model)
    check_finite(model)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


@check
def channels_last(case, tmp):
    "The other memory order gives the same answer, loss and gradients (in float64, where rounding hides nothing), and trains in float32."
    images, label = pictures()
    plain = fresh(case).double()
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    turned = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(answer(other, turned), answer(plain, images), rtol=1e-7, atol=1e-8)
    for m, x in (plain, images), (other, turned):
        torch.manual_seed(2)
        step(m, x, label)
    for (n, p), q in zip(plain.named_parameters(), other.parameters()):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-8, msg=lambda m, n=n: f'{n}: {m}')
    model = fresh(case).to(memory_format=torch.channels_last)
    step(model, turned, label)
    check_gradients(model)
    check_finite(model)


@check
def copies(case, tmp):
    "A deep copy says the same; training it leaves the original alone, and its answers follow its own weights."
    model, (images, label) = fresh(case), pictures()
    before, said = state(model), answer(model, images)
    other = copy.deepcopy(model)
    check_same(before, state(other))
    assert torch.equal(answer(other, images), said)
    step(other, images, label)
    check_gradients(other)
    check_same(before, state(model))
    assert torch.equal(answer(model, images), said)
    third = make(case)
    third.load_state_dict(other.state_dict())
    assert torch.equal(answer(third, images), answer(other, images)) and not torch.equal(answer(other, images), said)


@check
def processes(case, tmp):
    "Two processes (gloo, DistributedDataParallel) end where one process with the whole batch does."
    PAIR.run(case, tmp)
    check_processes(case, tmp)


# ---- two processes


def crowd():
    "Four pictures. Class 3 is seen by the second process alone, the others by both in unequal numbers; each has as many void pixels."
    images, label = pictures(4, k=3)
    label[2:, :9] = 3
    label[:, -3:] = 255
    return images, label, torch.tensor([0, 1, 1, 2])


def two_steps(case, rank=None):
    "Two steps on all pictures, or on a process's half. Norms use running statistics: those of a batch would be of half a batch."
    images, label, deleted = crowd()
    model, part = make(case, dropout=0.0).double(), slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.momentum = None  # the mean of all batches: of the one below
    with torch.no_grad():
        model(images)
    for m in norms:
        m.eval()
    net = model if rank is None else nn.parallel.DistributedDataParallel(model)
    opt = torch.optim.SGD(model.parameters(), 1e-3)  # small: with fixed statistics a large step would blow rounding up
    for _ in range(2):
        opt.zero_grad()
        net(images[part], label[part], deleted=deleted[part]).loss.backward()
        opt.step()
    return dict(state=model.state_dict(), grads={n: p.grad for n, p in model.named_parameters()})


def work(rank, port, jobs, done):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2, timeout=timedelta(seconds=60))
    while (job := jobs.get()) is not None:
        case, folder, spoil = job
        exchange = idr_module.all_gather_packed, idr_module.all_reduce_packed
        if spoil:  # each process for itself
            idr_module.all_gather_packed = idr_module.all_reduce_packed = lambda *tensors: tensors
        try:
            torch.save(two_steps(case, rank), Path(folder) / f'{rank}.pt')
            done.put('')
        except Exception:
            done.put(traceback.format_exc())
        idr_module.all_gather_packed, idr_module.all_reduce_packed = exchange
    dist.destroy_process_group()


class Pair:
    "Two processes, started when first asked, that stay for all cases of a session."

    procs = ()

    def start(self):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        ctx = mp.get_context('spawn')
        self.jobs, self.done = [ctx.Queue() for _ in range(2)], ctx.Queue()
        self.procs = [ctx.Process(target=work, args=(r, port, self.jobs[r], self.done), daemon=True) for r in range(2)]
        for p in self.procs:
            p.start()

    def run(self, case, folder, spoil=False):
        if not self.procs:
            self.start()
        for q in self.jobs:
            q.put((case, str(folder), spoil))
        said = [self.done.get(timeout=180) for _ in self.procs]
        if any(said):
            self.stop(True)
            raise AssertionError(max(said, key=len))

    def stop(self, now=False):
        for q, p in zip(self.jobs, self.procs):
            p.terminate() if now else q.put(None)
        for p in self.procs:
            p.join(60)
        assert now or all(p.exitcode == 0 for p in self.procs)
        self.procs = ()


PAIR = Pair()


def check_processes(case, tmp):
    one, two = two_steps(case), [torch.load(Path(tmp) / f'{r}.pt') for r in range(2)]
    for part in ('state', 'grads'):  # the two are the same
        for n, t in two[0][part].items():
            assert torch.equal(t, two[1][part][n]), f'{n} ({part}) differs between the processes'
    for part in ('state', 'grads'):  # and are the one
        for n, t in one[part].items():
            torch.testing.assert_close(
                two[0][part][n], t, rtol=1e-5, atol=1e-7, msg=lambda m, n=n, part=part: f'{n} ({part}): {m}'
            )
    if case.idr is not True:
        return
    found = {n: one['state'][f'head.idr.{n}'] for n in ('memory', 'relation_mean', 'deletion_count')}
    assert found['memory'][3].abs().sum() > 0 and found['memory'][4].abs().sum() == 0
    assert (
        not torch.allclose(found['relation_mean'], torch.eye(K).double()) and found['deletion_count'].sum().round() == 8
    )


# ---- the tests

OUTCOMES = defaultdict(dict)


@pytest.fixture(scope='module', autouse=True)
def session():
    yield
    learnt.cache_clear()
    if PAIR.procs:
        PAIR.stop()
    if FULL and 'PYTEST_XDIST_WORKER' not in os.environ:
        record()


def record():
    sys.path.insert(0, str(ROOT / 'tools'))
    from record import here, put

    key, told = ('framework', 'backbone', 'idr'), ('network', 'output_stride', 'parameters', 'passed', 'failed', 'why')
    rows = [
        dict(
            zip(key, (c.framework, c.backbone, c.idr)),
            network=BACKBONES[c.backbone][0],
            output_stride=max(make(c).backbone.strides),
            parameters=sum(p.numel() for p in make(c).parameters()),
            passed=' '.join(n for n in CHECKS if not said[n]),
            failed=' '.join(n for n in CHECKS if said[n]),
            why=' | '.join(f'{n}: {w}' for n, w in said.items() if w),
            **here(),
        )
        for c, said in OUTCOMES.items()
        if said.keys() == CHECKS.keys()
    ]
    if rows:
        put(ROOT / 'nbs' / 'results' / 'battery.csv', rows, key, (*key, *told, *here()))


def run(case, name, tmp):
    try:
        CHECKS[name](case, tmp)
    except Exception as e:
        OUTCOMES[case][name] = f'{type(e).__name__}: {" ".join(str(e).split())[-200:]}'
        raise
    OUTCOMES[case][name] = ''


@pytest.mark.parametrize(
    'case,name', [(c, n) for c in CASES for n in CHECKS if FULL or n != 'processes'], ids=lambda x: str(x)
)
def test_battery(case, name, tmp_path):
    run(case, name, tmp_path)


@pytest.mark.skipif(FULL, reason='done case by case')
def test_two_processes(tmp_path):
    "One test for all cases, so that two processes are started once."
    for case in FAST:
        run(case, 'processes', tmp_path)
    PAIR.run(FAST[0], tmp_path, spoil=True)  # and where processes do not share, it is seen
    with pytest.raises(AssertionError, match='head.idr'):
        check_processes(FAST[0], tmp_path)


# ---- the checks bite: a small model with one fault


def hooked(part, change):
    "What a part of the model gives is changed."
    return lambda model: part(model).register_forward_hook(
        lambda m, i, o: [*o[:-1], change(m, o[-1])] if isinstance(o, list) else change(m, o)
    )


def whole(model):
    return model


def backbone(model):
    return model.backbone


def buffer(t):
    return lambda model: model.head.register_buffer('spare', t.clone())


def unread(model):
    model.head.spare = nn.Parameter(torch.ones(1))


def counts(model):
    buffer(torch.zeros(1))(model)
    model.head.register_forward_hook(lambda m, i, o: m.spare.add_(1) and None)


def bound(model):
    net = model.backbone
    net.forward = lambda x: type(net).forward(net, x)  # a copy keeps computing with the original's weights


def usual_order(m, x):
    return x.as_strided(x.shape, torch.empty(x.shape, device='meta').stride())


SPOILED = [  # check, fault of the model, or of the mean loss
    ('trains', unread),
    ('odd_sizes', hooked(whole, lambda m, o: o._replace(logits=o.logits[..., :-1]))),
    ('one_picture', hooked(backbone, lambda m, x: x + x.mean(0))),
    ('few_classes', lambda l, label, ignore: l.sum() / (l > 0).sum()),
    ('one_class', lambda l, label, ignore: l.sum() / label[label != ignore].float().var()),
    ('all_ignored', lambda l, label, ignore: l.sum() / (label != ignore).sum()),
    ('repeats', counts),
    ('repeats', hooked(whole, lambda m, o: o._replace(logits=o.logits + torch.rand(1)))),
    ('saves', buffer(torch.ones(1))),
    ('half_precision', buffer(torch.ones(1).half())),
    ('half_precision', hooked(backbone, lambda m, x: x / (not torch.is_autocast_enabled('cpu')))),
    ('channels_last', hooked(backbone, usual_order)),
    ('copies', bound),
]


@pytest.mark.parametrize('name,spoil', SPOILED, ids=lambda x: x if isinstance(x, str) else '')
def test_bites(name, spoil, monkeypatch, tmp_path):
    build = make

    def spoiled(*args, **kw):
        model = build(*args, **kw)
        spoil(model)
        return model

    learnt.cache_clear()

    def loss(z, label, ignore):
        each = pixel_losses(upsample(z, label.shape[-2:]), label, ignore)
        return spoil(each, label, ignore), each.detach()

    if spoil.__code__.co_argcount == 3:
        monkeypatch.setattr(head_module, 'tiled_cross_entropy', loss)
    else:
        monkeypatch.setattr(sys.modules[__name__], 'make', spoiled)
    with pytest.raises((AssertionError, ValueError, FloatingPointError)):
        CHECKS[name](FAST[0], tmp_path)
    learnt.cache_clear()


def test_fast_covers():
    assert {c.framework for c in FAST} == set(FRAMEWORKS) and {c.backbone for c in FAST} == set(BACKBONES)
    assert {(c.framework, c.idr) for c in FAST} == {(f, i) for f in FRAMEWORKS for i in (False, True)}
    assert {(c.framework, c.backbone, c.idr) for c in ALL} >= {
        (f, b, i) for f in FRAMEWORKS for b in BACKBONES for i in (False, True)
    }
