"""Made-up sets in the trees of the published ones: every loader reads them, files are of the published kind, a seed gives the same bytes, a small net learns them."""

import subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from scipy.io import loadmat
from torch import nn
from idrnet_nb.data.validate import check_data
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.mirrored_classes import left_right
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.fake_datasets import fake_scene, write_fake_dataset

ROOT = Path(__file__).resolve().parents[2]
SPLITS = dict(coco_stuff_10k=('train', 'test'), camvid=('train', 'val', 'test'), atr=('train', 'val', 'test'))
NO_VOID = 'lip', 'cihp', 'atr', 'ccp59', 'ccp16', 'pascal_context_60'  # as published
LISTS = dict(
    pascal_voc='ImageSets/Segmentation/{}.txt',
    pascal_context_59='ImageSets/SegmentationContext/{}.txt',
    coco_stuff_10k='imageLists/{}.txt',
    lip='{}_id.txt',
    atr='{}_id.txt',
    stanford_background='{}.txt',
    ccp59='{}.txt',
)
RAW = dict(
    camvid={*range(12)},
    ade20k={*range(151)},
    cityscapes={*range(34)},
    coco_stuff_10k={*range(183)},
    coco_stuff_164k={*range(182), 255},
    pascal_voc={*range(21), 255},
    pascal_context_59={*range(60)},
    pascal_context_60={*range(60)},
    lip={*range(20)},
    cihp={*range(20)},
    atr={*range(18)},
    stanford_background={*range(-1, 8)},
    ccp59={*range(59)},
    ccp16={*range(59)},
)  # ids that the published masks hold


def made(name, folder, *args, **kw):
    return write_fake_dataset(name, folder / name, DATASETS[name].space, *args, **kw)


def raw_of(file):
    "What a mask file holds, read without this package."
    if file.suffix == '.mat':
        return loadmat(file)['S'].astype(int)
    return np.loadtxt(file, dtype=int) if file.suffix == '.txt' else np.array(Image.open(file)).astype(int)


@pytest.mark.parametrize('name', DATASETS)
def test_is_read_as_published(name, tmp_path):
    b, root = DATASETS[name], made(name, tmp_path, train=3, unseen=2, size=(48, 64), seed=4)
    assert root == tmp_path / name
    n, pictures = 0, []
    for split in SPLITS.get(name, ('train', 'val')):
        rows = b.load(root, split)
        assert len(rows) == (3 if split == 'train' else 2)
        for row, (image, label) in zip(rows, SegmentationDataset(rows, b.space)):
            n += 1
            want_image, want = fake_scene(b.space, (48, 64), np.random.default_rng((4, n)))
            if name in NO_VOID:
                want = np.where(want == 255, 0, want)
            assert np.array_equal(label.numpy(), want) and (255 in want) == (name not in NO_VOID)
            off = np.abs(image.permute(1, 2, 0).numpy().astype(int) - want_image)
            assert off.mean() < (16 if row['image']['path'].endswith('.jpg') else 1e-9)
            pictures.append(want_image.tobytes())
            raw = raw_of(Path(row['label']['path']))
            assert set(np.unique(raw).tolist()) <= RAW[name]
        report = check_data(rows, b.space, progress=False)
        assert report.ok and (report.void > 0) == (name not in NO_VOID)
    assert len(set(pictures)) == n  # what is judged was not trained on


def test_masks_are_of_the_published_kind(tmp_path):
    modes = {}
    for name in DATASETS:
        row = DATASETS[name].load(made(name, tmp_path, 1, 1, (32, 40)), 'train')[0]
        image, mask = Path(row['image']['path']), Path(row['label']['path'])
        assert (
            Image.open(image).format == ('PNG' if name in ('camvid', 'cityscapes') else 'JPEG')
            and Image.open(image).mode == 'RGB'
        )
        modes[name] = Image.open(mask).mode if mask.suffix == '.png' else ''.join(mask.suffixes)
    assert {n: m for n, m in modes.items() if m != 'L'} == dict(
        pascal_voc='P', coco_stuff_10k='.mat', stanford_background='.regions.txt'
    )
    voc = Image.open(next((tmp_path / 'pascal_voc' / 'SegmentationClass').iterdir()))
    assert voc.getpalette()[:63] == [v for c in LABEL_SPACES['pascal_voc'].palette for v in c] and voc.getpalette()[
        -3:
    ] == [224, 224, 192]


