"""From a folder of one's own to a score that is honest: parts, groups, colours, a page, an A/B."""

import csv
import json
import shutil
import numpy as np
import pytest
from PIL import Image
from commands import run_command as run
from idrnet_nb.cli import entry_point as cli
from idrnet_nb.training.checkpoint import checkpoints

COLOURS = {'soil': (120, 80, 40), 'leaf': (0, 200, 0), 'weed': (200, 0, 200)}


@pytest.fixture(scope='module')
def farm(tmp_path_factory):
    "Ten fields of three frames each; masks drawn in colours, RGBA; names that differ at their ends."
    folder = tmp_path_factory.mktemp('farm')
    rng = np.random.default_rng(0)
    for kind in 'imgs', 'gt':
        (folder / kind).mkdir()
    for field in range(10):
        for frame in range(3):
            mask = np.zeros((48, 64), int)
            for c in 1, 2:
                y, x = rng.integers(0, 30, 2)
                mask[y : y + 16, x : x + 20] = c
            colours = np.array(list(COLOURS.values()), np.uint8)[mask]
            image = (colours * 0.5 + rng.normal(60, 15, (48, 64, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / 'imgs' / f'field{field}_frame{frame}_rgb.png')
            rgba = np.dstack([colours, np.full((48, 64), 255, np.uint8)])
            rgba[:2] = 0  # transparent
            Image.fromarray(rgba).save(folder / 'gt' / f'field{field}_frame{frame}_mask.png')
    lines = [f'{name}, #{bytes(c).hex()}' for name, c in COLOURS.items()]
    (folder / 'classes.txt').write_text('\n'.join([*lines, 'void, transparent']) + '\n')
    return folder


def data(farm, affixes=True):
    words = ['--images', farm / 'imgs', '--labels', farm / 'gt', '--classes', farm / 'classes.txt']
    return words + ['--image-suffix=_rgb', '--label-suffix=_mask'] if affixes else words


@pytest.fixture(scope='module')
def trained(farm, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs') / 'mine'
    words = [
        'train',
        *data(farm),
        '--group-by',
        r'^(field\d+)',
        '--mini',
        '--batch',
        4,
        '--steps',
        6,
        '--save-every',
        3,
    ]
    assert cli.main([str(w) for w in [*words, '--device', 'cpu', '--quiet', '--out', out]]) == 0
    return out


def parts_of(out):
    with open(out / 'parts.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return {part: {row['id'] for row in rows if row['part'] == part} for part in ('train', 'val', 'test')}


def test_parts_are_kept_and_groups_are_not_divided(trained):
    parts = parts_of(trained)
    fields = {part: {id.split('_')[0] for id in ids} for part, ids in parts.items()}
    assert sum(map(len, parts.values())) == 30 and all(parts.values())
    assert not fields['train'] & fields['test'] and not fields['train'] & fields['val']
    assert not fields['val'] & fields['test']


def test_what_is_left_behind(trained):
    "The model is the best by val, its page says so; the last checkpoint lies beside it."
    scores = {c['step']: c['score'] for c in checkpoints(trained / 'checkpoints')}
    assert set(scores) == {3, 6} and None not in scores.values()
    page = (trained / 'report.html').read_text()
    assert (
        'of val, which chose it' in page and 'intervals draw groups' in page and 'a trial (--mini), no result' in page
    )
    assert 'bootstrap over groups of images' in page
    with open(trained / 'parts.csv', newline='') as file:
        fields = {}
        for row in csv.DictReader(file):
            fields.setdefault(row['group'], set()).add(row['id'].split('_')[0])
    assert len(fields) == 10 and all(len(names) == 1 for names in fields.values())
    config = json.loads((trained / 'config.json').read_text())
    assert config['results'][0]['pictures'] == len(parts_of(trained)['test'])


def test_images_that_were_learnt_from_make_no_score(farm, trained, capsys, tmp_path):
    "They are refused, or named as such; without images, the part test is taken."
    own = [w for w in data(farm) if w not in ('--classes', farm / 'classes.txt')]
    for model in trained, trained / 'checkpoints' / 'step-00000003.safetensors':
        learnt = len(parts_of(trained)['train'])
        code, _, err = run(capsys, 'evaluate', '--model', model, *own, '--device', 'cpu', '--quiet')
        assert code == 2 and f'{learnt} of these 30 images' in err and '--allow learnt-from' in err
    code, out, _ = run(capsys, 'evaluate', '--model', trained, '--device', 'cpu', '--quiet')
    honest = json.loads((trained / 'config.json').read_text())['results'][0]['miou']
    assert code == 0 and f'mIoU                {honest:7.2f}' in out and 'part test of' in out
    again = ['evaluate', '--model', trained, '--device', 'cpu', '--quiet', '--out', tmp_path / 'page']
    assert run(capsys, *again)[0] == 0 and run(capsys, *again, '--limit', 4)[0] == 0
    assert 'bootstrap over groups of images' in (tmp_path / 'page' / 'report.html').read_text()
    allowed = ['--allow', 'learnt-from', '--device', 'cpu', '--quiet']
    code, out, _ = run(capsys, 'evaluate', '--model', trained, *own, *allowed)
    assert code == 0 and f'{learnt} of which the model learnt from' in out and 'unseen' not in out
    code, _, err = run(capsys, 'relations', '--model', trained, *own, '--device', 'cpu', '--out', tmp_path / 'r')
    assert code == 2 and 'learnt from' in err
    code, out, _ = run(
        capsys, 'relations', '--model', trained, '--device', 'cpu', '--out', tmp_path / 'r', '--limit', 2, '--quiet'
    )
    assert code == 0 and (tmp_path / 'r' / 'relations.csv').is_file()


def test_a_finished_training_is_extended(farm, trained, capsys, tmp_path):
    "With more steps and --resume; the plan says where it goes on."
    shutil.copytree(trained, tmp_path / 'longer')
    words = [
        'train',
        *data(farm),
        '--group-by',
        r'^(field\d+)',
        '--mini',
        '--batch',
        4,
        '--steps',
        8,
        '--save-every',
        3,
    ]
    code, out, _ = run(capsys, *words, '--device', 'cpu', '--quiet', '--resume', '--out', tmp_path / 'longer')
    assert code == 0 and 'goes on at step 6' in out
    assert checkpoints(tmp_path / 'longer' / 'checkpoints')[-1]['step'] == 8


def test_names_that_differ_are_guessed(farm, capsys, tmp_path):
    "look, train and check-data say with which options images find their masks."
    for command, more in ('look', ['--out', tmp_path / 'l']), ('train', ['--out', tmp_path / 't']), ('check-data', []):
        code, out, err = run(capsys, command, *data(farm, affixes=False), '--quiet', *more)
        assert code and '--image-suffix=_rgb --label-suffix=_mask' in out + err, command
    assert not (tmp_path / 'l').exists() and not (tmp_path / 't').exists()


def test_an_ab_on_the_same_data(farm, trained, capsys, tmp_path):
    "compare takes the same options, divides in the same way, and goes on where it was stopped."
    words = ['compare', *data(farm), '--group-by', r'^(field\d+)', '--mini', '--batch', 4, '--steps', 4, '--seeds', 1]
    words += ['--arms', 'fcn', 'fcn+idr', '--jobs', 1, '--relations', 3, '--device', 'cpu', '--out', tmp_path / 'ab']
    code, out, _ = run(capsys, *words)
    assert code == 0 and parts_of(tmp_path / 'ab') == parts_of(trained)
    page = (tmp_path / 'ab' / 'report.html').read_text()
    assert 'Asked of the finished model' in page and 'recipe.head.width' in page
    before = json.loads((tmp_path / 'ab' / 'compare.json').read_text())['arms']
    assert run(capsys, *words)[0] == 0
    after = json.loads((tmp_path / 'ab' / 'compare.json').read_text())['arms']
    for arm in before:
        assert before[arm][0]['miou'] == after[arm][0]['miou'] and before[arm][0]['loss'] == after[arm][0]['loss']


def test_a_pair_that_cannot_be_read_is_named_and_left_out_if_asked(farm, capsys, tmp_path):
    "Before the first step; counts, note and page know of it."
    shutil.copytree(farm, tmp_path / 'f')
    folder = tmp_path / 'f'
    rows = ['image;label;split']
    for i, image in enumerate(sorted((folder / 'imgs').iterdir())):
        part = ('train', 'train', 'train', 'val', 'test')[i % 5]
        rows.append(f'imgs/{image.name};gt/{image.name.replace("rgb", "mask")};{part}')
    (folder / 'pairs.csv').write_text('\n'.join(rows))
    broken = rows[5].split(';')[0]  # of test
    whole = (folder / broken).read_bytes()
    (folder / broken).write_bytes(b'broken')
    words = ['train', '--pairs', folder / 'pairs.csv', '--classes', folder / 'classes.txt', '--mini', '--batch', 4]
    words += ['--steps', 2, '--device', 'cpu', '--quiet', '--out', tmp_path / 'run']
    code, _, err = run(capsys, *words)
    assert code == 2 and broken.split('/')[1] in err and '--skip-broken' in err and not (tmp_path / 'run').exists()
    code, out, _ = run(capsys, *words, '--skip-broken')
    assert code == 0 and 'left out of test: 1 of 6 pairs' in out and '1 pairs of val and test' in out
    assert 'test 5' in out and len(parts_of(tmp_path / 'run')['test']) == 5
    (folder / broken).write_bytes(whole)
    broken = rows[1].split(';')[0]  # of train
    (folder / broken).write_bytes(b'broken')
    words[-1] = tmp_path / 'other'
    code, out, err = run(capsys, *words, '--skip-broken')
    assert code == 0 and f'train 17 (1 left out: {broken})' in out and 'pairs of val and test' not in out
    assert f'17 (1 left out: {broken})' in (tmp_path / 'other' / 'report.html').read_text()
    assert len(parts_of(tmp_path / 'other')['train']) == 17 and 'skipped' not in err


def test_an_image_that_is_nearly_black_is_not_left_out(farm, capsys, tmp_path):
    "It can be read; whether the mask is right is another question."
    shutil.copytree(farm, tmp_path / 'f')
    for image in (tmp_path / 'f' / 'imgs').glob('field*_frame0_rgb.png'):
        Image.new('RGB', (64, 48), (3, 3, int(image.stem[5]))).save(image)
    words = ['train', *data(tmp_path / 'f'), '--mini', '--batch', 4, '--steps', 1, '--device', 'cpu', '--quiet']
    for more in [], ['--skip-broken']:
        out = tmp_path / f'run{len(more)}'
        code, said, _ = run(capsys, *words, *more, '--out', out)
        assert code == 0 and 'left out' not in said and sum(map(len, parts_of(out).values())) == 30
