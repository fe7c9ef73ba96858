"""Rules of the house that no other tool knows (ruff, import-linter and nbdev know the rest): what a notebook
keeps, how it is headed, what documentation an exported symbol has, and that no file names a machine.
Each function returns what is wrong, in words. test_house.py asks them of the real files, and plants a
violation of each to see that it is found."""

import ast, base64, io, json, re, tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIB = 'idrnet_nb'
NBS = ROOT / 'nbs'
MAX_FIGURE, MAX_NOTEBOOK = 40 * 1024, 300 * 1024  # bytes
SKIPPED = {'cuda', 'slow', 'online'}  # cells that a plain nbdev-test leaves out
EXPORTS = {'export', 'exporti', 'exports'}
LESSONS = '1_method'  # the folder whose notebooks end with takeaways and questions
READ = (LESSONS, '5_experiments', '6_trainings', 'index')  # read on the web, so they keep what they printed

# ---- reading notebooks


def joined(x):
    return x if isinstance(x, str) else ''.join(x)


def load(path, nbs=NBS):
    "The notebook at `path` as a dict that knows where it lies: `1_method/03_layers`."
    name = path.relative_to(nbs).with_suffix('').as_posix()
    return dict(json.loads(path.read_text(encoding='utf-8')), name=name)


def notebooks(folder=NBS):
    paths = sorted(folder.rglob('*.ipynb'))
    return [load(p, folder) for p in paths if '.ipynb_checkpoints' not in p.parts]


def marks(cell):
    "The `#|` lines at the top of a cell: name -> value."
    lines = [l[2:].replace(':', ' ').split() for l in joined(cell['source']).split('\n') if l.startswith('#|')]
    return {l[0]: ' '.join(l[1:]) for l in lines if l}


def code_cells(nb):
    return [c for c in nb['cells'] if c['cell_type'] == 'code']


def prose(nb):
    return [joined(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown']


def is_export(cell):
    return bool(EXPORTS & set(marks(cell)))


def is_run(cell):
    "Whether a plain nbdev-test runs the cell, and it is no exported code."
    return not (EXPORTS | {'default_exp'} | SKIPPED) & set(marks(cell)) and marks(cell).get('eval') != 'false'


def python(cell):
    "A cell's code as a syntax tree, without magics."
    source = joined(cell['source'])
    if source.lstrip().startswith('%%'):
        return ast.parse('')
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))


def module_of(nb):
    "The module that a notebook exports, or None."
    return next((marks(c)['default_exp'] for c in code_cells(nb) if 'default_exp' in marks(c)), None)


# ---- where a notebook lies, and what it exports


def place(nb):
    "A notebook lies in a numbered folder, is numbered there, and exports the module of its folder and name."
    if nb['name'] == 'index':
        return ['index exports something'] if module_of(nb) else []
    m = re.fullmatch(r'\d_(\w+)/\d\d_(\w+)', nb['name'])
    if not m:
        return [f'{nb["name"]}: a notebook is called `N_folder/NN_name`']
    exports, module = any(map(is_export, code_cells(nb))), module_of(nb)
    if exports and module is None:
        return [f'{nb["name"]} exports, but has no `#| default_exp`']
    if module is None:
        return []
    if not exports:
        return [f'{nb["name"]} exports nothing']
    first = marks(nb['cells'][0])
    if 'default_exp' not in first:
        return [f'{nb["name"]} does not begin with `#| default_exp`']
    wanted = {f'{m[1]}.{m[2]}', 'cli' if m[2] == 'cli' else ''}
    return [] if module in wanted else [f'{nb["name"]} exports {module}, not {m[1]}.{m[2]}']


# ---- how a notebook is headed, and how a lesson ends


