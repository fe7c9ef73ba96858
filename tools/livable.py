"""How a package is written, in numbers, beside others: a Markdown table, a line a package.

    python tools/livable.py idrnet_nb
    python tools/livable.py idrnet_nb .venv/lib/python3.*/site-packages/{fastcore,segmentation_models_pytorch}
    python tools/livable.py --check idrnet_nb        # `make test`: the table, and exit 1 beyond a limit

Lines are those that are not blank, comments and docstrings among them, of all .py files but nbdev's
_modidx.py. The columns:

    > 100, > 120       lines with more characters, percent
    tokens a line      tokens of Python (no comments, line ends or indents) for each line
    function           tokens of a function's body, docstring included, of functions and methods (inner
                       functions count with the outer one): median, 9th decile, largest
    ; per 1000         semicolons between statements, for 1000 lines
    private per public functions and classes of modules whose name begins with _, for each other one
    raise per 100      raise statements, for 100 lines
    private imported   names beginning with _ that one module imports from another of the package

The limits of --check are few and hard. No line beyond 120 columns, no `;`, no private import: each can be
mended where it is, and each makes a file harder to read at once. Code beyond 100 columns (a comment behind
it not counted) may be 3 % of the lines: most such lines are the text of an error, and a rule without an
exception would break words in two. The others (private per public, the largest function) are bounds
against the absurd, above what good code here has, since a tight number would be met by squeezing: that
happened once (functions of at most 20 lines had lines of 180 columns)."""

import argparse, ast, io, statistics, sys, tokenize
from dataclasses import dataclass, field
from pathlib import Path

SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


@dataclass
class Counts:
    "What is counted in a package."

    lines: int = 0  # not blank
    over_100: int = 0  # of them
    over_120: int = 0  # of them
    wide: list = field(default_factory=list)  # 'file:line' of lines beyond 120 columns
    wide_code: int = 0  # lines whose code, without the comment behind it, is beyond 100
    tokens: int = 0
    semicolons: int = 0
    raises: int = 0
    private: int = 0  # functions and classes of modules
    public: int = 0
    imported: int = 0  # private names, by another module of the package
    bodies: list = field(default_factory=list)  # (tokens, 'file:function') of functions and methods

    def add(
        self,
        text: str,  # of a file
        name: str,  # of the file, for `bodies`
        package: str,  # name of the package, for imports in full
    ):
        "Count one file in."
        lines = text.splitlines()
        self.lines += sum(bool(l.strip()) for l in lines)
        self.over_100 += sum(len(l) > 100 for l in lines)
        self.over_120 += sum(len(l) > 120 for l in lines)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        comment = {t.start[0]: t.start[1] for t in tokens if t.type == tokenize.COMMENT}
        tree = ast.parse(text)
        written_by_nbdev = {
            i
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__'
            for i in range(node.lineno, node.end_lineno + 1)
        }
        for i, line in enumerate(lines, 1):
            code = '' if i in written_by_nbdev else line[: comment.get(i)].rstrip()
            self.wide_code += len(code) > 100
            if len(line) > 120 and i not in written_by_nbdev:
                self.wide.append(f'{name}:{i}')
        tokens = [t for t in tokens if t.type not in SILENT]
        self.tokens += len(tokens)
        self.semicolons += sum(t.string == ';' for t in tokens)
        for node in ast.walk(tree):
            self.raises += isinstance(node, ast.Raise)
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').split('.')[0] == package):
                self.imported += sum(is_private(a.name) for a in node.names)
        for node in of_module(tree):
            if is_private(node.name):
                self.private += 1
            else:
                self.public += 1
            methods = of_module(node) if isinstance(node, ast.ClassDef) else ()
            for function in (node, *methods):
                if isinstance(function, FUNCTIONS):
                    at = node.name if function is node else f'{node.name}.{function.name}'
                    self.bodies.append((len_of_body(function, lines, tokens), f'{name}:{at}'))


def is_private(name):
    return name.startswith('_') and not name.endswith('__')


def of_module(tree):
    "Functions and classes of a module (or a class) that are not inside of others."
    todo = list(tree.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node
        else:
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler))]


