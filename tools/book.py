"""All notebooks and the API as a website that needs no network: `make book`, or `python tools/book.py`, writes book/.

mkdocs-material gives pages, navigation and search; what stands on a page is made here. mkdocs-jupyter was the other
way, and was not taken: it goes by nbconvert, which shows equations by a script from the net, carries the styles of
JupyterLab into each page, and knows nothing of exported cells, captions, or links to the API. Nor does mkdocs' own
Markdown read the cells: it takes lists, nested lists and Markdown within <details> otherwise than Jupyter and GitHub,
for which the notebooks were written. markdown-it, which reads as they do, makes the HTML.

No notebook is run; the modules are imported for their signatures. Equations become MathML, code is highlighted, and
figures become files while building, so that a page asks for nothing but its own folder.

    book_text.py       Markdown to HTML, links, equations      book_math.py    LaTeX to MathML
    book_notebooks.py  a notebook to a page                    book_api.py     a module to a page"""

import argparse, configparser, html, os, re, shutil, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import book_api, book_notebooks
from book_math import tags
from book_text import Links, Markdown, Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORKER = 'iframe-worker.js'
NAMES = {'cli': 'Command line'}  # folders whose name is no word
LESSONS = '1_method'
DOCUMENTS = {'CONTRIBUTING.md': 'contributing'}  # files at the root that become pages


def folder_title(folder):
    "`5_experiments` -> `5 Experiments`."
    number, _, name = folder.partition('_')
    return f'{number} {NAMES.get(name) or name.replace("_", " ").capitalize()}'


