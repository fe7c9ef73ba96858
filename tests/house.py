"""The house rules as functions: each takes a notebook (a dict) or source text and returns what is wrong, in words.

test_house.py asks them of the real files, and plants a violation for each to see that it is found."""
import ast, base64, io, json, re, tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIB = 'idrnet_nb'
NBS = ROOT/'nbs'
MAX_FIGURE, MAX_NOTEBOOK = 40*1024, 300*1024
SKIPPED = {'cuda', 'slow', 'online'}                          # cells that a plain nbdev-test leaves out
EXPORTS = {'export', 'exporti', 'exports', 'exportd'}

# ---- reading notebooks

def joined(x): return x if isinstance(x, str) else ''.join(x)

def load(path):
    "The notebook at `path` as a dict that knows its own name."
    return dict(json.loads(Path(path).read_text(encoding='utf-8')), name=Path(path).name)

def notebooks(folder=NBS): return [load(p) for p in sorted(folder.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]

def marks(cell):
    "The `#|` lines at the top of a cell: name -> value."
    lines = [l[2:].replace(':', ' ').split() for l in joined(cell['source']).split('\n') if l.startswith('#|')]
    return {l[0]: ' '.join(l[1:]) for l in lines if l}

def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']
def prose(nb): return [joined(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown']
def is_export(cell): return bool(EXPORTS & set(marks(cell)))
def is_lesson(cell): return not (EXPORTS | {'default_exp'} | SKIPPED) & set(marks(cell)) and marks(cell).get('eval') != 'false'
def python(cell):
    "A cell's code as a syntax tree, without magics."
    source = joined(cell['source'])
    if source.lstrip().startswith('%%'): return ast.parse('')
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))

def number(nb):
    "The number a notebook's name begins with; index has none."
    m = re.match(r'(\d\d)_', nb['name'])
    return int(m[1]) if m else None

def module_of(nb):
    "The module a notebook exports, or None."
    return next((marks(c)['default_exp'] for c in code_cells(nb) if 'default_exp' in marks(c)), None)

def numbers(nbs): return {module_of(nb): number(nb) for nb in nbs if module_of(nb)}

# ---- imports

def lib_imports(tree):
    "Modules of this package that code imports, wherever in it the import stands."
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): found |= {a.name.split('.', 1)[1] for a in n.names if a.name.startswith(LIB+'.')}
        if isinstance(n, ast.ImportFrom):
            whole = (f'{LIB}.{n.module}' if n.module else LIB) if n.level else n.module or ''
            if whole == LIB: found |= {a.name for a in n.names if not a.name.startswith('__')}
            elif whole.startswith(LIB+'.'): found.add(whole.split('.', 1)[1])
        if isinstance(n, ast.Call) and n.args and isinstance(n.args[0], ast.Constant) and isinstance(n.args[0].value, str):
            if n.args[0].value.startswith(LIB+'.') and ast.unparse(n.func).endswith(('import_module', '__import__')):
                found.add(n.args[0].value.split('.', 1)[1])
    return {f.split('.')[0] for f in found}

def order(modules, number_of):
    "Modules (name -> source) import only modules of lower-numbered notebooks, and each has a notebook; the command line, `cli`, imports what it is asked for."
    wrong = [f'{m}.py comes from no notebook' for m in modules if m not in number_of]
    for m,source in modules.items():
        for other in sorted(lib_imports(ast.parse(source))):
            if other not in number_of: wrong.append(f'{m}.py imports {other}, which no notebook exports')
            elif m in number_of and number_of[other] >= number_of[m] and m != 'cli':
                wrong.append(f'{m}.py (notebook {number_of[m]:02d}) imports {other} (notebook {number_of[other]:02d})')
    return wrong

def reading_order(nb, number_of):
    "A lesson uses nothing that is taught later. Experiments, the command line and index may use all."
    here = number(nb)
    if here is None or here >= 30 or module_of(nb) == 'cli': return []
    used = {o for c in code_cells(nb) for o in lib_imports(python(c))}
    return [f'{nb["name"]} uses {o}, which comes later or nowhere' for o in sorted(used) if number_of.get(o, 99) > here]

