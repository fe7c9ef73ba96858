"""The tools of the house: README from index, the checks of `make test`, the Makefile itself, .ci/run. Each check is shown to bite."""

import base64, importlib.util, json, os, shutil, stat, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIB = 'idrnet_nb'


def tool(name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sh(*cmd, cwd, **env):
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(('MAKE', 'MFLAGS', 'VENV', 'PYTHON', 'PYTEST_', 'IN_TEST'))
    }
    return subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True, env={**clean, **env})


def code(source, *outputs, id='c1'):
    return dict(cell_type='code', id=id, metadata={}, source=source, execution_count=None, outputs=list(outputs))


def md(source, id='m1'):
    return dict(cell_type='markdown', id=id, metadata={}, source=source)


def book(*cells):
    return dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)


def save(nb, path):
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


# ---- README

readme, check = tool('readme'), tool('check')
PNG = b'\x89PNG not really'
SHOWN = dict(
    output_type='display_data',
    metadata={},
    data={'image/png': base64.b64encode(PNG).decode(), 'text/plain': '<Figure>'},
)


@pytest.mark.parametrize(
    'said,meant',
    [
        ('[a](1_method/01_notation.ipynb)', '[a](nbs/1_method/01_notation.ipynb)'),
        ('[a](1_method/01_notation.ipynb#x "t")', '[a](nbs/1_method/01_notation.ipynb#x "t")'),
        ('![a](figs/a.png)', '![a](nbs/figs/a.png)'),
        ('[a](../LICENSE)', '[a](LICENSE)'),
        ('[`a`](b.ipynb)', '[`a`](nbs/b.ipynb)'),
        ('<img src="figs/a.png">', '<img src="nbs/figs/a.png">'),
        ('[a](https://x.org/b)', '[a](https://x.org/b)'),
        ('[a](#here)', '[a](#here)'),
        ('`x[0](y)`', '`x[0](y)`'),
        ('```\nf[0](y)\n```', '```\nf[0](y)\n```'),
    ],
)
def test_links_start_from_the_root(said, meant):
    assert readme.relink(said) == meant


def test_readme_of_a_notebook():
    nb = book(
        md('# T\n\n> line'),
        code('#| hide\nsecret = 1'),
        code('#| default_exp x'),
        code('#| export\nsecret = 2'),
        code('x = 1\nx', dict(output_type='execute_result', metadata={}, data={'text/plain': '1'})),
        code(
            "print('hi')",
            dict(output_type='stream', name='stdout', text=['hi\n', 'ho\n']),
            dict(output_type='stream', name='stderr', text='psst'),
        ),
        code(
            '#| echo: false\nsecret()',
            dict(output_type='display_data', metadata={}, data={'text/markdown': '[b](b.ipynb)', 'text/plain': 'no'}),
        ),
        code('#| output: false\ny = 2', dict(output_type='stream', name='stdout', text='psst')),
        code('%%bash\nmake demo'),
        code('draw()', SHOWN, id='fig'),
        code(
            't',
            dict(
                output_type='display_data',
                metadata={},
                data={'text/html': '<style>x</style><table></table>', 'text/plain': 'no'},
            ),
        ),
    )
    text, figs = readme.convert(nb)
    assert (
        text
        == '\n\n'.join(
            [
                readme.NOTE,
                '# T\n\n> line',
                '```python\nx = 1\nx\n```',
                '```text\n1\n```',
                "```python\nprint('hi')\n```",
                '```text\nhi\nho\n```',
                '[b](nbs/b.ipynb)',
                '```python\ny = 2\n```',
                '```bash\nmake demo\n```',
                '```python\ndraw()\n```',
                '![](nbs/figs/readme_fig_0.png)',
                '```python\nt\n```',
                '<table></table>',
            ]
        )
        + '\n'
    )
    assert figs == {'readme_fig_0.png': PNG}


