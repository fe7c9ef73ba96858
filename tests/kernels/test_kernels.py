"""The Triton kernels: equal to torch's operators (in Triton's interpreter), and they compile for NVIDIA's cards.

Each function that `run_interpreted` gets runs in a process of its own, so it imports what it needs.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from idrnet_nb.kernels.launch import MAX_BLOCK, block_sizes, run_interpreted

pytest.importorskip('triton')
ROOT = Path(__file__).parents[2]


def losses_and_gradients():
    import torch

    from idrnet_nb.kernels.upsampled import grad, losses
    from idrnet_nb.method.layers import mean_loss, pixel_losses, upsample

    half, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases = [  # images, classes, grid, size, dtype, ignore
        (1, 2, (2, 2), (16, 16), f32, 255),
        (2, 7, (3, 5), (17, 29), f64, 255),
        (1, 19, (2, 1), (16, 8), bf16, 255),
        (1, 19, (1, 2), (7, 15), half, -100),
        (1, 150, (2, 2), (9, 11), f32, 255),
        (1, 300, (1, 2), (5, 7), f32, 1000),
        (1, 5, (6, 5), (4, 3), f32, 255),
        (1, 4, (1, 1), (6, 5), f32, 255),
        (1, 3, (4, 4), (5, 4), f32, 255),
        (1, 33, (2, 1), (31, 17), f32, 2**40),
    ]
    for images, classes, grid, size, dtype, ignore in cases:
        case = f'{images} {classes} {grid} {size} {dtype} {ignore}'
        torch.manual_seed(classes)
        logits = (4 * torch.randn(images, classes, *grid)).to(dtype)
        label = torch.randint(0, classes, (images, *size))
        label[torch.rand(label.shape) < 0.2] = ignore
        exact = logits.double().requires_grad_()
        wanted = pixel_losses(upsample(exact, size), label, ignore)
        (wanted_grad,) = torch.autograd.grad(mean_loss(wanted, label, ignore), exact)
        layouts = [torch.contiguous_format, torch.channels_last]
        for layout in layouts if classes < 8 else layouts[:1]:  # an interpreter is slow
            x = logits.contiguous(memory_format=layout)
            got, log_sum = losses(x, label, ignore)
            count = (label != ignore).sum()
            first = second = grad(x, label, log_sum, count, ignore)
            if images == 2:
                second = grad(x, label, log_sum, count, ignore)
            tolerance = 1e-10 if dtype == f64 else 2e-6
            assert got.dtype == first.dtype == torch.promote_types(dtype, f32), case
            assert (got - wanted).abs().max() < tolerance * wanted.abs().max(), case
            assert (first - wanted_grad).abs().max() < tolerance * wanted_grad.abs().max().clamp(min=0.01), case
            assert torch.equal(first, second), case
            assert not got[label == ignore].any(), case
    logits, label = torch.randn(1, 3, 2, 2), torch.full((1, 8, 8), 255)
    got, log_sum = losses(logits, label, 255)
    assert not got.any()
    assert not grad(logits, label, log_sum, torch.tensor(1), 255).any()
    logits[0, 1, 0, 0] = torch.nan
    assert losses(logits, torch.zeros(1, 8, 8, dtype=torch.int64), 255)[0].isnan().any()


def large_logits():
    import torch

    from idrnet_nb.kernels.upsampled import grad, losses

    logits = torch.tensor([-3e4, 0, 3e4]).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    got, log_sum = losses(logits, label, 255)
    assert torch.equal(got, torch.full_like(got, 6e4)), got
    slope = grad(logits, label, log_sum, torch.tensor(16), 255)
    assert torch.equal(slope[0, :, 0, 0] * 4, torch.tensor([-1.0, 0, 1])), slope


def argmax_of_logits():
    import torch

    from idrnet_nb.kernels.upsampled import argmax
    from idrnet_nb.method.layers import upsample

    for classes, grid, size in (
        (2, (3, 3), (24, 24)),
        (150, (2, 3), (15, 25)),
        (300, (2, 1), (9, 4)),
        (5, (6, 5), (4, 3)),
    ):
        torch.manual_seed(classes)
        logits = torch.randn(2, classes, *grid)
        assert torch.equal(argmax(logits, size), upsample(logits, size).argmax(1)), (classes, grid, size)
    equal = torch.zeros(1, 40, 2, 2)
    equal[:, 7:] = 1
    assert torch.equal(argmax(equal, (8, 8)), torch.full((1, 8, 8), 7)), 'of equal logits the first class'


def coverage_of_labels():
    import torch

    from idrnet_nb.kernels.upsampled import coverage
    from idrnet_nb.method.grouping import coverage as by_scatter

    for classes, grid, size in (
        (2, (3, 3), (24, 24)),
        (150, (2, 3), (15, 25)),
        (5, (6, 5), (4, 3)),
        (4, (1, 1), (6, 5)),
    ):
        torch.manual_seed(classes)
        label = torch.randint(-1, classes + 2, (2, *size))
        label[0, 0] = -100
        wanted, count = by_scatter(label, classes, grid)
        got = coverage(label, classes, grid, torch.float32)
        assert (got.mT - wanted).abs().max() < 1e-5, (classes, grid, size)
        assert torch.equal(got.sum(1).round(), count), (classes, grid, size)


def sums_by_class():
    import torch

    from idrnet_nb.kernels.class_sums import class_sums

    for pixels, classes in ((1, 2), (255, 3), (257, 19), (600, 300)):
        torch.manual_seed(pixels)
        values, ids = torch.rand(3, pixels), torch.randint(-2, classes + 2, (3, pixels))
        wanted = torch.zeros(3, classes + 4).scatter_add(1, ids + 2, values)[:, 2:-2]
        got = class_sums(values, ids, classes)
        assert (got - wanted).abs().max() < 1e-4, (pixels, classes)
        assert torch.equal(got, class_sums(values, ids, classes))


@pytest.mark.parametrize(
    'check', [losses_and_gradients, large_logits, argmax_of_logits, coverage_of_labels, sums_by_class]
)
def test_equal_to_torch(check):
    run_interpreted(check, 500)


def whole_training_step():
    "A head in training with every kernel in place of torch's operators: the same losses, gradients and state."
    import copy

    import torch

    from idrnet_nb.kernels import launch
    from idrnet_nb.method import deletion, grouping
    from idrnet_nb.models import tiled_cross_entropy
    from idrnet_nb.models.head import HeadConfig, SegHead

    torch.manual_seed(0)
    head = SegHead([4, 6], HeadConfig(5, width=8, attention_width=4, aux_width=4)).train()
    pyramid = [torch.randn(2, 4, 4, 4), torch.randn(2, 6, 3, 3)]
    label = torch.randint(0, 5, (2, 13, 14))
    label[0, :3] = 255
    uniform = torch.rand(2, 5)

    def step(head):
        torch.manual_seed(1)
        out = head(pyramid, label, uniform=uniform)
        out.loss.backward()
        return out

    other = copy.deepcopy(head)
    wanted = step(head)
    calls = []

    def always(x, *sizes):
        calls.append(x.shape)
        return True

    assert launch.use_triton(label) is False
    for module in (tiled_cross_entropy, grouping, deletion):
        module.use_triton = always
    got = step(other)
    assert len(calls) >= 8, calls
    for name in wanted.losses:
        assert torch.allclose(got.losses[name], wanted.losses[name], atol=1e-6), name
    for (name, a), (_, b) in zip(head.named_parameters(), other.named_parameters()):
        assert torch.allclose(a.grad, b.grad, atol=2e-6), name
    for (name, a), (_, b) in zip(head.named_buffers(), other.named_buffers()):
        assert torch.allclose(a, b, atol=1e-6), name
    assert head.idr.memory.any() and (head.idr.relation_mean - torch.eye(5)).any()


def test_whole_training_step():
    run_interpreted(whole_training_step, 500)


def compile_for_cards():
    "Each kernel to machine code for compute capability 8.0 and 9.0; no card is needed."
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from idrnet_nb.kernels import class_sums, upsampled
    from idrnet_nb.kernels.launch import block_sizes

    numbers = dict.fromkeys(('h', 'w', 'H', 'W', 'K', 'N', 'ignore'), 'i32')
    pointers = dict(label='*i64', class_id='*i64', pred='*i64', count='*i64')
    names = ('losses', 'log_sum', 'grad', 'covered', 'values', 'sums')
    for logits, dtype, result in (('*bf16', tl.float32, '*fp32'), ('*fp64', tl.float64, '*fp64')):
        for stride in (8, 32):
            sizes = block_sizes((64, 64), (64 * stride, 64 * stride), 150)
            types = {**numbers, **pointers, **dict.fromkeys(names, result), 'logits': logits}
            kernels = [getattr(upsampled, name) for name in dir(upsampled) if name.endswith('_kernel')]
            assert len(kernels) == 4, kernels
            for kernel in [*kernels, class_sums._class_sums_kernel]:
                constants = {**sizes, 'dtype': dtype, 'PIXELS': 256}
                if kernel is class_sums._class_sums_kernel:
                    constants['CLASSES'] = 8
                signature = {name: types.get(name, 'constexpr') for name in kernel.arg_names}
                fixed = {
                    (i,): constants[name] for i, name in enumerate(kernel.arg_names) if signature[name] == 'constexpr'
                }
                source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
                for capability in (80, 90):
                    made = triton.compile(source, target=GPUTarget('cuda', capability, 32))
                    print(kernel.__name__, capability, stride, len(made.asm['cubin']))


@pytest.mark.skipif(sys.platform != 'linux', reason='Triton brings its assembler on Linux only')
def test_compiles_for_cards():
    code = 'from test_kernels import compile_for_cards; compile_for_cards()'
    done = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 5 * 2 * 2 * 2


def test_a_compiler_asks_once():
    from idrnet_nb.kernels.launch import use_triton

    def plus_one(x):
        return x - 1 if use_triton(x) else x + 1

    compiled = torch.compile(plus_one, backend='eager', fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 1


def test_blocks_fit():
    for stride in (1, 2, 4, 8, 16, 32):
        for classes in (2, 19, 150, 300):
            sizes = block_sizes((9, 11), (9 * stride, 11 * stride), classes)
            assert sizes['ROWS'] * sizes['COLUMNS'] * sizes['CLASSES'] <= MAX_BLOCK
            assert sizes['ROWS'] >= stride


def test_triton_is_imported_when_it_is_used():
    "Elsewhere (macOS, Windows, a CPU) nothing may import it: no module outside of `kernels` does, none there is imported at the top."
    for file in (ROOT / 'idrnet_nb').rglob('*.py'):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [f'{node.module or ""}.{alias.name}' for alias in node.names]
            else:
                continue
            inside = ('kernels.upsampled', 'kernels.class_sums')
            with_triton = [n for n in named if n.startswith('triton') or any(name in n for name in inside)]
            assert not with_triton or file.parent.name == 'kernels', (file, with_triton)
    code = 'import idrnet_nb.models.segmentor, sys; print("triton" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == 'False', done.stderr
