"""A notebook -> a page of the book. Used by tools/book.py."""

import ast, base64, html, json, re, struct

from book_text import code_block
from readme import directives, joined

FLAGS = 'cuda', 'slow', 'online'  # cells that run only when asked for: tst_flags of pyproject.toml
BADGE = (  # two rings, drawn here: nothing is fetched
    '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><g fill="none" stroke="#f9ab00" stroke-width="3.4">'
    '<path d="M10.6 8.4a5 5 0 1 0 0 7.2"/><circle cx="17" cy="12" r="5" stroke="#e8710a"/></g></svg>'
)
CAPTION = re.compile(r'\*{1,2}Figure\b')
CLONED = re.compile(r"""['"](?:\.\./|results/|figs/)""")  # a cell that reads files which lie beside the notebooks


def sentence(markdown, limit=200):
    "The first sentence of Markdown, as plain text of at most `limit` letters."
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', markdown.split('\n\n')[0])
    text = re.sub(r'<[^>]*>|[*`$]|^[>\s]+', '', text, flags=re.M)
    text = ' '.join(text.split())
    short = re.split(r'(?<=[.:!?])\s', text)[0]
    return short if len(short) <= limit else short[: limit - 1].rsplit(' ', 1)[0] + ' …'


def caption_of(markdown):
    "A Markdown cell as (caption, what follows it); (None, all of it) if it does not begin with a caption."
    if not CAPTION.match(markdown):
        return None, markdown
    caption, _, rest = markdown.partition('\n\n')
    return caption, rest


def head(nb):
    "Title and one-line summary of a notebook, and the module that it exports (or None)."
    title = summary = module = None
    for cell in nb['cells']:
        source = joined(cell['source'])
        if cell['cell_type'] == 'markdown' and not title:
            title = re.search(r'^# (.+)$', source, re.M)
            summary = re.search(r'^> (.+)$', source, re.M)
        elif cell['cell_type'] == 'code' and not module:
            module = re.search(r'^#\| *default_exp +([\w.]+)', source, re.M)
    return title and title[1].strip(), summary[1].strip() if summary else '', module and module[1]


def scope(nb, package):
    "What the code of a notebook imports from the package: name -> full name."
    found = {}
    for cell in nb['cells']:
        source = joined(cell['source'])
        if cell['cell_type'] != 'code' or package not in source:
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a magic
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == package:
                found |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.asname: a.name for a in node.names if a.asname and a.name.startswith(package)}
    return found


def size_of(png):
    "` width=… height=…` of a PNG: a page does not jump while it loads, and a figure keeps its size on a phone."
    if png[:8] != b'\x89PNG\r\n\x1a\n' or len(png) < 24:
        return ''
    width, height = struct.unpack('>II', png[16:24])
    return f' width="{width}" height="{height}" style="--width:{width}px"'


def clean_html(text):
    "A table of pandas without its own style; nothing that would be fetched or run."
    text = re.sub(r'<(style|script)\b.*?</\1>\s*', '', text, flags=re.S)
    text = re.sub(r'<table[^>]*class="dataframe"[^>]*>', '<table>', text)
    return re.sub(r'(<t[rhd])(?: style="[^"]*")', r'\1', text)


