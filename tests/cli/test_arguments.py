"""The command line, tried by a reviewer: arms and what is built, settings that come from elsewhere, recipe files, what is printed."""

import json, os, subprocess, sys, warnings
from dataclasses import replace

import pytest
from test_cli import files, run, trained, words_of  # noqa: F401, fixtures

from idrnet_nb import cli
from idrnet_nb.cli.recipes import Recipes
from idrnet_nb.data.label_spaces import LABEL_SPACES
from idrnet_nb.training.recipes import laptop

SPACE = LABEL_SPACES['camvid']
COMMAND = [sys.executable, '-c', 'import sys; from idrnet_nb.cli import main; sys.exit(main())']

# ---- what is built is what was asked for


@pytest.mark.parametrize('start', ['world', 'recipe', 'own'])
@pytest.mark.parametrize(
    'width',
    [('--width', 16, '--attention-width', 16), ('--set', 'head.width=16', 'head.attention_width=16')],
    ids=['option', 'set'],
)
def test_a_wide_arm_is_wider_than_the_plain_one_of_the_same_width(start, width, files, trained, capsys):  # noqa: F811
    "With a recipe the width that was asked for was set after the head was widened: the plain head, called fcn+wide on the card."
    base = ['train', *words_of(start, files), '--backbone', 'tiny', *width, '--arm']
    built = {}
    for arm in 'fcn', 'fcn+wide', 'fcn+idr':
        assert run(capsys, *base, arm)[0] == 0
        built[arm] = trained.calls[-1]['model']['head']['width'], sum(p.numel() for p in trained.model.parameters())
        assert trained.calls[-1]['results'][0]['arm'] == arm
    assert built['fcn'][0] == 16 and built['fcn+wide'][0] > 16
    assert abs(built['fcn+wide'][1] / built['fcn+idr'][1] - 1) < 0.2


def test_an_arm_widens_for_the_backbone_that_is_built(files, trained, capsys):  # noqa: F811
    base = ['train', *words_of('own', files), '--arm', 'fcn+wide']
    for words in ['--backbone', 'tiny'], []:
        assert run(capsys, *base, *words)[0] == 0
        wide = trained.calls[-1]['model']['head']['width'], sum(p.numel() for p in trained.model.head.parameters())
        assert run(capsys, *base[:-1], 'fcn+idr', *words)[0] == 0
        assert abs(wide[1] / sum(p.numel() for p in trained.model.head.parameters()) - 1) < 0.1, words


@pytest.mark.parametrize('start', ['world', 'set', 'recipe', 'own'])
def test_settings_that_come_from_elsewhere(start, files, trained, capsys):  # noqa: F811
    for setting, why in (
        ('head.idr=yes', 'name of the variant'),
        ('augment.ignore=3', 'classes of the data'),
        ('augment.seed=3', '--seed'),
        ('head.ignore=3', 'classes'),
    ):
        code, _, err = run(capsys, 'train', *words_of(start, files), '--arm', 'fcn+wide', '--set', setting)
        assert code == 2 and not trained.calls and (why in err or start == 'world' and 'toy world' in err), err


def test_a_list_without_brackets(files, trained, capsys):  # noqa: F811
    for text in '1,2,3', '[1,2,3]', '(1.,2.,3.)':
        assert run(capsys, 'train', *words_of('world', files), '--set', f'backbone.mean={text}')[0] == 0
        assert list(trained.calls[-1]['model']['backbone']['mean']) == [1, 2, 3]


# ---- recipe files


def test_recipe_files_that_were_edited(files, trained, capsys, tmp_path):  # noqa: F811
    good, path = laptop(SPACE, backbone='tiny', width=16).to_json(), tmp_path / 'mine.json'
    base = ['train', '--recipe', path, '--data', 'camvid', '--root', files / 'camvid']
    path.write_text('\ufeff' + json.dumps(good), encoding='utf-8')  # as Windows' editors write it
    assert run(capsys, *base)[0] == 0
    for part, changed, said in (
        ('head', dict(ignore=77), 'head.ignore=77'),
        ('augment', dict(ignore=0), 'augment.ignore=0'),
    ):
        path.write_text(json.dumps({**good, part: {**good[part], **changed}}))
        code, _, err = run(capsys, *base)
        assert code == 2 and said in err and 'ignores' in err
    path.write_text(json.dumps({**good, 'backbone': {'maps': 2}}))
    for words in [], ['--arm', 'upernet+idr'], ['--mini']:
        code, _, err = run(capsys, *base, *words)
        assert code == 2 and 'needs a name' in err
    path.write_text('{"name":')
    assert 'no JSON' in run(capsys, *base)[2]


