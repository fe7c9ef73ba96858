"""Settings of a training that are for a GPU: what they mean where there is one, and that elsewhere they are refused or change no bit."""

import copy, warnings
from dataclasses import replace

import pytest, torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from functorch.compile import make_boxed_func

from idrnet_nb.common import device as device_module
from idrnet_nb.common.device import check_tf32
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training import trainer
from idrnet_nb.training.checkpoint import load_checkpoint, save_checkpoint
from idrnet_nb.training.compiling import CompileChoice
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.trainer import TrainState, train

DATA = ToyWorld(8, size=32)
CONFIG = TrainConfig(steps=4, batch_size=4, lr=1e-2, warmup=0, log_every=1)
CPU = torch.device('cpu')


def make(seed=0, **settings):
    torch.manual_seed(seed)
    return build_segmentor('fcn', 'tiny', 12, width=8, attention_width=4, aux_width=8, **settings)


def batch(n=4):
    return [torch.stack(x) for x in zip(*(DATA[i] for i in range(n)))]


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- TF32


def test_tf32_is_refused_before_anything_is_moved_or_written(tmp_path):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='tf32=True: .* the device is cpu; leave it False here'):
        train(model, DATA, replace(CONFIG, tf32=True), 'cpu', False, out=tmp_path / 'run')
    same(model.state_dict(), before)
    assert not (tmp_path / 'run').exists() and torch.get_float32_matmul_precision() == 'highest'


