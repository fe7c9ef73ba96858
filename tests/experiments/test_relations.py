"""Relations asked of finished models: the batched deletions against the loop of what_if, for every framework and for
models of other people; statistics against scipy; a call that is killed goes on; bad input is refused."""

import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest, torch
from scipy.stats import ttest_1samp
from torch import nn
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.experiments.batched_deletion import ClassDeleter, find_features, find_idr
from idrnet_nb.experiments.relations import Changes, Relations, pair_statistics, relations
from idrnet_nb.experiments.what_if import Probe
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.plugin import add_idr, get_idr
from idrnet_nb.training.inference import EvalProtocol
from test_what_if import K, SPACE, make, patches

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_windows():
    import matplotlib

    matplotlib.use('Agg')
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


def items(n=4, size=(33, 47)):
    "Images of patches, labels with an ignored corner."
    labels = torch.randint(K, (n, *size), generator=torch.Generator().manual_seed(1))
    labels[:, :5, :5] = 255
    labels[0, labels[0] == 2] = 1  # the first image has no pixel of class 2
    return list(zip(patches(n, size), labels))


@pytest.mark.parametrize('framework', FRAMEWORKS)
@pytest.mark.parametrize('how, word', [('features', 'features'), ('context', 'context'), ('image', 'picture')])
def test_batch_is_the_loop(framework, how, word):
    model = make(framework, True)
    for size in (None, (40, 56)):
        protocol = EvalProtocol(size)
        deleter = ClassDeleter(model, SPACE, how, protocol=protocol, batch_size=3)
        for image, label in items(2):
            found = deleter.changes(image, label)
            judge = Probe(model, image, label, SPACE, protocol).change_matrix(word)
            assert found.deleted.tolist() == (~judge.isnan()).any(1).nonzero()[:, 0].tolist()
            assert torch.equal(found.change.isnan(), judge[found.deleted].isnan())
            torch.testing.assert_close(found.change, judge[found.deleted], atol=1e-5, rtol=1e-4, equal_nan=True)


def test_means_over_images_are_those_of_the_loop():
    model, data = make('fcn', False), items(5)
    judge = torch.stack([Probe(model, *item, SPACE).change_matrix('features') for item in data])
    found = relations(model, data, space=SPACE, progress=False)
    assert torch.equal(found.images, judge.isfinite().sum(0))
    torch.testing.assert_close(found.mean, judge.nanmean(0), atol=1e-5, rtol=1e-4, equal_nan=True)
    assert found.learnt is None and not found.settled.any()  # five images are too few


@pytest.mark.parametrize('batch_size', [1, 2, 100])
def test_batch_size_changes_nothing_and_the_backbone_runs_once(batch_size):
    model, (image, label) = make('fcn', True), items(1)[0]
    calls, heads = [], []
    model.backbone.register_forward_pre_hook(lambda m, a: calls.append(len(a[0])))
    model.head.register_forward_pre_hook(lambda m, a: heads.append(len(a[0][-1])))
    found = ClassDeleter(model, SPACE, batch_size=batch_size).changes(image, label)
    n = len(found.deleted)
    assert n >= 2 and max(heads) == min(n, batch_size) and sum(heads) == 1 + n
    # the module is called again, and computes nothing: its own forward ran once
    ran = []
    forward = model.backbone.net.forward
    model.backbone.net.forward = lambda *a, **k: (ran.append(1), forward(*a, **k))[1]
    again = ClassDeleter(model, SPACE, batch_size=batch_size).changes(image, label)
    assert len(ran) == 1
    torch.testing.assert_close(again.change, found.change, equal_nan=True)
    one = ClassDeleter(model, SPACE, batch_size=1).changes(image, label)
    torch.testing.assert_close(one.change, found.change, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_model_is_left_as_it_was():
    model = make('fcn', True).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for how in ('features', 'context', 'image'):
        ClassDeleter(model, SPACE, how).changes(*items(1)[0])
    assert model.training and model.looks_at_values and 'forward' not in vars(model.backbone)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not model.backbone._forward_hooks and not model.head.idr.interaction._forward_hooks


# ---- models of other people


def torchvision_fcn():
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=K, aux_loss=True)


def smp_unet():
    import segmentation_models_pytorch as smp

    return smp.Unet('resnet18', encoder_weights=None, classes=K)


def segformer():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = dict(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16)
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=K, **sizes))