class Book:
    "All pages of the book. `Book(root).pages()` makes them, `write` builds the site."

    def __init__(
        self,
        root=ROOT,  # the project
        git_url=None,  # address of the repository; None: what settings.ini says
    ):
        conf = configparser.ConfigParser(interpolation=None)
        conf.read(root / 'settings.ini', encoding='utf-8')
        self.root, self.package = root, conf['DEFAULT']['lib_name']
        self.git_url = (conf['DEFAULT'].get('git_url', '') if git_url is None else git_url).strip().rstrip('/')
        self.branch = conf['DEFAULT'].get('branch', '').strip() or 'main'
        self.notebooks = {}  # path from nbs, without suffix -> notebook
        for file in sorted((root / 'nbs').rglob('*.ipynb')):
            path = file.relative_to(root / 'nbs').with_suffix('').as_posix()
            if '.ipynb_checkpoints' not in path:
                self.notebooks[path] = book_notebooks.read(file)
        self.heads = {path: book_notebooks.head(nb) for path, nb in self.notebooks.items()}
        self.modules = {m.name: m for m in book_api.modules(self.package)}
        self.links = self._links()
        self.markdown = Markdown(self.links)
        self.docstrings = Markdown(self.links, docstrings=True)

    # ---- what there is

    def folders(self):
        "Folders of notebooks in the order in which they are read: 1, 2, …, and 0, which the others rest on, last."
        found = dict.fromkeys(path.split('/')[0] for path in self.notebooks if '/' in path)
        return sorted(found, key=lambda f: (f.startswith('0'), f))

    def within(self, folder):
        return [path for path in self.notebooks if path.startswith(f'{folder}/')]

    def title(self, path):
        return self.heads[path][0] or path.rpartition('/')[2]

    def numbered(self, path):
        "`7 Class relations`: the title of a notebook with its number."
        number = re.match(r'\d+', path.rpartition('/')[2])
        return f'{int(number[0])} {self.title(path)}' if number else self.title(path)

    def groups(self):
        "Sub-packages in the order of their folders: name -> modules, in the order of their notebooks."
        found = {}
        for folder in self.folders():
            for path in self.within(folder):
                for module in self.modules.values():
                    if module.notebook == path:
                        found.setdefault(module.name.split('.')[1], []).append(module)
        return found

    def _links(self):
        pages = {path: 'overview' if path == 'index' else path for path in self.notebooks}
        links = Links(pages, figures=self.root / 'nbs', documents=dict(DOCUMENTS, **{'README.md': 'overview'}))
        links.symbols, links.by_name = book_api.symbols(self.modules.values())
        links.source = f'{self.git_url}/blob/{self.branch}/' if self.git_url else ''
        for path, nb in self.notebooks.items():
            for cell in nb['cells']:
                if cell['cell_type'] == 'markdown':
                    for number in tags(book_notebooks.joined(cell['source'])):
                        links.equations.setdefault(number, []).append(pages[path])
        return links

    # ---- pages

    def notebook_page(self, path):
        "The page of one notebook."
        nb, (_, summary, module) = self.notebooks[path], self.heads[path]
        name = f'{self.package}.{module}' if module else None
        page = Page(self.links.pages[path], title=self.title(path), summary=summary)
        page.scope = book_notebooks.scope(nb, self.package)
        if name in self.modules:
            page.scope |= {n: f'{name}.{n}' for n in self.modules[name].names}
            for n in self.modules[name].names:
                for method in book_api.methods(getattr(self.modules[name].object, n)):
                    if '_' in method:  # a word alone would often mean something else
                        page.scope.setdefault(method, f'{name}.{n}.{method}')
        colab = book_notebooks.colab_address(self.git_url, self.branch, path)
        return book_notebooks.NotebookPage(
            nb,
            page,
            self.markdown,
            module=name,
            api=self.modules[name].page.path if name in self.modules else None,
            colab=colab,
            install=book_notebooks.install_lines(nb, path, self.git_url, self.package) if colab else None,
        ).render()

    def folder_page(self, folder):
        "The first page of a folder: its notebooks, a line each."
        page, line = Page(f'{folder}/index', title=folder_title(folder)), self._folder_line(folder)
        text = f'# {page.title}\n\n{line[:1].upper()}{line[1:]}\n\n| notebook | what it is about |\n|---|---|\n'
        text += ''.join(f'| [{self.numbered(p)}](../{p}.ipynb) | {self.heads[p][1]} |\n' for p in self.within(folder))
        page.html = self.markdown.html(text, page)
        return page

    def _folder_line(self, folder):
        "What the table of folders in nbs/index.ipynb says of a folder; empty if it says nothing."
        for cell in self.notebooks.get('index', dict(cells=[]))['cells']:
            for line in book_notebooks.joined(cell['source']).split('\n'):
                if re.match(rf'\| *\[{folder}\]', line):
                    return line.strip().strip('|').split('|')[-1].strip()
        return ''

    def front_page(self):
        "What it is, the network, two commands, what you will learn, where to go."
        page = Page('index', title=self.package)
        cells = self.notebooks['index']['cells']
        texts = [book_notebooks.joined(c['source']) for c in cells if c['cell_type'] == 'markdown']
        commands = next((c for t in texts for c in re.findall(r'```sh\n.*?```', t, re.S)), '')
        what = next((t for t in texts if t.startswith('## What it is')), '')
        title, summary, _ = self.heads['index']
        figure = next((i for i, c in enumerate(cells) if self._figures(c)), None)
        parts = [self.markdown.html(f'# {title}\n\n> {summary}', page), self.markdown.html(what, page)]
        if figure is not None:
            following = cells[figure + 1] if figure + 1 < len(cells) else dict(cell_type='', source='')
            text = book_notebooks.joined(following['source']) if following['cell_type'] == 'markdown' else ''
            shown = dict(cells[figure], id='network')
            parts.append(self._front_figure(page, shown, text.split('\n## ')[0].strip()))
        lessons = [
            f'{int(p.split("/")[1][:2])}. [{self.title(p)}]({p}.ipynb): {self.heads[p][1]}'
            for p in self.within(LESSONS)
        ]
        folders = [f'- [{folder_title(f)}]({self.within(f)[0]}.ipynb): {self._folder_line(f)}' for f in self.folders()]
        text = f"""
## Two commands

On any machine with Python ≥ 3.10 and make:

{commands}

## What you will learn

{chr(10).join(lessons)}

## Where to go

{chr(10).join(folders)}
- [Overview](index.ipynb): in ten lines, in a model of your own, on your own images; what was found, what you can rely on
- [Contributing](../CONTRIBUTING.md): where to change what"""
        parts.append(self.markdown.html(text, page))
        parts.append(f'<p>Every function and class: <a href="{page.to("api/index")}">API</a>.</p>\n')
        page.html = re.sub(r'href="([^"]*)/\d\d_\w+(\.html">\d )', r'href="\1/index\2', ''.join(parts))
        return page

    def _figures(self, cell):
        return [out for out in cell.get('outputs', []) if 'image/png' in out.get('data', {})]

    def _front_figure(self, page, cell, caption):
        "The first figure of nbs/index.ipynb, with the paragraph that follows it."
        renderer = book_notebooks.NotebookPage({}, page, self.markdown)
        text = caption if book_notebooks.CAPTION.match(caption) else f'*Figure.* {caption}'.split('\n\n')[0]
        return ''.join(renderer._outputs(cell, text, {})[0])

    def document_page(self, file, path):
        "A Markdown file at the root of the repository."
        text = (self.root / file).read_text(encoding='utf-8')
        title = re.search(r'^# (.+)$', text, re.M)
        page = Page(path, title=title[1] if title else path.capitalize(), kind='document')
        page.html = self.markdown.html(text, page)
        return page

    def pages(self):
        "All pages: path -> `Page`."
        made = [self.front_page()]
        made += [self.notebook_page(path) for path in self.notebooks]
        made += [self.folder_page(folder) for folder in self.folders()]
        made += [self.document_page(f, p) for f, p in DOCUMENTS.items() if (self.root / f).is_file()]
        anchors = {page.path: page.ids for page in made}
        homes = {path: (self.links.pages[path], self.numbered(path)) for path in self.notebooks}
        made += [book_api.ApiPage(m, self.docstrings, homes, anchors).render() for m in self.modules.values()]
        made.append(book_api.index_page(self.package, self.modules.values(), self.docstrings, self.groups()))
        return {page.path: page for page in made}

    # ---- the site

    def navigation(self):
        "What mkdocs calls nav: tabs, and within them pages."
        start = [{self.package: 'index.md'}, {'Overview': 'overview.md'}]
        start += [{'Contributing': f'{p}.md'} for f, p in DOCUMENTS.items() if (self.root / f).is_file()]
        tabs = [{'Start': start}]
        for folder in self.folders():
            listed = [{self.numbered(path): f'{path}.md'} for path in self.within(folder)]
            tabs.append({folder_title(folder): [f'{folder}/index.md', *listed]})
        api = [{g: [{m.page.title: f'{m.page.path}.md'} for m in members]} for g, members in self.groups().items()]
        return [*tabs, {'API': ['api/index.md', *api]}]

    def write(
        self,
        out,  # folder of the site; what it holds is replaced
    ):
        "Build the site. Returns its pages."
        pages = self.pages()
        with tempfile.TemporaryDirectory() as tmp:
            docs = Path(tmp) / 'docs'
            for page in pages.values():
                self._put(docs / f'{page.path}.md', page_stub(page).encode())
                for path, content in page.files.items():
                    self._put(docs / path, content)
            self._put(docs / 'book.css', HERE.joinpath('book.css').read_bytes())
            self._put(docs / WORKER, HERE.joinpath('book-iframe-worker.js').read_bytes())
            build(docs, Path(tmp) / 'site', self.navigation(), self.package, pages)
            for unused in ('404.html', 'sitemap.xml', 'sitemap.xml.gz'):  # of a server that knows its address
                (Path(tmp) / 'site' / unused).unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(Path(tmp) / 'site', out)
        return pages

    def _put(self, file, content):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def page_stub(page):
    "What mkdocs finds of a page: its title and a line of description. `ReadyPages` brings the rest."
    quoted = lambda text: '"' + re.sub(r'[`*\\"]', '', text) + '"'
    return f'---\ntitle: {quoted(page.title)}\ndescription: {quoted(page.summary)}\n---\n'


