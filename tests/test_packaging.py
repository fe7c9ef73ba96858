"""What a stranger installs: an sdist, the wheel built from it, and that wheel in a bare folder. Needs no network."""

import os, shutil, subprocess, sys, zipfile, tarfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LIB = 'idrnet_nb'
FILES = 'settings.ini setup.py pyproject.toml MANIFEST.in LICENSE README.md'.split()
DEVELOPMENT = 'nbdev fastcore execnb IPython ipykernel jupyter jupyter_core jupyter_client jupyterlab nbformat nbconvert pytest'.split()

conf = ConfigParser(interpolation=None)
conf.read(ROOT / 'settings.ini', encoding='utf-8')
CFG = conf['DEFAULT']


def run(*cmd, cwd, ok=True, **env):
    "Run a command without the variables that would let it find this folder; return what it said."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'PIP_', 'COV_'))}
    r = subprocess.run(
        [str(c) for c in cmd], cwd=cwd, capture_output=True, text=True, env={**clean, 'PIP_NO_INDEX': '1', **env}
    )
    assert not ok or r.returncode == 0, f'{cmd}\n{r.stdout}\n{r.stderr}'
    return r


def copy_of(place):
    "What git holds of the package, and no leftovers of earlier builds; plus a sub-package, which packages.find must take."
    place.mkdir()
    for f in FILES:
        if (ROOT / f).exists():
            shutil.copy(ROOT / f, place / f)
    for d in (LIB, 'nbs'):
        shutil.copytree(ROOT / d, place / d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    (place / LIB / 'sub').mkdir()
    (place / LIB / 'sub' / '__init__.py').write_text('')
    return place


def sdist(source, out):
    run(sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', out, source, cwd=out.parent)
    return next(out.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "sdist, the wheel built from it, and a folder into which the wheel is installed."
    tmp = tmp_path_factory.mktemp('build')
    source = sdist(copy_of(tmp / 'source'), tmp / 'dist')
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp / 'dist', source, cwd=tmp)
    wheel = next((tmp / 'dist').glob('*.whl'))
    run(sys.executable, '-m', 'pip', 'install', '--no-deps', '--target', tmp / 'bare', wheel, cwd=tmp)
    return source, wheel, tmp / 'bare'


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as z:
        info = next(n.split('/')[0] for n in z.namelist() if n.endswith('.dist-info/METADATA'))
        return message_from_bytes(z.read(f'{info}/METADATA')), z.read(f'{info}/entry_points.txt').decode(), z.namelist()


def test_sdist_holds_its_sources(built):
    with tarfile.open(built[0]) as t:
        names = {n.split('/', 1)[-1] for n in t.getnames()}
    assert not {f for f in FILES if (ROOT / f).exists()} - names
    notebooks = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
    }
    assert notebooks <= names
    assert not [n for n in names if n.startswith(('tests', '.ci', 'runs'))]


def test_wheel_holds_every_module(built):
    names = metadata_of(built[1])[2]
    assert {
        p.relative_to(ROOT).as_posix() for end in ('py', 'json', 'j2') for p in (ROOT / LIB).rglob(f'*.{end}')
    } <= set(names)
    assert f'{LIB}/sub/__init__.py' in names
    assert {n.split('/')[0] for n in names} == {LIB, f'{LIB}-{CFG["version"]}.dist-info'}


def test_wheel_metadata(built):
    meta, entry, names = metadata_of(built[1])
    said = {str(Requirement(r)) for r in meta.get_all('Requires-Dist', [])}
    extra = lambda name, *parts: {
        str(Requirement(f'{r}; extra == "{name}"')) for p in parts for r in CFG[f'{p}_requirements'].split()
    }
    loggers = [extra(name, name) for name in ('tensorboard', 'wandb', 'mlflow', 'trackio')]
    want = set().union(*loggers) | (
        {str(Requirement(r)) for r in CFG['requirements'].split()}
        | extra('dev', 'dev', 'plug', 'export')
        | extra('plug', 'plug')
        | extra('export', 'export')
    )
    assert said == want and len(CFG['requirements'].split()) >= 7
    assert meta['Version'] == CFG['version'] and meta['Requires-Python'] == '>=' + CFG['min_python']
    assert meta['License-Expression'] == 'Apache-2.0' and any(n.endswith('licenses/LICENSE') for n in names)
    assert '[console_scripts]' in entry and 'idrnet = idrnet_nb.cli:main' in entry
    if (ROOT / 'README.md').exists():
        assert (
            meta.get_payload(decode=True).decode('utf-8').strip()
            == (ROOT / 'README.md').read_text(encoding='utf-8').strip()
        )


SHUT = '''
import sys
class Shut:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {shut}: raise ModuleNotFoundError(name + ' is not there')
sys.meta_path.insert(0, Shut())
'''


def loaded(bare, *modules, shut=()):
    "What is in sys.modules of a fresh Python after importing modules from the bare folder, where some packages are not to be had."
    code = (
        SHUT.format(shut=set(shut) or '()') + f'import {", ".join(modules)}\n'
        f'assert {LIB}.__file__.startswith({str(bare)!r}), {LIB}.__file__\nprint(*sorted({{m.split(".")[0] for m in sys.modules}}))'
    )
    return set(run(sys.executable, '-c', code, cwd=bare.parent, PYTHONPATH=str(bare)).stdout.split())


def test_import_is_light(built):
    names = loaded(built[2], LIB)
    assert not [n for n in names if n in DEVELOPMENT + ['datasets', 'matplotlib', 'torch'] or n.startswith('jupyter')]


def test_model_code_needs_torch_and_einops_alone(built):
    mods = [
        'method.idr',
        'models.head',
        'models.tiled_cross_entropy',
    ]  # with what they import: the network without a backbone
    names = loaded(
        built[2],
        *[f'{LIB}.{m}' for m in mods],
        shut=DEVELOPMENT + ['datasets', 'matplotlib', 'timm', 'scipy', 'PIL', 'tqdm', 'huggingface_hub'],
    )
    assert {'torch', 'einops'} <= names and not names & {'nbdev', 'fastcore', 'datasets', 'matplotlib', 'timm'}


def test_every_module_runs_without_development_tools(built):
    files = [
        p.relative_to(ROOT / LIB).with_suffix('') for p in (ROOT / LIB).rglob('*.py') if not p.stem.startswith('_')
    ]
    mods = sorted('.'.join(f.parts) for f in files)
    assert len(mods) > 90
    names = loaded(built[2], *[f'{LIB}.{m}' for m in mods], shut=DEVELOPMENT + ['datasets', 'matplotlib'])
    assert LIB in names and not names & {'nbdev', 'fastcore', 'IPython', 'datasets', 'matplotlib'}


def test_shut_bites(built):
    (built[2] / 'probe.py').write_text('import fastcore')
    with pytest.raises(AssertionError, match='fastcore is not there'):
        loaded(built[2], LIB, 'probe', shut=DEVELOPMENT)
    assert 'fastcore' in loaded(built[2], LIB, 'probe')


def test_console_script(built):
    "The script that pip writes finds a main that can be called, and --help says what it does."
    assert (built[2] / 'bin' / 'idrnet').exists()
    r = run(sys.executable, built[2] / 'bin' / 'idrnet', '--help', cwd=built[2].parent, PYTHONPATH=str(built[2]))
    assert 'compare' in r.stdout


def test_sdist_without_settings_says_so(tmp_path):
    "Without settings.ini in MANIFEST.in the wheel would require nothing; setup.py refuses instead."
    place = copy_of(tmp_path / 'source')
    manifest = (place / 'MANIFEST.in').read_text()
    assert 'settings.ini' in manifest
    (place / 'MANIFEST.in').write_text(manifest.replace('settings.ini', ''))
    source = sdist(place, tmp_path / 'dist')
    r = run(
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        tmp_path,
        source,
        cwd=tmp_path,
        ok=False,
    )
    assert r.returncode and 'settings.ini is missing' in r.stdout + r.stderr
