"""What a borrowed machine with a GPU must be brought, and what is taken home from it. tools/gpu.py has the options."""

import json, re, shutil, subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'nbs' / 'results'
NEEDED = ('torch', 'timm', 'einops', 'safetensors', 'datasets', 'scipy')  # all that tools/gpu.py imports
FOR_CELLS = ('fastcore',)  # notebook cells test with it; without it they are left out
PARTS = ('train', 'trainannot', 'test', 'testannot')  # of CamVid
LIMIT = 60e6  # bytes of a pack

# ---- packages


def plain(name):
    "A package's name as pip compares it."
    return re.sub(r'[-_.]+', '-', name).lower()


def closure(names):
    """Name -> version, or None where it is missing here, of packages and all that they require. What torch requires is
    left out: a machine with a GPU has torch."""
    from packaging.requirements import Requirement

    found, waiting = {}, list(names)
    while waiting:
        name = plain(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            continue
        if name == 'torch':
            continue
        required = [Requirement(text) for text in metadata.requires(name) or ()]
        waiting += [r.name for r in required if not r.marker or r.marker.evaluate({'extra': ''})]
    return found


def frozen(path):
    "Names in a file that `pip list --format=freeze` wrote, or in any list of names, one a line."
    lines = Path(path).read_text(encoding='utf-8').splitlines()
    return {plain(re.split(r'[=<>!~ @\[]', line.strip())[0]) for line in lines if line.strip()[:1].isalnum()}


def needs(there=None):
    """Lines to print: what is missing here; or, with the file `there` that lists the packages of another machine, the
    wheels to bring it, in the versions of this one."""
    wanted = closure(NEEDED + FOR_CELLS)
    if there is None:
        missing = sorted(name for name, version in wanted.items() if version is None)
        lines = [f'{name}: {wanted[name] or "MISSING"}' for name in NEEDED + FOR_CELLS]
        said = f'missing here: {" ".join(missing)}' if missing else 'nothing is missing here'
        return [*lines, f'{len(wanted)} packages with all that they require; {said}']
    listed = frozen(there)
    bring = sorted((name, version) for name, version in wanted.items() if name not in listed and name != 'torch')
    unknown = [name for name, version in bring if version is None]
    if unknown:
        raise ValueError(f'{" ".join(unknown)}: neither there nor here, so no version is known; install it here first')
    if not bring:
        return ['nothing is missing there']
    words = ' '.join(f'{name}=={version}' for name, version in bring)
    return [
        f'missing there: {words}',
        'to fetch the wheels (give --python-version and --platform of that machine where they differ from here):',
        f'  python3 -m pip download --no-deps --only-binary=:all: -d wheels {words}',
        'to use them there:',
        '  python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site',
    ]


# ---- what is carried there


def git(*words):
    "What git says of the repository; RuntimeError where it fails."
    done = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'git {" ".join(words)}: {done.stderr.strip()}')
    return done.stdout


def tracked():
    "Files of the repository that tools/gpu.py may need: all but figures and notebooks without a cell for a GPU."
    files = [Path(name) for name in git('ls-files', '-z').split('\0') if name]
    return [f for f in files if f.parts[:2] != ('nbs', 'figs') and (f.suffix != '.ipynb' or has_cuda_cell(ROOT / f))]


def has_cuda_cell(path):
    "Whether a notebook has a cell that only a GPU runs."
    return '"#| cuda' in Path(path).read_text(encoding='utf-8')


def commit():
    "Of the repository, with a + where the package has uncommitted changes."
    return git('rev-parse', '--short', 'HEAD').strip() + ('+' if git('status', '--porcelain', 'idrnet_nb') else '')