def nested(headings):
    "Headings (level, id, text) as mkdocs nests them: each with its children."
    top = dict(level=0, children=[])
    path = [top]
    for level, anchor, text in headings:
        while path[-1]['level'] >= level:
            path.pop()
        made = dict(level=level, id=anchor, name=html.escape(text), children=[])
        path[-1]['children'].append(made)
        path.append(made)
    return top['children']


def build(docs, site, nav, name, pages):
    "Let mkdocs put the pages together."
    os.environ.setdefault('NO_MKDOCS_2_WARNING', '1')
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.plugins import BasePlugin, event_priority
    from mkdocs.structure.toc import get_toc

    class ReadyPages(BasePlugin):
        "Gives mkdocs the pages that were made here, in place of what it made of the stubs."

        def on_page_content(self, content, page, **_):
            made = pages[page.file.src_uri.removesuffix('.md')]
            page.toc = get_toc(nested(made.headings))
            return re.sub(r'</?span[^>]*>', '', made.html)  # what search reads: without the colours of code

        @event_priority(-100)  # after search
        def on_page_context(self, context, page, **_):
            page.content = pages[page.file.src_uri.removesuffix('.md')].html

    scheme = lambda name, media, icon, then: dict(
        scheme=name, media=f'(prefers-color-scheme: {media})', toggle=dict(icon=f'material/{icon}', name=then)
    )
    config = MkDocsConfig()
    settings = dict(
        site_name=name,
        docs_dir=str(docs),
        site_dir=str(site),
        nav=nav,
        use_directory_urls=False,
        theme=dict(
            name='material',
            font=False,
            icon=dict(logo='material/vector-polyline'),
            palette=[
                scheme('default', 'light', 'weather-night', 'dark'),
                scheme('slate', 'dark', 'weather-sunny', 'light'),
            ],
            features='navigation.tabs navigation.tabs.sticky navigation.prune navigation.indexes navigation.footer '
            'navigation.top toc.follow search.highlight search.suggest content.code.copy'.split(),
        ),
        # words end at brackets and dots too: `relation_weights(present)` is found by either name
        plugins=[{'search': dict(separator=r'''[\s\-,.:;!?=+*|&\[\](){}<>"'`/]+''')}, 'offline'],
        # the theme would fetch this script from the net: its own is named so that it does not
        extra=dict(generator=False, polyfills=[WORKER]),
        extra_css=['book.css'],
    )
    config.load_dict(settings)
    failed, _ = config.validate()
    if failed:
        raise ValueError(f'mkdocs: {failed}')
    config.plugins['ready_pages'] = ReadyPages()
    config.plugins.run_event('startup', command='build', dirty=False)
    mkdocs_build(config)


def main():
    ap = argparse.ArgumentParser(description='Build the notebooks and the API as a website that needs no network.')
    ap.add_argument('--out', type=Path, default=ROOT / 'book', help='folder of the site; what it holds is replaced')
    ap.add_argument('--git-url', help='address of the repository, for "Open in Colab"; default: that of settings.ini')
    args = ap.parse_args()
    start = time.time()
    pages = Book(git_url=args.git_url).write(args.out)
    print(f'{len(pages)} pages in {time.time() - start:.0f} s: open {args.out}/index.html')


if __name__ == '__main__':
    main()
