"""The API pages of the book: what each module exports, from its docstrings and the comments beside its arguments
(read by fastcore.docments, as nbdev does). Used by tools/book.py."""

import ast, dataclasses, html, importlib, inspect, pkgutil, re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin

from fastcore.docments import docments

from book_text import Page, code_block

CELL = re.compile(r'# %% \S*nbs/(\S+)\.ipynb #(\S+)')
LONG = 72  # letters of a default or a value that are shown


@dataclass
class Module:
    "A module with what it exports, and the notebook that it comes from."

    name: str  # idrnet_nb.method.relation
    object: object
    page: Page
    notebook: str  # path from nbs, without suffix; empty: written by hand
    cells: dict  # exported name -> id of the cell that makes it
    lines: dict  # exported name -> its (first, last) line, counted from 0
    source: list  # lines of the module

    @property
    def names(self):
        return list(getattr(self.object, '__all__', ()))


def modules(package):
    "Every module of the package that a notebook exports. Imports them all."
    root = importlib.import_module(package)
    found = []
    for info in pkgutil.walk_packages(root.__path__, f'{package}.'):
        if not info.ispkg:
            made = read_module(info.name)
            if made.notebook:
                found.append(made)
    return found


def read_module(name):
    "Import a module, and find in its file where each name was made."
    module = importlib.import_module(name)
    source = Path(module.__file__).read_text(encoding='utf-8')
    lines = source.splitlines()
    notebook = re.search(r'File to edit: \S*?nbs/(\S+)\.ipynb\.', source)
    cell_of_line, cell = [], None
    for line in lines:
        mark = CELL.match(line)
        cell = mark[2] if mark else cell
        cell_of_line.append(cell)
    cells, places = {}, {}
    for node in ast.parse(source).body:
        targets = [*getattr(node, 'targets', ()), *[t for t in [getattr(node, 'target', None)] if t]]
        assigned = [t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)]
        found = [node.name] if hasattr(node, 'name') else assigned
        for made in found:
            first = min([node.lineno, *[d.lineno for d in getattr(node, 'decorator_list', ())]]) - 1
            cells[made], places[made] = cell_of_line[first], (first, node.end_lineno - 1)
    page = Page('api/' + '/'.join(name.split('.')[1:]), title=name.rpartition('.')[2], kind='api')
    page.summary = (module.__doc__ or '').strip().split('\n')[0]
    return Module(name, module, page, notebook[1] if notebook else '', cells, places, lines)


def symbols(found):
    "Everything that inline code may name: full name -> `path#anchor`, and short name -> full names."
    full, short = {}, {}
    for module in found:
        full[module.name] = module.page.path
        short.setdefault(module.name.rpartition('.')[2], [])
        for name in module.names:
            own = [name, *[f'{name}.{m}' for m in methods(getattr(module.object, name))]]
            for each in own:
                full[f'{module.name}.{each}'] = f'{module.page.path}#{each}'
                short.setdefault(each, []).append(f'{module.name}.{each}')
            # `relation.relation_weights`, as prose names it
            dotted = f'{module.name.rpartition(".")[2]}.{name}'
            short.setdefault(dotted, []).append(f'{module.name}.{name}')
    return full, short


def methods(cls):
    "The public methods that a class defines itself: name -> function."
    if not inspect.isclass(cls):
        return {}
    found = {}
    for name, made in vars(cls).items():
        made = made.fget if isinstance(made, property) else getattr(made, '__func__', made)
        made = inspect.unwrap(made) if callable(made) else made
        if name.startswith('_') or not inspect.isfunction(made) or made.__module__ != cls.__module__:
            continue
        if made.__qualname__.startswith(f'{cls.__qualname__}.'):
            found[name] = made
    return found


# ---- types and values as text


def type_name(kind):
    "An annotation as it is written in code."
    if kind is inspect.Parameter.empty:
        return ''
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if kind is type(None):
        return 'None'
    if inspect.isclass(kind) and not get_args(kind):
        return kind.__qualname__
    shown = kind if isinstance(kind, str) else repr(kind)
    shown = re.sub(r'\b(?:[A-Za-z_]\w*\.)+(\w+)', r'\1', shown)
    return re.sub(r'Annotated\[([^<>]+?), <[^<>]*>\]', r'\1', shown)


def value_name(value):
    "A default as it is written in code; cut where it is long."
    if value is inspect.Parameter.empty or value is dataclasses.MISSING:
        return ''
    shown = getattr(value, '__name__', None) or repr(value)
    shown = re.sub(r' at 0x[0-9a-f]+', '', ' '.join(shown.split()))
    return shown if len(shown) <= LONG else shown[: LONG - 1] + '…'


