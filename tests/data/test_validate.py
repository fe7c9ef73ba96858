"""check-data: every kind of fault found and named, counts right, the same by any number of processes; data of one's own in every form."""

import fcntl, json, os, random, struct, subprocess, sys, termios, warnings
from pathlib import Path
import numpy as np, pytest, torch
from datasets import Dataset
from datasets import Image as Pictures
from PIL import Image
from test_dataset import ALL, layout, real
from torch.utils.data import DataLoader
from idrnet_nb import cli
from idrnet_nb.data.validate import Report, check_data, checked_rows
from idrnet_nb.data.labels import LabelSpace
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.transforms import Augment, fit_size, rotate
from idrnet_nb.data.readers import BadFile, read_mask, read_image
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.pairing import Unpaired, csv_pairs, folder_pairs, hub_pairs
from idrnet_nb.data.class_lists import ids_from_colours, space_from_file
from idrnet_nb.training.inference import EvalProtocol

SPACE = LABEL_SPACES['camvid']


def make(root, n=8, h=12, w=16):
    "Two folders of `n` made-up pairs, all sound."
    rng = np.random.default_rng(0)
    for d in 'images', 'labels':
        (root / d).mkdir(parents=True)
    for i in range(n):
        label = np.kron(rng.integers(0, 12, (3, 4)), np.ones((h // 3, w // 4))).astype(np.uint8)
        label[0, 0] = 3
        Image.fromarray(label).save(root / 'labels' / f'p{i}.png')
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(root / 'images' / f'p{i}.png')
    return root


@pytest.fixture
def tree(tmp_path):
    return make(tmp_path / 'set')


def rows_of(root):
    return folder_pairs(root / 'images', root / 'labels')


def check(root, space=SPACE, workers=0):
    return check_data(checked_rows(lambda: rows_of(root)), space, workers, progress=False)


def cut(p, n):
    p.write_bytes(p.read_bytes()[:n])


def save(p, array, **kw):
    Image.fromarray(np.asarray(array, np.uint8)).save(p, **kw)


SPOIL = {  # name: (what to do to the picture x and the mask y, kind, file that is blamed, words)
    'no mask': (lambda x, y: y.unlink(), 'missing', 'p3.*', 'no file'),
    'no picture': (lambda x, y: x.unlink(), 'missing', 'p3.*', 'no file'),
    'picture cut': (lambda x, y: cut(x, 200), 'broken', 'p3.png', 'cut short'),
    'picture empty': (lambda x, y: x.write_bytes(b''), 'broken', 'p3.png', 'no image'),
    'picture is text': (lambda x, y: x.write_text('no'), 'broken', 'p3.png', 'no image'),
    'mask cut': (lambda x, y: cut(y, 60), 'broken', 'p3.png', 'cut short'),
    'mask is a page': (lambda x, y: y.write_text('<html>404</html>'), 'broken', 'p3.png', 'no image'),
    'sizes': (lambda x, y: save(y, np.zeros((12, 15))), 'sizes differ', 'p3.png', '12×15'),
    'turned': (lambda x, y: save(y, np.zeros((16, 12))), 'sizes differ', 'p3.png', '16×12'),
    'unseen': (lambda x, y: save(y, np.full((12, 16), 77)), 'unseen ids', 'p3.png', '77 (192 pixels)'),
    'RGB mask': (lambda x, y: save(y, np.zeros((12, 16, 3))), 'no index mask', 'p3.png', 'is RGB'),
    'grey and alpha': (lambda x, y: Image.new('LA', (16, 12)).save(y), 'no index mask', 'p3.png', 'is LA'),
    'void': (lambda x, y: save(y, np.full((12, 16), 11)), 'nothing but void', 'p3.png', 'no pixel of any class'),
    'JPEG': (lambda x, y: (save(y.with_suffix('.jpg'), np.zeros((12, 16))), y.unlink()), 'JPEG mask', 'p3.jpg', 'JPEG'),
    'JPEG in disguise': (lambda x, y: save(y, np.zeros((12, 16)), format='JPEG'), 'JPEG mask', 'p3.png', 'JPEG'),
    'two masks': (lambda x, y: save(y.with_suffix('.bmp'), np.zeros((12, 16))), 'twice', 'p3.png', 'p3.bmp'),
    'two pictures': (
        lambda x, y: save(x.with_suffix('.jpg'), np.arange(576).reshape(12, 16, 3) % 256),
        'twice',
        'p3.png',
        'p3.jpg',
    ),
    'fractions': (
        lambda x, y: Image.fromarray(np.ones((12, 16), np.float32)).save(y.with_suffix('.tiff')) or y.unlink(),
        'no index mask',
        'p3.tiff',
        'is F',
    ),
}


# --- what is found
@pytest.mark.parametrize('what', SPOIL)
def test_each_fault(tree, what):
    assert check(tree).ok
    spoil, kind, file, word = SPOIL[what]
    spoil(tree / 'images' / 'p3.png', tree / 'labels' / 'p3.png')
    report = check(tree)
    assert report.kinds() == {kind: 1} and not report.ok, report.faults
    ((_, path, text),) = report.faults
    assert Path(path).name == file and word in text and 'p3' in text
    assert text in str(report) and str(report).endswith('1 faults')


def test_all_faults_at_once_whatever_the_workers(tmp_path):
    root = make(tmp_path / 'set', 40)
    names = list(SPOIL)
    for i, what in enumerate(names):
        x, y = root / 'images' / f'p{i}.png', root / 'labels' / f'p{i}.png'
        SPOIL[what][0](x, y)
    one, two = check(root), check(root, workers=2)
    assert one.to_json() == two.to_json() and len(one.faults) == len(SPOIL)
    want = [SPOIL[n][1] for n in names]
    assert one.kinds() == {k: want.count(k) for k in one.kinds()} and set(want) == set(one.kinds())


def test_rows_of_what_is_incomplete(tree):
    for f in 'labels/p3.bmp', 'labels/p3.gif', 'images/p3.jpg':
        save(tree / f, np.zeros((12, 16, 3)))
    (tree / 'labels' / 'p4.png').unlink()
    with pytest.raises(Unpaired) as e:
        rows_of(tree)
    names = [(r['id'], Path(r['image']['path']).name, Path(r['label']['path']).name) for r in e.value.rows]
    assert (
        names[2:6]
        == [
            ('p2', 'p2.png', 'p2.png'),
            ('p3', 'p3.jpg', 'p3.bmp'),
            ('p3', 'p3.png', 'p3.png'),
            ('p4', 'p4.png', 'p4.*'),
        ]
        and len(names) == 9
    )


def test_a_row_twice(tree):
    (tree / 't.csv').write_text('image,label\n' + 'images/p0.png,labels/p0.png\n' * 2)
    ((kind, path, text),) = check_data(csv_pairs(tree / 't.csv'), SPACE, progress=False).faults
    assert kind == 'twice' and Path(path).parent.name == 'images' and 'labels' not in text


def test_both_files_of_a_pair(tree):
    (tree / 'images' / 'p1.png').write_bytes(b'')
    (tree / 'labels' / 'p1.png').write_bytes(b'')
    assert [Path(p).parent.name for k, p, _ in check(tree).faults] == ['images', 'labels']


def test_counts(tree):
    masks = [np.array(Image.open(p)) for p in sorted((tree / 'labels').iterdir())]
    report = check(tree)
    assert report.pixels == [sum(int((m == c).sum()) for m in masks) for c in range(11)] and report.void == sum(
        int((m == 11).sum()) for m in masks
    )
    assert (
        report.occurs == [sum(int((m == c).any()) for m in masks) for c in range(11)]
        and sum(report.pixels) + report.void == 8 * 12 * 16
    )
    save(tree / 'labels' / 'p0.png', np.full((12, 16), 77))
    less = check(tree)
    assert (
        less.pixels == [a - int((masks[0] == c).sum()) for c, a in enumerate(report.pixels)] and less.pictures == 8
    )  # a doubtful mask counts for nothing
    save(tree / 'labels' / 'p0.png', masks[0][:, :-1])
    assert check(tree).pixels == less.pixels
    assert Report(**json.loads(json.dumps(report.to_json()))).to_json() == report.to_json() and str(
        Report(**report.to_json())
    ) == str(report)


def test_sizes_and_many_faults(tree):
    for i, (h, w) in enumerate([(3, 5), (40, 2), (9, 9)]):
        save(tree / 'images' / f'q{i}.png', 5 * np.arange(h * w * 3).reshape(h, w, 3) % 256)
        save(tree / 'labels' / f'q{i}.png', np.zeros((h, w)))
    assert check(tree).sizes == [(3, 5), (12, 16)]
    for i in range(5):
        save(tree / 'labels' / f'p{i}.png', np.zeros((12, 16, 3)))
    assert 'no index mask: 5' in str(check(tree)) and 'more' not in str(check(tree))
    for i in range(8):
        save(tree / 'labels' / f'p{i}.png', np.zeros((12, 16, 3)))
    text = str(check(tree))
    assert (
        'no index mask: 8' in text
        and '… and 3 more' in text
        and text.count(' is RGB') == 5
        and len(check(tree).faults) == 8
    )


def test_nothing_readable(tree):
    for p in (tree / 'labels').iterdir():
        p.write_bytes(b'')
    report = check(tree)
    assert (
        report.pixels == [0] * 11
        and report.sizes == []
        and len(report.faults) == 8
        and '11 of 11 classes have no pixel' in str(report)
    )


def test_one_picture_with_two_masks(tree):
    (tree / 't.csv').write_text(
        'id,image,label\na,images/p0.png,labels/p0.png\nb,images/p0.png,labels/p1.png\nc,images/p2.png,labels/p2.png\nd,images/p3.png,labels/p2.png\n'
    )
    kinds = [(k, t) for k, _, t in check_data(csv_pairs(tree / 't.csv'), SPACE, progress=False).faults]
    assert [k for k, _ in kinds] == ['twice', 'twice'] and 'image' in kinds[0][1] and 'mask' in kinds[1][1]


@pytest.mark.parametrize('name', ALL)
def test_every_layout(name, tmp_path):
    root, b = layout(name, tmp_path), DATASETS[name]
    report = check_data(b.load(root), b.space, progress=False)
    assert report.ok and report.pictures == 3 and len(report.pixels) == b.space.num_classes
    assert cli.main(['check-data', '--data', name, '--root', str(root), '--quiet']) == 0


@pytest.mark.parametrize(
    'name,folder',
    [
        ('ade20k', 'ADEChallengeData2016'),
        ('lip', 'LIP'),
        ('cityscapes', 'cityscapes'),
        ('cihp', 'CIHP'),
        ('coco_stuff_164k', 'coco'),
    ],
)
def test_real_layouts(name, folder):
    b = DATASETS[name]
    report = check_data(b.load(real('layouts') / folder), b.space, progress=False)
    assert report.ok and sum(report.pixels) > 0, report.faults


@pytest.mark.parametrize(
    'name,folder,split',
    [
        ('stanford_background', 'stanford', 'val'),
        ('ccp59', 'ccp', 'val'),
        ('ccp16', 'ccp', 'val'),
        ('camvid', 'CamVid', 'val'),
    ],
)
def test_real_sets(name, folder, split):
    b = DATASETS[name]
    report = check_data(b.load(real(folder), split), b.space, progress=False)
    assert report.ok, report.faults
    if name != 'ccp59':
        assert all(report.pixels)


# --- the command
def run(capsys, *words):
    code = cli.main(['check-data', '--quiet', *map(str, words)])
    return (code, *capsys.readouterr())


def test_exit_codes(tree, tmp_path, capsys):
    (tmp_path / 'c.txt').write_text('\n'.join(SPACE.classes) + '\nvoid, 11\n')
    own = '--images', tree / 'images', '--labels', tree / 'labels', '--classes', tmp_path / 'c.txt'
    code, out, err = run(capsys, *own, '--json', tmp_path / 'new' / 'r.json')
    assert (
        (code, err) == (0, '')
        and 'no faults' in out
        and json.loads((tmp_path / 'new' / 'r.json').read_text())['all']['pixels'] == check(tree).pixels
    )
    (tree / 'labels' / 'p5.png').unlink()
    save(tree / 'labels' / 'p6.png', np.full((12, 16), 12))
    code, out, err = run(capsys, *own, '--workers', 2, '--json', tmp_path / 'r.json')
    assert (code, err) == (1, '') and 'p5.*' in out and 'p6.png' in out
    assert [f[0] for f in json.loads((tmp_path / 'r.json').read_text())['all']['faults']] == ['missing', 'unseen ids']
    (tree / 'p.csv').write_text('image,label\nimages/p0.png,labels/p0.png\nimages/p1.png,labels/p5.png\n')
    assert run(capsys, '--pairs', tree / 'p.csv', '--classes', tmp_path / 'c.txt')[0] == 1


def test_parts_that_are_checked(tmp_path, capsys):
    root = layout('lip', tmp_path)
    code, out, err = run(capsys, '--data', 'lip', '--root', root)
    assert (
        code == 0
        and 'train, lip: 1 pairs' in out
        and 'val, lip: 3 pairs' in out
        and out.count('the published part has 10000 pairs') == 1
    )
    code, out, err = run(capsys, '--data', 'lip', '--root', root, '--split', 'val', '--json', tmp_path / 'r.json')
    assert code == 0 and 'train' not in out and [*json.loads((tmp_path / 'r.json').read_text())] == ['val']


@pytest.mark.parametrize(
    'words,said',
    [
        ('', 'what to check'),
        ('--images {r}/images --labels {r}/labels', 'what to check'),
        ('--images {r}/images --classes {r}/c', 'what to check'),
        ('--data camvid', 'needs --root'),
        ('--data camvid --root {r}', 'should hold train/'),
        ('--data camvid --root {r} --split dev', "no split 'dev'"),
        ('--data camvid --root {r} --images {r}', 'one or the other'),
        ('--root {r} --classes {r}/c', 'belong to --data'),
        ('--images {r}/none --labels {r}/labels --classes {r}/c', 'no folder'),
        ('--images {r}/images --labels {r}/labels --classes {r}/none', 'no file'),
        ('--pairs {r}/none --classes {r}/c', 'CSV or JSONL'),
        ('--pairs {r}/none --images {r}/images --classes {r}/c', 'what to check'),
        ('--images {r}/images --labels {r}/labels --classes {r}/images/p0.png', 'cannot be read'),
    ],
)
def test_usage_errors(tree, capsys, words, said):
    (tree / 'c').write_text('a\n')
    code, out, err = run(capsys, *words.format(r=tree).split())
    assert code == 2 and said in err and err.count('\n') == 1 and out == ''


def test_unknown_set():
    with pytest.raises(SystemExit) as e:
        cli.main(['check-data', '--data', 'imagenet'])
    assert e.value.code == 2


def test_process_and_its_bar(tree):
    (tree / 'c.txt').write_text('\n'.join(f'c{i}' for i in range(12)))
    words = [sys.executable, '-c', 'import sys; from idrnet_nb.cli import main; sys.exit(main())']
    words += [
        'check-data',
        '--images',
        str(tree / 'images'),
        '--labels',
        str(tree / 'labels'),
        '--classes',
        str(tree / 'c.txt'),
    ]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, '') and 'no faults' in done.stdout  # no bar in a file
    terminal, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))  # rows, columns; tqdm draws nothing in 0
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=inner, text=True, env=environment)
    shown = os.read(terminal, 100_000).decode()  # before the other end is closed, which may empty it
    os.close(inner)
    os.close(terminal)
    assert done.returncode == 0 and 'check' in shown and '/8' in shown and 'no faults' in done.stdout
    (tree / 'images' / 'p0.png').write_bytes(b'x')
    assert subprocess.run(words, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode == 1


# --- training on a set that nobody checked
@pytest.mark.parametrize('what', [w for w in SPOIL if SPOIL[w][1] not in ('twice', 'nothing but void')])
def test_the_first_bad_sample_is_named(tree, what):
    spoil, _, file, word = SPOIL[what]
    rows = checked_rows(lambda: (spoil(tree / 'images' / 'p3.png', tree / 'labels' / 'p3.png'), rows_of(tree))[1])
    pairs = SegmentationDataset(rows, SPACE, augment=Augment((8, 8)))
    with pytest.raises((ValueError, FileNotFoundError), match='p3'):
        list(DataLoader(pairs, batch_size=2))
    lenient = SegmentationDataset(rows, SPACE, augment=Augment((8, 8)), on_unreadable='skip')
    with pytest.warns(UserWarning, match='skipped: .*p3'):
        items = [lenient[i] for i in range(8)]
    assert (
        lenient.bad.nonzero().flatten().tolist() == [3] and len(lenient.skipped()) == 1 and word in lenient.skipped()[0]
    )
    other = SegmentationDataset(
        rows.select([0, 1, 2, 4, 4, 5, 6, 7]), SPACE, augment=Augment((8, 8))
    )  # the next good one, with the chances of its place
    for i in range(8):
        assert all(torch.equal(a, b) for a, b in zip(items[i], other[i]))


@pytest.mark.filterwarnings('ignore:skipped')
def test_skipping_is_the_same_by_any_order_and_workers(tree):
    for name in 'p7', 'p2', 'p3':
        (tree / 'images' / f'{name}.png').write_bytes(b'')

    def run(workers, order):
        pairs = SegmentationDataset(
            rows_of(tree), SPACE, augment=Augment((8, 8), rotate=30, bounds=(12, 20)), on_unreadable='skip'
        )
        got = dict(zip(order, DataLoader(pairs, batch_size=None, sampler=order, num_workers=workers)))
        return got, pairs.bad.tolist()

    order = list(range(8))
    random.Random(0).shuffle(order)
    (a, bad), (b, bad2) = run(0, list(range(8))), run(2, order)
    assert bad == bad2 == [i in (2, 3, 7) for i in range(8)]
    for i in range(8):
        assert all(torch.equal(x, y) for x, y in zip(a[i], b[i]))
    assert not torch.equal(a[2][0], a[4][0])  # the same file, another crop


def test_all_are_bad(tree):
    for p in (tree / 'labels').iterdir():
        p.write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ValueError, match=r'none of 8 pairs can be read; the first: .*p0\.png'):
            SegmentationDataset(rows_of(tree), SPACE, augment=Augment((8, 8)), on_unreadable='skip')[5]


