"""Everything that a GPU has to say of this project, the most important first, in a given time; rows go to a folder.

    make gpu                                      # 12 minutes, into runs/gpu
    python tools/gpu.py --minutes 8 --data FOLDER # a folder with CamVid/ and weights/
    python tools/gpu.py --device cpu --minutes 2  # the same parts in a small form, to see that they work
    python tools/gpu.py --only training           # one part, or two, with all of the time
    python tools/gpu.py --needs                   # packages that are missing here
    python tools/gpu.py --needs FREEZE            # wheels for a machine whose `pip list --format=freeze` is in FREEZE
    python tools/gpu.py --pack FOLDER             # write what must be carried to a machine without a network
    python tools/gpu.py --pack .gpu --only-data   # the same without the repository, if that travels by itself
    python tools/gpu.py --take runs/gpu           # take the rows of a session into nbs/results

Three parts, each a process of its own that is ended when its time is up:

1. correctness (a third of the time, at most 1.5 minutes): the golden files on the device; the step reads no value from
   the device and has no graph break; inference and a training step as CUDA graphs give the same; the tests and notebook
   cells that need a GPU. A check is right, WRONG, or left out with the reason; one that had no time is made by the
   next call. -> checks.csv
2. speed (half of what is left, at most 4 minutes): `idrnet speed`, see 5_experiments/20_speed. -> speed.csv
3. training (the rest): CamVid at 360x480 as `idrnet bench` trains it, seed by seed, four variants beside each other;
   FCN first, then UPerNet, then FCN on a ResNet-50 from random weights. Seeds whose rows are in the folder or in
   nbs/results/camvid_bench.csv are not trained again. A seed begins only if there is time for it. -> camvid_bench.csv

The same command goes on where it stopped: what has a row of this device is not done again, and a check counts only if
it was made at this commit. One table at the end. Exit code 1 if a check went wrong, else 0, also if time ran out."""

import argparse, contextlib, io, json, os, re, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tests')]

import gpu_carry  # noqa: E402

PARTS = ('correctness', 'speed', 'training')
GRACE = 20  # seconds between a part's time and its end
CHECK_COLUMNS = (
    'date',
    'commit',
    'check',
    'result',
    'seconds',
    'note',
    'version',
    'torch',
    'python',
    'device',
)
GPU_TOLERANCE = 10  # times that of a CPU: sums are in another order there (not measured yet)
NO_TIME = 'no time'  # result of a check that did not end; it is made again
SEED_MINUTES = 4.5  # four variants of FCN beside each other on one H200, where no row says more


def box(part, left):
    "Minutes of a part, of those that are left."
    return {'correctness': min(1.5, left / 3), 'speed': min(4, left / 2), 'training': left}[part]


# ---- 1: correctness. A check gives (True, False or None if it is left out, a note).


def on_gpu(device):
    import torch

    return torch.device(device).type == 'cuda'


def golden(path, device):
    "Every tensor of a golden file."
    import torch
    from golden_check import compare

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        rows = list(compare(path, device))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    loose = GPU_TOLERANCE if on_gpu(device) else 1
    wrong = [what for what, error, tolerance in rows if not error <= loose * tolerance]
    worst = max(rows, key=lambda row: row[1] / row[2])
    note = f'{len(rows)} tensors, worst {worst[0]}: {worst[1]:.1e} of {loose * worst[2]:.0e}'
    return not wrong, note + (f'; wrong: {", ".join(wrong[:5])}' if wrong else '')


def recorded(kind, out, device):
    "What the speed part says of the step: the run of that kind, measured now if it has no row."
    from idrnet_nb.experiments import speed
    from idrnet_nb.experiments.results import provenance, read_rows
    from idrnet_nb.experiments.runner import key, run_missing
    from idrnet_nb.experiments.speed_aims import ANY_AIMS, GPU_AIMS

    run = next(run for run in speed_plan(device) if run['kind'] == kind)
    device = str(device)
    here = provenance(speed.pick_device(device))['device']
    file, measure = out / 'speed.csv', partial(speed.measure_item, device=device)
    run_missing([run], measure, file, speed.COLUMNS, progress=False, device=here)
    rows = [row for row in read_rows(file) if row['run'] == key(run) and row['device'] == here]
    found, wrong = [], []
    for row in rows:
        if row['found'] == '':
            return None, row['note']
        aim = next(a for a in (*ANY_AIMS, *GPU_AIMS) if any(p._replace(gpu=None).has(row) for p in a.places))
        found.append(f'{row["what"]}: {row["found"]}')
        if not aim.is_met(aim.value(row)):
            wrong.append(row['what'])
    return not wrong, '; '.join(found)


