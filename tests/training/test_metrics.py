"""The papers' numbers against other people's (torchmetrics, scipy) on random cases; several processes; memory that does not grow."""

import os, random, subprocess, sys
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from processes import in_processes
from idrnet_nb.training.metrics import Meter, boundary_counts, confusion_matrix, iou, scores


def case(seed):
    "pred, label, k: odd sizes, void, absent and invented classes, one class, all void."
    g, r = torch.Generator().manual_seed(seed), random.Random(seed)
    k, shape = r.randint(1, 7), (r.randint(1, 3), r.randint(1, 12), r.randint(1, 12))
    label = torch.randint(0, r.randint(1, k), shape, generator=g)
    pred = torch.where(
        torch.rand(shape, generator=g) < r.choice([0.2, 0.6, 1]), torch.randint(0, k, shape, generator=g), label
    )
    label[torch.rand(shape, generator=g) < r.choice([0, 0.2, 0.95, 1.1])] = 255
    return pred, label, k


def test_torchmetrics_agrees():
    "mIoU is their macro mean; a class that is in neither is left out of it (and shown as 0 by them, as nan by us)."
    tm = pytest.importorskip('torchmetrics.classification')
    compared = 0
    for seed in range(200):
        pred, label, k = case(seed)
        if k < 2 or (label == 255).all():
            continue
        ours, seen = scores(confusion_matrix(pred, label, k)), ~iou(confusion_matrix(pred, label, k)).isnan()
        for cls, each, mean in ((tm.MulticlassJaccardIndex, 'iou', 'miou'), (tm.MulticlassF1Score, 'dice', 'mdice')):
            theirs = cls(k, average='none', ignore_index=255)(pred, label)
            np.testing.assert_allclose(np.array(ours[each])[seen], 100 * theirs[seen].numpy(), atol=1e-3)
            np.testing.assert_allclose(ours[mean], 100 * theirs[seen].mean().item(), atol=1e-3)
        np.testing.assert_allclose(
            ours['miou'],
            100 * tm.MulticlassJaccardIndex(k, average='macro', ignore_index=255)(pred, label).item(),
            atol=1e-3,
        )
        compared += 1
    assert compared > 100


def test_nothing_to_count():
    s = scores(confusion_matrix(torch.zeros(2, 3).long(), torch.full((2, 3), 255), 4))
    assert all(v != v for v in (s['miou'], s['mdice'], *s['dice']))


def band(mask, d):  # Cheng et al.: the mask minus itself worn off by d steps, the outside of the picture being no mask
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=d, border_value=0)


def test_boundary_is_erosion():
    for seed in range(150):
        pred, label, k = case(seed)
        if seed % 3:
            label = label.where(label != 255, 0)  # without void it is the paper's definition
        ratio = random.Random(seed).choice([0.001, 0.1, 0.3])
        d = max(1, round(ratio * np.hypot(*label.shape[1:])))
        got = boundary_counts(pred, label, k, ratio)
        if (label == 255).any():  # with void: fill it in all ways that make no edge: as each class in turn
            void = (label == 255).numpy()
            of = lambda x, c: np.stack([band((i == c) | v, d) & ~v for i, v in zip(x, void)])
        else:
            of = lambda x, c: np.stack([band(i == c, d) for i in x])
        for c in range(k):
            t, p = of(label.numpy(), c), of(pred.numpy(), c)
            assert got[:, c].tolist() == [(t & p).sum(), (t | p).sum()], (seed, c)


def test_meter_adds_boundaries():
    meter, want = Meter(7, boundary=0.1), 0
    for seed in range(30):
        pred, label, _ = case(seed)
        meter.update(pred, label)
        want = want + boundary_counts(pred, label, 7, 0.1)
    s = meter.scores()
    both, either = want.double()
    np.testing.assert_allclose(s['boundary'], 100 * both / either)
    np.testing.assert_allclose(s['mboundary'], (100 * both / either).nanmean())


def test_streams_without_a_look(monkeypatch):
    "On another device than the CPU nothing is asked of the values; odd ids are told when the total is read. (Played on the CPU.)"
    from idrnet_nb.training import metrics

    monkeypatch.setattr(
        metrics, '_bincount', lambda x, n: torch.zeros(n, dtype=torch.int64).scatter_add_(0, x, torch.ones_like(x))
    )
    meter, usual = Meter(7, keep=False), Meter(7, keep=False)
    for seed in range(20):
        meter.update(*case(seed)[:2])
    monkeypatch.undo()
    for seed in range(20):
        usual.update(*case(seed)[:2])
    assert torch.equal(meter.total, usual.total) and len(meter) == len(usual)
    meter._invalid_batches += 2
    with pytest.raises(ValueError, match='2 batches held ids outside 0..6'):
        meter.scores()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
def test_no_sync_on_cuda():
    meter, (pred, label, _) = Meter(7, keep=False, boundary=0.1), case(5)
    pred, label = pred.cuda(), label.cuda()
    meter.update(pred, label)
    torch.cuda.set_sync_debug_mode('error')
    try:
        meter.update(pred, label)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(meter.total, 2 * confusion_matrix(pred, label, 7).cpu())


# --- memory

MEMORY = '''
import resource, sys, torch
from idrnet_nb.training.metrics import Meter
n, keep = int(sys.argv[1]), sys.argv[2]=='keep'
meter, g = Meter(150, keep=keep), torch.Generator().manual_seed(0)
label = torch.randint(0, 150, (1,16,16), generator=g).repeat_interleave(20,1).repeat_interleave(20,2)
def look(i): meter.update(label.roll(i, 2), label)
for i in range(10): look(i)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(n-10): look(i)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before, len(meter))
'''


def test_memory_does_not_grow(tmp_path):
    "Peak of 10 pictures and of 1000, 150 classes: alike without the pictures' own counts, and a few kB a picture with them (a dense table would be 90 kB)."
    (tmp_path / 'm.py').write_text(MEMORY)

    def grown(keep):
        out = subprocess.run(
            [sys.executable, tmp_path / 'm.py', '1000', keep],
            capture_output=True,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        assert out.returncode == 0, out.stderr[-2000:]
        kb, n = map(int, out.stdout.split())
        assert n == 1000
        return kb

    assert grown('lean') < 8_000 and grown('keep') < 40_000  # kB


# --- several processes


def work(rank, world, n):
    meter = Meter(7, boundary=0.1)
    for i in range(rank, n, world):
        meter.update(*(x[:1] for x in case(i)[:2]))
    meter.gather()
    return [len(meter), meter.total.tolist(), meter.per_image.tolist(), str(meter.scores())]


@pytest.mark.parametrize('n', [7, 1])
def test_gathered_is_one(n):
    one = Meter(7, boundary=0.1)
    for i in range(n):
        one.update(*(x[:1] for x in case(i)[:2]))
    for x in in_processes(work, 2, n):
        assert x == [n, one.total.tolist(), one.per_image.tolist(), str(one.scores())]
