"""tools/gpu.py: its small form on a CPU says everything in time, goes on without doing a thing twice, and fails only for
a check that is wrong. tools/gpu_carry.py: what is brought and what is taken home."""

import json, subprocess, sys, time
from pathlib import Path

import pytest, torch
from safetensors import safe_open
from safetensors.torch import save_file

from idrnet_nb.experiments import speed
from idrnet_nb.experiments.results import provenance, read_rows, write_rows
from idrnet_nb.experiments.speed_aims import aims
from idrnet_nb.experiments.trials import COLUMNS as TRIAL_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import gpu, gpu_carry  # noqa: E402

CPU = torch.device('cpu')
SHARED = ROOT.parent / 'shared' / 'gpu'
FILES = 'checks.csv', 'speed.csv', 'camvid_bench.csv'


def call(*words, seconds=300):
    command = [sys.executable, str(ROOT / 'tools' / 'gpu.py'), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=gpu.environment(), capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    "The small form, once: its folder, what it said, its seconds."
    out = tmp_path_factory.mktemp('gpu') / 'out'
    began = time.monotonic()
    done = call('--device', 'cpu', '--minutes', 4, '--out', out)
    return out, done, time.monotonic() - began


def contents(out):
    return {name: (out / name).read_text() for name in FILES}


# ---- the small form


def test_ends_in_time_with_rows_and_a_table(session):
    out, done, seconds = session
    assert done.returncode == 0, done.stdout + done.stderr
    assert seconds < 4 * 60 + gpu.GRACE
    checks = read_rows(out / 'checks.csv')
    assert {row['check'] for row in checks} == set(gpu.checks(out, CPU))
    results = {row['check']: row['result'] for row in checks}
    assert results['golden deeplabv3'] == results['golden fcn'] == 'right'
    assert results['no host read, no graph break, inference as a CUDA graph'] == 'right'
    kinds = {row['kind'] for row in read_rows(out / 'speed.csv')}
    assert kinds == {run['kind'] for run in gpu.speed_plan(CPU)}
    assert [row['arm'] for row in read_rows(out / 'camvid_bench.csv')] == [
        'fcn',
        'fcn+wide',
        'fcn+attention',
        'fcn+idr',
    ]
    table = done.stdout[done.stdout.rindex('== correctness') :]
    for word in ('== speed', '== training', 'no graph break in a training step', 'fcn+idr', str(out)):
        assert word in table


def test_left_out_is_said_with_its_reason(session):
    if torch.cuda.is_available():
        pytest.skip('here is a GPU')
    left = {row['check']: row['note'] for row in read_rows(session[0] / 'checks.csv') if row['result'] == 'left out'}
    assert set(left) == {'tests that need a GPU', 'cells of 03_device', 'training step as a CUDA graph'}
    assert all('GPU' in note for note in left.values())


def test_nothing_is_done_twice(session):
    out, _, _ = session
    before = contents(out)
    for part in gpu.DO.values():
        part(out, CPU, 2, None)
    assert contents(out) == before


def test_of_another_commit_checks_are_made_again(session):
    here = provenance(CPU)
    assert gpu.made(session[0], here)
    assert not gpu.made(session[0], {**here, 'commit': 'another'})
    assert not gpu.made(session[0], {**here, 'device': 'another'})


# ---- time, and what is wrong


def test_no_time(tmp_path, capsys):
    "What did not begin has no row, is named, and is no failure."
    for part in gpu.DO.values():
        part(tmp_path, CPU, 0, None)
    said = capsys.readouterr().out
    assert said.count(gpu.NO_TIME) >= 4 and 'runs are left' in said and 'minutes are left' in said
    assert not any(read_rows(tmp_path / name) for name in FILES[1:])
    assert not gpu.made(tmp_path, provenance(CPU))


def options(tmp_path, minutes=1.0, only=gpu.PARTS):
    from argparse import Namespace

    return Namespace(minutes=minutes, device='cpu', out=tmp_path, only=only)


def row_of(result, **cells):
    return {**provenance(CPU), 'check': 'golden fcn', 'result': result, 'seconds': 1, 'note': '', **cells}


@pytest.mark.parametrize(
    'code, results, exit_code',
    [(0, ['right'], 0), (None, ['right'], 0), (0, ['left out', gpu.NO_TIME], 0), (None, ['WRONG'], 1), (-11, [], 1)],
)
def test_exit_code(tmp_path, monkeypatch, code, results, exit_code):
    "Only a wrong check, or checks that crashed, make it fail; not the time, and no other part."
    write_rows(
        tmp_path / 'checks.csv', [row_of(r, check=f'golden {i}') for i, r in enumerate(results)], gpu.CHECK_COLUMNS
    )
    begun = []
    monkeypatch.setattr(gpu, 'run_part', lambda part, *_: begun.append(part) or (code if part == 'correctness' else 1))
    assert gpu.all_parts(options(tmp_path), None) == exit_code
    assert begun == list(gpu.PARTS)


def test_wrong_of_an_older_commit_is_forgotten(tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / 'checks.csv', [row_of('WRONG', commit='older')], gpu.CHECK_COLUMNS)
    monkeypatch.setattr(gpu, 'run_part', lambda *_: None)
    assert gpu.all_parts(options(tmp_path), None) == 0
    assert f'{gpu.NO_TIME}   golden fcn' in capsys.readouterr().out


def test_without_time_no_part_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'run_part', lambda *_: pytest.fail('it began'))
    assert gpu.all_parts(options(tmp_path, 0), None) == 0
    assert capsys.readouterr().out.count('no time was left') == 3


