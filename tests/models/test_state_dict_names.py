"""Weights that people have on disk can be read: today's names are those on record, and what an earlier
version has written (tests/recorded/format1, by tools/record_names.py) loads and says the same."""

import copy, importlib.util, json, shutil, sys
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'tests' / 'recorded' / 'format1'


def load_tool():
    spec = importlib.util.spec_from_file_location('tools_record_names', ROOT / 'tools' / 'record_names.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope='module')
def now():
    return tool.record()


@pytest.fixture
def was():
    return tool.read_record(FOLDER / 'names.json')


# --- names


def test_names_are_those_on_record(was, now):
    wrong = tool.differences(was, now)
    assert not wrong, '\n'.join(['names that people have on disk have changed (tools/record_names.py):', *wrong])


def test_the_record_is_whole(was):
    from idrnet_nb.models.head import FRAMEWORKS

    kinds, backbones = ('plain', 'attention', 'idr'), ('tiny', 'resnet18')
    assert {*was['models']} == {f'{f} {k} {b}' for f in FRAMEWORKS for k in kinds for b in backbones}
    assert {*was['plugged']} == {'smp', 'torchvision', 'transformers'}
    idr, plain = was['models']['fcn idr tiny'], was['models']['fcn plain tiny']
    assert idr['head.refiner.relation_mean'] == 'float32 3x3' and 'head.refiner.memory' not in plain
    assert was['models']['fcn idr resnet18']['backbone.net.layer4.1.bn2.num_batches_tracked'] == 'int64 scalar'
    parameters = {n for n in was['checkpoint'] if n.startswith('optimiser/state/') and n.endswith('/exp_avg')}
    assert (
        len(parameters) == len(was['optimised']) > 30
        and {f'model/{n}' for n in was['optimised']} <= was['checkpoint'].keys()
    )
    assert 'head.width' in was['settings']['config.json'] and 'about.config.lr' in was['settings']['checkpoint']


def test_the_file_holds_what_was_recorded(now, tmp_path):
    tool.write_record(now, tmp_path / 'names.json')
    back = tool.read_record(tmp_path / 'names.json')
    assert back == json.loads(json.dumps(now))
    for name, tensors in now['models'].items():
        assert list(back['models'][name]) == list(tensors)  # in order


def rename(names, old, new):
    names[new] = names.pop(old)


SPOIL = {  # what is done to a record -> what is said
    'renamed': (
        lambda r: rename(r['models']['fcn idr tiny'], 'head.refiner.memory', 'head.idr.memory'),
        [
            "model 'fcn idr tiny': 'head.refiner.memory' was float32 3x8, is not there",
            "model 'fcn idr tiny': 'head.idr.memory' was not there, is float32 3x8",
        ],
    ),
    'reshaped': (
        lambda r: r['models']['fcn plain tiny'].update({'head.final.score.bias': 'float32 4'}),
        ["model 'fcn plain tiny': 'head.final.score.bias' was float32 3, is float32 4"],
    ),
    'renamed in IDR': (
        lambda r: rename(r['plugged']['smp'], 'context.count', 'context.deletion_count'),
        [
            "IDR in a model of smp: 'context.count' was float32 3, is not there",
            "IDR in a model of smp: 'context.deletion_count' was not there, is float32 3",
        ],
    ),
    'lost in a checkpoint': (
        lambda r: r['checkpoint'].pop('picking'),
        ["checkpoint: 'picking' was uint8 5056, is not there"],
    ),
    'parameters in another order': (
        lambda r: r['optimised'].reverse(),
        ['the optimiser of a checkpoint numbers the parameters in another order'],
    ),
    'a setting is gone': (
        lambda r: r['settings']['config.json'].remove('head.eps'),
        ["config.json: setting 'head.eps' is gone"],
    ),
    'a setting more': (lambda r: r['settings']['config.json'].append('head.new'), []),
    'a library is not installed': (lambda r: r['plugged'].pop('smp'), []),
}


@pytest.mark.parametrize('what', SPOIL)
def test_differences_bite(what, was):
    spoil, said = SPOIL[what]
    other = copy.deepcopy(was)
    spoil(other)
    assert tool.differences(was, other) == said


def test_the_tool_writes_over_no_other_record(was, tmp_path, monkeypatch, capsys):
    other = copy.deepcopy(was)
    rename(other['models']['fcn idr tiny'], 'head.refiner.memory', 'head.idr.memory')
    shutil.copytree(FOLDER, tmp_path / 'f')

    def call(found, *flags, folder='f'):
        monkeypatch.setattr(tool, 'record', lambda: copy.deepcopy(found))
        monkeypatch.setattr(sys, 'argv', ['record_names.py', '--folder', str(tmp_path / folder), *flags])
        tool.main()

    call(was, '--check')
    call(was)
    for flags in ((), ('--check',)):
        with pytest.raises(SystemExit, match='head.idr.memory.*\n.*raise FORMAT'):
            call(other, *flags)
        assert tool.read_record(tmp_path / 'f' / 'names.json') == was
    call(other, '--force')
    assert tool.read_record(tmp_path / 'f' / 'names.json') == other
    for file in ('outputs.safetensors', 'plugged.safetensors', 'model/model.safetensors'):  # samples stay
        assert (tmp_path / 'f' / file).read_bytes() == (FOLDER / file).read_bytes()
    with pytest.raises(SystemExit, match='no record'):
        call(was, '--check', folder='none')
    call(was, folder='new')
    assert tool.read_record(tmp_path / 'new' / 'names.json') == was and not tool.sample_faults(tmp_path / 'new')


def test_the_map_of_names_reads_all_that_was_written(was):
    "Each name of format 1 has the name of today from which it was found, and none is used twice."
    from idrnet_nb.models.format1 import current_name

    for name, tensors in was['models'].items():
        today = [current_name(n) for n in tensors]
        assert len(set(today)) == len(today) and [tool.to_recorded(n) for n in today] == list(tensors), name
    assert current_name('head.refiner.count') == 'head.idr.deletion_count'


# --- weights

SAID = load_file(FOLDER / 'outputs.safetensors')
IMAGES = SAID['images']


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_an_old_model_says_the_same():
    close(tool.answer(tool.model_of(FOLDER), IMAGES), SAID['model'])


def test_an_old_checkpoint_says_the_same():
    close(tool.answer(tool.checkpointed(FOLDER), IMAGES), SAID['checkpoint'])


def test_an_old_plugged_model_says_the_same():
    with pytest.warns(UserWarning, match='was written in format 1, and is read by a map of names'):
        model = tool.plugged(FOLDER)
    close(tool.answer(model, IMAGES.float()), SAID['plugged'])


@pytest.mark.parametrize('library', tool.LIBRARIES)
def test_idr_in_another_model_has_the_names_on_record(library, was):
    "In the same order, too: an optimiser numbers the parameters by it."
    try:
        now = tool.plugged_names(library)
    except ImportError:
        pytest.skip(f'{library} is not installed')
    assert list(now.items()) == list(was['plugged'][library].items())


def test_an_old_training_goes_on(tmp_path):
    "The next step has the loss that it had, and its end is the one that it had: optimiser, chance and all."
    model, loss = tool.resumed(FOLDER, tmp_path / 't')
    close(loss, SAID['loss'], 1e-4)
    close(tool.answer(model, IMAGES), SAID['trained'], 1e-3)
    assert (SAID['trained'] - SAID['checkpoint']).abs().max() > 1e-2  # so it makes a difference


def test_samples_are_of_a_trained_model_and_small():
    for model in (tool.model_of(FOLDER), tool.checkpointed(FOLDER)):
        assert not torch.equal(model.relations[0], torch.eye(3)) and model.head.idr.memory.abs().sum() > 0
    assert sum(f.stat().st_size for f in FOLDER.rglob('*') if f.is_file() and f.name != 'names.json') <= 200_000
    assert (FOLDER / 'names.json').stat().st_size < 100_000


def test_faults_of_samples_bite(tmp_path):
    shutil.copytree(FOLDER, tmp_path / 'f')
    assert tool.sample_faults(tmp_path / 'f') == []
    file = tmp_path / 'f' / 'outputs.safetensors'
    said = dict(
        model='saved model',
        checkpoint='checkpoint',
        plugged='plugged model',
        loss='loss of the step',
        trained='end of the resumed training',
    )
    for name, what in said.items():
        save_file({**SAID, name: SAID[name] + 0.01}, file)
        assert len(faults := tool.sample_faults(tmp_path / 'f')) == 1 and what in faults[0]