def test_a_recipe_ignores_what_its_classes_ignore():
    with pytest.raises(ValueError, match='head.ignore=77'):
        replace(laptop(SPACE), head=replace(laptop(SPACE).head, ignore=77))


# ---- words


@pytest.mark.parametrize(
    'words',
    [
        ('train', '--out', ''),
        ('train', '--recipe', ''),
        ('train', '--judge', ''),
        ('train', '--images', ''),
        ('predict', '--model', ''),
        ('compare', '--out', ''),
        ('evaluate', '--model', 'x', '--json', ''),
        ('speed', '--out', ' '),
    ],
    ids=' '.join,
)
def test_an_empty_word_is_refused(words, trained, capsys, tmp_path, monkeypatch):  # noqa: F811
    "A variable of the shell that nobody has set: --out '' trained into the folder where one stood, --recipe '' trained on the toy world."
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2 and 'is empty' in err and words[-2] in err and not [*tmp_path.iterdir()]


def test_the_home_folder(trained, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert run(capsys, 'train', '--pictures', 20, 2, '--out=~/x')[0] == 0 and trained.calls[-1]['how']['out'] == str(
        tmp_path / 'home' / 'x'
    )
    (tmp_path / '~').mkdir()
    assert run(capsys, 'train', '--pictures', 20, 2, '--out=~')[0] == 0 and trained.calls[-1]['how']['out'] == '~'


def test_numbers_that_no_machine_has_room_for(trained, capsys):  # noqa: F811
    code, _, err = run(capsys, 'train', '--pictures', 20, 2, '--set', 'head.width=1e30')
    assert code == 2 and 'too large' in err and 'frame #' not in err


def test_compare_asks_for_its_folder_before_it_trains(trained, capsys, tmp_path):  # noqa: F811
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'out' / 'fcn-0').mkdir(parents=True)
    (tmp_path / 'out' / 'fcn-0' / 'config.json').write_text('{"model_type":"bert"}')
    for out, said in ((tmp_path / 'file', 'is a file'), (tmp_path / 'out', 'does not belong to a saved model')):
        code, _, err = run(capsys, 'compare', '--pictures', 20, 2, '--arms', 'fcn', '--seeds', 1, '--out', out)
        assert code == 2 and said in err and not trained.calls


# ---- what is printed


def test_a_reader_that_has_seen_enough():
    "`idrnet recipes | head -1` ended with an error; --help with python's complaint."
    for words, unbuffered in (
        ('recipes', ''),
        ('recipes', '1'),
        ('--help', ''),
        ('convert --list', '1'),
        ('recipes laptop_fcn_camvid --json', ''),
    ):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*COMMAND, *words.split()],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONUNBUFFERED': unbuffered},
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, ''), words


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
def test_a_disk_that_is_full():
    env = {**os.environ, 'PYTHONUNBUFFERED': ''}
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*COMMAND, 'recipes'], stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (
        done.returncode == 2
        and 'cannot be written' in done.stderr
        and 'Traceback' not in done.stderr
        and done.stderr.count('\n') == 1
    )


def test_warnings_are_lines(monkeypatch):
    "No path of a file, no line of code; and pytest.warns, as any recording, still sees them."
    script = '''import sys, warnings
from idrnet_nb.cli import main
from idrnet_nb.cli.recipes import Recipes
Recipes.run = lambda self: warnings.warn("first\\nsecond")
sys.exit(main(["recipes"]))'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, 'idrnet recipes: warning: first second\n')
    monkeypatch.setattr(Recipes, 'run', lambda self: warnings.warn('first'))
    plain = warnings.formatwarning
    with pytest.warns(UserWarning, match='first'):
        assert cli.main(['recipes']) == 0
    assert warnings.formatwarning is plain
