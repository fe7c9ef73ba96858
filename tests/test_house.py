"""The rules of house.py, asked of every notebook, module and file; and each rule shown to find a planted violation."""

import ast, base64, copy, importlib.metadata as metadata, json, os, re, shutil, socket, subprocess, sys, warnings
from configparser import ConfigParser

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import house
from house import LIB, NBS, ROOT

NOTEBOOKS = house.notebooks()
SOURCES = {
    house.module_of(nb): ROOT / LIB / (house.module_of(nb).replace('.', '/') + '.py')
    for nb in NOTEBOOKS
    if house.module_of(nb)
}
SOURCES = {m: p.read_text(encoding='utf-8') for m, p in SOURCES.items()}
each_notebook = pytest.mark.parametrize('nb', NOTEBOOKS, ids=[nb['name'] for nb in NOTEBOOKS])
each_module = pytest.mark.parametrize('name', SOURCES)


def none(wrong):
    if wrong:
        pytest.fail('\n'.join(wrong), pytrace=False)


def settings():
    conf = ConfigParser(interpolation=None)
    conf.read(ROOT / 'settings.ini', encoding='utf-8')
    return conf['DEFAULT']


# ---- notebooks


def valid(nb):
    "nbformat repairs or only warns of some faults; here each is an error."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        nbformat.validate({k: v for k, v in nb.items() if k != 'name'})
    ids = [c['id'] for c in nb['cells']]
    assert len(ids) == len(set(ids)) > 0, f'{nb["name"]}: two cells have the same id'


@each_notebook
def test_notebook(nb):
    valid(nb)
    nbytes = (NBS / f'{nb["name"]}.ipynb').stat().st_size
    none(house.place(nb) + house.form(nb) + house.kept_outputs(nb) + house.sizes(nb, nbytes))
    none([w for text in house.prose(nb) for w in house.links(text, (NBS / nb['name']).parent)])
    if house.module_of(nb):
        none(house.shown_and_tested(nb, SOURCES[house.module_of(nb)]))


def test_numbers_of_a_folder_are_unique():
    numbers = [re.match(r'(.*/\d\d|\w+)', nb['name'])[1] for nb in NOTEBOOKS]
    assert len(numbers) == len(set(numbers)) > 50


# ---- modules


def test_each_module_has_one_notebook():
    files = {p.relative_to(ROOT / LIB).with_suffix('').as_posix().replace('/', '.') for p in (ROOT / LIB).rglob('*.py')}
    files = {f for f in files if f.split('.')[-1] not in ('__init__', '_modidx')}
    assert files == set(SOURCES) and len(SOURCES) == sum(house.module_of(nb) is not None for nb in NOTEBOOKS)


@each_module
def test_documented(name):
    assert house.exported(SOURCES[name])
    none(house.documented(name, SOURCES[name]))


