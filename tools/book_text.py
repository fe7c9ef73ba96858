"""Markdown -> HTML, as Jupyter and GitHub read it (CommonMark with tables), with links between the pages of the book.
Used by tools/book.py. Code is never touched: only text is searched for equations and references."""

import html, posixpath, re, sys
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from book_math import tags, to_mathml

OUTSIDE = re.compile(r'[a-z][a-z0-9+.-]*:|//', re.I)  # an address that is no page of ours
MATH = re.compile(r'(<(?:code|pre)\b.*?</(?:code|pre)>)|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\d$])', re.S)
REFERENCES = re.compile(  # "(eq. 3)", "equation (3)", "equations (3) and (4)"
    r'(?P<word>\b(?:[Ee]qs?\.|[Ee]quations?)[\s\u00a0]*)'
    r'(?P<numbers>(?:\(\d\w?\w?\)|\d\w?\w?\b)(?:\s*(?:,?\s*and|,|–|-|to)\s*(?:\(\d\w?\w?\)|\d\w?\w?\b))*)'
)
UNCOLOURED = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')  # names and brackets: half of all marks
OTHERS = re.compile(r'paper.s\s+$')  # an equation of the paper, not of this book


@dataclass
class Page:
    "One page of the book. `path` has no suffix and starts at the root: `1_method/07_relation`."

    path: str
    title: str = ''
    html: str = ''
    headings: list = field(default_factory=list)  # (level, id, plain text)
    summary: str = ''  # one line, of Markdown
    files: dict = field(default_factory=dict)  # path from the root -> bytes
    scope: dict = field(default_factory=dict)  # name -> full name, of what this page's code imports or defines
    kind: str = 'notebook'
    ids: set = field(default_factory=set)

    def new_id(self, wanted):
        "An id that no element of the page has yet."
        name, n = wanted, 1
        while name in self.ids:
            name, n = f'{wanted}-{n}', n + 1
        self.ids.add(name)
        return name

    def to(self, target):
        "The address of `path#anchor` (no suffix) as seen from this page."
        path, _, anchor = target.partition('#')
        here = posixpath.dirname(self.path)
        address = '' if path == self.path and anchor else posixpath.relpath(f'{path}.html', here or '.')
        return address + (f'#{anchor}' if anchor else '')

    def asset(self, path):
        "The address of a file of the book as seen from this page."
        return posixpath.relpath(path, posixpath.dirname(self.path) or '.')


@dataclass
class Links:
    "What a page may link to."

    pages: dict  # path of a notebook, from nbs, without suffix -> path of its page
    titles: dict = field(default_factory=dict)  # path of a page -> its title
    equations: dict = field(default_factory=dict)  # number -> path of the page that has it
    symbols: dict = field(default_factory=dict)  # full name -> `path#anchor` of its entry in the API
    by_name: dict = field(default_factory=dict)  # short name -> its full names
    documents: dict = field(default_factory=dict)  # file at the root of the repository -> path of its page
    source: str = ''  # address of the repository's files, ends with /; empty: there is none
    figures: object = None  # folder from which figures are read

    def notebook(self, name, page):
        "The page that `1_method/06_grouping`, `06_grouping` or `nbs/…/06_grouping.ipynb` names, or None."
        name = re.sub(r'^nbs/|\.ipynb$', '', name)
        if name in self.pages:
            return self.pages[name]
        if re.fullmatch(r'\d\d_\w+', name):
            return self.pages.get(f'{posixpath.dirname(page.path)}/{name}')
        return None

    def symbol(self, name, page):
        """`path#anchor` of the API entry that inline code names, or None. A name in the scope of the page is meant
        first; else one that only one module has. A plain lower-case word is linked only if it is in scope."""
        called = name.endswith('()')
        name = name.removesuffix('()')
        if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
            return None
        first, _, rest = name.partition('.')
        if first in page.scope:
            full = page.scope[first] + ('.' + rest if rest else '')
            if full in self.symbols:
                return self.symbols[full]
        if name in self.symbols:
            return self.symbols[name]
        found = self.by_name.get(name, ())
        distinct = called or '.' in name or '_' in name.strip('_') or re.search(r'[a-z][A-Z]|[A-Z][a-z]', name)
        return self.symbols[found[0]] if len(found) == 1 and distinct else None


