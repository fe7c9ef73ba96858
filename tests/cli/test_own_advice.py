"""What a stranger's data tells before a training: guessed sides, frames of one video, a class that is called unsure."""

import json

import numpy as np
import pytest
from PIL import Image
from commands import run_command as run
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.data.mirrored_classes import confused_sides, flip_lines, is_guessed
from idrnet_nb.data.class_lists import like_void
from idrnet_nb.data.splits import advise_groups, suggest_groups

CLASSES = 'sand\ngear left\ngear right\nunsure\n'


@pytest.fixture(scope='module')
def dives(tmp_path_factory):
    "12 images of 3 dives, and the options that name them."
    folder = tmp_path_factory.mktemp('dives')
    rng = np.random.default_rng(0)
    for part in 'images', 'masks':
        (folder / part).mkdir()
    for i in range(12):
        name = f'dive{i // 4:02}_frame{i % 4:03}.png'
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / 'images' / name)
        Image.fromarray(rng.integers(0, 4, (24, 32), dtype=np.uint8)).save(folder / 'masks' / name)
    (folder / 'classes.txt').write_text(CLASSES)
    return folder, ['--images', folder / 'images', '--labels', folder / 'masks', '--classes', folder / 'classes.txt']


def plan(capsys, dives, out, *more):
    code, text, err = run(capsys, 'train', *dives[1], '--mini', '--quiet', '--plan', '--out', out, *more)
    assert code == 0, err
    recipe = json.loads((out / 'plan.json').read_text())['recipe']
    return text, recipe['augment']['flip_pairs'], recipe['protocol']['flip_pairs']


def test_the_plan_warns_of_a_guess(dives, tmp_path, capsys):
    text, *pairs = plan(capsys, dives, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith('warning: images are mirrored'))
    assert "'gear left' / 'gear right' change places, guessed" in line and 'mirror=none' in line
    assert pairs == [[[1, 2]], [[1, 2]]]


@pytest.mark.parametrize('word', ['none', 'None', '()', '[]'])
def test_a_guess_is_refused_by_a_setting(word, dives, tmp_path, capsys):
    "Also in the inference with --flip, and when the plan is carried out later."
    text, *pairs = plan(capsys, dives, tmp_path / 'a', '--set', f'augment.flip_pairs={word}')
    assert 'a flip swaps no classes' in text and 'warning: images are mirrored' not in text and pairs == [[], []]
    written = ['--from-plan', tmp_path / 'a' / 'plan.json', '--out', tmp_path / 'b', '--plan']
    code, text, err = run(capsys, 'train', *written)
    again = json.loads((tmp_path / 'b' / 'plan.json').read_text())['recipe']
    assert code == 0 and 'a flip swaps no classes' in text and again['own']['mirror'] == [], err
    assert again['augment']['flip_pairs'] == again['protocol']['flip_pairs'] == []


def test_a_guess_is_refused_by_the_class_list(dives, tmp_path, capsys):
    (tmp_path / 'own.txt').write_text(CLASSES.replace('left', 'left, mirror=none'))
    words = [*dives[1][:-1], tmp_path / 'own.txt']
    text, *pairs = plan(capsys, (None, words), tmp_path / 'a')
    assert 'as you have said' in text and pairs == [[], []]


def test_the_plan_says_what_the_settings_do(dives, tmp_path, capsys):
    text, *pairs = plan(capsys, dives, tmp_path / 'a', '--set', 'augment.flip_pairs=(0,3),')
    assert 'a flip swaps: sand / unsure (as the settings' in text and pairs[0] == [[0, 3]]
    assert 'no image is mirrored' in plan(capsys, dives, tmp_path / 'b', '--set', 'augment.flip=0.')[0]