def test_a_repaired_file_is_said_to_be(tree):
    p = tree / 'labels' / 'p1.png'
    whole = p.read_bytes()
    p.write_bytes(b'')
    pairs = SegmentationDataset(rows_of(tree), SPACE, augment=Augment((8, 8)), on_unreadable='skip')
    with pytest.warns(UserWarning):
        pairs[1]
    p.write_bytes(whole)
    assert pairs.skipped() == ['pair 1 of 8 can be read again']


def test_errors_cross_processes(tree):
    (tree / 'labels' / 'p0.png').write_bytes(b'')
    with pytest.raises(BadFile, match=r'p0\.png'):
        next(iter(DataLoader(SegmentationDataset(rows_of(tree), SPACE), num_workers=1)))
    assert BadFile('x', 'y').kind == 'y' and Unpaired('x').rows is None


# --- turning and training scale
def test_rotation_is_seeded_by_picture_and_epoch_alone(tree):
    augment = Augment((12, 12), scale=(0.75, 1.25), rotate=30, bounds=(14, 18), keep_ratio=False, seed=3)

    def run(workers, order):
        pairs = SegmentationDataset(rows_of(tree), SPACE, augment=augment)
        out = []
        for epoch in range(2):
            pairs.set_epoch(epoch)
            out.append(dict(zip(order, DataLoader(pairs, batch_size=None, sampler=order, num_workers=workers))))
        return out

    a, b = run(0, list(range(8))), run(2, [5, 0, 3, 7, 1, 6, 2, 4])
    for e in range(2):
        for i in range(8):
            assert all(torch.equal(x, y) for x, y in zip(a[e][i], b[e][i]))
    assert not all(torch.equal(a[0][i][0], a[1][i][0]) for i in range(8))