def gpu_tests():
    "Tests that a machine without a GPU skips, as pytest names them."
    names = []
    for path in sorted((ROOT / 'tests').rglob('test_*.py')):
        marked = re.findall(
            r"^@pytest\.mark\.skipif\(not torch\.cuda.*\n(?:@.*\n)*def (\w+)", path.read_text(encoding='utf-8'), re.M
        )
        names += [f'{path.relative_to(ROOT).as_posix()}::{name}' for name in marked]
    return names


def run_tests(device, seconds):
    "The tests that need a GPU; on a CPU pytest says that it skips them."
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *gpu_tests()]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(2), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return NO_TIME, f'not ended after {seconds:.0f} s'
    said = [line for line in done.stdout.splitlines() if line.strip()] or done.stderr.splitlines() or ['nothing']
    if 'No module named pytest' in done.stderr:
        return None, 'pytest is missing here'
    if done.returncode == 0 and not on_gpu(device):
        return None, f'they need a GPU: {said[-1]}'
    return done.returncode == 0, said[-1]


def cuda_notebooks():
    "Notebooks with cells that only a GPU runs, the short ones first."
    found = [path for path in sorted((ROOT / 'nbs').rglob('*.ipynb')) if gpu_carry.has_cuda_cell(path)]
    return sorted(found, key=lambda path: path.parent.name >= '4')