def star_imports(tree):
    return [f'from {n.module} import *' for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == '*' for a in n.names)]

def top_names(tree): return {n.split('.')[0] for node in ast.walk(tree) for n in _imported(node)}
def _imported(n):
    if isinstance(n, ast.Import): return [a.name for a in n.names]
    return [n.module] if isinstance(n, ast.ImportFrom) and not n.level and n.module else []

LATE = {'transformers', 'segmentation_models_pytorch', 'onnx', 'onnxruntime', 'onnxscript', 'torchvision', 'datasets', 'matplotlib', 'scipy', 'PIL', 'tqdm', 'pandas', 'accelerate'}
NEVER = {'nbdev', 'fastcore', 'IPython', 'ipykernel', 'jupyter', 'nbformat', 'execnb', 'pytest'}

def _at_import(node):
    "The nodes that run when a module is imported: all but the bodies of functions."
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): yield from _at_import(child)

def heavy_imports(name, source):
    "What a module may import only inside a function, and what it may not import at all."
    tree = ast.parse(source)
    early = {n.split('.')[0] for node in _at_import(tree) for n in _imported(node)} & LATE
    return [f'{name}.py imports {n} when it is imported; do it in the function that needs it' for n in sorted(early)] + \
        [f'{name}.py needs {n} at run time' for n in sorted(top_names(tree) & NEVER)]

# ---- outputs

PATH = r'(?<![\w.~<-])/(?:home|root|tmp|work|Users|mnt|opt|workspace|content)'
TRACES = {
    'a traceback': r'Traceback \(most recent',
    'a warning': r'Warning\b',
    'a progress bar': r'\r|\d%\||\d(?:it|s)/(?:s|it)\b|[█▏▎▍▌▋▊▉]{2}',
    'terminal colours': '\x1b\\[',
    'a local path': PATH + r'\b(?!-)|(?<![\w.~-])/(?:usr|var|private)/|\b[A-Z]:\\{1,2}\w',
}
KINDS = {'text/plain', 'text/html', 'text/markdown', 'text/latex', 'image/png'}

def output_text(out):
    "All that a reader sees of an output as text."
    parts = [joined(out.get('text', ''))] + [joined(v) for k,v in out.get('data', {}).items() if k.startswith('text/')]
    return re.sub(r'data:image/[a-z+]+;base64,[\w+/=]+', '', '\n'.join(parts))

def kept_outputs(nb):
    "No traceback, stderr, warning, progress bar, local path, or kind of output that a web page does not show."
    wrong = []
    for i,c in enumerate(nb['cells']):
        for out in c.get('outputs', []):
            at = f'{nb["name"]} cell {i} ({c.get("id")})'
            if out['output_type'] == 'error': wrong.append(f'{at} keeps an error: {out.get("ename")}')
            if out.get('name') == 'stderr': wrong.append(f'{at} keeps stderr: {joined(out["text"])[:60]!r}')
            wrong += [f'{at} keeps {what}: {m[0]!r}' for what,pat in TRACES.items() if (m := re.search(pat, output_text(out), re.M))]
            wrong += [f'{at} keeps {k}; only text and PNG are shown everywhere' for k in out.get('data', {}) if k not in KINDS]
    return wrong

def was_run(nb):
    return [] if any(c.get('outputs') for c in code_cells(nb)) else [f'{nb["name"]} keeps no output: run it with nbdev-test --save']

def figures(nb):
    "(cell, bytes) of each picture: outputs, attachments, and those written into HTML."
    for i,c in enumerate(nb['cells']):
        for out in c.get('outputs', []):
            for k,v in out.get('data', {}).items():
                if k.startswith('image/'): yield i, len(base64.b64decode(joined(v))) if 'svg' not in k else len(joined(v))
        for kinds in c.get('attachments', {}).values():
            for v in kinds.values(): yield i, len(base64.b64decode(v))
        texts = [joined(c['source'])] + [joined(v) for o in c.get('outputs', []) for k,v in o.get('data', {}).items() if k.startswith('text/')]
        for m in re.finditer(r'data:image/[a-z+]+;base64,([\w+/=]+)', '\n'.join(texts)): yield i, len(m[1])*3//4