def test_a_guess_that_was_wrong_is_named_after_the_training():
    gears = LabelSpace('mine', ('sand', 'gear left', 'gear right'), palette(3).tolist())
    counts = np.array([[9, 0, 0], [3, 5, 2], [0, 6, 4]])
    (line,) = confused_sides(gears, counts, ((1, 2),))
    assert "60 % of the pixels of 'gear right' are predicted as 'gear left'" in line and 'mirror=none' in line
    assert not confused_sides(gears, counts, ())
    assert not confused_sides(gears, counts, ((1, 2),), share=0.6)
    assert not confused_sides(gears, np.zeros((3, 3)), ((1, 2),))
    said = LabelSpace('mine', gears.classes, gears.palette, mirror=((1, 2),))
    assert not confused_sides(said, counts, ((1, 2),)) and not is_guessed(said)
    assert not any(is_guessed(space) or 'warning' in flip_lines(space)[0] for space in LABEL_SPACES.values())


def test_names_of_frames(dives, tmp_path, capsys):
    line = "12 names in 3 groups (dive00, dive01, …): if these are frames of one video each, keep them together: --group-by '^(.+)_frame'"
    assert line in plan(capsys, dives, tmp_path / 'a')[0]
    assert 'keep them together' not in plan(capsys, dives, tmp_path / 'b', '--group-by', '^(.+)_frame')[0]
    parts = ['--test-images', dives[0] / 'images', '--test-labels', dives[0] / 'masks', '--allow', 'in-two-parts']
    assert 'keep them together' not in plan(capsys, dives, tmp_path / 'c', *parts)[0]


def test_which_names_show_groups():
    for ids in (
        [str(i) for i in range(9)],
        [f'a_{i}' for i in range(9)],
        [f'a{i}_{j}' for i in range(5) for j in (1, 2)],
    ):
        assert advise_groups(ids) == ''
    assert suggest_groups([f'{a}-{i}.png' for a in 'xyz' for i in range(3)])[1] == ['x', 'y', 'z']
    ids = [f'a_frame_{v}_frame_{i}' for v in range(2) for i in range(3)]  # the expression must not end too early
    assert suggest_groups(ids) == ('^(.+)_frame_', ['a_frame_0', 'a_frame_1'])
    ids = [f'v{v}_{i}_x_right' for v in range(2) for i in range(3)]  # the last "_" stands behind the number
    assert suggest_groups(ids) == ('^(.*?)[0-9]+[^0-9]*$', ['v0_', 'v1_'])


def test_an_expression_that_makes_one_group(dives, capsys, tmp_path):
    code, _, err = run(capsys, 'train', *dives[1], '--mini', '--group-by', 'dive', '--out', tmp_path)
    assert code == 2 and "group 'dive' makes one group of 12 images" in err and "e.g. '^(.+)_frame'" in err
    assert 'shares' not in err


def test_a_class_that_is_called_like_void():
    names = (
        'sand',
        'unsure',
        'Unknown',
        "don't care",
        'unlabelled area',
        'background',
        'other',
        'unknown animal',
        'class',
    )
    lines = like_void(LabelSpace('mine', names, palette(len(names)).tolist()))
    assert [line.split(' sounds')[0] for line in lines] == [
        "advice: 'unsure'",
        "advice: 'Unknown'",
        'advice: "don\'t care"',
        "advice: 'unlabelled area'",
    ]


@pytest.mark.parametrize('command', ['look', 'check-data'])
def test_the_same_options_serve_other_commands(command, dives, tmp_path, capsys):
    out = ['--out', tmp_path] if command == 'look' else []
    code, text, err = run(capsys, command, *dives[1], *out, '--quiet')
    assert code == 0 and "--group-by '^(.+)_frame'" in text and 'call it void' in text, err
    assert 'warning: images are mirrored' in text
    given = ['--skip-broken', '--allow', 'palettes-differ', '--group-by', '^(.+)_frame']
    code, text, err = run(capsys, command, *dives[1], *out, '--quiet', *given)
    assert code == 0 and "--group-by '^(.+)_frame': 12 images in 3 groups" in text, err
    assert 'without effect here, for train and compare only: --allow, --skip-broken' in text
    code, _, err = run(capsys, command, *dives[1], *out, '--quiet', '--group-by', 'film')
    assert code == 2 and "group 'film' is no column" in err


def test_the_help_says_how_to_name_void_and_sides(capsys):
    for command in 'train', 'look':
        text = ' '.join(run(capsys, command, '--help')[1].split())
        assert 'must be named void' in text and 'mirror=none' in text
