"""`idrnet look`: own data, published data and the toy world; what it writes and says, and what it refuses."""

import numpy as np, pandas as pd, pytest
from PIL import Image
from test_cli import run

from idrnet_nb.data.fake_datasets import write_fake_dataset
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.method.toy_world import TOY_WORLD, ToyWorld

SPACE = LABEL_SPACES['camvid']


@pytest.fixture
def files(tmp_path):
    "A made-up CamVid; somebody's class list; the second image of the test part is one of the train part, mirrored."
    root = write_fake_dataset('camvid', tmp_path / 'camvid', SPACE, train=8, unseen=4, size=(48, 64))
    train, test = (sorted((root / part).iterdir()) for part in ('train', 'test'))
    for a, b in (train[2], test[1]), (mask_of(train[2]), mask_of(test[1])):
        Image.open(a).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(b)
    (tmp_path / 'classes.txt').write_text('\n'.join(SPACE.classes) + '\nvoid, 11\n')
    return tmp_path


def mask_of(path):
    return path.parent.with_name(f'{path.parent.name}annot') / path.name


def own(files, part='train', prefix=''):
    folder = files / 'camvid'
    return [f'--{prefix}images', folder / part, f'--{prefix}labels', folder / f'{part}annot']


def look(capsys, files, *words):
    "Exit code, what was said, the table, the size of the sheet."
    code, out, err = run(capsys, 'look', *words, '--out', files / 'new' / 'look', '--quiet', '--n', 3)
    assert (code, err) == (0, ''), err
    with Image.open(files / 'new' / 'look' / 'look.png') as im:
        size = im.size
    return out, pd.read_csv(files / 'new' / 'look' / 'look.csv'), size


def test_a_published_set(files, capsys):
    out, table, size = look(capsys, files, '--data', 'camvid', '--root', files / 'camvid')
    assert out.startswith('camvid: 12 pairs, 2 suspicious: 2 near duplicate\n') and "mirrored in test" in out
    assert table['part'].tolist() == ['train'] * 8 + ['test'] * 4
    assert table.index[table['suspicious'] == 'yes'].tolist() == [2, 9]
    assert np.allclose(table[[c for c in table if c.endswith(' %')]].sum(axis=1), 100, atol=0.01)
    assert table['height'].tolist() == [48] * 12 and size[0] == 1400 and size[1] > 500
    _, table, _ = look(capsys, files, '--data', 'camvid', '--root', files / 'camvid', '--split', 'val')
    assert table['part'].tolist() == ['val'] * 4 and table['suspicious'].tolist() == ['no'] * 4


def test_own_data_with_and_without_an_unseen_part(files, capsys):
    classes = ['--classes', files / 'classes.txt']
    out, table, _ = look(capsys, files, *own(files), *classes)
    assert ': 8 pairs, 0 suspicious\n' in out and set(table['part']) == {'all'}
    out, table, _ = look(capsys, files, *own(files), *classes, *own(files, 'test', 'test-'))
    assert '12 pairs, 2 suspicious' in out and table['part'].tolist() == ['train'] * 8 + ['test'] * 4
    pairs = files / 'unseen.csv'
    lines = [f'{p},{mask_of(p)}' for p in sorted((files / 'camvid' / 'test').iterdir())]
    pairs.write_text('\n'.join(['image,label', *lines]))
    _, by_table, _ = look(capsys, files, *own(files), *classes, '--test-pairs', pairs, '--workers', 1)
    assert by_table['suspicious'].tolist() == table['suspicious'].tolist()


def test_data_that_cannot_be_read_or_paired_is_listed(files, capsys):
    images = sorted((files / 'camvid' / 'train').iterdir())
    images[0].write_bytes(b'')
    mask_of(images[1]).unlink()
    out, table, _ = look(capsys, files, *own(files), '--classes', files / 'classes.txt')
    assert '2 unreadable' in out and images[0].name in out and 'add --skip-broken' in out
    assert table['suspicious'].tolist() == ['yes'] * 2 + ['no'] * 6


def test_rare_classes_are_named_with_what_to_do(files, capsys):
    for path in (files / 'camvid' / 'trainannot').iterdir():
        ids = np.asarray(Image.open(path)).copy()
        ids[(ids == 4) | (ids == 5)] = 3
        ids[0, :4] = 5
        Image.fromarray(ids).save(path)
    out, _, _ = look(capsys, files, *own(files), '--classes', files / 'classes.txt')
    last = out.splitlines()[-3:]
    assert last[0].startswith('without a pixel in all: pavement; idrnet train stops for that')
    assert last[0].endswith('--allow class-without-a-pixel')
    assert last[1].startswith('under 1 % of the pixels of all: tree (0.') and 'class_weights=balanced' in last[1]
    assert last[2].startswith('written to')


def test_the_toy_world(files, capsys):
    out, table, _ = look(capsys, files, '--data', 'world', '--pictures', 12, 3)
    assert out.startswith('world: 15 pairs, 0 suspicious\n') and 'remark' not in out
    assert table['part'].tolist() == ['train'] * 12 + ['test'] * 3
    label = ToyWorld(12, seed=0)[5][1]
    want = [100 * (label == c).float().mean().item() for c in range(TOY_WORLD.num_classes)]
    assert np.allclose(table.iloc[5][[f'{name} %' for name in TOY_WORLD.classes]].astype(float), want, atol=1e-3)


@pytest.mark.parametrize(
    'words,said',
    [
        ([], 'what to look at?'),
        (['--images', 'x'], 'what to look at?'),
        (['--data', 'camvid'], '--data camvid needs --root'),
        (['--data', 'world', '--root', 'x'], '--root has no effect here: the toy world is made in memory'),
        (['--data', 'world', '--split', 'val'], '--split has no effect here'),
        (['--data', 'world', '--max-pixels', '9'], '--max-pixels has no effect here'),
        (['--data', 'world', '--classes', 'x'], '--data world and --classes'),
        (['--data', 'camvid', '--root', 'x', '--test-pairs', 'x'], '--data camvid and --test-pairs'),
        (['--data', 'camvid', '--root', 'x', '--pictures', '3', '3'], '--pictures has no effect here'),
        (['--data', 'camvid', '--root', 'x', '--image-suffix', 'x'], '--image-suffix has no effect here'),
        (['--pictures', '3', '3'], '--pictures has no effect here'),
        (['--split', 'val'], '--root and --split belong to --data NAME'),
    ],
    ids=' '.join,
)
def test_what_has_no_effect_is_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, 'look', *words)
    assert code == 2 and said in err and not out and not [*tmp_path.iterdir()]


def test_half_an_unseen_part_is_refused(files, capsys):
    words = ['look', *own(files), '--classes', files / 'classes.txt', '--test-images', files]
    code, _, err = run(capsys, *words, '--out', files / 'new')
    assert code == 2 and 'give --test-images DIR with --test-labels DIR' in err and not (files / 'new').exists()


def test_nothing_that_is_read_is_overwritten(files, capsys):
    words = ['look', *own(files), '--classes', files / 'classes.txt', '--quiet', '--out']
    for out, said in (files / 'camvid' / 'train', 'which is read'), (files / 'classes.txt', 'this is a file'):
        code, _, err = run(capsys, *words, out)
        assert code == 2 and said in err
    table = files / 'look.csv'
    table.write_text(f'image,label\n{"x"},{"y"}\n')
    code, _, err = run(capsys, 'look', '--pairs', table, '--classes', files / 'classes.txt', '--out', files)
    assert code == 2 and 'would be overwritten' in err and table.read_text().startswith('image,label')