def fields(cls):
    "Fields of a dataclass or NamedTuple as (name, type, default); None for other classes."
    if dataclasses.is_dataclass(cls):
        made = [f for f in dataclasses.fields(cls) if not f.name.startswith('_')]
        factory = lambda f: f'{getattr(f.default_factory, "__name__", "…")}()'.replace('<lambda>()', '…')
        default = lambda f: value_name(f.default) if f.default_factory is dataclasses.MISSING else factory(f)
        return [(f.name, type_name(f.type), default(f)) for f in made]
    if issubclass(cls, tuple) and hasattr(cls, '_fields'):
        defaults = cls._field_defaults
        kinds = cls.__annotations__
        return [(f, type_name(kinds[f]), value_name(defaults[f]) if f in defaults else '') for f in cls._fields]
    return None


def field_comments(cls):
    "Comments beside the fields of a class and of those it inherits from; a line of comment continues the one above."
    comments = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):
            continue
        name = None
        for line in source.splitlines():
            code, _, comment = line.partition('# ')
            declared = re.match(r' {4}(\w+) *:', code)
            if declared:
                name = declared[1]
                comments.pop(name, None)
            elif re.match(r' {0,4}\S', code):  # a method, a decorator
                name = None
            if name and comment:
                comments[name] = f'{comments.get(name, "")} {comment.strip()}'.strip()
    return comments


def parameters(made):
    "Rows (name, type, default, comment) of a function or class, and (type, comment) of what it returns."
    if inspect.isclass(made):
        rows = fields(made)
        if rows is not None:
            comments = field_comments(made)
            return [(n, t, d, comments.get(n, '')) for n, t, d in rows], ('', '')
        if '__init__' not in vars(made):
            return [], ('', '')
    stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    found = docments(made, full=True, returns=True)
    returned = found.pop('return', None) or {}
    rows = [
        (stars.get(p.get('kind'), '') + n, type_name(p['anno']), value_name(p['default']), p['docment'] or '')
        for n, p in found.items()
        if n not in ('self', 'cls')
    ]
    kind = returned.get('anno')
    return rows, (type_name(kind) if kind is not None else '', returned.get('docment') or '')


# ---- pages


