"""Do a notebook's own tests notice a fault? Each mutant changes one token of an exported cell; then the notebook's
cells run, and a mutant is killed when one of them raises, or when they take too long.

    python tools/mutants.py                                     # 40 places in each notebook of the aim, seed 0
    python tools/mutants.py --notebooks 2_models/07_head --per-notebook 20 --seed 1
    python tools/mutants.py --notebooks 4_training/01_losses --all     # every mutant, not a sample
    python tools/mutants.py --notebooks 2_models/07_head --no-rows     # only the report

A mutant is one of these, anywhere in an exported cell but in annotations, imports, decorators, `raise` and texts:

    operators    < and <=, > and >=, == and !=, is, in; + and -, * and /, ** to *; & and |, and and or
    removed      ~, not, the minus sign; a method call such as .clamp(...) or .detach(), .T
    constants    n+1 or n-1; a fraction doubled (a tiny one, such as an epsilon, plus 1); True and False
    names        min and max, any and all, sum and mean, zeros and ones, argmin and argmax, ...
    words        'sum' and 'mean', 'bilinear' and 'nearest', ...; two axes of an einops pattern exchanged
    arguments    the value of a keyword argument becomes that of the next keyword (f(a=x, b=y) -> f(a=y, b=y))

A place is drawn first and then one of its mutants, so a constant, which has two, counts once.

Cells run in order, as nbdev-test runs them, but in a process that is a fork of one with torch loaded: a notebook's
cells before the mutated one run once for all its mutants, unless one of them has run backward() (autograd allows no
fork after that); these then run again for each. Cells marked cuda, slow, online or `eval: false` do not run.
First the notebook runs unchanged, and must pass. It all happens in a copy of nbs/.

Mutants that no test can tell from the code are listed by hand in tools/mutants_equivalent.csv: notebook, function,
the line before and after, the reason. They are run too: the report names a listed mutant that a test kills, and one
that is no longer there. A row for each notebook goes to nbs/results/mutants.csv: date, commit, versions, device,
notebook, seed, asked (places per notebook, or 'all'), places (in the notebook), tried, killed, equivalent, survived,
percent (killed of those that are not equivalent). Exit code 1: a notebook that does not pass unchanged, a stale or
wrong line in the list, or less than --least percent killed."""

import argparse, ast, csv, json, linecache, os, random, re, resource, shutil, signal, sys, tempfile, time, types, warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

ROOT = Path(__file__).resolve().parents[1]
SCOPE = ('1_method', '2_models/07_head', '4_training/01_losses', '4_training/02_metrics')
COUNTS = ('places', 'tried', 'killed', 'equivalent', 'survived', 'percent')
KEY = ('notebook', 'seed', 'asked')
PROVENANCE = ('date', 'commit', 'version', 'torch', 'python', 'device', 'timm')  # `record.here`
COLUMNS = (*KEY, *COUNTS, *PROVENANCE)
EQUIVALENT = ('notebook', 'function', 'before', 'after', 'reason')
SKIPPED = {'cuda', 'slow', 'online'}  # as tst_flags of pyproject.toml
EXPORTS = {'export', 'exporti', 'exports'}
MEMORY = 24 * 2**30  # bytes of address space of a mutant

# ---- what is exchanged

COMPARISONS = {
    ast.Lt: ('<', '<='),
    ast.LtE: ('<=', '<'),
    ast.Gt: ('>', '>='),
    ast.GtE: ('>=', '>'),
    ast.Eq: ('==', '!='),
    ast.NotEq: ('!=', '=='),
    ast.Is: ('is', 'is not'),
    ast.IsNot: (r'is\s+not', 'is'),
    ast.In: ('in', 'not in'),
    ast.NotIn: (r'not\s+in', 'in'),
}
OPERATORS = {
    ast.Add: ('+', '-'),
    ast.Sub: ('-', '+'),
    ast.Mult: ('*', '/'),
    ast.Div: ('/', '*'),
    ast.FloorDiv: ('//', '*'),
    ast.Pow: ('**', '*'),
    ast.BitAnd: ('&', '|'),
    ast.BitOr: ('|', '&'),
    ast.And: ('and', 'or'),
    ast.Or: ('or', 'and'),
}
UNARY = {ast.Invert: '~', ast.Not: r'not\s*', ast.USub: '-'}


def both_ways(*pairs):
    return {**dict(pairs), **{b: a for a, b in pairs}}