def run_cells(path, device):
    "The cells of a notebook up to the last that needs a GPU; that one too where there is a GPU."
    from mutants import execute, marks, new_namespace, text_of

    cells = [c for c in json.loads(Path(path).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    last = max(i for i, cell in enumerate(cells) if 'cuda' in marks(cell))
    names = {'slow', 'online', 'default_exp'} | (set() if on_gpu(device) else {'cuda'})
    os.chdir(Path(path).parent)
    namespace = new_namespace()
    for cell in cells[: last + 1]:
        if not names & set(marks(cell)) and marks(cell).get('eval') != 'false':
            execute(text_of(cell), cell['id'], namespace)


def cells(path, device, seconds):
    "`run_cells` in a process of its own."
    name = Path(path).relative_to(ROOT / 'nbs').with_suffix('').as_posix()
    command = [sys.executable, __file__, '--cells', str(path), '--device', str(device)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(2), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return NO_TIME, f'not ended after {seconds:.0f} s'
    missing = re.search(r"No module named '(\w+)'", done.stderr)
    if missing and missing[1] != 'idrnet_nb':
        return None, f'{missing[1]} is missing here'
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1][:200]
    return (True, f'the cells of {name} ran') if on_gpu(device) else (None, 'the cells before ran; it needs a GPU')


def checks(out, device):
    """Name -> (function, whether it is a process of its own). Such a function takes the seconds that it may last, the
    others take nothing. What is timed, too, comes last, when nothing runs beside it."""
    found = {}
    files = sorted((ROOT / 'tests' / 'golden').glob('*.safetensors'))
    for path in files if on_gpu(device) else files[:2]:
        found[f'golden {path.stem}'] = partial(golden, path, device), False
    found['tests that need a GPU'] = partial(run_tests, device), True
    for path in cuda_notebooks() if on_gpu(device) else cuda_notebooks()[:1]:
        found[f'cells of {path.stem}'] = partial(cells, path, device), True
    found['no host read, no graph break, inference as a CUDA graph'] = partial(recorded, 'free', out, device), False
    found['training step as a CUDA graph'] = partial(recorded, 'graph training', out, device), False
    return found


def made(out, here, results=('right', 'WRONG', 'left out')):
    "Check -> row of checks.csv, of this device and commit."
    from idrnet_nb.experiments.results import read_rows

    rows = [row for row in read_rows(out / 'checks.csv') if row['result'] in results]
    return {r['check']: r for r in rows if (r['device'], r['commit']) == (here['device'], here['commit'])}


def correctness(out, device, minutes, data):
    "Part 1. Processes of their own run beside the rest, for at most 60 % of the time."
    from idrnet_nb.experiments.results import append_rows, provenance

    end = time.monotonic() + 60 * minutes
    here = provenance(device)
    done = made(out, here)
    todo = {name: how for name, how in checks(out, device).items() if name not in done}

    def check(fn, *seconds):
        began = time.monotonic()
        try:
            is_right, note = fn(*seconds)
        except Exception as error:  # a check that cannot be made is wrong, not left out
            is_right, note = False, f'{type(error).__name__}: {error}'
        result = {True: 'right', False: 'WRONG', None: 'left out'}.get(is_right, is_right)
        return dict(result=result, note=note, seconds=f'{time.monotonic() - began:.3g}')

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        seconds = 36 * minutes
        apart = {name: pool.submit(check, fn, seconds) for name, (fn, is_apart) in todo.items() if is_apart}
        for name, (fn, _) in todo.items():
            if time.monotonic() > end:
                print(f'{NO_TIME:9} {name}', flush=True)
                continue
            found = apart[name].result() if name in apart else check(fn)
            print(f'{found["result"]:9} {name}: {found["note"]}', flush=True)
            append_rows(out / 'checks.csv', [{**here, 'check': name, **found}], CHECK_COLUMNS)


# ---- 2: speed


def speed_plan(device):
    "What is measured: `idrnet speed` on a GPU, each kind in a small form on a CPU."
    from idrnet_nb.experiments import speed

    if on_gpu(device):
        return speed.planned(False, device)
    size = dict(grid=[8, 8], c=16, b=2, rounds=1)
    wide = dict(framework='fcn', backbone='tiny')
    return [
        dict(kind='free', k=5, **size),
        dict(kind='graph training', k=5, **size),
        dict(kind='precision', k=5, **size),
        dict(kind='framework', k=5, mode='training', **size, **wide),
        dict(kind='flat', k=5, many=9, what='step', **size),
        dict(kind='loops', k=5, classes=3, **size),
        dict(kind='operators', k=5, **size, **wide),
        dict(kind='stage', k=5, what='grouping', **size),
        dict(kind='roofline', k=5, side=64, copy=2**12, **size),
        *(dict(kind='scaling', k=k, **size) for k in (4, 8)),
        dict(kind='head', k=5, what='inference', **size),
    ]


def measure(out, device, minutes, data):
    "Part 2."
    from idrnet_nb.experiments import speed
    from idrnet_nb.experiments.results import provenance
    from idrnet_nb.experiments.runner import run_missing

    fn = partial(speed.measure_item, device=str(device))
    here = provenance(device)['device']
    run_missing(speed_plan(device), fn, out / 'speed.csv', speed.COLUMNS, device=here, minutes=minutes)


# ---- 3: training


def camvid_trials():
    "What is trained on CamVid on a GPU, the most important first."
    from idrnet_nb.experiments.benchmark import SUITES

    full = next(t for t in SUITES['full'] if t.data == 'camvid' and t.weights == 'imagenet')
    full = replace(full, train=dict(full.train, epochs=35.0, workers=4))
    resnet = dict(full.model, backbone='resnet50')
    return [
        replace(full, frameworks=('fcn',)),
        replace(full, frameworks=('upernet',), seeds=3),
        replace(full, frameworks=('fcn',), seeds=1, weights='scratch', model=resnet),
    ]


def tiny_trials():
    "The same in a small form."
    from idrnet_nb.experiments.trials import Trial

    model = dict(backbone='tiny', width=16, attention_width=16, aux_width=8)
    train = dict(batch_size=4, lr=3e-3, steps=2)
    return [Trial('world', (32, 32), train, model, ('fcn',), seeds=1, pictures=(8, 4))]


def network(run):
    "What decides how long a run takes: framework and backbone."
    return run['arm'].split('+')[0], run['model']['backbone']


def minutes_of(rows, device, wanted):
    """How long the variants of a seed take beside each other: as the slowest row of this network and device; of another
    network, half as long again; without a row of this device, as `SEED_MINUTES` says of FCN on one H200."""
    seconds = {}
    for row in rows:
        if row['device'] == device:
            seconds.setdefault(network(json.loads(row['run'])), []).append(float(row['seconds']))
    if wanted in seconds:
        return 1.1 * max(seconds[wanted]) / 60
    others = [s for found in seconds.values() for s in found]
    return 1.5 * max(others) / 60 if others else SEED_MINUTES


def train(out, device, minutes, data):
    "Part 3."
    from idrnet_nb.experiments.results import append_rows, provenance, read_rows
    from idrnet_nb.experiments.runner import key, run_missing, run_name
    from idrnet_nb.experiments.trials import COLUMNS, check_weights, run_trial

    end = time.monotonic() + 60 * minutes
    file, here = out / 'camvid_bench.csv', provenance(device)['device']
    weights = next(iter(sorted((data / 'weights').glob('mobilenetv2_100*.safetensors'))), None) if data else None
    trials = camvid_trials() if on_gpu(device) else tiny_trials()
    runs = [run for trial in trials for run in trial.runs]
    if on_gpu(device) and not (data and weights):
        print('no CamVid or no weights here (--data FOLDER): nothing is trained')
        return
    if on_gpu(device):
        append_rows(file, read_rows(gpu_carry.RESULTS / 'camvid_bench.csv', COLUMNS), COLUMNS, once='run')
    check_weights(read_rows(file, COLUMNS), runs, weights)
    roots = dict(camvid=data / 'CamVid') if data else {}
    do = partial(run_trial, roots=roots, weights=weights, out=out / 'counts', device=str(device))
    groups = {}  # variants of a seed are trained beside each other
    for run in runs:
        groups.setdefault((network(run), run['weights'], run['seed']), []).append(run)
    for (kind, *_), group in groups.items():
        done = {row['run'] for row in read_rows(file, COLUMNS)}
        missing = [run for run in group if key(run) not in done]
        if not missing:
            continue
        left = (end - time.monotonic()) / 60
        wanted = minutes_of(read_rows(file, COLUMNS), here, kind) if on_gpu(device) else 0
        if left < wanted or left <= 0:
            print(f'{left:.1f} minutes are left, a seed takes {wanted:.1f}; the next is {run_name(missing[0])}')
            return
        run_missing(missing, do, file, COLUMNS, jobs=len(missing) if on_gpu(device) else 1)


# ---- all of it

DO = dict(correctness=correctness, speed=measure, training=train)


def environment(threads=None):
    "Of a child process: it finds the package. `threads`: of those that run beside each other."
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    fixed = dict(PYTHONPATH=path, HF_HUB_OFFLINE='1', PYTHONUNBUFFERED='1', MPLBACKEND='Agg')
    if threads:
        fixed['OMP_NUM_THREADS'] = os.environ.get('OMP_NUM_THREADS') or str(threads)
    return {**os.environ, **fixed}


def run_part(part, minutes, arguments, grace=GRACE):
    "Run a part in a process of its own: its exit code, or None if it was ended because its time was up."
    command = [sys.executable, __file__, '--part', part, '--minutes', f'{minutes:.3f}', *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    try:
        return process.wait(60 * minutes + grace)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if os.name == 'posix':
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def table(out, device, ended):
    "The one table: what was found, part by part. `ended`: part -> in words."
    from idrnet_nb.experiments.benchmark_tables import show_runs
    from idrnet_nb.experiments.results import provenance, read_rows
    from idrnet_nb.experiments.speed_aims import show_aims

    found = made(out, provenance(device))
    lines = ['', f'== correctness ({ended["correctness"]})']
    for name in checks(out, device):
        row = found.get(name, dict(result=NO_TIME, note='the next call makes it'))
        lines.append(f'{row["result"]:9} {name}: {row["note"]}')
    speeds = read_rows(out / 'speed.csv')
    lines += ['', f'== speed ({ended["speed"]}), {len(speeds)} rows', show_aims(speeds)]
    trained = read_rows(out / 'camvid_bench.csv')
    lines += ['', f'== training ({ended["training"]}), {len(trained)} rows']
    if trained:
        lines.append(show_runs(trained).to_string())
    lines += ['', f'rows are in {out}; the same command goes on; `--take {out}` takes them into nbs/results']
    return '\n'.join(lines)


def find_data(named):
    "The folder that holds CamVid, or None. ValueError for a named one that does not."
    if named is not None:
        if not (named / 'CamVid').is_dir():
            raise ValueError(f'--data {named}: there is no folder CamVid in it')
        return named.resolve()
    places = [os.environ.get('IDRNET_DATA'), ROOT / 'data', ROOT.parent / 'shared' / 'data']
    return next((Path(p).resolve() for p in places if p and (Path(p) / 'CamVid').is_dir()), None)


def all_parts(a, data):
    "Run the parts one after another, print the table: the exit code."
    from idrnet_nb.common.device import pick_device
    from idrnet_nb.experiments.results import provenance

    end = time.monotonic() + 60 * a.minutes
    device = pick_device(a.device)
    a.out.mkdir(parents=True, exist_ok=True)
    arguments = ['--out', str(a.out.resolve()), '--device', str(device)]
    arguments += ['--data', str(data)] if data else []
    ended, codes = dict.fromkeys(PARTS, 'not asked for'), {}
    for part in a.only:
        left = (end - time.monotonic()) / 60
        minutes = left if part == a.only[-1] else box(part, left)
        print(f'\n== {part}: {max(0, minutes):.1f} minutes', flush=True)
        if minutes <= 0:
            ended[part] = 'no time was left'
            continue
        began = time.monotonic()
        # the last part may not outlive the whole
        code = codes[part] = run_part(part, minutes, arguments, 0 if part == a.only[-1] else GRACE)
        how = {0: 'ended', None: 'stopped, its time was up'}.get(code, f'failed, exit code {code}')
        ended[part] = f'{how}, {time.monotonic() - began:.0f} s'
    print(table(a.out, device, ended))
    wrong = made(a.out, provenance(device), ('WRONG',))
    return 1 if codes.get('correctness') or wrong else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='auto')
    p.add_argument('--minutes', type=float, default=12)
    p.add_argument('--out', type=Path, default=ROOT / 'runs' / 'gpu', metavar='FOLDER')
    p.add_argument('--data', type=Path, metavar='FOLDER', help='that holds CamVid/ and weights/')
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS, metavar='PART', help=f'of {", ".join(PARTS)}')
    p.add_argument('--needs', nargs='?', const='', metavar='FREEZE')
    p.add_argument('--pack', type=Path, metavar='FOLDER')
    p.add_argument('--only-data', action='store_true')
    p.add_argument('--take', type=Path, metavar='FOLDER')
    p.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    p.add_argument('--cells', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.needs is not None:
        return print('\n'.join(gpu_carry.needs(a.needs or None)))
    if a.take:
        return print(*(f'{name}: {new} new rows' for name, new in gpu_carry.take(a.take).items()), sep='\n')
    data = find_data(a.data)
    if a.pack:
        if data is None:
            p.error('no folder with CamVid is known; name it with --data')
        size = gpu_carry.pack(a.pack, data, a.only_data)
        over = f', more than {gpu_carry.LIMIT / 1e6:.0f}' if size > gpu_carry.LIMIT else ''
        return print(f'{a.pack}: {size / 1e6:.1f} MB{over}')
    written = data / 'commit.txt' if data else None
    if written and written.exists():
        os.environ.setdefault('IDRNET_COMMIT', written.read_text().strip())
    if a.cells:
        with contextlib.redirect_stdout(io.StringIO()):
            return run_cells(a.cells.resolve(), a.device)
    if a.part:
        from idrnet_nb.common.device import pick_device

        return DO[a.part](a.out, pick_device(a.device), a.minutes, data)
    return all_parts(a, data)


if __name__ == '__main__':
    sys.exit(main())