def test_lists_and_what_lies_beside(tmp_path):
    for name, where in LISTS.items():
        root = made(name, tmp_path, 2, 1, (32, 40))
        for split in SPLITS.get(name, ('train', 'val')):
            assert (root / where.format(split)).read_text().split() == DATASETS[name].load(root, split)['id'][:]
    for name in 'pascal_voc', 'pascal_context_59':  # most pictures there have no mask, and are in no list
        assert (
            len([*(tmp_path / name / 'JPEGImages').iterdir()]) == 4
            and len([*(tmp_path / name).glob('SegmentationClass*/*.png')]) == 3
        )
        assert (tmp_path / name / LISTS[name].format('trainval')).read_text().split() == [
            i for s in ('train', 'val') for i in DATASETS[name].load(tmp_path / name, s)['id'][:]
        ]
    city = made('cityscapes', tmp_path, 1, 1, (32, 40))
    assert sorted(p.name.split('_gtFine_')[1] for p in (city / 'gtFine' / 'train' / 'aachen').iterdir()) == [
        'color.png',
        'instanceIds.png',
        'labelIds.png',
    ]
    assert (made('cihp', tmp_path, 1, 1, (32, 40)) / 'Training' / 'train_id.txt').read_text() == '0000001\n'
    camvid = made('camvid', tmp_path, 2, 1, (32, 40))
    assert (camvid / 'train.txt').read_text().splitlines()[
        1
    ] == '/SegNet/CamVid/train/0001TP_000002.png /SegNet/CamVid/trainannot/0001TP_000002.png'


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def all_of(root, seed):
        write_fake_dataset('stanford_background', root, LABEL_SPACES['stanford_background'], 2, 1, (32, 40), seed)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*.*')}

    a, b, c = [all_of(tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))]
    assert a == b and a.keys() == c.keys() and all(a[k] != c[k] for k in a if 'images' in k)
    code = (
        "import hashlib, numpy as np; from idrnet_nb.data.label_spaces import LABEL_SPACES; from idrnet_nb.data.fake_datasets import fake_scene; "
        "print(hashlib.sha256(b''.join(x.tobytes() for s in ('ade20k','lip') for x in fake_scene(LABEL_SPACES[s], (40,56), np.random.default_rng(1)))).hexdigest())"
    )
    once, twice = [
        subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert once == twice and len(once) > 60


def test_several_raw_ids_of_a_class(tmp_path):
    "Sixteen groups of 59 tags, and the many voids of Cityscapes: not always the same id is written."
    b = DATASETS['ccp16']
    raws = [raw_of(Path(r['label']['path'])) for r in b.load(made('ccp16', tmp_path, 12, 1, (32, 40)), 'train')]
    tops = {
        int(i)
        for raw in raws
        for i in np.unique(raw)
        if b.space.raw_to_train[int(i)] == b.space.classes.index('upper-clothes')
    }
    assert len(tops) > 2
    voids = {
        int(i)
        for r in DATASETS['cityscapes'].load(made('cityscapes', tmp_path, 12, 1, (32, 40)), 'train')
        for i in np.unique(raw_of(Path(r['label']['path'])))
        if LABEL_SPACES['cityscapes'].raw_to_train[int(i)] == 255
    }
    assert len(voids) > 3 and 255 not in voids


def test_cityscapes_masks_are_named_by_what_they_hold(tmp_path):
    root = write_fake_dataset(
        'cityscapes', tmp_path / 'c', replace(LABEL_SPACES['cityscapes'], raw_to_train=None), 2, 1, (32, 40)
    )
    masks = sorted(root.rglob('*_labelTrainIds.png'))
    assert (
        len(masks) == 3
        and not [*root.rglob('*_labelIds.png')]
        and {int(i) for m in masks for i in np.unique(raw_of(m))} <= {*range(19), 255}
    )


@pytest.mark.parametrize('before', ['file', 'folder', 'is a file'])
def test_nothing_is_written_over(before, tmp_path):
    root = tmp_path / 'CamVid'
    if before == 'is a file':
        root.write_text('x')
    else:
        root.mkdir()
        (root / 'p.png').write_bytes(b'x') if before == 'file' else (root / 'train').mkdir()
    there = sorted(p.name for p in tmp_path.rglob('*'))
    with pytest.raises(FileExistsError, match="CamVid' is not empty and stays as it is"):
        write_fake_dataset('camvid', root, LABEL_SPACES['camvid'], 1, 1)
    assert sorted(p.name for p in tmp_path.rglob('*')) == there


def test_wrong_words(tmp_path):
    with pytest.raises(ValueError, match="no dataset 'imagenet'; there are camvid, ade20k, .*ccp16"):
        write_fake_dataset('imagenet', tmp_path, LABEL_SPACES['camvid'])
    for kw in dict(train=0), dict(unseen=0), dict(train=-1):
        with pytest.raises(ValueError, match='a split needs an image or more'):
            write_fake_dataset('camvid', tmp_path / 'x', LABEL_SPACES['camvid'], **kw)
    with pytest.raises(ValueError, match=r'size=\(31, 40\)'):
        write_fake_dataset('camvid', tmp_path / 'y', LABEL_SPACES['camvid'], size=(31, 40))
    (tmp_path / 'empty').mkdir()
    assert (
        write_fake_dataset('camvid', str(tmp_path / 'empty'), LABEL_SPACES['camvid'], 1, 1, (32, 32))
        == tmp_path / 'empty'
    )


@pytest.mark.parametrize('k,ignore', [(1, 255), (2, 255), (300, 999)])
def test_spaces_of_ones_own(k, ignore, tmp_path):
    space = LabelSpace('own', [f'c{i}' for i in range(k)], palette(k), ignore=ignore)
    for name in 'camvid', 'pascal_voc', 'coco_stuff_10k':
        root = write_fake_dataset(name, tmp_path / name, space, 1, 1, (32, 48))
        label = SegmentationDataset(DATASETS[name].load(root, 'train'), space)[0][1]
        assert np.array_equal(label.numpy(), fake_scene(space, (32, 48), np.random.default_rng((0, 1)))[1]) and (
            k == 1 or ignore in label
        )


def test_scenes():
    for name, space in LABEL_SPACES.items():
        seen = [fake_scene(space, (40, 60), np.random.default_rng(i)) for i in range(40)]
        ids = set(np.unique([y for _, y in seen]).tolist()) - {255}
        things = 'hair' not in space.classes
        assert len(ids) == min(12, space.num_classes) if things else len(ids) > 8, name
        assert not things or {0, space.num_classes - 1} <= ids
        assert all(len(np.unique(y)) > (2 if things else 4) for _, y in seen)
        assert things == any(255 in y for _, y in seen) or name == 'ccp16'
        assert all(
            x.dtype == np.uint8 and x.shape == (40, 60, 3) and y.dtype == np.uint8 and 0.02 < x.std() / 255 < 0.5
            for x, y in seen
        )
    small, big = [
        np.mean([(fake_scene(LABEL_SPACES['camvid'], s, np.random.default_rng(i))[1] == 255).mean() for i in range(6)])
        for s in ((96, 128), (480, 640))
    ]
    assert 0.02 < small < 0.25 and 0.8 < big / small < 1.25  # the rim grows with the picture


@pytest.mark.parametrize('name', ['lip', 'cihp', 'atr'])
def test_left_is_on_our_right(name):
    "On people who look at us. Both sides have one colour, so that only the place tells."
    space = LABEL_SPACES[name]
    where, colour = {c: [] for p in left_right(space) for c in p}, {c: [] for p in left_right(space) for c in p}
    for i in range(30):
        image, label = fake_scene(space, (96, 80 if name != 'cihp' else 160), np.random.default_rng(i))
        if name == 'cihp':
            assert all((label[:, s] == 2).any() for s in (slice(80), slice(80, None)))  # two people
            image, label = image[:, :80], label[:, :80]
        assert abs((label > 0).nonzero()[1].mean() - 40) < 12
        for c in where:
            if (label == c).any():
                where[c].append((label == c).nonzero()[1].mean())
                colour[c].append(image[label == c].mean(0))
    for left, right in left_right(space):
        assert where[left] and np.mean(where[left]) > 42 and np.mean(where[right]) < 38
        assert np.abs(np.mean(colour[left], 0) - np.mean(colour[right], 0)).max() < 8


class Small(nn.Sequential):
    def __init__(self, k):
        block = lambda a, b, s, d: nn.Sequential(nn.Conv2d(a, b, 3, s, d, d), nn.BatchNorm2d(b), nn.ReLU())
        super().__init__(
            block(3, 24, 2, 1),
            block(24, 32, 2, 1),
            block(32, 32, 1, 2),
            block(32, 32, 1, 4),
            nn.Conv2d(32, k, 1),
            nn.Upsample(scale_factor=4, mode='bilinear'),
        )


@pytest.mark.parametrize('name', ['camvid', 'pascal_voc', 'lip'])
def test_a_small_net_learns_it(name, tmp_path):
    "Sixty steps on eight pictures, judged on four that it never saw."
    torch.manual_seed(0)
    b, root = DATASETS[name], made(name, tmp_path, 8, 4, (64, 96))
    (x, y), (u, v) = [
        [torch.stack(t) for t in zip(*SegmentationDataset(b.load(root, s), b.space))] for s in ('train', b.split)
    ]
    net = Small(b.space.num_classes)
    opt = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(60):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x.float() / 128 - 1), y, ignore_index=255).backward()
        opt.step()
    with torch.no_grad():
        p = net.eval()(u.float() / 128 - 1).argmax(1)
    inside = v != 255
    ious = [
        ((p == c) & (v == c)).sum().item() / (((p == c) | (v == c)) & inside).sum().item() for c in v[inside].unique()
    ]
    assert np.mean(ious) > 0.45, ious


def test_importing_is_light():
    code = "import sys, idrnet_nb.data.fake_datasets; print([m for m in ('datasets','PIL','matplotlib','timm','fastcore','scipy','idrnet_nb.data.dataset') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )
