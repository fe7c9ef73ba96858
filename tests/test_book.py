"""The book of `make book`: every link leads somewhere, nothing is fetched from the net, every notebook and module has
its page, equations are equations. The site is built once, for all workers."""

import html, re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
import book, book_api, book_math, book_notebooks, book_text

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / 'nbs'

NOTEBOOKS = sorted(
    p.relative_to(NBS).with_suffix('').as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
VOID = {'img', 'br', 'hr', 'input', 'link', 'meta', 'source', 'path', 'circle'}


class Seen(HTMLParser):
    "What a page names (tag, attribute, address), its ids, and its text outside code and scripts."

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.text, self.images, self.open = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [(tag, a, attrs) for a in ('href', 'src', 'srcset', 'data') if attrs.get(a)]
        self.ids |= {attrs[a] for a in ('id', 'name') if attrs.get(a)}
        if tag == 'img':
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if not {'code', 'pre', 'script', 'style'} & set(self.open):
            self.text.append(data)


@pytest.fixture(scope='session')
def site(tmp_path_factory, worker_id):
    "The folder of the built site."
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == 'master' else folder.parent) / 'the_book'
    with FileLock(f'{folder}.lock'):
        if not folder.exists():
            book.Book(git_url='').write(folder)
    return folder


@pytest.fixture(scope='session')
def pages(site):
    "Every page of the site: its address from the root -> what is on it."
    return {p.relative_to(site).as_posix(): Seen(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))}


@pytest.fixture(scope='session')
def made():
    "The book before it is written: what its parts are made of."
    return book.Book(git_url='')


def test_every_link_leads_somewhere(site, pages):
    wrong = []
    for name, page in pages.items():
        for tag, attribute, attrs in page.addresses:
            to = urlsplit(attrs[attribute])
            if to.scheme or to.netloc:
                continue
            file = (site / name).parent / unquote(to.path) if to.path else site / name
            target = file.resolve().relative_to(site.resolve()).as_posix() if file.exists() else None
            if target is None or (to.fragment and target in pages and unquote(to.fragment) not in pages[target].ids):
                wrong.append(f'{name}: <{tag} {attribute}="{attrs[attribute]}">')
    assert not wrong, '\n'.join(wrong[:20])


def test_nothing_is_fetched(site, pages):
    "Only an <a>, which a reader clicks, may lead out of the book."
    out = [
        (name, tag, attrs[a])
        for name, page in pages.items()
        for tag, a, attrs in page.addresses
        if tag != 'a' and re.match(r'(https?:)?//', attrs[a])
    ]
    assert not out
    styles = {p.name: p.read_text(encoding='utf-8') for p in site.rglob('*.css')}
    assert styles and not [n for n, text in styles.items() if re.search(r'(url\(|@import)\s*["\']?(https?:)?//', text)]
    # what the theme itself would fetch: figures of a repository, diagrams; the pages have neither
    assert not [n for n, page in pages.items() if re.search('mermaid|data-md-component="source"', ' '.join(page.ids))]


def test_every_notebook_has_a_page(site, pages):
    for path in NOTEBOOKS:
        name = 'overview' if path == 'index' else path
        title = book_notebooks.head(book_notebooks.read(NBS / f'{path}.ipynb'))[0]
        assert f'{name}.html' in pages, f'no page of {path}'
        assert re.sub(r'[`*\\]', '', title) in ''.join(pages[f'{name}.html'].text), f'{name} has another title'
    assert len(NOTEBOOKS) > 100


def test_every_module_has_an_api_page(pages, made):
    assert len(made.modules) > 100
    for module in made.modules.values():
        page = pages[f'{module.page.path}.html']
        assert set(module.names) <= page.ids, f'{module.name}: {set(module.names) - page.ids} have no entry'
        developed = [attrs['href'] for tag, a, attrs in page.addresses if tag == 'a']
        assert any(f'{module.notebook}.html' in href for href in developed), f'{module.name} names no notebook'


def test_a_notebook_and_its_module_name_each_other(pages):
    lesson, api = pages['1_method/07_relation.html'], pages['api/method/relation.html']
    assert '../api/method/relation.html' in [x['href'] for t, a, x in lesson.addresses if t == 'a']
    cells = [x['href'] for t, a, x in api.addresses if t == 'a' and '07_relation.html#cell-' in x['href']]
    assert len(cells) >= 4


def test_equations_are_equations(site, pages):
    "No page shows a dollar of LaTeX, or a command of it."
    wrong = []
    for name, page in pages.items():
        text = ''.join(page.text)
        wrong += [
            (name, m[0]) for m in re.finditer(r'\$[^$\n]{0,60}\$|\\(?:frac|tag|sum|mathrm|text|begin)\b.{0,20}', text)
        ]
    assert not wrong
    assert '<math' in (site / '1_method' / '01_notation.html').read_text(encoding='utf-8')


def test_every_figure_can_be_read_aloud(pages):
    for name, page in pages.items():
        assert all(i.get('alt') for i in page.images), f'{name} has a figure without alt text'