def len_of_body(function, lines, tokens):
    "Tokens from the first statement (or docstring) to the end of the last."

    def place(line, offset):
        return line, len(lines[line - 1].encode()[:offset].decode())  # ast counts bytes

    first, last = function.body[0], function.body[-1]
    start, end = place(first.lineno, first.col_offset), place(last.end_lineno, last.end_col_offset)
    return sum(start <= t.start < end for t in tokens)


def count(folder):
    "Counts of a package. ValueError for a folder without Python, or a file that cannot be read as Python."
    folder, out = Path(folder), Counts()
    for file in sorted(folder.rglob('*.py')):
        if file.name == '_modidx.py':
            continue
        name = file.relative_to(folder).as_posix()
        try:
            out.add(file.read_text(encoding='utf-8'), name, folder.resolve().name)
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as e:
            raise ValueError(f'{str(file)!r} cannot be read as Python: {e}') from e
    if not out.lines:
        raise ValueError(f'there is no Python in {str(folder)!r}; give the folder of a package')
    return out


HEAD = (
    'package',
    'lines',
    '> 100',
    '> 120',
    'tokens a line',
    'function in tokens, median / p90 / largest',
    '; per 1000',
    'private per public',
    'raise per 100',
    'private imported',
)


def row(name, c):
    "The numbers of a package, as the table has them."
    bodies = sorted(size for size, _ in c.bodies) or [0]
    share = lambda n, of: n * of / c.lines
    sizes = f'{statistics.median(bodies):g} / {bodies[int(0.9 * (len(bodies) - 1))]} / {bodies[-1]}'
    return (
        name,
        str(c.lines),
        f'{share(c.over_100, 100):.1f} %',
        f'{share(c.over_120, 100):.1f} %',
        f'{c.tokens / c.lines:.1f}',
        sizes,
        f'{share(c.semicolons, 1000):.0f}',
        f'{c.private / max(1, c.public):.2f}',
        f'{share(c.raises, 100):.1f}',
        str(c.imported),
    )


def table(folders):
    "Markdown: a line a package."
    rows = [HEAD, ['---'] * len(HEAD), *(row(Path(f).resolve().name, count(f)) for f in folders)]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in rows)


WIDE_CODE, LARGEST_FUNCTION, PRIVATE_PER_PUBLIC = (
    3,
    450,
    1.2,
)  # percent of lines; tokens; functions and classes of modules


def beyond_limits(c):
    "What `--check` finds wrong in the counts of a package, in words."
    wrong = [f'{place} is wider than 120 columns' for place in c.wide]
    if 100 * c.wide_code > WIDE_CODE * c.lines:
        wrong.append(f'{c.wide_code} of {c.lines} lines have code beyond 100 columns, {WIDE_CODE} % is the limit')
    if c.semicolons:
        wrong.append(f'{c.semicolons} statements end with `;`: one statement a line')
    if c.imported:
        wrong.append(f'{c.imported} private names are imported by another module: make them public, or move them')
    wrong += [
        f'{name} has {size} tokens, {LARGEST_FUNCTION} is the limit'
        for size, name in c.bodies
        if size > LARGEST_FUNCTION
    ]
    if c.private > PRIVATE_PER_PUBLIC * c.public:
        wrong.append(
            f'{c.private} private functions and classes beside {c.public} public ones, {PRIVATE_PER_PUBLIC} each is the limit'
        )
    return wrong


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folders', nargs='+', type=Path, metavar='FOLDER', help='of a package')
    p.add_argument('--longest', type=int, default=0, metavar='N', help='name the N largest functions of each as well')
    p.add_argument('--check', action='store_true', help='exit 1, naming what is beyond a limit')
    a = p.parse_args()
    try:
        print(table(a.folders))
    except ValueError as e:
        sys.exit(str(e))
    wrong = [w for folder in a.folders for w in beyond_limits(count(folder))] if a.check else []
    if wrong:
        sys.exit('\n'.join(wrong))
    for folder in a.folders if a.longest else ():
        print(f'\n{folder.resolve().name}')
        for size, name in sorted(count(folder).bodies, reverse=True)[: a.longest]:
            print(f'{size:6} {name}')


if __name__ == '__main__':
    main()