FUNCTIONS = both_ways(('min', 'max'), ('any', 'all'))
METHODS = both_ways(
    ('min', 'max'),
    ('any', 'all'),
    ('amin', 'amax'),
    ('argmin', 'argmax'),
    ('minimum', 'maximum'),
    ('sum', 'mean'),
    ('nansum', 'nanmean'),
    ('zeros', 'ones'),
    ('zeros_', 'ones_'),
    ('zeros_like', 'ones_like'),
    ('new_zeros', 'new_ones'),
    ('floor', 'ceil'),
    ('sin', 'cos'),
    ('cumsum', 'cumprod'),
)
WORDS = both_ways(('sum', 'mean'), ('max', 'min'), ('bilinear', 'nearest'), ('ij', 'xy'), ('constant', 'replicate'))
KEYWORDS = both_ways(('min', 'max'))
DROPPED = set(
    'abs bool clamp clamp_ clamp_min clip clone copy detach double exp expm1 flip float int log long masked_fill '
    'nan_to_num ravel round sigmoid softmax sort sqrt square squeeze t transpose tril triu where'.split()
)
DROPPED_ATTRIBUTES = {'T', 'mT'}
MODULES = {'nn', 'F', 'np', 'torch', 'plt', 'math', 'dist'}  # `torch.where(...)` is no method call
NOT_EXCHANGED = {'device', 'dtype', 'requires_grad', 'file', 'key'}  # a wrong type there is no test of a test


@dataclass(frozen=True)
class Mutant:
    "One token that is another."

    cell: str  # id
    line: int  # in the cell, from 1
    function: str  # qualified name; '' outside of functions
    before: str  # the line, or lines joined
    after: str
    source: str  # of the whole cell


# ---- the places of a cell


class Places(ast.NodeVisitor):
    "Collects in `found`, for each place of a cell, its list of (start, end, new text), in bytes."

    def __init__(self, source):
        self.source = source.encode()
        lines = self.source.split(b'\n')
        self.starts = [sum(len(l) + 1 for l in lines[:i]) for i in range(len(lines))]
        self.names, self.found = [], []
        self.visit(ast.parse(source))

    def start(self, node):
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        return self.source[self.start(node) : self.end(node)].decode()

    def add(self, *edits):
        edits = [(start, end, new.encode()) for start, end, new in edits]
        self.found.append(('.'.join(self.names), edits))

    def between(self, left, right, pattern, new):
        "The operator between two operands becomes another."
        start, end = self.end(left), self.start(right)
        gap = re.sub(rb'#[^\n]*', lambda comment: b' ' * len(comment[0]), self.source[start:end])
        operator = re.search(pattern.encode(), gap)
        self.add((start + operator.start(), start + operator.end(), new))

    # what holds no places

    def visit_Import(self, node):
        pass

    visit_ImportFrom = visit_Raise = visit_JoinedStr = visit_Import

    def visit_arg(self, node):
        pass  # a name and its annotation

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node):
        self.names.append(node.name)
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self.names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    # operators

    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for left, right, operator in zip(operands, operands[1:], node.ops):
            old, new = COMPARISONS[type(operator)]
            self.between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node):
        texts = [x for x in (node.left, node.right) if isinstance(x, ast.JoinedStr) or is_text(x)]
        if type(node.op) in OPERATORS and not texts:
            old, new = OPERATORS[type(node.op)]
            self.between(node.left, node.right, re.escape(old), new)
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in OPERATORS:
            old, new = OPERATORS[type(node.op)]
            self.between(node.target, node.value, re.escape(old) + '=', new + '=')
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        old, new = OPERATORS[type(node.op)]
        for left, right in zip(node.values, node.values[1:]):
            self.between(left, right, rf'\b{old}\b', new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if type(node.op) in UNARY:
            start = self.start(node)
            operator = re.match(UNARY[type(node.op)].encode(), self.source[start:])
            self.add((start, start + operator.end(), ''))
        self.generic_visit(node)

    # constants, names, arguments

    def visit_Constant(self, node):
        news = constants(node.value)
        if news:
            self.add(*[(self.start(node), self.end(node), new) for new in news])

    def visit_Call(self, node):
        of_module = isinstance(node.func, ast.Attribute) and getattr(node.func.value, 'id', '') in MODULES
        name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        end = self.end(node.func)
        swaps = METHODS if isinstance(node.func, ast.Attribute) else FUNCTIONS
        if name in swaps:
            self.add((end - len(name.encode()), end, swaps[name]))
        if isinstance(node.func, ast.Attribute) and name in DROPPED and not of_module:
            self.add((self.dot(node.func), self.end(node), ''))
        for argument in node.args + [k.value for k in node.keywords]:
            if is_text(argument):
                self.word(argument)
        self.keywords(node)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if node.attr in DROPPED_ATTRIBUTES:
            self.add((self.dot(node), self.end(node), ''))
        self.generic_visit(node)

    def dot(self, node):
        "Where the dot of an attribute is."
        return self.source.rindex(b'.', 0, self.end(node))

    def word(self, node):
        "A word, or an einops pattern, that is given to a function."
        start, end = self.start(node), self.end(node)
        news = [WORDS[node.value]] if node.value in WORDS else axes_exchanged(node.value)
        if news:
            self.add(*[(start, end, repr(new)) for new in news])

    def keywords(self, node):
        plain = [
            k
            for k in node.keywords
            if k.arg and k.arg not in NOT_EXCHANGED and isinstance(k.value, (ast.Name, ast.Attribute))
        ]
        for keyword, other in zip(plain, plain[1:] + plain[:1]):
            if self.text(keyword.value) != self.text(other.value):
                self.add((self.start(keyword.value), self.end(keyword.value), self.text(other.value)))
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS:
                start = self.start(keyword)
                self.add((start, start + len(keyword.arg), KEYWORDS[keyword.arg]))


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def constants(value):
    "What a constant may become, as text."
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int):
        return [str(value + 1), str(value - 1)]
    if isinstance(value, float):
        return [repr(value * 2 if abs(value) >= 0.01 else value + 1)]
    return []