def test_only_some_parts(tmp_path, monkeypatch, capsys):
    "The last one has all the time that is left."
    begun = {}
    monkeypatch.setattr(gpu, 'run_part', lambda part, minutes, *_: begun.update({part: minutes}) or 0)
    assert gpu.all_parts(options(tmp_path, 6, ('correctness', 'speed')), None) == 0
    assert begun['correctness'] == pytest.approx(1.5, abs=0.1) and begun['speed'] > 5
    assert '== training (not asked for)' in capsys.readouterr().out


def test_a_part_that_hangs_is_ended(tmp_path, monkeypatch):
    "With all that it started."
    script = tmp_path / 'hang.py'
    script.write_text(
        'import pathlib, subprocess, sys, time\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        f'pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))\n'
        'time.sleep(60)\n'
    )
    monkeypatch.setattr(gpu, '__file__', str(script))
    began = time.monotonic()
    assert gpu.run_part('speed', 2 / 60, [], grace=0.5) is None
    assert time.monotonic() - began < 20
    status = Path(f'/proc/{(tmp_path / "pid").read_text()}/stat')
    time.sleep(0.2)
    assert not status.exists() or status.read_text().rsplit(')', 1)[1].split()[0] == 'Z'


def test_boxes():
    left, minutes = 12.0, {}
    for part in gpu.PARTS:
        minutes[part] = gpu.box(part, left)
        left -= minutes[part]
    assert minutes == dict(correctness=1.5, speed=4, training=6.5)
    assert gpu.box('correctness', 1.5) == 0.5 and gpu.box('speed', 1.0) == 0.5


def test_a_wrong_number_is_seen(tmp_path):
    path = ROOT / 'tests' / 'golden' / 'fcn.safetensors'
    with safe_open(path, 'pt') as f:
        meta, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}
    tensors['step0.out.class_relations_var'][0, 1] += 1e-3
    save_file(tensors, tmp_path / 'fcn.safetensors', metadata=meta)
    is_right, note = gpu.golden(tmp_path / 'fcn.safetensors', CPU)
    assert is_right is False and 'step0.out.class_relations_var' in note


def test_a_check_that_raises_is_wrong(tmp_path, monkeypatch):
    def broken():
        raise ValueError('no such thing')

    monkeypatch.setattr(
        gpu, 'checks', lambda out, device: {'one': (broken, False), 'two': (lambda s: (None, ''), True)}
    )
    gpu.correctness(tmp_path, CPU, 1, None)
    rows = read_rows(tmp_path / 'checks.csv')
    assert [(row['check'], row['result'], row['note']) for row in rows] == [
        ('one', 'WRONG', 'ValueError: no such thing'),
        ('two', 'left out', ''),
    ]