def test_readme_check_bites(tmp_path):
    (tmp_path / 'nbs').mkdir()

    def go(*flags):
        return sh(sys.executable, ROOT / 'tools' / 'readme.py', '--root', tmp_path, *flags, cwd=tmp_path)

    def out_of_step():
        r = go('--check')
        return (r.returncode, r.stderr)

    assert 'index.ipynb is missing' in go().stderr
    save(book(md('# One'), code('draw()', SHOWN)), tmp_path / 'nbs' / 'index.ipynb')
    assert out_of_step()[0] == 1 and not (tmp_path / 'README.md').exists()
    assert go().returncode == 0 and out_of_step() == (0, '')
    (tmp_path / 'nbs' / 'figs' / 'readme_c1_0.png').write_bytes(b'old')
    assert 'nbs/figs/readme_c1_0.png' in out_of_step()[1]
    assert go().returncode == 0
    (tmp_path / 'nbs' / 'figs' / 'readme_gone.png').write_bytes(b'old')
    assert 'readme_gone.png (no longer used)' in out_of_step()[1]
    assert go().returncode == 0 and out_of_step() == (0, '')
    (tmp_path / 'README.md').write_text((tmp_path / 'README.md').read_text() + 'by hand\n')
    assert 'README.md' in out_of_step()[1] and 'make readme' in out_of_step()[1]
    assert go().returncode == 0
    save(book(md('# Two'), code('draw()', SHOWN)), tmp_path / 'nbs' / 'index.ipynb')
    assert out_of_step()[0] == 1


# ---- clean and exported


@pytest.fixture
def project(tmp_path):
    "A project of one notebook, cleaned and exported."
    for f in ('pyproject.toml', 'settings.ini'):
        shutil.copy(ROOT / f, tmp_path / f)
    (tmp_path / 'nbs').mkdir()
    (tmp_path / LIB).mkdir()
    (tmp_path / LIB / '__init__.py').write_text('__version__ = "0.1.0"\n')
    save(
        book(code('#| default_exp one', id='c0'), md('# One\n\n> A line.'), code('#| export\nONE = 1', id='c2')),
        tmp_path / 'nbs' / '00_one.ipynb',
    )
    check.nbdev('clean', 'nbdev_clean', tmp_path)
    check.nbdev('doclinks', 'nbdev_export', tmp_path)
    assert (
        check.clean(tmp_path) == check.export(tmp_path) == [] and 'ONE = 1' in (tmp_path / LIB / 'one.py').read_text()
    )
    return tmp_path


def state(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


SPOIL = {
    'executed': (
        lambda p: edit(p / 'nbs' / '00_one.ipynb', '"execution_count": null', '"execution_count": 3'),
        'clean',
        ['00_one.ipynb (differs)'],
    ),
    'metadata': (
        lambda p: edit(p / 'nbs' / '00_one.ipynb', '"metadata": {}', '"metadata": {"x": 1}'),
        'clean',
        ['00_one.ipynb (differs)'],
    ),
    'module edited': (lambda p: edit(p / LIB / 'one.py', 'ONE = 1', 'ONE = 2'), 'export', ['one.py (differs)']),
    'notebook edited': (
        lambda p: edit(p / 'nbs' / '00_one.ipynb', 'ONE = 1', 'ONE = 2'),
        'export',
        ['one.py (differs)'],
    ),
    'module lost': (lambda p: (p / LIB / 'one.py').unlink(), 'export', ['one.py (missing)']),
    'notebook lost': (
        lambda p: shutil.copy(p / LIB / 'one.py', p / LIB / 'old.py'),
        'export',
        ['old.py (made by no notebook)'],
    ),
    'index stale': (lambda p: edit(p / LIB / '_modidx.py', "'syms'", "'sims'"), 'export', ['_modidx.py (differs)']),
}


@pytest.mark.parametrize('what', SPOIL)
def test_check_bites_and_leaves_no_trace(what, project):
    spoil, which, said = SPOIL[what]
    spoil(project)
    before = state(project)
    assert getattr(check, which)(project) == said
    assert state(project) == before
    r = sh(sys.executable, ROOT / 'tools' / 'check.py', which, '--root', project, cwd=project)
    assert r.returncode == 1 and said[0] in r.stderr and 'Run `make' in r.stderr


def test_check_without_notebooks(tmp_path):
    assert (
        'no notebooks'
        in sh(sys.executable, ROOT / 'tools' / 'check.py', 'clean', '--root', tmp_path, cwd=tmp_path).stderr
    )


# ---- a real kernel


def test_kernel(tmp_path):
    "Notebooks run where Jupyter runs them, not the cells for a GPU; a failing cell is an error, and nothing is written."
    for f in ('pyproject.toml', 'tools/kernel.py'):
        (tmp_path / f).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f, tmp_path / f)
    (tmp_path / 'nbs').mkdir()
    good = book(
        code(
            'import sys, os\nfrom IPython import get_ipython\nassert type(get_ipython()).__name__ == "ZMQInteractiveShell"',
            id='a',
        ),
        code(
            f'assert os.path.realpath(sys.prefix) == {os.path.realpath(sys.prefix)!r}\nassert os.path.basename(os.getcwd()) == "nbs"',
            id='b',
        ),
        code('#| cuda\nraise SystemExit', id='c'),
        code('open("left.txt", "w").write("x")', id='d'),
    )
    save(good, tmp_path / 'nbs' / 'good.ipynb')
    save(book(code('1/0')), tmp_path / 'nbs' / 'bad.ipynb')
    save(book(code('#| cuda\n1')), tmp_path / 'nbs' / 'none.ipynb')
    before = state(tmp_path)

    def go(*files):
        return sh(sys.executable, tmp_path / 'tools' / 'kernel.py', *files, cwd=tmp_path)

    r = go('nbs/good.ipynb')
    assert r.returncode == 0 and 'nbs/good.ipynb: 3 code cells in' in r.stdout and not r.stderr, r.stdout + r.stderr
    r = go('nbs/good.ipynb', 'nbs/bad.ipynb')
    assert (
        r.returncode == 1 and 'nbs/bad.ipynb fails in a Jupyter kernel' in r.stderr and 'ZeroDivisionError' in r.stderr
    )
    assert 'no cell ran' in go('nbs/none.ipynb').stderr and 'no such notebook' in go('nbs/gone.ipynb').stderr
    assert state(tmp_path) == before


