"""README.md is nbs/index.ipynb, said in markdown. `python tools/readme.py` writes it, `--check` says whether it is in step.

Markdown cells stay as they are, with links turned to start from the root. Code cells become fenced code, and the
outputs kept in the notebook follow: markdown and HTML as they are, text in a fence, pictures as files in nbs/figs.
Cells marked hide, default_exp or export are left out; `#| echo: false` leaves out the code, `#| output: false` the outputs."""

import argparse, base64, json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->'
FIGS = 'nbs/figs'


def joined(x):
    return x if isinstance(x, str) else ''.join(x)


def directives(source):
    "The `#| name value` lines at the top of a cell as a dict, and the code below them."
    lines, found = source.split('\n'), {}
    while lines and (lines[0].startswith('#|') or (found and not lines[0].strip())):
        words = lines.pop(0)[2:].replace(':', ' ').split()
        if words:
            found[words[0]] = ' '.join(words[1:])
    return found, '\n'.join(lines)


def relink(text, base='nbs'):
    "Relative links written in `base`, as seen from the root. Code, web addresses and anchors stay as they are."

    def turn(m):
        to = m[2]
        if re.match(r'[a-z][a-z0-9+.-]*:|#|/', to, re.I):
            return m[0]
        path, hash_, anchor = to.partition('#')
        return m[1] + posixpath.normpath(posixpath.join(base, path)) + hash_ + anchor + m[3]

    def plain(s):
        s = re.sub(r'(\]\(<?)([^)>\s]+)(>?(?:\s+"[^"]*")?\))', turn, s)
        return re.sub(r'((?:src|href)=")([^"]+)(")', turn, s)

    parts = re.split(r'(^```.*?^```[ \t]*$|`[^`\n]+`(?!\]))', text, flags=re.S | re.M)
    return ''.join(p if i % 2 else plain(p) for i, p in enumerate(parts))


def fence(text, lang=''):
    ticks = '`' * max(3, 1 + max((len(t) for t in re.findall('`+', text)), default=0))
    return f'{ticks}{lang}\n{text.rstrip()}\n{ticks}'


def output(out, name):
    "One kept output as markdown, and the picture file it needs (a name and bytes) or None."
    if out['output_type'] == 'error':
        raise SystemExit(f'{name}: an error is kept in the notebook; run it again first.')
    if out['output_type'] == 'stream':
        return (fence(joined(out['text']), 'text') if out['name'] == 'stdout' else ''), None
    data = out.get('data', {})
    if 'image/png' in data:
        return f'![]({FIGS}/{name}.png)', (f'{name}.png', base64.b64decode(joined(data['image/png'])))
    if 'text/markdown' in data:
        return relink(joined(data['text/markdown'])).strip(), None
    if 'text/html' in data:
        return relink(re.sub(r'<style.*?</style>\s*', '', joined(data['text/html']), flags=re.S)).strip(), None
    return fence(joined(data.get('text/plain', '')), 'text'), None


def convert(nb):
    "Notebook dict -> README text, and its picture files as {name: bytes}."
    parts, figs = [NOTE], {}
    for cell in nb['cells']:
        marks, source = directives(joined(cell['source']))
        if {'hide', 'default_exp', 'export', 'exporti'} & set(marks):
            continue
        if cell['cell_type'] == 'markdown':
            parts.append(relink(source).strip())
        if cell['cell_type'] != 'code':
            continue
        magic = re.match(r'%%(bash|sh)\b[^\n]*\n', source)
        if magic:
            source = source[magic.end() :]
        if source.strip() and marks.get('echo') != 'false':
            parts.append(fence(source.strip('\n'), 'bash' if magic else 'python'))
        if marks.get('output') == 'false':
            continue
        for i, out in enumerate(cell.get('outputs', [])):
            text, fig = output(out, f'readme_{cell["id"]}_{i}')
            if text:
                parts.append(text)
            if fig:
                figs[fig[0]] = fig[1]
    return '\n\n'.join(p for p in parts if p) + '\n', figs


def stale(root, text, figs):
    "What in the tree differs from what the notebook says, in words."
    readme, folder = root / 'README.md', root / FIGS
    wrong = [] if readme.exists() and readme.read_text(encoding='utf-8') == text else ['README.md']
    wrong += [f'{FIGS}/{n}' for n, b in figs.items() if not (folder / n).exists() or (folder / n).read_bytes() != b]
    return wrong + [
        f'{FIGS}/{p.name} (no longer used)' for p in sorted(folder.glob('readme_*.png')) if p.name not in figs
    ]


def main():
    ap = argparse.ArgumentParser(description='Make README.md from nbs/index.ipynb.')
    ap.add_argument('--check', action='store_true', help='write nothing; exit 1 if README.md is out of step')
    ap.add_argument('--root', type=Path, default=ROOT, help='the project folder')
    args = ap.parse_args()
    index = args.root / 'nbs' / 'index.ipynb'
    if not index.exists():
        sys.exit('nbs/index.ipynb is missing: README.md is made from it.')
    text, figs = convert(json.loads(index.read_text(encoding='utf-8')))
    wrong = stale(args.root, text, figs)
    if args.check:
        if wrong:
            sys.exit(
                f'out of step with nbs/index.ipynb: {", ".join(wrong)}\nRun `make readme` and commit what it writes.'
            )
        return
    (args.root / 'README.md').write_text(text, encoding='utf-8', newline='\n')
    if figs:
        (args.root / FIGS).mkdir(exist_ok=True)
    for n, b in figs.items():
        (args.root / FIGS / n).write_bytes(b)
    for p in (args.root / FIGS).glob('readme_*.png'):
        if p.name not in figs:
            p.unlink()
    print(
        f'README.md written ({len(text.splitlines())} lines, {len(figs)} pictures).'
        if wrong
        else 'README.md is in step already.'
    )


if __name__ == '__main__':
    main()