def axes_exchanged(pattern):
    "An einops pattern with two neighbouring axes exchanged: of its result, and of its inputs if there are several."
    if '->' not in pattern:
        return []
    inputs, result = pattern.split('->')
    first = len(inputs) + 2
    spans = [(first, len(pattern))]
    if ',' in inputs:
        spans += [m.span() for m in re.finditer('[^,]+', inputs)]
    news = []
    for start, end in spans:
        axes = [(start + m.start(), start + m.end()) for m in re.finditer(r'\w+', pattern[start:end])]
        for (a, b), (c, d) in zip(axes, axes[1:]):
            if pattern[a:b] != pattern[c:d]:
                news.append(pattern[:a] + pattern[c:d] + pattern[b:c] + pattern[a:b] + pattern[d:])
    return news


def mutants_of(cell):
    "For each place of an exported cell a list of mutants."
    source = text_of(cell)
    places = Places(source)
    found = []
    for function, edits in sorted(places.found, key=lambda place: place[1][0][:2]):
        mutants = [mutant(cell['id'], places.source, function, *edit) for edit in edits]
        found.append([m for m in mutants if compiles(m.source)])
    return [place for place in found if place]


def mutant(cell, source, function, start, end, new):
    first = source.rfind(b'\n', 0, start) + 1
    last = (source + b'\n').index(b'\n', end)
    before, after = source[first:last], source[first:start] + new + source[end:last]
    return Mutant(
        cell=cell,
        line=source[:start].count(b'\n') + 1,
        function=function,
        before=one_line(before),
        after=one_line(after),
        source=(source[:start] + new + source[end:]).decode(),
    )


def one_line(code):
    "Lines without their comments, as one; where a `#` stands in a text, with all that follows."
    lines = [l if re.search(r'''['"].*#''', l) else re.sub(r'\s*#.*', '', l) for l in code.decode().split('\n')]
    return ' '.join(' '.join(lines).split())


def compiles(source):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # such as `is` with a number
        try:
            compile(source, '', 'exec', dont_inherit=True)
        except SyntaxError:
            return False
    return True


# ---- notebooks


def text_of(cell):
    "Source of a cell, without lines for IPython."
    return re.sub(r'^([ \t]*)[%!].*$', r'\1pass', ''.join(cell['source']), flags=re.M)


def marks(cell):
    "The `#|` lines at the top of a cell: name -> value."
    lines = [l[2:].replace(':', ' ').split() for l in ''.join(cell['source']).split('\n') if l.startswith('#|')]
    return {l[0]: ' '.join(l[1:]) for l in lines if l}


def cells_of(path):
    "The cells that nbdev-test runs."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    cells = [c for c in cells if c['cell_type'] == 'code' and not SKIPPED & set(marks(c))]
    return [c for c in cells if marks(c).get('eval') != 'false' and not text_of(c).lstrip().startswith('%%')]


def places_of(cells):
    exported = [c for c in cells if EXPORTS & set(marks(c))]
    return [place for c in exported for place in mutants_of(c)]


def draw(places, number, seed):
    "`number` mutants of as many places, or all if `number` is None."
    if number is None:
        return [m for place in places for m in place]
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(places)), min(number, len(places))))
    return [rng.choice(places[i]) for i in chosen]


# ---- running cells