def test_layers():
    "Imports point down: common < data < method < models < training < experiments < cli (pyproject.toml)."
    r = subprocess.run(
        [shutil.which('lint-imports', path=os.path.dirname(sys.executable)) or 'lint-imports'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr


LATE = 'transformers segmentation_models_pytorch onnx onnxruntime onnxscript torchvision datasets matplotlib PIL pandas accelerate timm'.split()
NEVER = 'nbdev fastcore IPython ipykernel jupyter nbformat execnb pytest'.split()


def test_imports_are_light():
    "Importing every module loads nothing that only some functions need, and nothing of the workshop."
    code = (
        f'import importlib, sys\nfor name in {sorted(SOURCES)}: importlib.import_module("{LIB}."+name)\n'
        f'print([m for m in {LATE + NEVER} if m in sys.modules])'
    )
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (r.returncode, r.stdout.strip()) == (0, '[]'), r.stdout + r.stderr


FRONT_DOOR = 'Segmentor build_segmentor IDRContext add_idr idr_loss train evaluate predict'.split()


def test_front_door():
    "The eight names are there when asked for; importing the package alone loads not even torch."
    code = f'import sys, {LIB}\nassert "torch" not in sys.modules\nfrom {LIB} import {", ".join(FRONT_DOOR)}\nprint(*dir({LIB}))'
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0 and set(FRONT_DOOR) <= set(r.stdout.split()), r.stderr
    package = __import__(LIB)
    assert set(FRONT_DOOR) <= set(package.__all__)
    with pytest.raises(AttributeError, match='nothing_like_it'):
        package.nothing_like_it


def top_names(source):
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.split('.')[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split('.')[0])
    return found


COMES_WITH_TORCH = {'triton'}  # on Linux; `kernels.launch.has_triton` asks before one of these is imported


@each_module
def test_imports_are_required(name):
    "What a module imports comes with Python or is named in settings.ini."
    dists = metadata.packages_distributions()
    asked = {
        canonicalize_name(Requirement(r).name)
        for key in ('requirements', 'plug_requirements', 'export_requirements')
        for r in settings()[key].split()
    }
    other = top_names(SOURCES[name]) - set(sys.stdlib_module_names) - {LIB} - COMES_WITH_TORCH
    none(
        [
            f'{name} imports {t}, which settings.ini does not require'
            for t in sorted(other)
            if not asked & {canonicalize_name(d) for d in dists.get(t, [t])}
        ]
    )


# ---- one home for versions and requirements


def test_versions_are_equal():
    init = re.search(r'^__version__ = "(.+)"$', (ROOT / LIB / '__init__.py').read_text(), re.M)[1]
    found = {'settings.ini': settings()['version'], f'{LIB}.__version__': init, 'installed': metadata.version(LIB)}
    assert len(set(found.values())) == 1, found


def same(requirements):
    return {(canonicalize_name(r.name), str(r.specifier)) for r in map(Requirement, requirements)}


def test_requirements_are_the_installed_ones():
    said = [Requirement(r) for r in metadata.requires(LIB)]
    assert same(str(r) for r in said if not r.marker) == same(settings()['requirements'].split())
    dev = {
        (canonicalize_name(r.name), str(r.specifier)) for r in said if r.marker and r.marker.evaluate({'extra': 'dev'})
    }
    assert dev == same(sum((settings()[f'{e}_requirements'].split() for e in ('dev', 'plug', 'export')), []))


def test_pyproject_holds_no_metadata():
    tables = re.findall(r'^\[+(.+?)\]+\s*$', (ROOT / 'pyproject.toml').read_text(), re.M)
    assert set(tables) == {'build-system', 'tool.nbdev', 'tool.importlinter', 'tool.importlinter.contracts'}


def test_licence_is_whole():
    text = (ROOT / 'LICENSE').read_text()
    assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text and len(text) > 11000
    assert settings()['license'] == 'Apache-2.0'


# ---- what belongs to one machine


def hosts():
    "This machine's name, where it is a name and not a common word."
    h = socket.gethostname().split('.')[0]
    return [h] if len(h) > 5 and re.search(r'[\d-]', h) and not h.startswith('localhost') else []


def tracked():
    "Files that git knows or would take."
    if not shutil.which('git'):
        pytest.skip('git is not installed')
    r = subprocess.run(
        ['git', '-c', f'safe.directory={ROOT}', 'ls-files', '-coz', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if r.returncode:
        pytest.skip('not a git checkout')
    return [ROOT / f for f in r.stdout.split('\0') if f and (ROOT / f).is_file()]


def test_nothing_names_a_machine():
    files = tracked()
    assert ROOT / 'settings.ini' in files
    wrong = []
    for f in files:
        text = house.words_of(f)
        if text is not None:
            wrong += [f'{f.relative_to(ROOT)} names {w}' for w in house.local_words(text, hosts())]
    none(wrong)


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md'])
def test_links_of_pages(page):
    none(house.links((ROOT / page).read_text(encoding='utf-8'), ROOT))


def test_readme_is_short():
    "What a practitioner reads in three minutes."
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 120


# ---- the rules bite: a small good notebook, and one thing wrong with it at a time


def md(id, text):
    return dict(cell_type='markdown', id=id, metadata={}, source=text)


def code(id, text, *outputs):
    return dict(cell_type='code', id=id, metadata={}, source=text, execution_count=None, outputs=list(outputs))


def stream(text, name='stdout'):
    return dict(output_type='stream', name=name, text=text)


def shown(kind, data):
    return dict(output_type='display_data', metadata={}, data={kind: data})


FOLD = '<details><summary>Answer</summary>\n\n{}\n\n</details>'
ADD = '''def add(
    a:int, # `b`, one number
    b:int=0, # another
)->int: # their sum
    "The sum."
    return a+b'''
MODULE = "__all__ = ['ZERO', 'add']\nimport torch\nZERO = 0 # nothing\n" + ADD + '\n'
LESSON = dict(
    name='1_method/05_sum',
    nbformat=4,
    nbformat_minor=5,
    metadata={},
    cells=[
        code('first', '#| default_exp method.sum'),
        md('title', '# Sums\n\n> Two numbers become one.'),
        code('import', '#| export\nimport torch'),
        code('zero', '#| export\nZERO = 0 # nothing'),
        code('add', '#| export\n' + ADD),
        code('show', 'two = add(1, ZERO)\ntwo', shown('text/plain', '1')),
        code('test', 'test_eq(add(1, 1), 2)\ntest_eq(ZERO, 0)'),
        md('away', '## What to take away\n\n- one\n- two\n- three'),
        md('try', '## Try\n\n1. Why?\n\n' + FOLD.format('So.') + '\n\n2. How?\n\n' + FOLD.format('Thus.')),
    ],
)


def lesson():
    return copy.deepcopy(LESSON)


def cell(nb, id):
    return next(c for c in nb['cells'] if c['id'] == id)


def wrongs(nb, source=MODULE):
    "Everything the notebook rules say of one notebook."
    return (
        house.place(nb)
        + house.form(nb)
        + house.kept_outputs(nb)
        + house.sizes(nb, len(json.dumps(nb)))
        + house.shown_and_tested(nb, source)
    )


def test_good_lesson():
    none(wrongs(lesson()) + house.documented('sum', MODULE))
    valid(lesson())


def local(*parts):
    return '/' + '/'.join(parts)  # spelled so that this file names no path itself


PNG = base64.b64encode(os.urandom(41 * 1024)).decode()
OUTPUTS = {
    'an error': dict(output_type='error', ename='ValueError', evalue='', traceback=[]),
    'stderr': stream('hm', 'stderr'),
    'a traceback': stream('Traceback (most recent call last)\n'),
    'a warning': shown('text/plain', 'x.py:3: UserWarning: no'),
    'a progress bar': stream('  3/9\r'),
    'a progress bar ': stream(' 40%|####      |'),
    'a progress bar  ': shown('text/html', 'at 3.1it/s'),
    'a progress bar   ': stream('1.2s/it'),
    'a local path': stream('saved in ' + local('home', 'ann', 'runs')),
    'a local path ': shown('text/plain', f"PosixPath('{local('tmp', 'x')}')"),
    'a local path  ': stream('cwd: ' + local('root')),
    'a local path   ': shown('text/html', '<code>C:' + '\\Users</code>'),
    'terminal colours': stream('\x1b[31mred\x1b[0m'),
    'image/svg+xml': shown('image/svg+xml', base64.b64encode(b'<svg/>').decode()),
    'a figure of 41 KB': shown('image/png', PNG),
    'a figure of 41 KB ': shown('text/html', f'<img src="data:image/png;base64,{PNG}">'),
    'has 3': shown('text/plain', 'x' * house.MAX_NOTEBOOK),
}


@pytest.mark.parametrize('what', OUTPUTS)
def test_bites_on_output(what):
    nb = lesson()
    cell(nb, 'show')['outputs'].append(OUTPUTS[what])
    assert any(what.strip() in w for w in wrongs(nb)), wrongs(nb)


@pytest.mark.parametrize(
    'text',
    [
        'runs/demo/work/x.png',
        'and/or/home',
        'https://example.org/home/x',
        '100%',
        'a/b | c',
        'see 3/tmp',
        '12 s',
        '</root>',
    ],
)
def test_lets_pass(text):
    nb = lesson()
    cell(nb, 'show')['outputs'].append(stream(text))
    none(wrongs(nb))


def swap(id, old, new):
    def edit(nb):
        assert old in cell(nb, id)['source']
        cell(nb, id)['source'] = cell(nb, id)['source'].replace(old, new)

    return edit


def drop(id):
    return lambda nb: nb['cells'].remove(cell(nb, id))


def add(text):
    return lambda nb: nb['cells'].append(md('more', text))


def name(to):
    return lambda nb: nb.update(name=to)


def no_outputs(nb):
    cell(nb, 'show')['outputs'] = []


EDITS = {  # what is wrong -> (edit, what is said)
    'no default_exp': (drop('first'), 'has no `#| default_exp`'),
    'default_exp later': (lambda nb: nb['cells'].insert(0, nb['cells'].pop(1)), 'does not begin with'),
    'no number': (name('1_method/sum'), 'a notebook is called'),
    'no folder': (name('05_sum'), 'a notebook is called'),
    'another module': (swap('first', 'method.sum', 'method.total'), 'not method.sum'),
    'another folder': (name('2_models/05_sum'), 'not models.sum'),
    'index exports': (name('index'), 'exports something'),
    'nothing exported': (
        lambda nb: [swap(i, '#| export', '')(nb) for i in ('import', 'zero', 'add')],
        'exports nothing',
    ),
    'no title': (swap('title', '# Sums', 'Sums'), 'title'),
    'no line': (swap('title', '> Two', 'Two'), 'title'),
    'two titles': (add('# Another'), 'exactly one title'),
    'two bullets': (swap('away', '- three', ''), 'three bullets'),
    'four bullets': (swap('away', '- three', '- three\n- four'), 'three bullets'),
    'one answer': (swap('try', FOLD.format('Thus.'), 'Thus.'), 'two answers'),
    'no Try': (swap('try', '## Try', '## Tries'), 'two answers'),
    'never run': (no_outputs, 'keeps no output'),
    'not shown': (
        lambda nb: [cell(nb, i).update(source='#| hide\n' + cell(nb, i)['source']) for i in ('show', 'test')],
        'not used in a cell that is shown',
    ),
    'not tested': (swap('test', 'test_eq(ZERO, 0)', ''), 'ZERO is in no cell with a test'),
    'test never run': (swap('test', 'test_eq(add', '#| cuda\ntest_eq(add'), 'add is in no cell with a test'),
    'only exported': (swap('test', 'test_eq(add', '#| export\ntest_eq(add'), 'add is in no cell with a test'),
}


@pytest.mark.parametrize('what', EDITS)
def test_bites_on_notebook(what):
    nb, (edit, said) = lesson(), EDITS[what]
    edit(nb)
    assert any(said in w for w in wrongs(nb)), wrongs(nb)


def test_other_folders_need_no_takeaways():
    nb = lesson()
    name('3_data/05_sum')(nb)
    swap('first', 'method.sum', 'data.sum')(nb)
    drop('away')(nb)
    drop('try')(nb)
    none(wrongs(nb))


@pytest.mark.parametrize(
    'old,new,said',
    [
        ('    "The sum."\n', '', 'no docstring'),
        ('a:int, # `b`, one number', 'a:int,', 'argument a has no comment'),
        ('a:int, # `b`, one number\n    b:int=0, # another', 'a:int, b:int=0, # both', 'shares its line'),
    ],
)
def test_bites_on_undocumented(old, new, said):
    assert old in MODULE
    assert any(said in w for w in house.documented('sum', MODULE.replace(old, new)))


def test_bites_on_undocumented_class():
    head = "__all__ = ['A']\nfrom dataclasses import dataclass\n"
    assert len(house.documented('x', head + 'class A:\n    def __init__(self, n): self.n = n\n')) == 2
    fields = '@dataclass\nclass A:\n    "One."\n    a:int # said\n    b:int\n'
    assert house.documented('x', head + fields) == ['x.A: field b has no comment on its line']


@pytest.mark.parametrize(
    'text',
    [
        'cd ' + local('work', 'main'),
        local('tmp', 'nb') + '/x',
        'root = "' + local('home', 'ann') + '"',
        '//'.join(['http:', 'wheels.corp/simple']),
        '.'.join(['192', '168', '1', '7']),
        'pip install --' + 'index-url x',
        'on builder-7f3a1 it runs',
        '~' + local('src', 'x'),
    ],
)
def test_bites_on_machine(text):
    assert house.local_words(text, ['builder-7f3a1'])


@pytest.mark.parametrize(
    'text',
    [
        'runs/demo/x',
        'version 10.1.2',
        'https://github.com/a/home/b',
        '#!' + local('usr', 'bin', 'env') + ' bash',
        '127.0.0.1',
        '"${TMPDIR:-' + local('tmp') + '}/x"',
    ],
)
def test_no_machine(text):
    none(house.local_words(text, ['builder-7f3a1']))


def test_bites_on_links(tmp_path):
    (tmp_path / 'a.ipynb').write_text('')
    none(house.links('[a](a.ipynb#x) [b](https://x.org/y) [c](#here) `[d](no.md)`\n```\n[e](no.md)\n```', tmp_path))
    assert len(house.links('[a](b.ipynb) <img src="no.png">', tmp_path)) == 2


def test_bites_on_invalid():
    for spoil in (
        lambda c: c[0].pop('id'),
        lambda c: c[1].update(id=c[0]['id']),
        lambda c: c[5].pop('outputs'),
        lambda c: c[1].update(cell_type='text'),
    ):
        nb = lesson()
        spoil(nb['cells'])
        with pytest.raises((Warning, KeyError, AssertionError, nbformat.ValidationError)):
            valid(nb)
