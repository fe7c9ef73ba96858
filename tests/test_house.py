"""The house rules, asked of every notebook and module; and each rule shown to bite on a planted violation."""
import ast, base64, importlib.metadata as metadata, json, os, re, shutil, socket, subprocess, sys, warnings
from configparser import ConfigParser

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import house
from house import LIB, NBS, ROOT

ALL = house.notebooks()
NUMBERS = house.numbers(ALL)
MODULES = {m: (ROOT/LIB/f'{m}.py').read_text(encoding='utf-8') for m in NUMBERS if (ROOT/LIB/f'{m}.py').exists()}
LESSONS = [nb for nb in ALL if house.module_of(nb) in MODULES]
each = pytest.mark.parametrize('nb', ALL, ids=[nb['name'] for nb in ALL])
each_lesson = pytest.mark.parametrize('nb', LESSONS, ids=[nb['name'] for nb in LESSONS])
each_module = pytest.mark.parametrize('name', MODULES)

def none(wrong):
    if wrong: pytest.fail('\n'.join(wrong), pytrace=False)

def settings():
    conf = ConfigParser(interpolation=None)
    conf.read(ROOT/'settings.ini', encoding='utf-8')
    return conf['DEFAULT']

# ---- what is there

ROOMS = ('index 1_method/01_notation 1_method/02_toy_world 4_training/02_metrics 2_models/03_backbone 1_method/03_layers 2_models/06_hub 4_training/07_logger 0_common/04_distributed 1_method/04_spatial_context 1_method/05_attention 1_method/06_grouping 1_method/07_relation '
         '1_method/08_deletion 1_method/09_idr 4_training/01_losses 3_data/12_fake_datasets 4_training/06_checkpoint 4_training/03_config 3_data/10_dataset 4_training/08_trainer 4_training/09_inference 2_models/09_plugin 2_models/11_author_weights 5_experiments/02_compare 2_models/12_export 3_data/13_validate 4_training/10_recipes 4_training/11_cli '
         '5_experiments/03_toy_world 5_experiments/04_benchmark 5_experiments/05_camvid 5_experiments/06_what_if 5_experiments/07_stanford 5_experiments/08_people 5_experiments/09_ablation 5_experiments/10_speed 5_experiments/11_every_model '
         '6_trainings/01_ade20k 6_trainings/02_cityscapes 6_trainings/03_cocostuff 6_trainings/04_pascal_context 6_trainings/05_lip 6_trainings/06_cihp 6_trainings/07_your_data').split()

def test_rooms():
    none([f'nbs/{r}.ipynb is missing' for r in ROOMS if not (NBS/f'{r}.ipynb').exists()])

def test_each_module_has_one_notebook():
    files = {p.relative_to(ROOT/LIB).with_suffix('').as_posix() for p in (ROOT/LIB).rglob('*.py')}
    files -= {f for f in files if f.split('/')[-1] in ('__init__', '_modidx')}
    assert files == set(NUMBERS) and len(NUMBERS) == len([nb for nb in ALL if house.module_of(nb)])
    assert len(MODULES) == len(NUMBERS) > 0

def test_numbers_are_unique():
    ns = [house.number(nb) for nb in ALL if house.number(nb) is not None]
    assert len(ns) == len(set(ns)) > 0

# ---- notebooks

def valid(nb):
    "nbformat repairs or only warns of some faults; here each is an error."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        nbformat.validate({k:v for k,v in nb.items() if k != 'name'})
    ids = [c['id'] for c in nb['cells']]
    assert len(ids) == len(set(ids)) > 0, f'{nb["name"]}: two cells have the same id'

@each
def test_valid(nb):
    valid(nb)

@each
def test_place(nb): none(house.place(nb))

@each
def test_form(nb): none(house.form(nb))

@each
def test_kept_outputs(nb): none(house.kept_outputs(nb) + house.was_run(nb))

@each
def test_sizes(nb): none(house.sizes(nb, next(NBS.rglob(nb['name'])).stat().st_size))

@each
def test_reading_order(nb): none(house.reading_order(nb, NUMBERS))

@each
def test_no_star_imports(nb): none([w for c in house.code_cells(nb) for w in house.star_imports(house.python(c))])

@each
def test_links(nb): none([w for text in house.prose(nb) for w in house.links(text, NBS)])

@each_lesson
def test_used_and_tested(nb): none(house.used_and_tested(nb, MODULES[house.module_of(nb)]))

# ---- modules

def test_imports_point_down(): none(house.order(MODULES, NUMBERS))