def test_no_rotation_leaves_the_draws_alone(tree):
    x, y = SegmentationDataset(rows_of(tree), SPACE)[0]
    for i in range(20):
        assert all(
            torch.equal(a, b)
            for a, b in zip(Augment((9, 9))(x, y, i), Augment((9, 9), rotate=30, rotate_chance=0)(x, y, i))
        )


def test_augment_turns_both_ways_and_keeps_to_its_bounds(monkeypatch):
    image, label, seen = torch.zeros(3, 30, 50, dtype=torch.uint8), torch.zeros(30, 50, dtype=torch.long), []
    monkeypatch.setattr(
        'idrnet_nb.data.transforms.rotate', lambda image, label, degrees, *_: (seen.append(degrees), (image, label))[1]
    )
    for i in range(300):
        assert Augment(None, (1, 1), rotate=30, bounds=(20, 10), keep_ratio=False)(image, label, i)[1].shape == (10, 20)
    assert 150 < len(seen) < 210 and -30 <= min(seen) < -28 and 28 < max(seen) <= 30 and abs(sum(seen) / len(seen)) < 4
    assert Augment(None, (2, 2), rotate=0, bounds=(20, 10))(image, label)[1].shape == (20, 33)


@pytest.mark.parametrize('shape', [(9, 14), (14, 9), (1, 7), (1, 1), (8, 8)])
def test_rotation_properties(shape):
    rng = np.random.default_rng(0)
    image, label = (
        torch.from_numpy(rng.integers(0, 256, (3, *shape)).astype(np.uint8)),
        torch.from_numpy(rng.integers(0, 5, shape)),
    )
    for degrees in (0, 360, -360):
        assert all(torch.equal(a, b) for a, b in zip(rotate(image, label, degrees), (image, label)))
    turned = rotate(image, label, 180)
    assert all(torch.equal(a, b.flip(-1, -2)) for a, b in zip(turned, (image, label)))
    for degrees in rng.uniform(-30, 30, 20):
        x, y = rotate(image, label, degrees, (7, 8, 9), 999)
        assert (
            x.shape == image.shape
            and y.shape == label.shape
            and set(y.unique().tolist()) <= {*range(5), 999}
            and x.dtype == torch.uint8
            and y.dtype == torch.int64
        )