@pytest.mark.parametrize('build', [torchvision_fcn, smp_unet, segformer])
def test_models_of_other_libraries(build):
    torch.manual_seed(0)
    model = build().eval().double()  # grouping is discontinuous: float32's last digit may move a pixel
    image, label = torch.randn(3, 64, 64), torch.randint(K, (64, 64))
    by_loop(model, image, label, find_features(model))
    assert find_idr(model) is None
    add_idr(model)
    idr = get_idr(model)
    assert find_idr(model) is idr.idr
    with torch.no_grad():
        idr.final.logits.weight.normal_()
        idr.idr.memory.normal_()
    for how in ('features', 'context', 'image'):
        found = ClassDeleter(model, SPACE, how).changes(image, label)
        assert len(found.deleted) and found.change.isfinite().all() and found.change.abs().max() > 0
    by_loop(model, image, label, find_features(model))


def by_loop(model, image, label, at):
    "The judge for any model: one hook, one forward a class, the maps edited by hand."
    part = model.get_submodule(at)

    def logits(edit=None):
        hook = part.register_forward_hook(lambda m, a, out: edited(out, edit)) if edit else None
        with torch.no_grad():
            out = model(image[None].to(next(model.parameters())))
        if hook:
            hook.remove()
        out = out if isinstance(out, torch.Tensor) else out['out'] if 'out' in out else out.logits
        return nn.functional.interpolate(out, image.shape[1:], mode='bilinear')

    def edited(out, edit):
        if isinstance(out, torch.Tensor):
            return edit(out) if out.ndim == 4 else out
        if isinstance(out, (list, tuple)):
            return type(out)(edited(x, edit) for x in out)
        for name in out:
            out[name] = edited(out[name], edit)
        return out

    def losses(x):
        x = nn.functional.cross_entropy(x, label[None], reduction='none')[0]
        return torch.stack([x[label == c].mean() for c in range(K)])

    before = logits()
    found = ClassDeleter(model, SPACE, at=at).changes(image, label)
    assert found.deleted.tolist() == before.argmax(1).unique().tolist()
    for d, change in zip(found.deleted.tolist(), found.change):
        mask = (before.argmax(1) == d).to(before)[:, None]

        def without(x):
            share = nn.functional.adaptive_avg_pool2d(mask, x.shape[-2:])
            kept = 1 - share if (share < 1).any() else torch.ones_like(share)
            return x + share * ((x * kept).sum((-2, -1), keepdim=True) / kept.sum() - x)

        torch.testing.assert_close(change, losses(logits(without)) - losses(before), atol=2e-5, rtol=1e-3)


def test_refusals():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, K, 1))
    data = [(torch.randn(3, 8, 8), torch.zeros(8, 8).long())]
    for match, call in {
        'give space=': lambda: relations(plain, data),
        "say at='path'": lambda: relations(plain, data, space=SPACE),
        "nothing at 'head'": lambda: relations(plain, data, space=SPACE, at='head'),
        'has no IDR': lambda: relations(plain, data, 'context', SPACE, '0'),
        'is none of features': lambda: relations(plain, data, 'picture', SPACE, '0'),
        'channels': lambda: relations(plain, data, space=LabelSpace('two', ('a', 'b'), palette(2)), at='0'),
        'is a wrapper': lambda: relations(nn.DataParallel(plain), data, space=SPACE, at='0'),
        'image 0: .*ids outside': lambda: relations(plain, [(data[0][0], data[0][1] + 99)], space=SPACE, at='0'),
        'image 0: .*is \\(8, 8\\)': lambda: relations(plain, [(data[0][0][0], data[0][1])], space=SPACE, at='0'),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(FloatingPointError, match='image 0'):
        relations(plain, [(data[0][0] * torch.nan, data[0][1])], space=SPACE, at='0')
    twice = nn.Sequential(plain[0], nn.Conv2d(4, 3, 1), plain[0], plain[1])
    with pytest.raises(ValueError, match='2 times'):
        relations(twice, data, space=SPACE, at='0')


# ---- statistics


def test_statistics():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, (50, 4))
    there = rng.random((50, 4)) < 0.6
    image, pair = there.nonzero()
    found = pair_statistics(Changes(image, pair, values[there]), 9, resamples=3000)
    for c in range(4):
        x = values[there[:, c], c]
        assert found.images[c] == len(x) and found.mean[c] == pytest.approx(x.mean())
        assert found.p[c] >= ttest_1samp(x, 0).pvalue - 1e-12 and found.p[c] < ttest_1samp(x, 0).pvalue + 0.1
        error = 1.96 * x.std() / len(x) ** 0.5
        assert (found.low[c], found.high[c]) == pytest.approx((x.mean() - error, x.mean() + error), abs=0.06)
    assert np.isnan(found.mean[4:]).all() and np.isnan(found.p[4:]).all() and not found.images[4:].any()