@each_module
def test_light_imports(name): none(house.heavy_imports(name, MODULES[name]))

@each_module
def test_documented(name): none(house.documented(name, MODULES[name]))

@each_module
def test_short(name): none(house.short(name, MODULES[name]))

@each_module
def test_exports_something(name): assert house.exported(MODULES[name])

@each_module
def test_imports_are_required(name):
    "What a module imports comes with Python or is named in settings.ini."
    dists, asked = metadata.packages_distributions(), {canonicalize_name(Requirement(r).name) for r in settings()['requirements'].split()}
    other = house.top_names(ast.parse(MODULES[name])) - set(sys.stdlib_module_names) - {LIB}
    none([f'{name}.py imports {t}, which settings.ini does not require' for t in sorted(other)
          if not asked & {canonicalize_name(d) for d in dists.get(t, [t])}])

# ---- one home for versions and requirements

def test_versions_are_equal():
    init = re.search(r'^__version__ = "(.+)"$', (ROOT/LIB/'__init__.py').read_text(), re.M)[1]
    found = {'settings.ini': settings()['version'], f'{LIB}.__version__': init, 'installed': metadata.version(LIB)}
    assert len(set(found.values())) == 1, found

def same(reqs): return {(canonicalize_name(r.name), str(r.specifier)) for r in map(Requirement, reqs)}

def test_requirements_are_the_installed_ones():
    said = [Requirement(r) for r in metadata.requires(LIB)]
    assert same(str(r) for r in said if not r.marker) == same(settings()['requirements'].split())
    dev = {(canonicalize_name(r.name), str(r.specifier)) for r in said if r.marker and r.marker.evaluate({'extra': 'dev'})}
    assert dev == same(sum((settings()[f'{e}_requirements'].split() for e in ('dev', 'plug', 'export')), []))

def test_pyproject_has_two_tables():
    tables = re.findall(r'^\[+(.+?)\]+\s*$', (ROOT/'pyproject.toml').read_text(), re.M)
    assert tables == ['build-system', 'tool.nbdev']

def test_licence_is_whole():
    text = (ROOT/'LICENSE').read_text()
    assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text and len(text) > 11000
    assert settings()['license'] == 'Apache-2.0'

# ---- what belongs to one machine

def hosts():
    "This machine's name, where it is a name and not a common word."
    h = socket.gethostname().split('.')[0]
    return [h] if len(h) > 5 and re.search(r'[\d-]', h) and not h.startswith('localhost') else []