def form(nb):
    "A title and one line; a lesson also has three takeaways and two questions with folded answers."
    text, wrong = '\n\n'.join(prose(nb)), []

    def want(ok, what):
        wrong.extend([] if ok else [f'{nb["name"]}: {what}'])

    head = prose(nb)[0] if prose(nb) else ''
    want(re.match(r'# \S.*\n+> \S', head), 'the first words are not a `# title` and a `> line`')
    without_code = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    want(len(re.findall(r'^# ', without_code, re.M)) == 1, 'there is not exactly one title')
    if not nb['name'].startswith(LESSONS):
        return wrong
    away, ask = (
        re.search(rf'^## {title}\s*$(.*?)(?=^## |\Z)', text, re.M | re.S) for title in ('What to take away', 'Try')
    )
    want(away and len(re.findall(r'^[-*] ', away[1], re.M)) == 3, 'no "## What to take away" with three bullets')
    answers = re.findall(r'<details>\s*<summary>.*?</summary>.+?</details>', ask[1], re.S) if ask else []
    want(len(answers) == 2, 'no "## Try" with two answers folded in <details>')
    return wrong


# ---- what is kept in outputs

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
    parts = [joined(out.get('text', ''))]
    parts += [joined(v) for kind, v in out.get('data', {}).items() if kind.startswith('text/')]
    return re.sub(r'data:image/[a-z+]+;base64,[\w+/=]+', '', '\n'.join(parts))


def kept_outputs(nb):
    "No traceback, stderr, warning, progress bar, local path, or kind of output that a web page does not show."
    wrong = []
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            at = f'{nb["name"]}, cell {cell.get("id")}'
            if out['output_type'] == 'error':
                wrong.append(f'{at} keeps an error: {out.get("ename")}')
            if out.get('name') == 'stderr':
                wrong.append(f'{at} keeps stderr: {joined(out["text"])[:60]!r}')
            for what, pattern in TRACES.items():
                found = re.search(pattern, output_text(out), re.M)
                if found:
                    wrong.append(f'{at} keeps {what}: {found[0]!r}')
            wrong += [
                f'{at} keeps {kind}; only text and PNG are shown everywhere'
                for kind in out.get('data', {})
                if kind not in KINDS
            ]
    if nb['name'].startswith(READ) and not any(c.get('outputs') for c in code_cells(nb)):
        wrong.append(f'{nb["name"]} keeps no output: run it with nbdev-test --save')
    return wrong


def figures(nb):
    "(cell id, bytes) of each figure: outputs, attachments, and those written into HTML."
    for cell in nb['cells']:
        bundles = [out.get('data', {}) for out in cell.get('outputs', [])] + list(cell.get('attachments', {}).values())
        texts = [joined(cell['source'])]
        for bundle in bundles:
            for kind, data in bundle.items():
                if kind.startswith('image/'):
                    yield cell.get('id'), len(base64.b64decode(joined(data)))
                elif kind.startswith('text/'):
                    texts.append(joined(data))
        for m in re.finditer(r'data:image/[a-z+]+;base64,([\w+/=]+)', '\n'.join(texts)):
            yield cell.get('id'), len(m[1]) * 3 // 4


def sizes(nb, nbytes):
    wrong = [
        f'{nb["name"]}, cell {id}: a figure of {n / 1024:.0f} KB, {MAX_FIGURE // 1024} is the limit'
        for id, n in figures(nb)
        if n > MAX_FIGURE
    ]
    if nbytes > MAX_NOTEBOOK:
        wrong.append(f'{nb["name"]} has {nbytes / 1024:.0f} KB, {MAX_NOTEBOOK // 1024} is the limit')
    return wrong


# ---- exported symbols: shown, tested, documented

TEST = re.compile(r'test(_\w+)?$|expect_fail$|ExceptionExpected$|raises$|assert\w*$|check\w*$')


def is_test(node):
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
    return bool(TEST.match(name))


def exported(source):
    "The names in a module's __all__."
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return [e.value for e in node.value.elts]
    return []