# ---- the Makefile, with a Python that only writes down what it was asked

STUB = '''#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
  *version_info*) exit {old};;
  "--version") echo "Python 3.{minor}";;
  "-m venv "*) for a; do place=$a; done; mkdir -p "$place/bin"; cp "$0" "$place/bin/python";;
  *"pip install"*) {pip};;
esac
'''


def stub(path, log, old=0, minor=12, pip='exit 0'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STUB.format(log=log, old=old, minor=minor, pip=pip))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(params=['plain', 'with space'])
def clone(tmp_path, request):
    if not shutil.which('make'):
        pytest.skip('make is not installed')
    place = tmp_path / request.param
    place.mkdir()
    for f in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / f, place / f)
    return place


def installs(log):
    return sum('pip install' in l for l in log.read_text().splitlines()) if log.exists() else 0


def test_makes_an_environment_once(clone, tmp_path):
    log = tmp_path / 'log'
    python = stub(tmp_path / 'bin' / 'mypython', log)

    def make(*a):
        return sh('make', 'env', f'PYTHON={python}', *a, cwd=clone)

    r = make()
    assert r.returncode == 0 and 'Making the environment .venv with Python 3.12' in r.stdout, r.stdout + r.stderr
    assert installs(log) == 1 and '-e .[dev]' in log.read_text() and 'index' not in log.read_text()
    n = len(log.read_text())
    r = make()
    assert r.returncode == 0 and r.stdout.strip() == '.venv is ready.' and len(log.read_text()) == n
    later = (clone / '.venv' / '.idrnet_nb-installed').stat().st_mtime + 2
    os.utime(clone / 'settings.ini', (later, later))
    make()
    assert installs(log) == 2 and log.read_text().count('-m venv') == 1
    shutil.copytree(clone, tmp_path / 'moved', symlinks=True)
    shutil.rmtree(clone)
    sh('make', 'env', cwd=tmp_path / 'moved')
    assert installs(log) == 3  # it was installed for another folder
    assert (
        sh('make', 'clean-env', cwd=tmp_path / 'moved').returncode == 0 and not (tmp_path / 'moved' / '.venv').exists()
    )


def test_uses_an_environment_that_exists(clone, tmp_path):
    log = tmp_path / 'log'
    stub(tmp_path / 'mine' / 'bin' / 'python', log)
    r = sh('make', 'env', 'VENV=../mine', cwd=clone)
    assert r.returncode == 0 and installs(log) == 1 and '-m venv' not in log.read_text(), r.stderr
    r = sh('make', 'clean-env', 'VENV=../mine', cwd=clone)
    assert r.returncode and 'was not made by this Makefile' in r.stdout and (tmp_path / 'mine').exists()