class NotebookPage:
    "Renders one notebook: `NotebookPage(…).page` has all of it."

    def __init__(
        self,
        nb,  # the notebook, a dict
        page,  # `Page` to be filled, with its path, title and scope
        markdown,  # `Markdown`
        module=None,  # full name of the module that it exports
        api=None,  # path of the module's page in the API
        colab=None,  # address in Colab; None: no badge
        install=None,  # lines to run first in Colab
    ):
        self.nb, self.page, self.markdown = nb, page, markdown
        self.module, self.api, self.colab, self.install = module, api, colab, install

    def render(self):
        "Fill the page, and return it."
        cells = [c for c in self.nb['cells'] if self._is_shown(c)]
        parts, captioned = [], False
        for i, cell in enumerate(cells):
            source = joined(cell['source'])
            if cell['cell_type'] == 'markdown':
                if captioned:
                    source = caption_of(source)[1]
                made = self.markdown.html(source, self.page)
                parts.append(made if parts else self._with_about(made))
                captioned = False
            elif cell['cell_type'] == 'code':
                following = cells[i + 1] if i + 1 < len(cells) else None
                text = joined(following['source']) if following and following['cell_type'] == 'markdown' else ''
                made, captioned = self._code_cell(cell, text)
                parts.append(made)
        self.page.html = ''.join(parts)
        return self.page

    def _is_shown(self, cell):
        if cell['cell_type'] != 'code':
            return cell['cell_type'] == 'markdown'
        return not {'hide', 'default_exp'} & set(directives(joined(cell['source']))[0])

    def _with_about(self, made):
        "The first cell, with `_about` below its title and the line in quotes that follows it."
        top = re.match(r'\s*(?:<h1.*?</h1>)?\s*(?:<blockquote>.*?</blockquote>\s*)?', made, re.S).end()
        return made[:top] + self._about() + made[top:]

    def _about(self):
        "Where the code goes, and how to run the page elsewhere."
        parts = []
        if self.api:
            parts.append(f'<span>module <a href="{self.page.to(self.api)}"><code>{self.module}</code></a></span>')
        if self.colab:
            parts.append(f'<a class="badge" href="{html.escape(self.colab)}">{BADGE}<span>Open in Colab</span></a>')
        if not parts:
            return ''
        about = f'<p class="about">{" ".join(parts)}</p>\n'
        if self.colab and self.install:
            about += (
                f'<div class="install"><p>In Colab, run this first:</p>{code_block(self.install, "ipython3")}</div>\n'
            )
        return about

    def _code_cell(self, cell, following):
        "HTML of a code cell with its outputs, and whether the Markdown that follows became a caption."
        marks, source = directives(joined(cell['source']))
        source = source.rstrip()
        parts = []
        if source.strip() and marks.get('echo') != 'false' and 'hide_input' not in marks:
            parts.append(self._source(marks, source))
        captioned = False
        if marks.get('output') != 'false' and 'hide_output' not in marks:
            made, captioned = self._outputs(cell, following, marks)
            parts += made
        if not parts:
            return '', False
        anchor = self.page.new_id(f'cell-{cell["id"]}')
        return f'<div class="cell" id="{anchor}">\n{"".join(parts)}</div>\n', captioned

    def _source(self, marks, source):
        magic = re.match(r'%%(bash|sh)\b[^\n]*\n', source)
        language = 'bash' if magic else 'ipython3' if re.search(r'^[!%]', source, re.M) else 'python'
        code = code_block(source[magic.end() :] if magic else source.strip('\n'), language)
        labels = []
        if {'export', 'exports'} & set(marks) and self.module:
            name = f'<code>{self.module}</code>'
            name = f'<a href="{self.page.to(self.api)}">{name}</a>' if self.api else name
            labels.append(f'exported to {name}')
        labels += [f'runs only when asked for: <code>--flags {f}</code>' for f in FLAGS if f in marks]
        label = f'<p class="label">{" · ".join(labels)}</p>\n' if labels else ''
        folded = marks.get('code-fold', marks.get('fold', 'false')) not in ('false',)
        if not folded:
            return label + code
        summary = html.escape(marks.get('code-summary', '').strip('"\'') or 'Code')
        return f'<details class="fold"><summary>{summary}</summary>{label}{code}</details>\n'

    def _outputs(self, cell, following, marks):
        "The outputs of a cell; the last figure takes a caption that follows."
        outputs = cell.get('outputs', [])
        figures = [i for i, out in enumerate(outputs) if 'image/png' in out.get('data', {})]
        caption = caption_of(following)[0] if figures else None
        alt = marks.get('fig-alt', '').strip('"\'') or self._alt(caption, following)
        parts = []
        for i, out in enumerate(outputs):
            if i in figures:
                number = f' ({figures.index(i) + 1} of {len(figures)})' if len(figures) > 1 else ''
                png = base64.b64decode(joined(out['data']['image/png']))
                shown = caption if i == figures[-1] else None
                parts.append(self._figure(png, f'{cell["id"]}-{i}', alt + number, shown))
            else:
                parts.append(self._output(out))
        return parts, caption is not None

    def _alt(self, caption, following):
        "What stands for a figure where it cannot be seen."
        if caption:
            return sentence(re.sub(r'^\*{1,2}Figure[^*.:]*[.:]?\*{0,2}', '', caption)) or sentence(caption)
        if following and not following.startswith('#'):
            return sentence(following)
        section = self.page.headings[-1][2] if self.page.headings else self.page.title
        return f'Figure: {section}'

    def _figure(self, png, name, alt, caption):
        path = f'img/{self.page.path}-{name}.png'
        self.page.files[path] = png
        text = ''
        if caption:
            text = f'<figcaption>{self.markdown.html(caption, self.page)}</figcaption>'
        source = f'src="{self.page.asset(path)}" alt="{html.escape(alt)}"'
        return f'<figure class="output"><div class="wide"><img {source}{size_of(png)} loading="lazy"></div>{text}</figure>\n'

    def _output(self, out):
        "An output that is no figure. What goes to stderr is left out."
        if out['output_type'] == 'error':
            raise ValueError(f'{self.page.path}: an error is kept in the notebook; run it again first')
        if out['output_type'] == 'stream':
            return text_block(joined(out['text'])) if out['name'] == 'stdout' else ''
        data = out.get('data', {})
        if 'text/markdown' in data:
            return f'<div class="output">{self.markdown.html(joined(data["text/markdown"]), self.page)}</div>\n'
        if 'text/html' in data:
            return f'<div class="output wide">{clean_html(joined(data["text/html"]))}</div>\n'
        return text_block(joined(data.get('text/plain', '')))


def text_block(text):
    "Text that code printed: plain, not like code."
    text = re.sub(r'\x1b\[[0-9;]*m', '', text).rstrip()
    return f'<div class="output"><pre>{html.escape(text, quote=False)}</pre></div>\n' if text else ''


def install_lines(
    nb,  # the notebook, a dict
    path,  # where it lies, from nbs, without suffix
    url,  # git_url of settings.ini
    package,  # its name
):
    "What to run first in Colab: installs the package; fetches the repository too where a notebook reads its files."
    code = '\n'.join(joined(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
    if not CLONED.search(code):
        return f'!pip install -q "{package} @ git+{url}"'
    name = url.rstrip('/').rsplit('/', 1)[-1].removesuffix('.git')
    folder = path.rpartition('/')[0]
    return (
        f'!git clone -q --depth 1 {url}\n!pip install -q ./{name}\n'
        f'%cd {name}/nbs{"/" + folder if folder else ""}  # this notebook reads files that lie there'
    )


def colab_address(url, branch, path):
    "Where Colab opens a notebook of a repository on GitHub; None for other hosts, which Colab cannot read."
    found = re.match(r'https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?$', url or '')
    return f'https://colab.research.google.com/github/{found[1]}/blob/{branch}/nbs/{path}.ipynb' if found else None


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))
