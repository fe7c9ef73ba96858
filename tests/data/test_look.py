"""A look at the data: each kind of suspicion is found in data made so, and nothing in data that is right."""

import numpy as np, pytest
from PIL import Image, ImageEnhance

from idrnet_nb.data.fake_datasets import fake_scene
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.data.look import (
    KINDS,
    boundary_map,
    brightness_steps,
    edge_map,
    fit_masks,
    look_at,
    nearest_images,
    show_look,
)
from idrnet_nb.data.pairing import Unpaired, folder_pairs

SPACE = LABEL_SPACES['camvid']
SCENES = [fake_scene(SPACE, (64, 96), np.random.default_rng(i)) for i in range(40)]


class Folders:
    "Two parts of made-up pairs, to be spoilt."

    def __init__(self, root, train=24, unseen=12):
        self.root, self.numbers = root, {}
        self.numbers = dict(train=range(train), unseen=range(train, train + unseen))
        for part, numbers in self.numbers.items():
            for kind in 'images', 'labels':
                (root / part / kind).mkdir(parents=True)
            for i in numbers:
                self.save(part, i, *SCENES[i])

    def save(self, part, i, image, label):
        Image.fromarray(image).save(self.file(part, 'images', i))
        Image.fromarray(np.where(label == 255, 11, label).astype(np.uint8)).save(self.file(part, 'labels', i))

    def file(self, part, kind, i):
        return self.root / part / kind / f'p{i:02}.png'

    def load(self, part):
        return folder_pairs(self.root / part / 'images', self.root / part / 'labels')

    def look(self, **how):
        return look_at({part: self.load(part) for part in self.numbers}, SPACE, progress=False, **how)


def kinds(look, remarks=False):
    "(part, id) -> kinds of what is suspicious, or of remarks."
    found = {(p.part, p.id): [r.kind for r in p.reasons if r.is_remark == remarks] for p in look.pairs}
    return {key: those for key, those in found.items() if those}


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def test_nothing_is_suspicious_in_right_data(folders):
    look = folders.look()
    assert len(look.pairs) == 36 and kinds(look) == kinds(look, remarks=True) == {}
    assert {p.size for p in look.pairs} == {(64, 96)} and {p.rank for p in look.pairs} == {2 * len(KINDS)}


def test_counts_and_shares_are_those_of_the_masks(folders):
    look = folders.look()
    shares, labels = look.shares()['unseen'], np.stack([SCENES[i][1] for i in range(24, 36)])
    valid = labels[labels != 255]
    assert np.allclose(shares.pixels, np.bincount(valid, minlength=11) / len(valid))
    assert np.allclose(shares.images, [(labels == c).any((1, 2)).mean() for c in range(11)])
    assert shares.ignored == pytest.approx((labels == 255).mean())
    row = look.table().iloc[24]
    assert (row['part'], row['id'], row['height'], row['width'], row['suspicious']) == ('unseen', 'p24', 64, 96, 'no')
    assert row['(ignored) %'] == pytest.approx(100 * (labels[0] == 255).mean(), abs=1e-3)


def test_what_cannot_be_read_is_listed(folders):
    folders.file('train', 'images', 3).write_bytes(b'no image')
    Image.new('L', (96, 64), 77).save(folders.file('train', 'labels', 4))
    folders.file('unseen', 'labels', 30).unlink()
    with pytest.raises(Unpaired):
        folders.load('unseen')
    parts = {part: (lambda part=part: folders.load(part)) for part in folders.numbers}
    look = look_at(parts, SPACE, progress=False)
    assert kinds(look) == {key: ['unreadable'] for key in (('train', 'p03'), ('train', 'p04'), ('unseen', 'p30'))}
    assert '77' in look.pairs[4].reasons[0].what and look.pairs[3].size is None
    row = look.table().iloc[3]
    assert row['suspicious'] == 'yes' and 'p03.png' in row['reasons'] and row.isna()['height'] and row.isna()['sky %']
    fig = show_look(look, 4)
    assert [len(ax.images) for ax in fig.axes[:4]] == [0, 0, 0, 1]


def test_all_may_be_unreadable(tmp_path):
    folders = Folders(tmp_path, 2, 1)
    for part, numbers in folders.numbers.items():
        for i in numbers:
            folders.file(part, 'labels', i).write_bytes(b'')
    look = folders.look()
    assert len(look.suspicious()) == 3 and look.shares() == {} and len(look.table()) == 3
    show_look(look)


def test_another_size(folders):
    folders.save('train', 5, *(x[:48] for x in SCENES[5]))
    look = folders.look()
    assert kinds(look) == {('train', 'p05'): ['size']}
    assert look.pairs[5].reasons[0].what == '48×96 (h×w), but 35 of 36 are 64×96'