def code_block(source, language='python'):
    "Highlighted code, as the theme styles it (with a button that copies it)."
    try:
        lexer = get_lexer_by_name(language or 'text', stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name('text', stripnl=False)
    inner = highlight(source.rstrip('\n') + '\n', lexer, HtmlFormatter(nowrap=True))
    inner = UNCOLOURED.sub(r'\1', inner)
    shell = ' shell' if language in ('sh', 'bash', 'shell') else ''  # commands wrap: their comments are long
    return f'<div class="highlight{shell}"><pre><span></span><code>{inner}</code></pre></div>\n'


def slug(text):
    "A heading as an anchor, as GitHub makes it."
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', text.lower()).strip()) or 'section'


def equation(page, latex):
    "An equation of its own, with its numbers at the right edge; each number is an anchor of the page."
    numbers = tags(latex)
    ids = [page.new_id(f'eq-{n}') for n in numbers]
    anchors = ''.join(f'<a class="number" id="{i}" href="#{i}">({n})</a>' for i, n in zip(ids, numbers))
    numbered = f'<span class="numbers">{anchors}</span>' if numbers else ''
    return f'<div class="equation"><div class="formula">{to_mathml(latex, block=True)}</div>{numbered}</div>\n'


def math_in_html(text):
    "Equations within raw HTML, e.g. in a `<summary>`."
    return MATH.sub(lambda m: m[1] or to_mathml(html.unescape(m[2])), text)


def plain(children):
    "What a reader reads of inline tokens, without marks."
    words = []
    for token in children or ():
        if token.type in ('softbreak', 'hardbreak'):
            words.append(' ')
        elif token.type in ('text', 'code_inline', 'math_inline'):
            words.append(token.content)
    return ''.join(words).strip()


class Markdown:
    "Renders Markdown for a page: `Markdown(links).html(text, page)`."

    def __init__(
        self,
        links,  # `Links`
        docstrings=False,  # what comes from code: no raw HTML, no equations
    ):
        self.links = links
        self.md = MarkdownIt('commonmark', dict(html=not docstrings)).enable(['table', 'strikethrough'])
        if not docstrings:
            self.md.use(dollarmath_plugin, allow_labels=False, double_inline=True)
        self.md.core.ruler.push('book', self._link)
        rules = 'fence code_block math_inline math_inline_double math_block html_block table_open table_close image'
        for name in rules.split():
            self.md.renderer.rules[name] = getattr(self, f'_{name}')

    def html(self, text, page):
        return self.md.render(text, {'page': page})

    def inline(self, text, page):
        return self.md.renderInline(text, {'page': page})

    # ---- blocks

    def _fence(self, tokens, i, options, env):
        return code_block(tokens[i].content, tokens[i].info.split(' ')[0].strip('{}'))

    def _code_block(self, tokens, i, options, env):
        return code_block(tokens[i].content, 'text')

    def _math_inline(self, tokens, i, options, env):
        return to_mathml(tokens[i].content)

    def _math_inline_double(self, tokens, i, options, env):
        "`$$…$$` within a paragraph: an element that may stand there."
        return equation(env['page'], tokens[i].content).strip().replace('<div', '<span').replace('</div', '</span')

    def _math_block(self, tokens, i, options, env):
        return equation(env['page'], tokens[i].content)

    def _html_block(self, tokens, i, options, env):
        return math_in_html(self._relinked(tokens[i].content, env['page']))

    def _table_open(self, tokens, i, options, env):
        return '<div class="wide"><table>\n'

    def _table_close(self, tokens, i, options, env):
        return '</table></div>\n'

    def _image(self, tokens, i, options, env):
        token, page = tokens[i], env['page']
        alt = plain(token.children) or 'Figure'
        return f'<img src="{self._figure(str(token.attrs["src"]), page)}" alt="{html.escape(alt)}" loading="lazy">'

    def _figure(self, src, page):
        "A figure that lies beside the notebooks, taken along."
        if OUTSIDE.match(src):
            raise ValueError(f'{page.path}: the image {src} would be fetched from the net')
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), src))
        file = self.links.figures / path
        if file.is_file():
            page.files[path] = file.read_bytes()
        else:
            print(f'{page.path}: there is no image {src}', file=sys.stderr)
        return page.asset(path)

    # ---- links

    def _link(self, state):
        "Give headings their anchors, and link what text and inline code name."
        page = state.env['page']
        for i, token in enumerate(state.tokens):
            if token.type == 'heading_open':
                text = plain(state.tokens[i + 1].children)
                token.attrSet('id', page.new_id(slug(text)))
                page.headings.append((int(token.tag[1]), token.attrs['id'], text))
            if token.type == 'inline':
                within_heading = i > 0 and state.tokens[i - 1].type == 'heading_open'
                token.children = self._link_inline(token.children, page, within_heading)

    def _link_inline(self, children, page, within_heading):
        made, linked = [], within_heading
        for token in children:
            if token.type == 'link_open':
                linked = True
                made += [token] if self._set_href(token, page) else []
            elif token.type == 'link_close':
                linked = within_heading
                made += [token] if made_link_is_open(made) else []
            elif token.type == 'html_inline':
                token.content = self._relinked(token.content, page)
                made.append(token)
            elif token.type == 'code_inline' and not linked:
                target = self.links.notebook(token.content, page) or self.links.symbol(token.content, page)
                made += around(token, page.to(target)) if target and target != page.path else [token]
            elif token.type == 'text' and not linked:
                made += self._equations(token, page)
            else:
                made.append(token)
        return made

    def _set_href(self, token, page):
        "Turn a link towards the page of the book; False if there is nothing that it could lead to."
        href = self.address(str(token.attrs['href']), page)
        if href is None:
            return False
        token.attrSet('href', href)
        return True

    def address(self, href, page):
        "Where a link of a notebook leads in the book; None: to a file that the book does not have."
        if OUTSIDE.match(href):
            return href
        path, _, anchor = href.partition('#')
        anchor = slug(anchor.replace('-', ' ')) if anchor and not re.match(r'eq-|cell-', anchor) else anchor
        if not path:
            return '#' + anchor
        root = 'nbs' if page.kind == 'notebook' else ''
        file = posixpath.normpath(posixpath.join(root, posixpath.dirname(page.path) if root else '', path))
        target = self.links.pages.get(re.sub(r'^nbs/|\.ipynb$', '', file)) or self.links.documents.get(file)
        if target:
            return page.to(target + (f'#{anchor}' if anchor else ''))
        return self.links.source + file if self.links.source else None

    def _relinked(self, text, page):
        "The links of raw HTML."
        turn = lambda m: f'{m[1]}{html.escape(self.address(m[2], page) or "#")}"'
        text = re.sub(r'(<a\s[^>]*href=")([^"]*)"', turn, text)
        return re.sub(r'(<img\s[^>]*src=")([^"]*)"', lambda m: f'{m[1]}{self._figure(m[2], page)}"', text)

    def _equations(self, token, page):
        "Text with links where it names an equation by its number."
        made, end = [], 0
        for found in REFERENCES.finditer(token.content):
            before = token.content[: found.start()]
            if OTHERS.search(before) or re.match(r'\s+of the paper', token.content[found.end() :]):
                continue
            for number in re.finditer(r'\(?(\d\w{0,2})\)?', found['numbers']):
                where = self.links.equations.get(number[1])
                if not where:
                    continue
                where = page.path if page.path in where else where[0]
                start = found.start('numbers') + number.start()
                # the first number takes the word with it: "equation (3)" is one link
                start = found.start() if number.start() == 0 else start
                stop = found.start('numbers') + number.end()
                made.append(text_token(token.content[end:start]))
                made += around(text_token(token.content[start:stop]), page.to(f'{where}#eq-{number[1]}'))
                end = stop
        return [*made, text_token(token.content[end:])] if made else [token]


def text_token(content):
    return Token('text', '', 0, content=content)


def around(token, href):
    "A token as a link."
    return [Token('link_open', 'a', 1, attrs={'href': href}), token, Token('link_close', 'a', -1)]


def made_link_is_open(tokens):
    "Whether the last link among the tokens was opened and not closed."
    return sum(t.nesting for t in tokens if t.type in ('link_open', 'link_close')) > 0