def sizes(nb, nbytes):
    wrong = [f'{nb["name"]} cell {i}: a figure of {n/1024:.0f} KB, {MAX_FIGURE//1024} is the limit' for i,n in figures(nb) if n > MAX_FIGURE]
    if nbytes > MAX_NOTEBOOK: wrong.append(f'{nb["name"]} has {nbytes/1024:.0f} KB, {MAX_NOTEBOOK//1024} is the limit')
    return wrong

# ---- used and tested

TESTS = re.compile(r'test(_\w+)?$|expect_fail$|ExceptionExpected$|raises$|assert\w+$')

def _is_test(call, helpers):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
    return bool(TESTS.match(name)) or name in helpers

class Reach:
    "Follows exported symbols through the lesson cells of a notebook, over variables and helpers, into its tests."
    def __init__(self, symbols):
        self.of = {s: {s} for s in symbols}                   # variable -> the symbols its value came from
        self.helpers, self.tests, self.loops = set(), Counter(), 0

    def names(self, node, without=()):
        return {s for n in ast.walk(node) if isinstance(n, ast.Name) and n.id not in without for s in self.of.get(n.id, ())}
    def has_test(self, node):
        return any(isinstance(n, ast.Assert) or isinstance(n, ast.Call) and _is_test(n, self.helpers) for n in ast.walk(node))
    def passes(self, call):
        "A bare `check_…()` is a test: it raises or is content."
        return isinstance(call, ast.Call) and getattr(call.func, 'id', '').startswith('check') and self.of.get(call.func.id) == {call.func.id}
    def tested(self, node): self.tests.update({s: 2 if self.loops else 1 for s in self.names(node)})

    def assign(self, target, symbols):
        if isinstance(target, (ast.Tuple, ast.List)):
            for t in target.elts: self.assign(t, symbols)
        elif isinstance(target, ast.Name):
            if target.id in symbols and self.of.get(target.id) == {target.id}: return
            self.of[target.id] = symbols | (self.of.get(target.id, set()) if self.loops else set())
        else:                                                 # part of a thing: the thing came from both
            while isinstance(target, (ast.Subscript, ast.Attribute, ast.Starred)): target = target.value
            if isinstance(target, ast.Name): self.of[target.id] = self.of.get(target.id, set()) | symbols

    def call(self, call):
        "`x.append(f(y))` and `load_author_state(x)` may change x."
        base = call.func
        while isinstance(base, (ast.Attribute, ast.Subscript)): base = base.value
        for t in [base, *call.args]:
            if isinstance(t, ast.Name) and not (t is base and isinstance(call.func, ast.Name)) and self.of.get(t.id) != {t.id}:
                self.of[t.id] = self.of.get(t.id, set()) | self.names(call)

    def body(self, stmts):
        for s in stmts: self.visit(s)

    def define(self, name, node):
        args = getattr(node, 'args', None)
        params = {a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]} if args else set()
        symbols, body = self.names(node, params), [node] if isinstance(node, ast.Lambda) else node.body
        if name in self.of and self.of[name] == {name}: return        # an exported symbol stays itself
        self.of[name] = symbols
        if any(self.has_test(b) for b in body): self.helpers.add(name)

    def visit(self, s):
        if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): return self.define(s.name, s)
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Lambda):
            for t in s.targets: self.define(getattr(t, 'id', ''), s.value)
            return
        for n in ast.walk(s):
            if isinstance(n, ast.NamedExpr): self.assign(n.target, self.names(n.value))
        if isinstance(s, ast.Assert): return self.tested(s)
        if isinstance(s, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and s.value is not None:
            for t in getattr(s, 'targets', None) or [s.target]:
                self.assign(t, self.names(s.value) | (self.names(t) if isinstance(s, ast.AugAssign) else set()))
        elif isinstance(s, ast.Expr):
            if self.has_test(s) or self.passes(s.value): self.tested(s)
            elif isinstance(s.value, ast.Call): self.call(s.value)
        elif isinstance(s, (ast.For, ast.While)):
            self.loops += 1
            if isinstance(s, ast.For): self.assign(s.target, self.names(s.iter))
            self.body(s.body); self.loops -= 1
        elif isinstance(s, ast.With):
            for item in s.items:
                if item.optional_vars: self.assign(item.optional_vars, self.names(item.context_expr))
            if any(self.has_test(i.context_expr) for i in s.items): self.tested(s)
            else: self.body(s.body)
        elif isinstance(s, (ast.If, ast.Try)):
            self.body([*s.body, *s.orelse, *getattr(s, 'finalbody', [])])
            for h in getattr(s, 'handlers', []):
                if h.name: self.of[h.name] = {x for b in s.body for x in self.names(b)}
                self.body(h.body)

def exported(source):
    "The names in a module's __all__."
    for n in ast.parse(source).body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__': return [e.value for e in n.value.elts]
    return []

def reach(nb, symbols):
    r = Reach(symbols)
    for c in code_cells(nb):
        if is_lesson(c): r.body(python(c).body)
    return r

def used_and_tested(nb, source):
    "Every exported symbol is shown in a cell that the reader sees, and tested: functions and classes twice, constants once."
    symbols, tree = exported(source), ast.parse(source)
    defs = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    shown = {n.id for c in code_cells(nb) if is_lesson(c) and 'hide' not in marks(c) for n in ast.walk(python(c)) if isinstance(n, ast.Name)}
    tests = reach(nb, symbols).tests
    wrong = [f'{nb["name"]}: {s} is exported and not used in a cell that is shown' for s in symbols if s not in shown]
    return wrong + [f'{nb["name"]}: {s} has {tests[s]} inline tests, {need} wanted'
                    for s in symbols if tests[s] < (need := 2 if s in defs else 1)]

# ---- exported code

def comments(source):
    "line -> comment."
    return {t.start[0]: t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}

def arguments(fn):
    a = fn.args
    return [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs] if x.arg not in ('self', 'cls')]