def shown_and_tested(nb, source):
    "Every exported symbol is used in a cell that the reader sees, and in a cell with a test."
    shown, tested = set(), set()
    for cell in filter(is_run, code_cells(nb)):
        nodes = list(ast.walk(python(cell)))
        names = {n.id for n in nodes if isinstance(n, ast.Name)} | {
            n.attr for n in nodes if isinstance(n, ast.Attribute)
        }
        if 'hide' not in marks(cell):
            shown |= names
        if any(map(is_test, nodes)):
            tested |= names
    wrong = [
        f'{nb["name"]}: {s} is exported and not used in a cell that is shown'
        for s in exported(source)
        if s not in shown
    ]
    return wrong + [f'{nb["name"]}: {s} is in no cell with a test' for s in exported(source) if s not in tested]


def comments(source):
    "line -> comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


def arguments(function):
    a = function.args
    return [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs] if x.arg not in ('self', 'cls')]


def documented(name, source):
    "Exported functions, and how classes are made: a docstring, and each argument on a line of its own with a comment."
    said, public, wrong = comments(source), set(exported(source)), []
    for node in ast.parse(source).body:
        if getattr(node, 'name', None) not in public:
            continue
        where = f'{name}.{node.name}'
        if not ast.get_docstring(node):
            wrong.append(f'{where} has no docstring')
        makers = (
            [node]
            if isinstance(node, ast.FunctionDef)
            else [f for f in node.body if getattr(f, 'name', '') == '__init__']
        )
        for function in makers:
            lines = Counter(a.lineno for a in arguments(function))
            for a in arguments(function):
                if a.lineno not in said:
                    wrong.append(f'{where}: argument {a.arg} has no comment on its line')
                elif lines[a.lineno] > 1:
                    wrong.append(f'{where}: argument {a.arg} shares its line with another')
        if isinstance(node, ast.ClassDef) and any('dataclass' in ast.unparse(d) for d in node.decorator_list):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
            # An option of the command line may have its help in a call, as value or annotation: `sets('train.amp')`.
            has_help = [
                f
                for f in fields
                if name.startswith('cli.')
                and any(isinstance(n, ast.Call) for part in (f.value, f.annotation) if part for n in ast.walk(part))
            ]
            bare = [f for f in fields if f not in has_help and not said.keys() & set(range(f.lineno, f.end_lineno + 1))]
            wrong += [f'{where}: field {f.target.id} has no comment on its line' for f in bare]
    return wrong


# ---- links, and words that belong to one machine only


def links(text, folder):
    "Relative links that lead nowhere."
    plain = re.sub(r'^```.*?^```|`[^`\n]+`(?!\])', '', text, flags=re.S | re.M)
    found = re.findall(r'\]\(<?([^)>\s]+)', plain) + re.findall(r'(?:src|href)="([^"]+)"', plain)
    paths = [l.split('#')[0] for l in found if not re.match(r'[a-z][a-z0-9+.-]*:|#|attachment:', l, re.I)]
    return [f'link to {p}, which is not there' for p in paths if not (folder / p).exists()]


PLACES = {
    'a local path': PATH + r'/\w',
    'a home folder': r'~/\w+/\w',
    'an address': r'\b(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b',
    'an inner host': r'https?:/{2}[^/\s"]*\.(?:internal|local|corp|lan)\b',
    'a package index': r'--(?:extra-)?index-url|--find[-]links|file:/{3}',
}


def local_words(text, hosts=()):
    "Paths, hosts and indexes of somebody's machine."
    patterns = {**PLACES, **{f'the host {h}': rf'\b{re.escape(h)}\b' for h in hosts}}
    return [f'{what}: {m[0]!r}' for what, pattern in patterns.items() if (m := re.search(pattern, text))]


def words_of(path):
    "A file as text, a notebook without the letters of its figures; None for what is no text."
    raw = path.read_bytes()
    if b'\0' in raw[:8192]:
        return None
    text = raw.decode('utf-8', 'replace')
    if path.suffix != '.ipynb':
        return text
    cells = json.loads(text)['cells']
    return '\n'.join(t for c in cells for t in [joined(c['source']), *map(output_text, c.get('outputs', []))])