def test_a_step_that_reads_a_value_is_wrong(tmp_path, monkeypatch):
    run = next(run for run in gpu.speed_plan(CPU) if run['kind'] == 'free')
    row = dict(kind='free', what='host reads', k=5, grid='8x8', c=16, b=2, found=1, **provenance(CPU))
    write_rows(tmp_path / 'speed.csv', [{**row, 'run': json.dumps(run, sort_keys=True)}], speed.COLUMNS)
    assert gpu.recorded('free', tmp_path, CPU) == (False, 'host reads: 1')


def test_what_needs_a_gpu_is_found():
    names = gpu.gpu_tests()
    assert 'tests/models/test_head.py::test_no_sync_on_cuda' in names and len(names) >= 4
    notebooks = [path.stem for path in gpu.cuda_notebooks()]
    assert {'03_device', '07_relation', '12_trainer'} <= set(notebooks)
    assert notebooks.index('07_relation') < notebooks.index('12_trainer')


def test_a_seed_begins_only_if_there_is_time():
    def row(arm, seconds, device='card'):
        return dict(device=device, seconds=seconds, run=json.dumps(dict(arm=arm, model=dict(backbone='tiny'))))

    rows = [row('fcn', '100'), row('fcn+idr', '120'), row('fcn', '900', 'another')]
    assert gpu.minutes_of(rows, 'card', ('fcn', 'tiny')) == pytest.approx(1.1 * 2)
    assert gpu.minutes_of(rows, 'card', ('upernet', 'tiny')) == pytest.approx(1.5 * 2)
    assert gpu.minutes_of(rows, 'third', ('fcn', 'tiny')) == gpu.SEED_MINUTES


def test_order_of_trainings():
    runs = [run for trial in gpu.camvid_trials() for run in trial.runs]
    assert [(run['arm'], run['seed']) for run in runs[:5]][::4] == [('fcn', 0), ('fcn', 1)]
    assert {run['model']['backbone'] for run in runs[:-4]} == {'mobilenetv2_100'}
    assert {(run['model']['backbone'], run['weights']) for run in runs[-4:]} == {('resnet50', 'scratch')}


def test_plan_for_a_gpu():
    assert gpu.speed_plan(torch.device('cuda')) == speed.planned(False, 'cuda')


# ---- what is carried there


def test_needs():
    wanted = gpu_carry.closure(['datasets'])
    assert {'pyarrow', 'pandas', 'dill'} <= set(wanted) and all(wanted.values())
    assert 'sympy' not in gpu_carry.closure(['torch'])  # torch is there, with what it requires
    assert gpu_carry.closure(['no-such-package-here']) == {'no-such-package-here': None}
    assert gpu_carry.needs()[-1].endswith('nothing is missing here')


def test_needs_of_another_machine(tmp_path):
    everything = gpu_carry.closure(gpu_carry.NEEDED + gpu_carry.FOR_CELLS)
    there = tmp_path / 'freeze.txt'
    there.write_text('\n'.join(f'{name.replace("-", "_")}==1' for name in everything if name != 'datasets') + '\n# x\n')
    said = gpu_carry.needs(there)
    assert said[0] == f'missing there: datasets=={everything["datasets"]}'
    assert any('pip download' in line and 'datasets==' in line for line in said)
    there.write_text(there.read_text() + 'datasets @ x\n')
    assert gpu_carry.needs(there) == ['nothing is missing there']


@pytest.fixture
def data(tmp_path):
    "A folder such as `--data` names, with parts that are not carried."
    for part in (*gpu_carry.PARTS, 'val', 'valannot'):
        (tmp_path / 'data' / 'CamVid' / part).mkdir(parents=True)
        (tmp_path / 'data' / 'CamVid' / part / 'a.png').write_bytes(b'0123456789')
    (tmp_path / 'data' / 'weights').mkdir()
    (tmp_path / 'data' / 'weights' / 'w.safetensors').write_bytes(b'01234')
    return tmp_path / 'data'