def tracked():
    "Files that git knows or would take."
    if not shutil.which('git'): pytest.skip('git is not installed')
    r = subprocess.run(['git', '-c', f'safe.directory={ROOT}', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: pytest.skip('not a git checkout')
    return [ROOT/f for f in r.stdout.split('\0') if f and (ROOT/f).is_file()]

def test_nothing_names_a_machine():
    files = tracked()
    assert ROOT/'settings.ini' in files
    wrong = []
    for f in files:
        text = house.words_of(f)
        if text is not None: wrong += [f'{f.relative_to(ROOT)} names {w}' for w in house.local_words(text, hosts())]
    none(wrong)

def test_readme_links():
    none(house.links((ROOT/'README.md').read_text(encoding='utf-8'), ROOT))

# ---- the rules bite: a small good notebook, and one thing wrong with it at a time

def md(text): return dict(cell_type='markdown', id=f'm{abs(hash(text))%10**8}', metadata={}, source=text)
def code(text, *outputs): return dict(cell_type='code', id=f'c{abs(hash(text))%10**8}', metadata={}, source=text, execution_count=None, outputs=list(outputs))
def stream(text, name='stdout'): return dict(output_type='stream', name=name, text=text)
def shown(kind, data): return dict(output_type='display_data', metadata={}, data={kind: data})

FOLD = '<details><summary>Answer</summary>\n\n{}\n\n</details>'
ADD = '''def add(
    a:int, # `b`, one number
    b:int=0, # another
)->int: # their sum
    "The sum."
    return a+b'''

def lesson():
    "A notebook that keeps every rule."
    return dict(name='05_sum.ipynb', nbformat=4, nbformat_minor=5, metadata={}, cells=[
        code('#| default_exp sum'), md('# Sums\n\n> Two numbers become one.'), md('**Paper:** none. **Reads:** nothing. **Exports:** `sum`.'),
        code('#| export\nimport torch'), code('#| hide\nfrom fastcore.test import test_eq, test_fail'),
        code('#| export\nZERO = 0 # nothing'), code('#| export\n'+ADD),
        code('two = add(1, 1)\ntwo', shown('text/plain', '2')), code('test_eq(two, 2)\ntest_fail(lambda: add("a"))'), code('test_eq(add(ZERO), 0)'),
        md('## What to take away\n\n- one\n- two\n- three'),
        md('## Try\n\n1. Why?\n\n'+FOLD.format('So.')+'\n\n2. How?\n\n'+FOLD.format('Thus.')),
        code('#| hide\nimport nbdev; nbdev.nbdev_export()')])

MODULE = "__all__ = ['ZERO', 'add']\nimport torch\nZERO = 0 # nothing\n" + ADD + '\n'

def wrongs(nb, source=MODULE):
    "Everything the notebook rules say of one notebook."
    rules = house.place, house.form, house.kept_outputs, house.was_run
    return [w for r in rules for w in r(nb)] + house.sizes(nb, len(json.dumps(nb))) + house.used_and_tested(nb, source) + \
        house.reading_order(nb, dict(core=0, sum=5, late=9)) + [w for c in house.code_cells(nb) for w in house.star_imports(house.python(c))]

def test_good_lesson():
    none(wrongs(lesson()))
    none(house.documented('sum', MODULE) + house.short('sum', MODULE) + house.heavy_imports('sum', MODULE))

def local(*parts): return '/' + '/'.join(parts)          # spelled so that this file names no path itself

PNG = base64.b64encode(os.urandom(41*1024)).decode()
OUTPUTS = {
    'an error': dict(output_type='error', ename='ValueError', evalue='', traceback=[]),
    'stderr': stream('hm', 'stderr'),
    'a traceback': stream('Traceback (most recent call last)\n'),
    'a warning': shown('text/plain', 'x.py:3: UserWarning: no'),
    'a progress bar': stream('  3/9\r'),
    'a progress bar ': stream(' 40%|####      |'),
    'a progress bar  ': shown('text/html', 'at 3.1it/s'),
    'a progress bar   ': stream('1.2s/it'),
    'a local path': stream('saved in '+local('home', 'ann', 'runs')),
    'a local path ': shown('text/plain', f"PosixPath('{local('tmp', 'x')}')"),
    'a local path  ': stream('cwd: '+local('root')),
    'a local path   ': shown('text/html', '<code>C:'+'\\Users</code>'),
    'terminal colours': stream('\x1b[31mred\x1b[0m'),
    'image/svg+xml': shown('image/svg+xml', '<svg/>'),
    'a figure of 41 KB': shown('image/png', PNG),
    'a figure of 41 KB ': shown('text/html', f'<img src="data:image/png;base64,{PNG}">'),
    'has 3': shown('text/plain', 'x'*house.MAX_NOTEBOOK),
}

@pytest.mark.parametrize('what', OUTPUTS)
def test_bites_on_output(what):
    nb = lesson()
    nb['cells'][7]['outputs'].append(OUTPUTS[what])
    assert any(what.strip() in w for w in wrongs(nb)), wrongs(nb)

@pytest.mark.parametrize('text', ['runs/demo/work/x.png', 'and/or/home', 'https://example.org/home/x', '100%', 'a/b | c', 'see 3/tmp', '12 s', '</root>'])
def test_lets_pass(text):
    nb = lesson()
    nb['cells'][7]['outputs'].append(stream(text))
    none(wrongs(nb))

def drop(i): return lambda nb: nb['cells'].pop(i)
def swap(i, old, new):
    def f(nb):
        assert old in nb['cells'][i]['source']
        nb['cells'][i]['source'] = nb['cells'][i]['source'].replace(old, new)
    return f
def add(i, cell): return lambda nb: nb['cells'].insert(i, cell)
def name(to): return lambda nb: nb.update(name=to)
def no_outputs(nb): nb['cells'][7]['outputs'] = []
def instead(cell): return lambda nb: (nb['cells'].pop(9), nb['cells'].__setitem__(8, code(cell)))

EDITS = {
    'no default_exp': (drop(0), 'does not begin with'),
    'no number': (name('sum.ipynb'), 'no number'),
    'index exports': (name('index.ipynb'), 'exports something'),
    'experiment fills no module': (lambda nb: [name('31_sum.ipynb')(nb)] + [swap(i, '#| export', '')(nb) for i in (3, 5, 6)], 'exports nothing'),
    'experiment without default_exp': (lambda nb: (name('31_sum.ipynb')(nb), drop(0)(nb)), 'does not begin with'),
    'nothing exported': (lambda nb: [swap(i, '#| export', '')(nb) for i in (3, 5, 6)], 'exports nothing'),
    'no title': (swap(1, '# Sums', 'Sums'), 'title'),
    'no line': (swap(1, '> Two', 'Two'), 'title'),
    'two titles': (add(2, md('# Another')), 'exactly one title'),
    'no Reads': (swap(2, '**Reads:**', 'Reads'), '**Reads**'),
    'two bullets': (swap(10, '- three', ''), 'three bullets'),
    'four bullets': (swap(10, '- three', '- three\n- four'), 'three bullets'),
    'one answer': (swap(11, FOLD.format('Thus.'), 'Thus.'), 'two answers'),
    'no Try': (swap(11, '## Try', '## Tries'), 'two answers'),
    'no export at the end': (drop(12), 'last cell'),
    'never run': (no_outputs, 'keeps no output'),
    'star': (add(4, code('from torch import *')), 'import *'),
    'taught later': (add(4, code('from idrnet_nb.late import x')), 'uses late'),
    'taught nowhere': (add(4, code('import idrnet_nb.gone')), 'uses gone'),
    'not shown': (swap(7, 'two = add(1, 1)', '#| hide\ntwo = add(1, 1)'), 'ZERO'),
    'no test': (instead('add(1, 2)'), 'add has 0'),
    'test of something else': (instead('test_eq(1+1, 2)\nadd(1)'), 'add has 0'),
    'one test': (instead('test_eq(two, 2)'), 'add has 1'),
    'test never run': (instead('#| cuda\ntest_eq(two, 2)\ntest_eq(two, 2)'), 'add has 0'),
    'test of an overwritten value': (instead('two = 2\ntest_eq(two, 2)\nassert two == 2'), 'add has 0'),
    'only tested by export': (instead('#| export\ntest_eq(two, 2)\ntest_eq(two, 2)'), 'add has 0'),
}
EDITS['not shown'] = (lambda nb: nb['cells'].__setitem__(9, code('#| hide\ntest_eq(add(ZERO), 0)')), 'ZERO is exported and not used')

@pytest.mark.parametrize('what', EDITS)
def test_bites_on_notebook(what):
    nb, (edit, said) = lesson(), EDITS[what]
    edit(nb)
    assert any(said in w for w in wrongs(nb)), wrongs(nb)

TESTED = {
    'directly': 'test_eq(add(1,2), 3)\nassert add(2) == 2',
    'over variables': 'a = [add(1,i) for i in range(3)]\nb,c = a[:2], a\ntest_eq(b, [1,2])\nassert len(c)',
    'in a loop': 'for f in (add, max): test_eq(f(1,2), f(1,2))',
    'in a comprehension': '[test_eq(f(1,0), 1) for f in (add, max)]\nassert add(1)',
    'by a helper': 'def check_it(f, x): test_eq(f(x), x)\ncheck_it(add, 3); check_it(add, 4)',
    'by a lambda': 'same = lambda a,b: test_eq(a, b)\nsame(add(1), 1)\nsame(add(2), 2)',
    'in with': 'with expect_fail(): add("a")\nwith pytest.raises(TypeError): add("b")',
    'by an error kept': 'try: add("a")\nexcept TypeError as e: err = e\nassert str(err)\ntest_eq(add(1), 1)',
    'inside a list': 'out = []\nout.append(add(1))\ntest_eq(out, [1])\nassert out',
    'inside a dict': 'd = {}\nd["x"] = add(1)\ntest_eq(d["x"], 1)\nassert d',
    'by torch': 'torch.testing.assert_close(add(1), 1)\nnp.testing.assert_allclose(add(1), 1)',
}
@pytest.mark.parametrize('how', TESTED)
def test_sees_tests(how):
    nb = lesson()
    nb['cells'][8] = code(TESTED[how]); nb['cells'][7]['source'] = 'add(ZERO)'; nb['cells'][9] = code('test_eq(ZERO, 0)')
    assert not [w for w in house.used_and_tested(nb, MODULE) if 'add' in w]
    nb['cells'][8] = code(re.sub(r'\badd\b', 'max', TESTED[how]))
    assert [w for w in house.used_and_tested(nb, MODULE) if 'add has 0' in w]

IMPORTS = {
    'import idrnet_nb.late': 'late', 'from idrnet_nb.late import x': 'late', 'from .late import x': 'late', 'from . import late': 'late',
    'from idrnet_nb import late': 'late', 'import idrnet_nb.late as l': 'late', 'def f():\n    from .late import x': 'late',
    'class A:\n    def f(self):\n        import idrnet_nb.late': 'late', 'import importlib\nimportlib.import_module("idrnet_nb.late")': 'late',
    'from .sum import x': 'sum', 'from .gone import x': 'gone',
}
@pytest.mark.parametrize('source', IMPORTS)
def test_bites_on_import(source):
    wrong = house.order({'sum': source}, dict(core=0, sum=5, late=9))
    assert len(wrong) == 1 and IMPORTS[source] in wrong[0]
    none(house.order({'sum': 'from .core import x\nimport torch, late\nfrom idrnet_nb import __version__'}, dict(core=0, sum=5, late=9)))
    assert house.order({'loose': ''}, dict(sum=5)) == ['loose.py comes from no notebook']

@pytest.mark.parametrize('source,said', [
    ('import matplotlib.pyplot as plt', 'matplotlib when'), ('from PIL import Image', 'PIL when'), ('class A:\n    import datasets', 'datasets when'),
    ('try:\n    import scipy\nexcept ImportError: pass', 'scipy when'), ('def f():\n    from fastcore.test import test_eq', 'fastcore at run'),
    ('import nbdev', 'nbdev at run')])
def test_bites_on_heavy_import(source, said): assert said in house.heavy_imports('x', source)[0]

def test_late_import_is_fine(): none(house.heavy_imports('x', 'def f():\n    import datasets, matplotlib\nf = lambda: __import__("tqdm")'))

@pytest.mark.parametrize('old,new,said', [
    ('    "The sum."\n', '', 'no docstring'), ('a:int, # `b`, one number', 'a:int,', 'argument a has no comment'),
    ('a:int, # `b`, one number\n    b:int=0, # another', 'a:int, b:int=0, # both', 'shares its line')])
def test_bites_on_undocumented(old, new, said):
    assert old in MODULE
    assert any(said in w for w in house.documented('sum', MODULE.replace(old, new)))

def test_bites_on_undocumented_class():
    head = "__all__ = ['A']\nfrom dataclasses import dataclass\n"
    assert len(house.documented('x', head + 'class A:\n    def __init__(self, n): self.n = n\n')) == 2
    assert house.documented('x', head + '@dataclass\nclass A:\n    "One."\n    a:int # said\n    b:int\n') == ['x.A: field b has no comment on its line']

def test_bites_on_long():
    def long(n, indent=''): return indent+'def f(\n    a, # x\n):\n    "Doc."\n\n' + ''.join(f'{indent}    a += {i}\n    # note\n' for i in range(n))
    none(house.short('x', long(58)))
    assert len(house.short('x', long(60))) == 1
    assert len(house.short('x', 'class A:\n' + ''.join(f'    a{i} = 1\n' for i in range(120)))) == 1

@pytest.mark.parametrize('text', [
    'cd '+local('work', 'main'), local('tmp', 'nb')+'/x', 'root = "'+local('home', 'ann')+'"', '//'.join(['http:', 'wheels.corp/simple']),
    '.'.join(['192', '168', '1', '7']), 'pip install --'+'index-url x', 'on builder-7f3a1 it runs', '~'+local('src', 'x')])
def test_bites_on_machine(text): assert house.local_words(text, ['builder-7f3a1'])

@pytest.mark.parametrize('text', [
    'runs/demo/x', 'version 10.1.2', 'https://github.com/a/home/b', '#!'+local('usr', 'bin', 'env')+' bash', '127.0.0.1', '"${TMPDIR:-'+local('tmp')+'}/x"'])
def test_no_machine(text): none(house.local_words(text, ['builder-7f3a1']))

def test_bites_on_links(tmp_path):
    (tmp_path/'a.ipynb').write_text('')
    none(house.links('[a](a.ipynb#x) [b](https://x.org/y) [c](#here) `[d](no.md)`\n```\n[e](no.md)\n```', tmp_path))
    assert len(house.links('[a](b.ipynb) <img src="no.png">', tmp_path)) == 2

def test_bites_on_invalid():
    valid(lesson())
    for spoil in (lambda c: c[0].pop('id'), lambda c: c[1].update(id=c[0]['id']), lambda c: c[7].pop('outputs'), lambda c: c[1].update(cell_type='text')):
        nb = lesson()
        spoil(nb['cells'])
        with pytest.raises((Warning, KeyError, AssertionError, nbformat.ValidationError)): valid(nb)