def test_finds_a_python_that_is_new_enough(clone, tmp_path):
    log = tmp_path / 'log'
    bins = tmp_path / 'bin'
    bins.mkdir()
    for t in 'sh make awk touch mkdir cp cat echo getconf tail rm'.split():
        (bins / t).symlink_to(shutil.which(t))
    stub(bins / 'python3', tmp_path / 'old', old=1, minor=9)
    r = sh('make', 'env', cwd=clone, PATH=str(bins))
    assert r.returncode and 'No Python 3.10 or newer found' in r.stdout and not (clone / '.venv').exists()
    stub(bins / 'python3.11', log, minor=11)
    r = sh('make', 'env', cwd=clone, PATH=str(bins))
    assert r.returncode == 0 and 'Python 3.11' in r.stdout and installs(log) == 1
    r = sh('make', 'env', 'PYTHON=python9', 'VENV=other', cwd=clone, PATH=str(bins))
    assert r.returncode and 'found as python9' in r.stdout


def test_pip_fails_aloud(clone, tmp_path):
    python = stub(tmp_path / 'python', tmp_path / 'log', pip='echo no such thing; exit 1')
    for _ in range(2):
        r = sh('make', 'env', f'PYTHON={python}', cwd=clone)
        assert (
            r.returncode
            and 'no such thing' in r.stdout
            and '.venv/install.log' in r.stdout
            and 'is ready' not in r.stdout
        )


def test_order_of_make_test():
    "The checks come in their order, and pytest last of all."
    lines = [l.strip() for l in (ROOT / 'Makefile').read_text().split('\ntest: ')[1].split('\n\n')[0].splitlines()[1:]]
    runs = [l for l in lines if not l.startswith("@echo '== ")]
    assert len(runs) * 2 == len(lines)
    words = [
        'check.py clean',
        'check.py export',
        'check.py readme',
        'ruff check',
        'ruff format --quiet --check',
        'lint-imports',
        'livable.py --check',
        'nbdev-test',
        'kernel.py nbs/index.ipynb nbs/5_experiments/07_toy_world.ipynb',
        '-m pytest',
    ]
    assert [w for r, w in zip(runs, words) if w in r] == words and len(runs) == len(words)


def test_help_names_each_command():
    said = sh('make', 'help', cwd=ROOT).stdout
    assert all(f'\n  {t} ' in said for t in ('demo', 'test', 'gpu', 'lab', 'export', 'readme'))


# ---- .ci/run, with a make that only writes down what it was asked


@pytest.mark.parametrize('code', [0, 7])
def test_ci_keeps_the_exit_code_and_cleans_up(code, tmp_path):
    (tmp_path / 'tree' / '.ci').mkdir(parents=True)
    shutil.copy(ROOT / '.ci' / 'run', tmp_path / 'tree' / '.ci' / 'run')
    make = tmp_path / 'bin' / 'make'
    make.parent.mkdir()
    make.write_text(
        f'#!/bin/sh\necho "$PWD $@" >"{tmp_path}/log"\nmkdir -p "${{3#VENV=}}"; ls -d "${{3#VENV=}}"\necho "3 passed in 1s"\nexit {code}\n'
    )
    make.chmod(0o755)
    (tmp_path / 'tmp').mkdir()
    r = sh(
        'bash',
        tmp_path / 'tree' / '.ci' / 'run',
        cwd=tmp_path,
        PATH=f'{make.parent}{os.pathsep}{os.environ["PATH"]}',
        TMPDIR=str(tmp_path / 'tmp'),
    )
    assert r.returncode == code and r.stdout.splitlines()[-1] == '3 passed in 1s' and not r.stderr
    cwd, *args = (tmp_path / 'log').read_text().split()
    assert (
        Path(cwd).name == 'tree'
        and args[:2] == ['--no-print-directory', 'test']
        and args[2].startswith(f'VENV={tmp_path}/tmp/')
    )
    assert not list((tmp_path / 'tmp').iterdir())


def test_ci_run_can_be_run():
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