def test_pack(tmp_path, data):
    try:
        size = gpu_carry.pack(tmp_path / 'pack', data)
    except RuntimeError as error:
        pytest.skip(f'not a git checkout: {error}')
    files = {f.relative_to(tmp_path / 'pack').as_posix(): f for f in (tmp_path / 'pack').rglob('*') if f.is_file()}
    assert (
        size == sum(f.stat().st_size for f in files.values()) < gpu_carry.LIMIT - 45e6
    )  # CamVid and weights are 45 MB
    for name in ('tools/gpu.py', 'tools/mutants.py', 'tests/golden/fcn.safetensors', 'tests/models/test_head.py'):
        assert files[name].read_bytes() == (ROOT / name).read_bytes()
    assert 'nbs/0_common/03_device.ipynb' in files and 'nbs/index.ipynb' not in files
    assert 'data/CamVid/testannot/a.png' in files and 'data/CamVid/val/a.png' not in files
    assert files['data/commit.txt'].read_text().strip()
    with pytest.raises(ValueError, match='is not empty'):
        gpu_carry.pack(tmp_path / 'pack', data)


def test_pack_of_the_data_alone(tmp_path, data):
    try:
        size = gpu_carry.pack(tmp_path / 'pack', data, only_data=True)
    except RuntimeError as error:
        pytest.skip(f'not a git checkout: {error}')
    commit = (tmp_path / 'pack' / 'commit.txt').read_text()
    assert size == 4 * 10 + 5 + len(commit)
    assert gpu.find_data(tmp_path / 'pack') == (tmp_path / 'pack').resolve()
    with pytest.raises(ValueError, match='no folder CamVid'):
        gpu.find_data(tmp_path)


def test_images_do_not_get_into_the_repository(data):
    with pytest.raises(ValueError, match='not ours to publish'):
        gpu_carry.pack(ROOT / 'packed', data)
    assert not (ROOT / 'packed').exists()


# ---- what is taken home


def test_take(tmp_path):
    out, results = tmp_path / 'out', tmp_path / 'results'
    cells = dict(kind='loops', what='step', k=1, grid='2x2', c=3, b=4, run='{}', **provenance(CPU))
    write_rows(out / 'speed.csv', [{**cells, 'commit': 'abc'}], speed.COLUMNS)
    write_rows(out / 'camvid_bench.csv', [{'commit': 'abc', 'arm': 'fcn', 'run': '{}'}], TRIAL_COLUMNS)
    assert gpu_carry.take(out, results) == {'speed_gpu.csv': 1, 'camvid_bench.csv': 1}
    assert gpu_carry.take(out, results) == {'speed_gpu.csv': 0, 'camvid_bench.csv': 0}
    assert [row['commit'] for row in read_rows(results / 'speed_gpu.csv')] == ['abc']
    write_rows(out / 'speed.csv', [{**cells, 'commit': 'none'}], speed.COLUMNS)
    with pytest.raises(ValueError, match='1 rows for speed_gpu.csv name no commit'):
        gpu_carry.take(out, results)


shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f'no rows of a GPU in {SHARED}')


@shared
def test_rows_of_the_first_gpu_are_ours(tmp_path):
    "What was taken from the first session is in the results, and nothing else is of its commit."
    assert gpu_carry.take(SHARED, tmp_path) == {'speed_gpu.csv': 20, 'speed_authors.csv': 7, 'camvid_bench.csv': 4}
    for file in tmp_path.glob('*.csv'):
        ours = [row for row in read_rows(gpu_carry.RESULTS / file.name) if row['commit'] == '7e622a8']
        assert ours == read_rows(file)


@shared
def test_authors_of_another_session(tmp_path):
    for name in ('authors.json', 'speed.csv'):
        (tmp_path / name).write_text((SHARED / name).read_text())
    found = json.loads((tmp_path / 'authors.json').read_text())
    (tmp_path / 'authors.json').write_text(json.dumps({**found, 'device': 'another card'}))
    with pytest.raises(ValueError, match='another card'):
        gpu_carry.author_rows(tmp_path)


def test_aims_of_the_first_gpu():
    rows = [r for f in ('speed_gpu.csv', 'speed_authors.csv') for r in read_rows(gpu_carry.RESULTS / f)]
    first = {result.aim: result for result in aims([row for row in rows if row['commit'] == '7e622a8'])}
    found = {aim: (r.found, r.is_met) for aim, r in first.items() if r.found}
    assert list(found.values()) == [
        ('0', True),  # host reads
        ('0', True),  # graph breaks
        ('83 ms', False),
        ('32×', False),
        ('1.40×', False),
        ('1.13×', False),
        ('0.84×', True),
        ('1.31×', False),
        ('0e+00', True),
    ]
    assert {r.source for r in first.values() if r.found} == {'NVIDIA H200, 7e622a8'}