def execute(source, cell, namespace):
    "Run a cell's source."
    file = f'<cell {cell}>'
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for inspect and torch.compile
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SyntaxWarning)
        code = compile(source, file, 'exec', dont_inherit=True)
    exec(code, namespace)
    if 'matplotlib.pyplot' in sys.modules:
        sys.modules['matplotlib.pyplot'].close('all')


def new_namespace():
    "Of a fresh module that is called `__main__`, as a notebook's."
    module = types.ModuleType('__main__')
    module.__dict__['display'] = print
    sys.modules['__main__'] = module
    return module.__dict__


def fork(fn, *args):
    "Process id of a fork that runs `fn`, says nothing, and ends."
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # threads that torch has, but that run nothing
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()  # so that what it starts is ended with it
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        fn(*args)
        status = 0
    finally:
        os._exit(status)


def end(pid):
    "End a process that `fork` began, and all that it started."
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def wait(running, limit):
    "Wait until one of `running` (process id -> when it began) has ended, or was ended after `limit` seconds: its id."
    while True:
        for pid, began in running.items():
            late = limit is not None and time.time() - began > limit
            if late:
                end(pid)
            done, _ = os.waitpid(pid, 0 if late else os.WNOHANG)
            if done:
                end(pid)  # processes that it left behind
                return pid
        time.sleep(0.02)


def note_backward(seen):
    "From now on `seen['backward']` is the number of the first cell that has run autograd."
    import torch

    def noted(call):
        def noting(*args, **kwargs):
            if seen['backward'] is None:
                seen['backward'] = seen['number']
            return call(*args, **kwargs)

        return noting

    for name in ('backward', 'grad'):
        setattr(torch.autograd, name, noted(getattr(torch.autograd, name)))


def run_cells(cells, namespace, out, mutant=None):
    "Run cells, one of them mutated, and write into the file `out` what happened."
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seen = dict(backward=None, failed=None, error='')
    if mutant is None:
        note_backward(seen)
    for seen['number'], cell in enumerate(cells):
        changed = mutant is not None and mutant.cell == cell['id']
        try:
            execute(mutant.source if changed else text_of(cell), cell['id'], namespace)
        except BaseException as e:  # a SystemExit too
            seen.update(failed=cell['id'], error=f'{type(e).__name__}: {e}'[:300])
            break
    out.write_text(json.dumps(seen))


def outcome(out):
    "What `run_cells` wrote: (id of the cell that failed or None, how)."
    if not out.exists():
        return '?', 'ended by the time limit or a crash'
    seen = json.loads(out.read_text())
    return seen['failed'], seen['error']


def walk(cells, first_backward, mutants, folder, workers, limit):
    """Run the cells, and before each exported one fork a process for each of its mutants, which runs the rest.
    From the cell `first_backward` on, nothing may run here; mutants beyond it fork there."""
    namespace, running = new_namespace(), {}
    for index, cell in enumerate(cells):
        at_last = index == first_backward
        later = {c['id'] for c in cells[index:]}
        for number, m in enumerate(mutants):
            if m.cell == cell['id'] or at_last and m.cell in later:
                if len(running) == workers:
                    running.pop(wait(running, limit))
                pid = fork(run_cells, cells[index:], namespace, folder / f'{number}.json', m)
                running[pid] = time.time()
        if at_last:
            break
        execute(text_of(cell), cell['id'], namespace)
    while running:
        running.pop(wait(running, limit))
    (folder / 'walked').touch()


def run_notebook(path, mutants, workers=2):
    """(id of the failing cell or None, how) for each mutant. RuntimeError where the notebook fails unchanged."""
    cells = cells_of(path)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        began = time.time()
        check = fork(in_folder, path.parent, unchanged, cells, folder / 'unchanged.json')
        wait({check: began}, None)
        limit = 10 + 3 * (time.time() - began)
        failed, error = outcome(folder / 'unchanged.json')
        if failed:
            raise RuntimeError(f'{path.name} fails unchanged, in cell {failed}: {error}')
        first = json.loads((folder / 'unchanged.json').read_text())['backward']
        walker = fork(in_folder, path.parent, walk, cells, first, mutants, folder, workers, limit)
        wait({walker: time.time()}, None)
        if not (folder / 'walked').exists():
            raise RuntimeError(f'{path.name} fails unchanged when it runs again')
        return [outcome(folder / f'{i}.json') for i in range(len(mutants))]


def in_folder(folder, fn, *args):
    os.chdir(folder)
    fn(*args)


def unchanged(cells, out):
    run_cells(cells, new_namespace(), out)


# ---- the report