def documented(name, source):
    "Exported functions, and how classes are made: a docstring, and for every argument its own line, a type or default, a comment."
    said, wrong = comments(source), []
    public = set(exported(source))
    for node in ast.parse(source).body:
        if getattr(node, 'name', None) not in public: continue
        if not ast.get_docstring(node): wrong.append(f'{name}.{node.name} has no docstring')
        makers = [node] if isinstance(node, ast.FunctionDef) else [f for f in node.body if getattr(f, 'name', '') == '__init__']
        for fn in makers:
            lines = Counter(a.lineno for a in arguments(fn))
            for a in arguments(fn):
                at = f'{name}.{node.name}: argument {a.arg}'
                if a.lineno not in said: wrong.append(f'{at} has no comment on its line')
                elif lines[a.lineno] > 1: wrong.append(f'{at} shares its line with another')
        if isinstance(node, ast.ClassDef) and any('dataclass' in ast.unparse(d) for d in node.decorator_list):
            wrong += [f'{name}.{node.name}: field {f.target.id} has no comment on its line' for f in node.body
                      if isinstance(f, ast.AnnAssign) and f.lineno not in said]
    return wrong

def code_lines(node, source):
    "Lines that do something: no blank or comment lines, no docstrings, a signature counts one."
    lines = source.split('\n')
    out = {i for i in range(node.lineno, node.end_lineno+1) if lines[i-1].strip() and not lines[i-1].lstrip().startswith('#')}
    for n in ast.walk(node):
        if not isinstance(n, (ast.FunctionDef, ast.ClassDef)): continue
        out -= set(range(n.lineno+1, n.body[0].lineno))
        if ast.get_docstring(n) is not None: out -= set(range(n.body[0].lineno, n.body[0].end_lineno+1)) - {n.lineno}
    return len(out)