def test_front_page(pages):
    page = pages['index.html']
    linked = {attrs['href'] for tag, a, attrs in page.addresses if tag == 'a'}
    assert {f'{p}.html' for p in NOTEBOOKS if p.startswith('1_method/')} <= linked
    assert {f'{p.split("/")[0]}/index.html' for p in NOTEBOOKS if '/' in p} <= linked
    assert {'overview.html', 'contributing.html', 'api/index.html'} <= linked and page.images


def test_search_needs_no_server(site):
    index = (site / 'search' / 'search_index.js').read_text(encoding='utf-8')
    assert 'relation_weights' in index and '1_method/07_relation.html' in index


# ---- badges


def test_badges_only_with_an_address(site, pages):
    shown = [
        n for n in pages if re.search('colab|class="badge"|pip install -q', (site / n).read_text(encoding='utf-8'))
    ]
    assert not shown


def test_badge_and_install_cell():
    "A notebook that reads files beside it needs the repository; for the others the package is enough."
    with_url = book.Book(git_url='https://github.com/o/r')
    code = {
        p: '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
        for p, nb in with_url.notebooks.items()
    }
    beside = [p for p in NOTEBOOKS if '/' in p and book_notebooks.CLONED.search(code[p])]
    alone = [p for p in NOTEBOOKS if '/' in p and not book_notebooks.CLONED.search(code[p])]
    for path in (beside[0], alone[0]):
        page = with_url.notebook_page(path)
        text = html.unescape(re.sub(r'<[^>]*>', '', page.html))
        assert f'https://colab.research.google.com/github/o/r/blob/main/nbs/{path}.ipynb' in page.html
        assert 'Open in Colab' in text and not re.search(r'<(img|script)[^>]*https?:', page.html)
        if path in alone:
            assert '!pip install -q "idrnet_nb @ git+https://github.com/o/r"' in text
        else:
            assert '!git clone -q --depth 1 https://github.com/o/r\n!pip install -q ./r\n' in text
            assert f'%cd r/nbs/{path.split("/")[0]}' in text
    assert with_url.markdown.links.source == 'https://github.com/o/r/blob/main/'


@pytest.mark.parametrize(
    'url,there',
    [
        ('https://github.com/o/r', True),
        ('https://github.com/o/r.git', True),
        ('https://gitlab.com/o/r', False),
        ('', False),
    ],
)
def test_colab_opens_github_only(url, there):
    found = book_notebooks.colab_address(url, 'main', 'a/b')
    assert (found == 'https://colab.research.google.com/github/o/r/blob/main/nbs/a/b.ipynb') if there else found is None


# ---- what stands on a page


def links():
    made = book_text.Links(
        {'1_method/06_grouping': '1_method/06_grouping'}, documents={'CONTRIBUTING.md': 'contributing'}
    )
    made.equations = {'7': ['1_method/07_relation'], '3': ['1_method/06_grouping']}
    made.symbols = {'p.relation.weights_of': 'api/method/relation#weights_of', 'p.a.train': 'api/a#train'}
    made.by_name = {'weights_of': ['p.relation.weights_of'], 'train': ['p.a.train']}
    return made


def rendered(text, path='1_method/07_relation', **scope):
    page = book_text.Page(path, scope=scope)
    return book_text.Markdown(links()).html(text, page), page


@pytest.mark.parametrize(
    'text,shown',
    [
        ('by (eq. 7).', '(<a href="#eq-7">eq. 7</a>).'),
        (
            'equation 7, and eqs. (3)–(7)',
            '<a href="#eq-7">equation 7</a>, and <a href="06_grouping.html#eq-3">eqs. (3)</a>–<a',
        ),
        ('by equation (3).', '<a href="06_grouping.html#eq-3">equation (3)</a>'),
        ('equations (3) and (7)', '<a href="06_grouping.html#eq-3">equations (3)</a> and <a href="#eq-7">(7)</a>'),
        ("the paper's equation (3)", "the paper's equation (3)"),
        ('equation (9)', 'equation (9)'),
        ('`1_method/06_grouping`', '<a href="06_grouping.html"><code>1_method/06_grouping</code></a>'),
        ('[a](06_grouping.ipynb)', '<a href="06_grouping.html">a</a>'),
        ('[a](../1_method/06_grouping.ipynb#Some-Heading)', '<a href="06_grouping.html#some-heading">a</a>'),
        ('[a](../../CONTRIBUTING.md)', '<a href="../contributing.html">a</a>'),
        ('[a](../../setup.py)', '<p>a</p>'),
        ('`weights_of`', '<a href="../api/method/relation.html#weights_of"><code>weights_of</code></a>'),
        ('`train`', '<p><code>train</code></p>'),
        ('`train()`', '<a href="../api/a.html#train"><code>train()</code></a>'),
        ('`$a$`', '<code>$a$</code>'),
        ('```python\nx = "$a$" # eq. 7\n```', '$a$'),
        ('- a\n- b', '<li>a</li>'),
        ('text\n- a\n  1. b', '<li>b</li>'),
    ],
)
def test_links_of_text(text, shown):
    assert shown in rendered(text)[0]