def read_equivalent(file, notebook):
    "{(function, before, after): reason} of the mutants that are listed for a notebook."
    if not file.exists():
        return {}
    with open(file, newline='', encoding='utf-8') as lines:
        rows = [row for row in csv.DictReader(lines) if row['notebook'] == notebook]
    return {name_of_row(row): row['reason'] for row in rows}


def name_of(m):
    return m.function, m.before, m.after


def name_of_row(row):
    return row['function'], row['before'], row['after']


def try_notebook(path, notebook, number, seed, workers, listed):
    "Counts of a notebook, and the lines of its report: survivors, and what is wrong with the list."
    places = places_of(cells_of(path))
    mutants = draw(places, number, f'{seed} {notebook}')
    results = run_notebook(path, mutants, workers)
    survivors, wrong = [], []
    counts = dict(places=len(places), tried=len(mutants), killed=0, equivalent=0, survived=0)
    for m, (cell, error) in zip(mutants, results):
        if cell is not None:
            counts['killed'] += 1
        elif name_of(m) in listed:
            counts['equivalent'] += 1
        else:
            counts['survived'] += 1
            where = f'{notebook}.ipynb, cell {m.cell}, line {m.line}, {m.function or "outside of functions"}'
            survivors.append(f'  survives: {where}\n      {m.before}\n    → {m.after}')
        if cell is not None and name_of(m) in listed:
            wrong.append(f'  listed as equivalent, but cell {cell} fails ({error}): {m.before} → {m.after}')
    there = {name_of(m) for place in places for m in place}
    wrong += [
        f'  stale in the list, there is no such mutant: {f}: {b} → {a}' for f, b, a in listed if (f, b, a) not in there
    ]
    different = counts['tried'] - counts['equivalent']
    counts['percent'] = round(100 * counts['killed'] / different, 1) if different else 100.0
    return counts, survivors, wrong


def notebooks_of(names, nbs):
    "Paths of the notebooks that are named, or that lie in a folder that is named."
    found = []
    for name in names:
        inside = sorted((nbs / name).glob('*.ipynb')) if (nbs / name).is_dir() else [nbs / f'{name}.ipynb']
        found += [p for p in inside if p.exists()] or sys.exit(f'{name}: no such notebook')
    return [p for p in found if places_of(cells_of(p))]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--notebooks', nargs='+', default=SCOPE, help='such as 2_models/07_head, or a folder of nbs/')
    parser.add_argument('--per-notebook', type=int, default=40, help='places that are tried in each')
    parser.add_argument('--all', action='store_true', help='every mutant of every place')
    parser.add_argument('--seed', type=int, default=0, help='which places')
    parser.add_argument('--workers', type=int, default=2, help='mutants at a time')
    parser.add_argument('--least', type=float, default=0, help='percent killed, or exit code 1')
    parser.add_argument('--no-rows', action='store_true', help='do not write nbs/results/mutants.csv')
    parser.add_argument('--root', type=Path, default=ROOT, help='the project folder')
    return parser.parse_args()


def main():
    args = options()
    sys.path[:0] = [str(ROOT / 'tools'), str(args.root.resolve())]
    import matplotlib.pyplot, torch  # noqa: F401  once, for all forks

    torch.set_num_threads(1)
    os.environ['IN_TEST'] = '1'  # nbdev-export in a notebook's last cell then writes nothing
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        nbs = shutil.copytree(args.root / 'nbs', Path(folder) / 'nbs')
        for path in notebooks_of(args.notebooks, nbs):
            notebook = path.relative_to(nbs).with_suffix('').as_posix()
            listed = read_equivalent(args.root / 'tools' / 'mutants_equivalent.csv', notebook)
            number = None if args.all else args.per_notebook
            began = time.time()
            try:
                counts, survivors, wrong = try_notebook(path, notebook, number, args.seed, args.workers, listed)
            except RuntimeError as e:
                print(e)
                failed = True
                continue
            said = ', '.join(f'{counts[name]} {name}' for name in COUNTS[1:5])
            print(f'{notebook}: {counts["places"]} places, {said}: {counts["percent"]} % ({time.time() - began:.0f} s)')
            for line in (*survivors, *wrong):
                print(line)
            sys.stdout.flush()
            failed |= bool(wrong) or counts['percent'] < args.least
            asked = 'all' if args.all else args.per_notebook
            rows.append(dict(notebook=notebook, seed='' if args.all else args.seed, asked=asked, **counts))
    if rows and not args.no_rows:
        from record import here, put

        put(args.root / 'nbs' / 'results' / 'mutants.csv', [{**row, **here()} for row in rows], KEY, COLUMNS)
    sys.exit(failed)


if __name__ == '__main__':
    main()