def test_many_sizes_are_usual_and_a_tiny_one_is_not(folders):
    for i in range(0, 24, 2):
        folders.save('train', i, *(x[: 40 + i] for x in SCENES[i]))
    assert kinds(folders.look()) == {}
    folders.save('train', 6, *(x[:20, :96] for x in SCENES[6]))
    assert kinds(folders.look()) == {('train', 'p06'): ['size']}


def test_one_class_alone(folders):
    label = np.full((64, 96), 7, np.uint8)
    folders.save('train', 2, SCENES[2][0], label)
    label[:10] = 255  # ignored pixels are of no class
    folders.save('unseen', 25, SCENES[25][0], label)
    folders.save('train', 9, SCENES[9][0], np.full_like(label, 255))
    look = folders.look()
    wanted = {('train', 'p02'): ['one class'], ('unseen', 'p25'): ['one class'], ('train', 'p09'): ['all ignored']}
    assert kinds(look) == wanted and look.pairs[2].reasons[0].what == 'fence alone fills it'


def test_one_class_in_many_masks_is_a_remark(folders):
    for i in range(8):
        folders.save('train', i, SCENES[i][0], np.full((64, 96), 7))
    look = folders.look()
    assert kinds(look) == {} and len(kinds(look, remarks=True)) == 8


def test_a_space_of_one_class_has_no_suspicious_masks():
    from io import BytesIO

    def held(pixels):
        file = BytesIO()
        Image.fromarray(pixels).save(file, 'png')
        return dict(bytes=file.getvalue())

    one = LabelSpace('one', ['all'], [(0, 0, 0)])
    rows = [dict(id='x', image=held(SCENES[i][0]), label=held(np.zeros((64, 96), np.uint8))) for i in range(3)]
    look = look_at(dict(all=rows), one, progress=False)
    assert kinds(look) == {} and look.shares()['all'].pixels.tolist() == [1]


CHANGES = dict(
    jpeg=lambda im, path: im.save(path.with_suffix('.jpg'), quality=30),
    darker=lambda im, path: ImageEnhance.Brightness(im).enhance(0.7).save(path),
    mirrored=lambda im, path: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path),
)


@pytest.mark.parametrize('change', CHANGES)
def test_a_near_duplicate_in_another_part(folders, change):
    path = folders.file('unseen', 'images', 28)
    path.unlink()
    CHANGES[change](Image.fromarray(SCENES[1][0]), path)
    label = SCENES[1][1]
    mask = np.where(label == 255, 11, label).astype(np.uint8)
    Image.fromarray(mask[:, ::-1] if change == 'mirrored' else mask).save(folders.file('unseen', 'labels', 28))
    look = folders.look()
    assert kinds(look) == {('train', 'p01'): ['near duplicate'], ('unseen', 'p28'): ['near duplicate']}
    assert (look.pairs[1].reasons[0].other, look.pairs[28].reasons[0].other) == (28, 1)
    assert ('mirrored' in look.pairs[1].reasons[0].what) == (change == 'mirrored')
    assert [p.id for p in look.pick(6)[:2]] == ['p01', 'p28']


def test_a_near_duplicate_within_a_part_is_a_remark(folders):
    folders.save('train', 8, *SCENES[2])
    look = folders.look()
    assert kinds(look) == {} and set(kinds(look, remarks=True)) == {('train', 'p02'), ('train', 'p08')}
    assert {p.id for p in look.pick(8)[:2]} == {'p02', 'p08'}


def test_nearest_images_are_those_of_a_loop():
    steps = np.random.default_rng(0).normal(size=(7, 2, 15, 16))
    parts = np.array([0, 1, 0, 2, 1, 0, 0])
    across, within = nearest_images(steps, parts, block=3)
    turned = np.stack([steps[:, 0, :, ::-1], -steps[:, 1, ::-1]], 1)
    for i in range(7):
        for nearest, is_candidate in (across, parts != parts[i]), (within, parts == parts[i]):
            others = [j for j in range(7) if j != i and is_candidate[j]]
            both = [
                max(np.corrcoef(steps[i].ravel(), x[j].ravel())[0, 1] for x in (steps, turned)) for j in others
            ] or [-1]
            assert nearest.similarity[i] == pytest.approx(max(both), abs=1e-5)
            assert not others or nearest.index[i] == others[int(np.argmax(both))]