class ApiPage:
    "Renders the page of one module."

    def __init__(
        self,
        module,  # `Module`
        markdown,  # `Markdown` for docstrings
        notebooks,  # path of a notebook, from nbs, without suffix -> (path of its page, its title)
        anchors,  # path of a page -> ids that it has
    ):
        self.module, self.markdown, self.notebooks, self.anchors = module, markdown, notebooks, anchors
        self.page = module.page

    def render(self):
        "Fill the page, and return it."
        module, page = self.module, self.page
        name = module.name
        page.scope = {n: f'{getattr(o, "__module__", name)}.{n}' for n, o in vars(module.object).items()}
        page.scope |= {n: f'{name}.{n}' for n in module.names}
        page.headings = [(1, page.new_id(module.page.title), name)]
        parts = [f'<h1 id="{page.headings[0][1]}"><code class="module">{name.replace(".", ".<wbr>")}</code></h1>\n']
        parts.append(self._text(module.object.__doc__))
        where, title = self.notebooks[module.notebook]
        parts.append(
            f'<p class="about"><span>developed in <a href="{page.to(where)}">{html.escape(title)}</a></span></p>\n'
        )
        for each in module.names:
            parts.append(self._entry(each, getattr(module.object, each)))
        page.html = ''.join(parts)
        return page

    def _text(self, docstring):
        return self.markdown.html(inspect.cleandoc(docstring), self.page) if docstring else ''

    def _inline(self, text):
        return self.markdown.inline(text, self.page) if text else ''

    def _heading(self, level, name, shown):
        anchor = self.page.new_id(name)
        self.page.headings.append((level, anchor, shown))
        return f'<h{level} id="{anchor}" class="symbol"><code>{html.escape(shown)}</code></h{level}>\n'

    def _entry(self, name, made):
        "One exported name: what it is called with, what it does, its parameters; for a class its methods."
        parts = [self._heading(2, name, name), self._developed(name)]
        if not hasattr(made, '__qualname__'):  # a constant, or a name for a type
            first, last = self.module.lines[name]
            parts.append(self._constant(self.module.source[first : last + 1]))
            return f'<div class="entry">{"".join(parts)}</div>\n'
        module_scope = self.page.scope
        own = methods(made)
        full = f'{self.module.name}.{name}'
        # in what a class says of itself, `forward` is its own; and an argument is no function of the same name
        class_scope = module_scope | {m: f'{full}.{m}' for m in own}
        parts.append(self._called(made, class_scope))
        for method, function in own.items():
            if not function.__doc__ and not any(row[3] for row in parameters(function)[0]):
                self.page.ids.add(f'{name}.{method}')
                parts.append(f'<span id="{name}.{method}"></span>')
                continue
            parts.append(self._heading(3, f'{name}.{method}', f'{name}.{method}'))
            parts.append(self._called(function, class_scope, isinstance(vars(made)[method], property)))
        self.page.scope = module_scope
        return f'<div class="entry">{"".join(parts)}</div>\n'

    def _developed(self, name):
        "The link from an entry to the cell that makes it."
        where, title = self.notebooks[self.module.notebook]
        anchor = f'cell-{self.module.cells.get(name)}'
        target = f'{where}#{anchor}' if anchor in self.anchors.get(where, ()) else where
        return f'<p class="developed"><a href="{self.page.to(target)}">in the notebook</a></p>\n'

    def _constant(self, lines, shown=12):
        "The lines that define a constant, with their comments."
        more = ['…'] if len(lines) > shown else []
        cut = [line if len(line) <= 200 else line[:199] + '…' for line in lines[:shown]]
        return code_block('\n'.join([*cut, *more]))

    def _called(self, made, scope, is_property=False):
        "Signature, docstring and table of parameters."
        rows, returned = parameters(made)
        arguments = {n.strip('*') for n, *_ in rows}
        self.page.scope = {n: full for n, full in scope.items() if n not in arguments}
        called_with = ', '.join(n + (f'={d}' if d else '') for n, _, d, _ in rows)
        name = made.__qualname__
        if inspect.isclass(made):
            bases = [b.__name__ for b in made.__bases__ if b is not object]
            bases = ['NamedTuple'] if bases == ['tuple'] else bases
            signature = f'class {name}' + (f'({", ".join(bases)})' if bases else '')
            if rows:
                signature += f'\n{name}({called_with})'
        else:
            signature = name if is_property else f'{name}({called_with})'
            signature += f' -> {returned[0]}' if returned[0] else ''
        doc = made.__doc__
        if inspect.isclass(made) and (doc or '').startswith(f'{made.__name__}('):  # written by Python, not by us
            doc = ''
        block = code_block(signature).replace('class="highlight"', 'class="highlight signature"')
        return block + self._text(doc) + self._table(rows, returned)

    def _table(self, rows, returned):
        if returned[0] or returned[1]:
            rows = [*rows, ('returns', returned[0], '', returned[1])]
        if not any(t or c for _, t, _, c in rows):
            return ''
        code = lambda text: f'<code>{html.escape(text)}</code>' if text else ''
        has_default = any(d for _, _, d, _ in rows)
        lines = []
        for name, kind, default, comment in rows:
            first = '<em>returns</em>' if name == 'returns' else code(name)
            cells = [first, self._type(kind), *([code(default)] if has_default else []), self._inline(comment)]
            lines.append('<tr>' + ''.join(f'<td>{c}</td>' for c in cells) + '</tr>')
        titles = ['name', 'type', *(['default'] if has_default else []), 'what']
        header = ''.join(f'<th>{t}</th>' for t in titles)
        body = '\n'.join(lines)
        return f'<div class="wide parameters"><table><thead><tr>{header}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'

    def _type(self, kind):
        "A type, with a link if it is one of ours."
        if not kind:
            return ''
        target = self.markdown.links.symbol(kind, self.page)
        shown = f'<code>{html.escape(kind)}</code>'
        return f'<a href="{self.page.to(target)}">{shown}</a>' if target else shown


def index_page(package, found, markdown, groups):
    "The first page of the API: the front door, then each sub-package with its modules."
    root = importlib.import_module(package)
    page = Page('api/index', title='API', kind='api')
    page.headings = [(1, page.new_id('api'), 'API')]
    parts = ['<h1 id="api">API</h1>\n', markdown.html(inspect.cleandoc(root.__doc__ or ''), page)]
    homes = {n: f'{getattr(root, n).__module__}.{n}' for n in root.__all__}
    rows = []
    for name, full in homes.items():
        doc = (getattr(root, name).__doc__ or '').strip().split('\n\n')[0]
        link = f'<a href="{page.to(markdown.links.symbols[full])}"><code>{name}</code></a>'
        rows.append(f'<tr><td>{link}</td><td>{markdown.inline(" ".join(doc.split()), page)}</td></tr>')
    parts.append(f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>\n')
    for group, members in groups.items():
        anchor = page.new_id(group)
        page.headings.append((2, anchor, group))
        parts.append(f'<h2 id="{anchor}"><code>{package}.{group}</code></h2>\n')
        rows = [
            f'<tr><td><a href="{page.to(m.page.path)}"><code>{m.page.title}</code></a></td>'
            f'<td>{markdown.inline(m.page.summary, page)}</td></tr>'
            for m in members
        ]
        parts.append(f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>\n')
    page.html = ''.join(parts)
    return page