def short(name, source):
    """Functions of at most 60 lines, classes of at most 120: a bound against the absurd. The tighter one that stood here
    (20 and 30) was met by squeezing lines and by taking methods out of their classes, which reads worse than a long function."""
    wrong = []
    for n in ast.parse(source).body:
        limit = {ast.FunctionDef: 60, ast.ClassDef: 120}.get(type(n))
        if limit and code_lines(n, source) > limit: wrong.append(f'{name}.{n.name} has {code_lines(n, source)} lines of code, {limit} is the limit')
    return wrong

# ---- form

def form(nb):
    "Title and one line; lessons 00 to 22 also say where they stand, what to take away, and ask two questions with folded answers."
    text, n, wrong = '\n\n'.join(prose(nb)), number(nb), []
    head = prose(nb)[0] if prose(nb) else ''
    def want(ok, what): wrong.extend([] if ok else [f'{nb["name"]}: {what}'])
    want(re.match(r'# \S.*\n+> \S', head), 'the first words are not a `# title` and a `> line`')
    want(len(re.findall(r'^# ', re.sub(r'^```.*?^```', '', text, flags=re.S|re.M), re.M)) == 1, 'there is not exactly one title')
    if n is None or n > 22: return wrong
    for word in ('Paper', 'Reads', 'Exports'): want(re.search(rf'\*\*{word}:?\*\*', text), f'no **{word}**')
    away, ask = (re.search(rf'^## {t}\s*$(.*?)(?=^## |\Z)', text, re.M|re.S) for t in ('What to take away', 'Try'))
    want(away and len(re.findall(r'^[-*] ', away[1], re.M)) == 3, 'no "## What to take away" with three bullets')
    want(ask and len(re.findall(r'<details>\s*<summary>.*?</summary>.+?</details>', ask[1], re.S)) == 2,
         'no "## Try" with two answers folded in <details>')
    want('nbdev_export()' in joined(nb['cells'][-1]['source']), 'the last cell does not export')
    return wrong

def place(nb):
    "A numbered notebook below 30 exports one module from its first cell; an experiment may, to be run by others; index exports nothing."
    n, first = number(nb), nb['cells'][0]
    exports = any(is_export(c) for c in code_cells(nb))
    if n is None and nb['name'] != 'index.ipynb': return [f'{nb["name"]} has no number']
    if n is None: return [f'{nb["name"]} exports something'] if exports or module_of(nb) else []
    if n >= 30 and not exports and not module_of(nb): return []
    if 'default_exp' not in marks(first): return [f'{nb["name"]} does not begin with `#| default_exp`']
    return [] if exports else [f'{nb["name"]} exports nothing']

def links(text, folder):
    "Relative links that lead nowhere."
    plain = re.sub(r'^```.*?^```|`[^`\n]+`(?!\])', '', text, flags=re.S|re.M)
    found = re.findall(r'\]\(<?([^)>\s]+)', plain) + re.findall(r'(?:src|href)="([^"]+)"', plain)
    paths = [l.split('#')[0] for l in found if not re.match(r'[a-z][a-z0-9+.-]*:|#|attachment:', l, re.I)]
    return [f'link to {p}, which is not there' for p in paths if not (folder/p).exists()]

# ---- words that belong to one machine only

PLACES = {
    'a local path': PATH + r'/\w',
    'a home folder': r'~/\w+/\w',
    'an address': r'\b(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b',
    'an inner host': r'https?:/{2}[^/\s"]*\.(?:internal|local|corp|lan)\b',
    'a package index': r'--(?:extra-)?index-url|--find[-]links|file:/{3}',
}

def local_words(text, hosts=()):
    "Paths, hosts and indexes of somebody's machine."
    pats = {**PLACES, **{f'the host {h}': rf'\b{re.escape(h)}\b' for h in hosts}}
    return [f'{what}: {m[0]!r}' for what,pat in pats.items() if (m := re.search(pat, text))]

def words_of(path):
    "A file as text, a notebook without the letters of its pictures; None for what is no text."
    raw = path.read_bytes()
    if b'\0' in raw[:8192]: return None
    text = raw.decode('utf-8', 'replace')
    if path.suffix != '.ipynb': return text
    nb = json.loads(text)
    return '\n'.join(t for c in nb['cells'] for t in [joined(c['source']), *map(output_text, c.get('outputs', []))])
