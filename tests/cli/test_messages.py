"""Issue 14, sentence by sentence, through the real command: what no other file holds. Masks of a part that is judged on,
faults one a line, and no words of another library without a file name."""

import os, struct, subprocess, sys, zlib
import numpy as np
import pytest
from PIL import Image
from idrnet_nb.cli import main
from idrnet_nb.data.validate import DataFault, check_parts, raise_faults
from idrnet_nb.data.labels import LabelSpace

SPACE = LabelSpace('own', ('background', 'object'), [(0, 0, 0), (9, 9, 9)])


def folders(root, n, ids, hw=(24, 32)):
    "`n` images, and masks in which a square of `ids[1]` lies on `ids[0]`: the words for --images and --labels."
    rng = np.random.default_rng(zlib.crc32(str(root).encode()))
    for name in ('images', 'labels'):
        (root / name).mkdir(parents=True)
    for i in range(n):
        mask = np.full(hw, ids[0], np.uint8)
        mask[4:12, 4 + i : 14 + i] = ids[1]
        image = rng.integers(0, 90, (*hw, 3)).astype(np.uint8)
        image[mask == ids[1]] += 150
        Image.fromarray(image).save(root / 'images' / f'p{i}.png')
        Image.fromarray(mask).save(root / 'labels' / f'p{i}.png')
    return root


def rows(root):
    return [
        dict(id=p.stem, image=str(p), label=str(root / 'labels' / p.name)) for p in sorted((root / 'images').iterdir())
    ]


def words(root, unseen=''):
    return [f'--{unseen}images', str(root / 'images'), f'--{unseen}labels', str(root / 'labels')]


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    "A folder with masks of 0 and 1, its class list, and one with masks of 0 and 255."
    root = tmp_path_factory.mktemp('walk')
    (root / 'classes.txt').write_text('background\nobject\n')
    return root, folders(root / 'right', 4, (0, 1)), folders(root / 'white', 3, (0, 255))


def test_white_masks_of_the_part_to_judge_on(of_two):
    _, right, white = of_two
    reports = check_parts(dict(train=rows(right), unseen=rows(white)), SPACE, progress=False)
    assert [f[0] for f in reports['unseen'].faults] == ['ignored id'] and reports['train'].ok
    what = reports['unseen'].faults[0][2]
    assert "no class besides 'background'" in what and 'id 255' in what and 'object, 255' in what
    with pytest.raises(DataFault, match=r'(?s)the data has 1 fault \(.*\nunseen, ignored id: '):
        raise_faults(reports)


def test_a_good_model_is_not_judged_on_white_masks(of_two, tmp_path, capsys):
    root, right, white = of_two
    start = [
        'train',
        *words(right),
        '--classes',
        str(root / 'classes.txt'),
        '--mini',
        '--steps',
        '1',
        '--batch',
        '2',
        '--quiet',
        '--out',
    ]
    assert main([*start, str(tmp_path / 'no'), *words(white, 'test-')]) == 2
    err = capsys.readouterr().err
    assert 'id 255' in err and '--allow ignored-id' in err and not (tmp_path / 'no').exists()
    assert all(len(line) < 600 for line in err.splitlines()) and len(err.splitlines()) == 3  # one line a fault
    assert main([*start, str(tmp_path / 'model')]) == 0
    judge = ['evaluate', '--model', str(tmp_path / 'model'), '--quiet']
    assert main([*judge, *words(right)]) == 2 and 'learnt from' in capsys.readouterr().err
    judge += ['--allow', 'learnt-from']
    assert main([*judge, *words(right)]) == 0
    capsys.readouterr()
    assert main([*judge, *words(white)]) == 2
    out, err = capsys.readouterr()
    assert 'mIoU' not in out and "no class besides 'background'" in err and '--allow ignored-id' in err
    assert main([*judge, 'ignored-id', *words(white)]) == 0


def test_broken_exif_says_nothing_without_a_name(tmp_path):
    root = folders(tmp_path / 'exif', 2, (0, 1))
    file, data = root / 'images' / 'p0.png', b'II*\0' + b'\xff' * 9
    chunk = struct.pack('>I', len(data)) + b'eXIf' + data + struct.pack('>I', zlib.crc32(b'eXIf' + data))
    old = file.read_bytes()
    file.write_bytes(old[:33] + chunk + old[33:])
    (tmp_path / 'classes.txt').write_text('background\nobject\n')
    code = 'import sys; from idrnet_nb.cli import main; sys.exit(main())'
    done = subprocess.run(
        [sys.executable, '-c', code, 'check-data', *words(root), '--classes', str(tmp_path / 'classes.txt'), '--quiet'],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0 and done.stderr == '' and 'no faults' in done.stdout