def test_scope_comes_first():
    assert 'api/a.html#train' in rendered('`train`', train='p.a.train')[0]


def test_numbered_equation():
    text, page = rendered('so\n$$ w_{ij} = \\frac{a}{b} \\tag{7} $$\nand $x_1$ in | a table |')
    assert 'id="eq-7"' in text and '>(7)</a>' in text and text.count('<math') == 2 and 'tag' not in text
    assert 'eq-7' in page.ids


def test_details_hold_markdown_code_and_equations():
    text = '<details><summary>Answer $y$</summary>\n\nSo *is* $x$:\n\n```python\na = 1\n```\n</details>\n\n| a | $b$ |\n|---|---|\n| $c$ | d |'
    made = rendered(text)[0]
    assert made.count('<math') == 4 and '<em>is</em>' in made and 'class="highlight"' in made and '</details>' in made


def cell(source, *outputs, kind='code', id='c1'):
    return dict(cell_type=kind, id=id, metadata={}, source=source, outputs=list(outputs))


def shown(*cells, **options):
    page = book_text.Page('1_method/07_relation', title='T')
    return book_notebooks.NotebookPage(dict(cells=list(cells)), page, book_text.Markdown(links()), **options).render()


PNG = dict(output_type='display_data', data={'image/png': 'iVBORw0KGgo='})


def test_cells_by_their_directives():
    made = shown(
        cell('# T', kind='markdown'),
        cell('#| hide\nsecret = 1'),
        cell('#| echo: false\nsecret = 2', dict(output_type='stream', name='stdout', text='printed')),
        cell('#| export\ndef f(): pass', id='c3'),
        cell('#| code-fold: true\n#| code-summary: how it is drawn\ng = 1', id='c4'),
        cell('#| cuda\nh = 1', id='c5'),
        module='p.relation',
        api='api/method/relation',
    ).html
    assert 'secret' not in made and '<pre>printed</pre>' in made and '#|' not in made
    assert 'exported to <a href="../api/method/relation.html"><code>p.relation</code>' in made
    assert '<details class="fold"><summary>how it is drawn</summary>' in made and '--flags cuda' in made


@pytest.mark.parametrize('start', ['*Figure: ', '**Figure 3.** '])
def test_caption(start):
    end = '*' if start.startswith('*F') else ''
    made = shown(cell('x', PNG), cell(f'{start}rows are $d$. More{end}\n\nThen prose.', kind='markdown'))
    assert made.html.count('Then prose') == 1 and made.html.count('<figcaption>') == 1
    assert '<p>Then prose.</p>' in made.html.split('</figcaption>')[1]
    assert re.search('alt="[^"$*]*rows are d[^"]*"', made.html) and list(made.files) == [
        'img/1_method/07_relation-c1-0.png'
    ]


def test_alt_without_caption():
    assert 'alt="A line of text."' in shown(cell('x', PNG), cell('A *line* of text. More.', kind='markdown')).html
    assert 'alt="Figure: T"' in shown(cell('x', PNG), cell('y = 1', id='c2')).html


def test_tables_of_pandas_lose_their_style():
    data = {
        'text/html': '<style scoped>a</style><table border="1" class="dataframe"><tr style="x"><td>1</td></tr></table>'
    }
    made = shown(cell('x', dict(output_type='execute_result', data=data))).html
    assert '<table><tr><td>1</td></tr></table>' in made and 'style' not in made


# ---- equations


@pytest.mark.parametrize(
    'latex,there',
    [
        (r'\arg\max_k x', 'arg\u2009max'),
        (r'\operatorname*{softmax}_j', 'softmax'),
        (r'\begin{aligned}a&=b\\c&=d\end{aligned}', 'text-align:-webkit-right'),
        (r'\mathbb 1', '𝟙'),
        (r'\mathrm{IoU}', 'IoU'),
        (r'\text{a & b}', '&amp;'),
        (r'a \sim b', '∼'),
    ],
)
def test_latex(latex, there):
    made = book_math.to_mathml(latex)
    assert f'alttext="{html.escape(latex)}"' in made
    made = re.sub(r' alttext="[^"]*"', '', made)
    assert there in made and '\\' not in made and 'double-struck' not in made


def test_an_unknown_command_is_named():
    with pytest.raises(ValueError, match=r'nonsense'):
        book_math.to_mathml(r'\nonsense x')


# ---- API


def test_parameters_of_each_kind():
    from idrnet_nb.experiments.trials import Trial
    from idrnet_nb.method.grouping import Grouping
    from idrnet_nb.method.relation import relation_weights

    rows, returned = book_api.parameters(relation_weights)
    assert rows[0][:3] == ('relation', 'Tensor', '') and rows[0][3].startswith('`k k`') and returned[0] == 'Tensor'
    for cls in (Grouping, Trial):
        rows, _ = book_api.parameters(cls)
        assert rows and all(name and kind and comment for name, kind, _, comment in rows)


def test_settings_have_the_address():
    assert re.search(r'^git_url *=', (ROOT / 'settings.ini').read_text(encoding='utf-8'), re.M)