def test_image_and_label_turn_together():
    label = torch.arange(6).repeat_interleave(20).expand(90, 120).contiguous()
    image = (label * 40).to(torch.uint8).expand(3, 90, 120).contiguous()
    for degrees in (-30, -7, 3, 20):
        x, y = rotate(image, label, degrees)
        good = y != 255
        assert (
            0.6 < good.float().mean() < 1 and ((x[0][good].float() / 40 - y[good]).abs() > 0.55).float().mean() < 0.02
        )
        assert (
            x[:, y == 255].float() - torch.tensor([124.0, 116, 104])[:, None]
        ).abs().mean() < 8  # mean colour but for the seam


def test_rotation_agrees_with_pillow():
    rng = np.random.default_rng(1)
    label = np.kron(rng.integers(0, 9, (6, 8)), np.ones((9, 9))).astype(np.uint8)
    for degrees in (-30, 11, 25):
        want = np.array(Image.fromarray(label).rotate(degrees, Image.Resampling.NEAREST, fillcolor=255))
        got = rotate(torch.zeros(3, *label.shape, dtype=torch.uint8), torch.from_numpy(label).long(), degrees)[
            1
        ].numpy()
        assert (want == got).mean() > 0.97


def test_fit_size_is_that_of_evaluation():
    rng = random.Random(0)
    for _ in range(200):
        size, bounds = [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(2)]
        assert fit_size(size, bounds) == EvalProtocol(resize=bounds, keep_ratio=True).fit(size)
        assert sorted(fit_size(size, bounds, False)) == sorted(bounds)
        f = rng.uniform(0.5, 2)
        assert fit_size(size, bounds, True, f) == fit_size(size, [max(1, int(b * f)) for b in bounds])