def test_tf32_is_for_the_training_alone(monkeypatch, tmp_path):
    "Set in forward and backward passes, not in an evaluation, and gone after an error."
    for module in trainer, device_module:
        monkeypatch.setattr(module, 'check_tf32', lambda device: None)
    seen, model = [], make()

    def note(where):
        seen.append((where, torch.get_float32_matmul_precision()))

    def score(model):
        note('evaluation')
        return 0.0

    model.head.bottleneck.register_forward_hook(lambda *_: note('forward'))
    model.head.bottleneck.register_full_backward_hook(lambda *_: note('backward'))
    config = replace(CONFIG, tf32=True, steps=2)
    train(model, DATA, config, 'cpu', False, out=tmp_path, eval_fn=score, eval_every=1, try_first=False)
    assert seen == [('forward', 'high'), ('backward', 'high'), ('evaluation', 'highest')] * 2

    def wrong(*_):
        note('error')
        raise ZeroDivisionError

    model.register_forward_pre_hook(wrong)
    with pytest.raises(ZeroDivisionError):
        train(model, DATA, config, 'cpu', False, try_first=False)
    assert seen[-1] == ('error', 'high') and torch.get_float32_matmul_precision() == 'highest'


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='torch has one way to say it')
def test_tf32_said_in_torchs_other_way(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    check_tf32(torch.device('cuda'))
    torch.backends.cuda.matmul.fp32_precision = 'tf32'
    try:
        with pytest.raises(ValueError, match="call torch.set_float32_matmul_precision\\('highest'\\) first"):
            check_tf32(torch.device('cuda'))
    finally:
        torch.set_float32_matmul_precision('highest')
    check_tf32(torch.device('cuda'))


def test_a_checkpoint_from_before_the_setting_was_there(tmp_path):
    "goes on with what was then done, and only with that."
    whole = make()
    train(whole, DATA, CONFIG, 'cpu', False, out=tmp_path / 'whole', save_every=2)
    old = load_checkpoint(tmp_path / 'whole' / 'checkpoints', 2)
    about = copy.deepcopy(old['about'])
    assert about['config'].pop('tf32') is False
    save_checkpoint(tmp_path / 'old' / 'checkpoints', 2, old['state'], about)
    with pytest.raises(ValueError, match='config.tf32 was False, is True'):
        state = replace(CONFIG, tf32=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, 'check_tf32', lambda device: None)
            train(make(1), DATA, state, 'cpu', False, out=tmp_path / 'old', resume=True)
    again = make(1)
    train(again, DATA, CONFIG, 'cpu', False, out=tmp_path / 'old', resume=True)
    same(whole.state_dict(), again.state_dict())


# --- the fused update


@pytest.fixture
def fused(monkeypatch):
    "As on CUDA; torch has a fused update for a CPU, too."
    options = trainer.optimiser_options
    as_there = lambda config, device: options(config, torch.device('cuda'))
    return lambda on: monkeypatch.setattr(trainer, 'optimiser_options', as_there if on else options)


def steps(state, n):
    for _ in range(n):
        state.train_step(*batch())
        state.advance()
    return state


@pytest.mark.parametrize('optimiser', ['adamw', 'sgd'])
@pytest.mark.parametrize('before', [False, True])
def test_fused_and_not_go_on_from_each_other(optimiser, before, fused):
    config = replace(CONFIG, optimiser=optimiser, clip=1.0)
    fused(before)
    first = steps(TrainState(make(), config, CPU), 2)
    assert {bool(g['fused']) for g in first.optimiser.param_groups} == {before}
    kept, ends = copy.deepcopy(first.state()), {}
    whole = steps(first, 2).model.state_dict()
    for now in False, True:
        fused(now)
        other = TrainState(make(1), config, CPU)
        other.load(2, copy.deepcopy(kept))
        assert {bool(g['fused']) for g in other.optimiser.param_groups} == {now}
        for values in other.optimiser.state.values():
            assert 'step' not in values or values['step'] == 2
        ends[now] = steps(other, 2).model.state_dict()
    same(ends[before], whole)  # as it was: to the bit
    for name, x in ends[False].items():
        torch.testing.assert_close(ends[True][name], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('optimiser', ['adamw', 'sgd'])
@pytest.mark.parametrize('clip', [None, 0.5])
def test_fused_with_the_scaled_loss_of_fp16(optimiser, clip, fused):
    "The scale is divided out within the update; a step that overflowed is left out."
    config, ends = replace(CONFIG, optimiser=optimiser, amp='fp16', clip=clip), []
    for on in False, True:
        fused(on)
        state = steps(TrainState(make(), config, CPU), 2)
        ends.append(copy.deepcopy(state.model.state_dict()))
        for p in state.model.parameters():
            p.grad = torch.full_like(p, torch.inf)
        scale = state.scaler.get_scale()
        state.scaler.scale(torch.zeros(()))
        state.update_weights()
        assert state.scaler.get_scale() < scale
        same(dict(state.model.named_parameters()), {n: ends[-1][n] for n, _ in state.model.named_parameters()})
    for name, x in ends[0].items():
        torch.testing.assert_close(ends[1][name], x, rtol=1e-2, atol=1e-3)


# --- compile


def fails_at_once(graph, inputs):
    raise RuntimeError('there is no compiler')


def fails_going_back(graph, inputs):
    "The forward pass is done, with all that it moves; its backward pass cannot be compiled."
    return aot_autograd(fw_compiler=lambda g, i: make_boxed_func(g.forward), bw_compiler=fails_at_once)(graph, inputs)


def ending(monkeypatch, backend, config, idr=True, **how):
    "Weights, random state, log and warnings of a training whose 'auto' takes this backend; None: there is no 'auto'."
    auto = CompileChoice(backend, may_fail=True)
    monkeypatch.setattr(trainer, 'choose_compile', lambda setting, *_: auto if setting else CompileChoice())
    config, model = replace(config, compile=backend and 'auto'), make(dropout=0.5, idr=idr)
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        log = train(model, DATA, config, 'cpu', False, **how)
    said = [str(w.message) for w in caught if "compile='auto'" in str(w.message)]
    return {**model.state_dict(), 'chance': torch.get_rng_state()}, log, said


@pytest.mark.parametrize(
    'backend, change',
    [
        (fails_at_once, dict(optimiser='sgd')),
        (fails_going_back, dict(accumulate=2, ema=0.9)),
        (fails_going_back, dict(frozen=True, amp='bf16')),
    ],
)
def test_a_compilation_that_fails_leaves_no_trace(backend, change, monkeypatch):
    config = replace(CONFIG, steps=3, **change)
    plain, log, quiet = ending(monkeypatch, None, config)
    fallen, other, said = ending(monkeypatch, backend, config)
    assert not quiet and len(said) == 1 and 'which failed' in said[0] and 'there is no compiler' in said[0]
    same(plain, fallen)
    assert log == other


def test_a_compilation_that_fails_after_a_resume(monkeypatch, tmp_path):
    plain, *_ = ending(monkeypatch, None, CONFIG, False, out=tmp_path / 'a', save_every=2)

    def stop(step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ending(monkeypatch, None, CONFIG, False, out=tmp_path / 'b', save_every=2, on_step=stop)
    again, _, said = ending(monkeypatch, fails_going_back, CONFIG, False, out=tmp_path / 'b', save_every=2, resume=True)
    assert len(said) == 1
    same(plain, again)


def test_a_compilation_that_works_is_kept(monkeypatch):
    calls = []

    def counts(graph, inputs):
        calls.append(1)
        return graph.forward

    compiled, _, said = ending(monkeypatch, counts, replace(CONFIG, steps=2), False)
    plain, *_ = ending(monkeypatch, None, replace(CONFIG, steps=2), False)
    assert calls and not said
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-4)


def test_an_error_that_compilation_has_no_part_in(monkeypatch):
    "is that of the training without it, and nothing is said of compilation."
    monkeypatch.setattr(trainer, 'choose_compile', lambda *args: CompileChoice('eager', may_fail=True))

    class Broken(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        head = property(lambda self: self.model.head)
        backbone = property(lambda self: self.model.backbone)

        def forward(self, *args, **more):
            raise ZeroDivisionError('of the model')

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ZeroDivisionError, match='of the model'):
            train(Broken(make()), DATA, CONFIG, 'cpu', False, try_first=False)


def test_a_named_backend_raises(monkeypatch):
    from torch._dynamo import register_backend
    from torch._dynamo.backends import registry

    register_backend(fails_at_once, name='broken_here')
    try:
        with pytest.raises(Exception, match='there is no compiler'):
            train(make(idr=False), DATA, replace(CONFIG, compile='broken_here'), 'cpu', False)
    finally:
        for table in registry._BACKENDS, registry._COMPILER_FNS:
            table.pop('broken_here', None)


@pytest.mark.parametrize(
    'setting, wanted',
    [
        ('eager', dict(backend='eager', mode=None)),
        ('inductor', dict(backend='inductor', mode=None)),
        ('inductor:max-autotune-no-cudagraphs', dict(backend='inductor', mode='max-autotune-no-cudagraphs')),
    ],
)
def test_backend_and_mode_reach_torch(setting, wanted, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, 'compile', lambda network, **how: asked.update(how) or network)
    TrainState(make(), replace(CONFIG, compile=setting), CPU)
    assert asked == wanted


def test_auto_on_a_cpu_says_why_it_does_not_compile(monkeypatch):
    monkeypatch.setattr(torch, 'compile', None)
    with pytest.warns(UserWarning, match="compile='auto': trained without compilation: the device is cpu"):
        TrainState(make(), replace(CONFIG, compile='auto'), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('setting', ['auto', 'inductor:reduce-overhead', 'inductor:max-autotune-no-cudagraphs'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_compiled_on_cuda(setting, accumulate):
    "Losses of a compiled training, CUDA graphs included, are those of one that is not."
    config, losses = replace(CONFIG, accumulate=accumulate), []
    for compile in None, setting:
        with warnings.catch_warnings():
            warnings.filterwarnings('error', message=".*compile='auto'")
            records = train(make(dropout=0.0), DATA, replace(config, compile=compile), 'cuda', False)
        losses.append([r['loss'] for r in records])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('optimiser', ['adamw', 'sgd'])
def test_fused_on_cuda_goes_on_from_a_cpu(optimiser):
    config = replace(CONFIG, optimiser=optimiser)
    kept = steps(TrainState(make(), config, CPU), 2).state()
    there = TrainState(make(1), config, torch.device('cuda'))
    there.load(2, copy.deepcopy(kept))
    assert {g['fused'] for g in there.optimiser.param_groups} == {True}
    for name, x in steps(there, 1).model.state_dict().items():
        assert x.isfinite().all(), name