def pack(folder, data, only_data=False):
    """Write what must be carried, and give its bytes: CamVid's train and test, weights, and the commit into
    FOLDER/data; beside that the repository's files. With `only_data` the first three, straight into FOLDER."""
    folder, data = Path(folder), Path(data)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty; name a new folder')
    inside = folder.resolve().is_relative_to(ROOT)
    if inside and subprocess.run(['git', 'check-ignore', '-q', str(folder.resolve() / 'x')], cwd=ROOT).returncode:
        raise ValueError(f'{folder} is in the repository and not ignored, and these images are not ours to publish')
    if not (data / 'CamVid').is_dir():
        raise ValueError(f'no folder CamVid in {data}; name the folder that has it with --data')
    if not only_data:
        for name in tracked():
            (folder / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    home = folder if only_data else folder / 'data'
    for part in PARTS:
        shutil.copytree(data / 'CamVid' / part, home / 'CamVid' / part, copy_function=shutil.copyfile)
    if (data / 'weights').is_dir():
        shutil.copytree(data / 'weights', home / 'weights', copy_function=shutil.copyfile)
    (home / 'commit.txt').write_text(commit() + '\n')
    for path in [folder, *folder.rglob('*')]:  # a copy of a read-only folder can be removed again
        path.chmod(0o755 if path.is_dir() else 0o644)
    return sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())


# ---- what is taken home


def author_rows(folder):
    """Rows of speed.csv from authors.json: the authors' code against ours, on the same features, timed in turn. Date,
    commit and versions are those of the speed.csv beside it, which was written in the same session."""
    from idrnet_nb.experiments.results import read_rows
    from idrnet_nb.experiments.runner import key

    found = json.loads((folder / 'authors.json').read_text())
    names = ('date', 'commit', 'version', 'torch', 'python', 'device')
    sessions = {tuple(row[name] for name in names) for row in read_rows(folder / 'speed.csv')}
    here = [s for s in sessions if s[3] == found['torch'] and s[5] == found['device']]
    if len(here) != 1:
        raise ValueError(
            f'authors.json is of {found["device"]}, torch {found["torch"]}; speed.csv has {len(here)} sessions of that'
        )
    rows = []
    for row in found['rows']:
        amp = {} if row['amp'] == 'fp32' else dict(amp=row['amp'])
        size = dict(k=row['k'], grid=found['grid'], c=found['c'], b=row['b'])
        cells = dict(
            seconds=row['ours'],
            than_seconds=row['theirs'],
            ratio=row['ratio'],
        )
        rows.append(
            {
                **dict(zip(names, here[0])),
                **size,
                **{name: f'{value:.4g}' for name, value in cells.items()},
                'bytes': round(1e9 * row['ours_gb']),
                'than_bytes': round(1e9 * row['theirs_gb']),
                'kind': 'authors',
                'what': ', '.join(['step', *amp.values()]),
                'grid': 'x'.join(map(str, found['grid'])),
                'than': 'authors',
                'run': key(dict(size, kind='authors', rounds=row['rounds'], **amp)),
            }
        )
    return rows


def add_new(path, rows, columns):
    "Rows at the end of a file, those that it has left out; how many are new."
    from idrnet_nb.experiments.results import read_rows, write_rows

    def cells(row):
        return tuple(str(row.get(name, '')) for name in columns)

    old = read_rows(path, columns)
    known = set(map(cells, old))
    new = [row for row in rows if cells(row) not in known]
    write_rows(path, [*old, *new], columns)
    return len(new)


def take(folder, results=RESULTS):
    """Take the rows of a session on a GPU into the results: file -> how many were new. ValueError for a row that does
    not say its commit."""
    from idrnet_nb.experiments import speed, trials
    from idrnet_nb.experiments.results import read_rows

    folder, results = Path(folder), Path(results)
    found = {
        'speed_gpu.csv': (read_rows(folder / 'speed.csv', speed.COLUMNS), speed.COLUMNS),
        'speed_authors.csv': (author_rows(folder) if (folder / 'authors.json').exists() else [], speed.COLUMNS),
        'camvid_bench.csv': (read_rows(folder / 'camvid_bench.csv', trials.COLUMNS), trials.COLUMNS),
    }
    for name, (rows, _) in found.items():
        nameless = [row for row in rows if row['commit'] in ('', 'none')]
        if nameless:
            raise ValueError(f'{len(nameless)} rows for {name} name no commit: write it into the column `commit`')
    return {name: add_new(results / name, rows, columns) for name, (rows, columns) in found.items() if rows}