# --- data of one's own
PLAIN = 'image,label\nimages/p0.png,labels/p0.png\nimages/p1.png,labels/p1.png\n'
TABLES = {
    't.csv': PLAIN,
    'bom.csv': '\ufeff' + PLAIN.replace('\n', '\r\n').replace(',', ', '),
    'semi.csv': 'label;image;note\nlabels/p0.png;images/p0.png;a, b\nlabels/p1.png;images/p1.png;\n',
    'tab.tsv': PLAIN.replace(',', '\t'),
    't.jsonl': '{"image":"images/p0.png","label":"labels/p0.png"}\n\n{"image":"images/p1.png","label":"labels/p1.png"}\n',
}


@pytest.mark.parametrize('name', TABLES)
def test_tables(tree, name, monkeypatch, tmp_path):
    (tree / name).write_text(TABLES[name], encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    a, b = SegmentationDataset(csv_pairs(tree / name), SPACE), SegmentationDataset(rows_of(tree), SPACE)
    assert len(a) == 2 and all(torch.equal(x, y) for i in range(2) for x, y in zip(a[i], b[i]))
    (tree / name).write_text(TABLES[name].replace('images/p0', f'{tree}/images/p0'), encoding='utf-8')
    assert torch.equal(SegmentationDataset(csv_pairs(tree / name), SPACE)[0][0], b[0][0])  # whole paths too


@pytest.mark.parametrize(
    'name,text,said',
    [
        ('t.csv', 'a,b\n1,2\n', r"line 2 has no column 'image', but a, b"),
        ('t.csv', 'image,label\n', "no rows"),
        ('t.csv', 'image,label\nimages/p0.png\n', r"line 2: column 'label' is empty"),
        ('t.jsonl', '{"image":"images/p0.png"}\n', r"line 1 has no column 'label'"),
        ('t.jsonl', 'not json\n', 'a JSON object a line'),
        ('t.jsonl', '[1]\n', 'a JSON object a line'),
        (
            't.csv',
            'image,label\nimages/p0.png,labels/p0.png\nimages/p1.png,x.png\n',
            r"names 1 files that are not there: line 3: '.*x\.png'",
        ),
    ],
)
def test_bad_tables(tree, name, text, said):
    (tree / name).write_text(text)
    with pytest.raises(ValueError, match=said) as e:
        csv_pairs(tree / name)
    assert name in str(e.value)


def hub(root, **kw):
    files = {
        c: [str(p) for p in sorted((root / d).iterdir())]
        for c, d in (('pixel_values', 'images'), ('annotation', 'labels'))
    }
    return Dataset.from_dict(files).cast_column('pixel_values', Pictures()).cast_column('annotation', Pictures(**kw))


def held(root, **kw):
    "The same with the files inside, as the Hub has them."
    inside = lambda d: [dict(bytes=p.read_bytes(), path=p.name) for p in sorted((root / d).iterdir())]
    return (
        Dataset.from_dict(dict(pixel_values=inside('images'), annotation=inside('labels')))
        .cast_column('pixel_values', Pictures())
        .cast_column('annotation', Pictures(**kw))
    )


@pytest.mark.parametrize('mode', [None, 'L', 'RGB'])
def test_hub_masks_keep_their_ids(tree, mode):
    for p in (tree / 'labels').iterdir():
        im = Image.open(p)
        im.putpalette([9, 200, 30] * 256)
        im.save(p)
    want = SegmentationDataset(rows_of(tree), SPACE)
    plain = hub(tree, **({'mode': mode} if mode else {}))
    for d in plain, held(tree, **({'mode': mode} if mode else {})):
        got = SegmentationDataset(hub_pairs(d, 'pixel_values', 'annotation'), SPACE)
        assert len(got) == 8 and all(torch.equal(a, b) for i in (0, 7) for a, b in zip(got[i], want[i]))
        assert check_data(got.rows, SPACE, progress=False).to_json() == check(tree).to_json()


def test_hub_rows_are_named(tree):
    save(tree / 'labels' / 'p2.png', np.full((12, 16), 99))
    (tree / 'images' / 'p4.png').write_bytes(b'x')
    rows = hub_pairs(held(tree), 'pixel_values', 'annotation')
    for i, word in (2, '99'), (4, 'cannot be read'):
        with pytest.raises(BadFile, match=f"row '{i}'.*{word}"):
            SegmentationDataset(rows, SPACE)[i]
    report = check_data(rows, SPACE, 2, progress=False)
    assert [(k, p) for k, p, _ in report.faults] == [('unseen ids', "row '2', label"), ('broken', "row '4', image")]


def test_hub_columns_may_be_crossed(tree):
    d = hub(tree).rename_columns(dict(pixel_values='label', annotation='image')).add_column('id', list(range(10, 18)))
    rows = hub_pairs(d, 'label', 'image')
    assert rows['id'][:2] == ['10', '11'] and torch.equal(
        SegmentationDataset(rows, SPACE)[1][1], SegmentationDataset(rows_of(tree), SPACE)[1][1]
    )


@pytest.mark.parametrize(
    'text,classes,encoded',
    [
        ('a\nb\n', ('a', 'b'), {0: 0, 1: 1, 255: 255}),
        ('\ufeffa\r\n\r\n# no\r\nb\r\n', ('a', 'b'), {0: 0, 1: 1}),
        ('b, 7\na, 3, #010203\nVoid, 0\n', ('b', 'a'), {7: 0, 3: 1, 0: 255, 255: 255}),
        ('\n'.join(f'c{i}' for i in range(300)), tuple(f'c{i}' for i in range(300)), {255: 255, 299: 299}),
        ('a\t5\t#00ff00\n', ('a',), {5: 0}),
        ('"a, b", 255\nc, 1', ('a, b', 'c'), {255: 0, 1: 1}),
        ('a, #ff0000\n', ('a',), {0: 0}),
        ('a,,#ff0000\n', ('a',), {0: 0}),
    ],
)
def test_class_lists(tmp_path, text, classes, encoded):
    (tmp_path / 'yard.txt').write_text(text, encoding='utf-8')
    space = space_from_file(tmp_path / 'yard.txt')
    assert space.classes == classes and space.name == 'yard' and space_from_file(tmp_path / 'yard.txt', 'n').name == 'n'
    for raw, train in encoded.items():
        assert space.encode(np.array([[raw]])).tolist() == [[train]]
    if '#ff0000' in text:
        assert space.palette[0] == (255, 0, 0)
    with pytest.raises(ValueError, match='does not know'):
        space.encode(np.array([[2000]]))
    assert LabelSpace.from_json(space.to_json()) == space


@pytest.mark.parametrize(
    'text,said',
    [
        ('a, 1\nb\n', '1 of 2 classes have an id'),
        ('a, 1\nb, 1\n', "line 2: id 1 of 'b' is that of 'a'"),
        ('a, 1\nvoid, 1\n', "line 2: id 1 of 'void'"),
        ('a, -1\n', "line 1: '-1' is neither"),
        ('a, red\n', "'red' is neither"),
        ('a\na\n', r"line 2: .a. is named twice"),
        ('', 'names no class'),
        ('void\na', "line 1: void needs"),
        ('a\n0\nvoid, 1\n', 'id 1'),
    ],
)
def test_bad_class_lists(tmp_path, text, said):
    (tmp_path / 'c.txt').write_text(text)
    with pytest.raises(ValueError, match=said):
        space_from_file(tmp_path / 'c.txt')


def test_masks_in_colours():
    rng = np.random.default_rng(0)
    for k, void in (1, ()), (11, ((1, 2, 3),)), (300, ()):
        colours = rng.permutation(256**3)[:k]
        space = LabelSpace(
            'c',
            [f'c{i}' for i in range(k)],
            [(c >> 16, c >> 8 & 255, c & 255) for c in colours.tolist()],
            ignore=max(255, k),
        )
        ids = rng.integers(0, k + len(void), (5, 7))
        out = ids_from_colours(np.array([*space.palette, *void], np.uint8)[ids], space, void)
        assert np.array_equal(out, np.where(ids == k, space.ignore, ids)) and out.dtype == (
            np.uint8 if k < 256 else np.uint16
        )
    with pytest.raises(ValueError, match='#0a0a0a stands for two classes'):
        ids_from_colours(np.zeros((1, 1, 3), np.uint8), LabelSpace('two', ['a', 'b'], [(10, 10, 10)] * 2))
    with pytest.raises(ValueError, match=r'2 colours: #\w{6} \(2 pixels\), #\w{6} \(1 pixels\)'):
        ids_from_colours(
            np.array([[space.palette[0], (0, 0, 1), (9, 9, 9), (9, 9, 9)]], np.uint8),
            LabelSpace('one', ['a'], [space.palette[0]]),
        )


def test_life_of_a_folder_of_your_own(tree, capsys):
    "Classes, check, pairs, one batch: what 6_trainings/07_your_data does."
    (tree / 'c.txt').write_text('\n'.join(f'class {i}' for i in range(11)) + '\nvoid, 11\n')
    assert run(capsys, '--images', tree / 'images', '--labels', tree / 'labels', '--classes', tree / 'c.txt')[0] == 0
    space = space_from_file(tree / 'c.txt')
    x, y = next(iter(DataLoader(SegmentationDataset(rows_of(tree), space, augment=Augment((8, 8))), batch_size=4)))
    assert x.shape == (4, 3, 8, 8) and set(y.unique().tolist()) <= {*range(11), 255}
    row = rows_of(tree)[0]
    assert read_image(row['image']).shape[:2] == read_mask(row['label'], space).shape