def test_steps_of_a_mirrored_image():
    image = SCENES[0][0]
    steps = np.stack([brightness_steps(image), brightness_steps(image[:, ::-1].copy())])
    nearest, _ = nearest_images(steps, np.array([0, 1]))
    assert (nearest.similarity > 0.99).all() and nearest.mirrored.all()


def test_plain_images_are_no_duplicates(folders):
    for i in 3, 30:
        folders.save('train' if i < 24 else 'unseen', i, np.full((64, 96, 3), 200, np.uint8), SCENES[i][1])
    assert not any('near duplicate' in those for those in kinds(folders.look()).values())


def test_swapped_masks_are_found_and_name_each_other(folders):
    for a, b in (2, 15), (15, 2):
        folders.save('train', a, SCENES[a][0], SCENES[b][1])
    look = folders.look()
    assert kinds(look) == {('train', id): ['mask of another image'] for id in ('p02', 'p15')}
    assert look.pairs[2].reasons[0].other == 15 and "'p15' (train)" in look.pairs[2].reasons[0].what


def test_masks_shifted_by_one(folders):
    for i in range(24):
        folders.save('train', i, SCENES[i][0], SCENES[(i + 1) % 24][1])
    found = {key for key, those in kinds(folders.look()).items() if 'mask of another image' in those}
    assert len(found) > 20 and {part for part, _ in found} == {'train'}


def test_edges_that_tell_nothing_accuse_nobody():
    rng = np.random.default_rng(0)
    boundaries = np.stack([boundary_map(label)[:, :64] for _, label in SCENES])
    noise = rng.integers(0, 256, boundaries.shape, dtype=np.uint8)
    assert fit_masks(noise, boundaries).is_wrong().mean() < 0.05


def test_the_right_mask_may_be_a_neighbour_outside_the_sample(monkeypatch):
    monkeypatch.setattr('idrnet_nb.data.look.SAMPLE', 12)
    edges = np.stack([edge_map(image) for image, _ in SCENES])
    at = np.arange(96) * 64 // 96
    boundaries = np.stack([boundary_map(label[at]) for _, label in SCENES])
    assert not fit_masks(edges, boundaries, block=7).is_wrong().any()
    shifted = fit_masks(edges, np.roll(boundaries, -1, 0), block=7)
    assert (shifted.index[1:] == np.arange(39)).mean() > 0.9 and shifted.is_wrong().mean() > 0.6


def test_few_pairs_of_a_size_are_not_compared(tmp_path):
    folders = Folders(tmp_path, 6, 3)
    for a, b in (0, 3), (3, 0):
        folders.save('train', a, SCENES[a][0], SCENES[b][1])
    assert kinds(folders.look()) == {}


def test_workers_find_the_same(folders):
    folders.save('train', 5, *(x[:48] for x in SCENES[5]))
    assert folders.look(workers=2).table().equals(folders.look().table())


def test_a_sheet_has_every_kind_first_then_chance(folders):
    folders.save('train', 8, *SCENES[2])  # a remark
    for i in 10, 11, 12:
        folders.save('train', i, SCENES[i][0], np.full((64, 96), 7))
    folders.save('train', 5, *(x[:48] for x in SCENES[5]))
    look = folders.look()
    assert [p.rank for p in look.pick(2)] == [KINDS.index('one class'), KINDS.index('size')]
    picked = look.pick(12)
    assert [p.id for p in picked[:4]] == ['p10', 'p11', 'p12', 'p05'] and {p.id for p in picked[4:6]} == {'p02', 'p08'}
    assert not any(p.reasons for p in picked[6:]) and len({id(p) for p in picked}) == 12
    assert picked == look.pick(12) and picked != look.pick(12, seed=1) and len(look.pick(100)) == 36


def test_the_sheet_names_what_it_shows(folders):
    folders.save('train', 5, *(x[:48] for x in SCENES[5]))
    fig = show_look(folders.look(), 5, columns=2)
    cells, bars = fig.axes[:5], fig.axes[5:]
    assert cells[0].get_title() == 'p05 · train' and cells[0].get_xlabel().startswith('▲ size: 48×96')
    assert not cells[4].get_xlabel() and len(bars) == 2
    assert [len(ax.containers) for ax in bars] == [2, 2]
    names = {text.get_text() for text in fig.legends[0].get_texts()}
    assert names <= {*(f'{i} {name}' for i, name in enumerate(SPACE.classes)), 'ignored'} and len(names) > 3
    for n in 0, -1:
        with pytest.raises(ValueError, match=f'n={n}'):
            show_look(folders.look(), n)


def test_no_rows(folders):
    with pytest.raises(ValueError, match='look at train: there are no rows'):
        look_at(dict(train=[]), SPACE, progress=False)