def test_settled_pairs_are_the_true_ones():
    k, n, rng = 30, 80, np.random.default_rng(0)
    true = np.zeros((k, k), bool)
    true[np.arange(10), np.arange(10) + 10] = True
    values = rng.normal(0, 1, (n, k, k)) + 1.0 * true
    pair = np.tile(np.arange(k * k), n)
    found = Relations.of(Changes(np.repeat(np.arange(n), k * k), pair, values.ravel()), range(k), 'features')
    false = (found.settled.numpy() & ~true).sum()
    assert found.settled.numpy()[true].all() and false <= 3  # 5 % of 13, chance apart
    assert not found.settled.diagonal().any()
    assert found.auroc(torch.as_tensor(true)) == 1


def test_many_classes_and_images_are_quick():
    rng = np.random.default_rng(0)
    m = 5000 * 150
    image = np.repeat(np.arange(5000), 150)
    pair = rng.integers(0, 150 * 150, m)
    start = time.perf_counter()
    found = Relations.of(Changes(image, pair, rng.normal(size=m)), range(150), 'features', resamples=100)
    assert time.perf_counter() - start < 30 and int(found.images.sum()) == m


# ---- on disk

KILLED = '''
import os, signal, sys, warnings
warnings.simplefilter('ignore')
from idrnet_nb.experiments import relations as r
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.training.inference import load_model
add, count = r.ChangeLog.add, []
def dying(self, image, changes):
    if len(count) == 4:
        with open(self.path, 'a') as file: file.write('{"image": 4, "del')
        os.kill(os.getpid(), signal.SIGKILL)
    count.append(image)
    add(self, image, changes)
r.ChangeLog.add = dying
model, _ = load_model(sys.argv[1])
r.relations(model, ToyWorld(10, seed=1), out=sys.argv[2], progress=False)
'''


def test_goes_on_after_being_killed(tmp_path):
    from idrnet_nb.training.inference import load_model

    folder = ROOT / 'nbs' / 'results' / 'world_inside'
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', KILLED, folder, tmp_path / 'out'], env=env, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    model, _ = load_model(folder)
    asked = []
    model.register_forward_pre_hook(lambda m, a: asked.append(len(a[0])) if len(a[0]) == 1 else None)
    found = relations(model, ToyWorld(10, seed=1), out=tmp_path / 'out', progress=False, batch_size=99)
    assert len(asked) == 6  # four of ten had their answer
    lines = [json.loads(line) for line in (tmp_path / 'out' / 'changes.jsonl').read_text().splitlines()]
    assert [line['image'] for line in lines[1:]] == list(range(10))
    fresh = relations(model, ToyWorld(10, seed=1), progress=False)
    torch.testing.assert_close(found.mean, fresh.mean, atol=1e-5, rtol=1e-4, equal_nan=True)
    with pytest.raises(ValueError, match='another question'):
        relations(model, ToyWorld(10, seed=2), out=tmp_path / 'out', progress=False)
    again = Relations.load(found.save(tmp_path / 'r.json'))
    assert str(again) == str(found) and again.to_frame().equals(found.to_frame())


def test_figures_of_many_classes():
    rng, k = np.random.default_rng(0), 60
    image, pair = np.repeat(np.arange(40), 900), rng.integers(0, k * k, 36000)
    change = rng.normal(0, 0.05, 36000) + (pair % 37 == 0) * 0.3 - (pair % 41 == 0) * 0.3
    found = Relations.of(Changes(image, pair, change), [f'class {i}' for i in range(k)], 'features', least=5)
    ax = found.show_matrix().axes[1]
    assert ax.images[0].get_array().shape == (40, 40) and '40 of 60' in ax.get_title()
    ax = found.show_graph(20).axes[0]
    assert 5 < len(ax.patches) <= 20 and 5 < len(ax.texts) <= 20 and 'fell' in ax.get_title()
