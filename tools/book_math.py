r"""LaTeX -> MathML, which browsers show without a script. Used by tools/book.py.

latex2mathml does the work. What it does not know is rewritten before (`\arg`, `\operatorname*`, `aligned`), and what
browsers do not know of its MathML after: of `mathvariant` they read only `normal`, and Chromium no `columnalign`."""

import html, re

from latex2mathml.converter import convert

TAG = re.compile(r'\\tag\*?\{([^{}]*)\}')
ALPHABETS = {  # mathvariant -> where its letters A, a and its digit 0 begin in Unicode (None: it has none)
    'bold': (0x1D400, 0x1D41A, 0x1D7CE),
    'bold-italic': (0x1D468, 0x1D482, None),
    'double-struck': (0x1D538, 0x1D552, 0x1D7D8),
    'script': (0x1D49C, 0x1D4B6, None),
    'fraktur': (0x1D504, 0x1D51E, None),
    'sans-serif': (0x1D5A0, 0x1D5BA, 0x1D7E2),
    'monospace': (0x1D670, 0x1D68A, 0x1D7F6),
}
# letters that Unicode had before these alphabets, and that have holes there
HOLES = {'script': dict(zip('BEFHILMRego', 'ℬℰℱℋℐℒℳℛℯℊℴ')), 'double-struck': dict(zip('CHNPQRZ', 'ℂℍℕℙℚℝℤ'))}
HOLES['fraktur'] = dict(zip('CHIRZ', 'ℭℌℑℜℨ'))
TEXT_STYLE = {'bold': 'font-weight:bold', 'italic': 'font-style:italic', 'monospace': 'font-family:monospace'}
BEFORE = [
    (r'\\arg\s*\\(max|min)', r'\\operatorname{arg\\,\1}'),
    (r'\\arg(?![a-zA-Z])', r'\\operatorname{arg}'),
    (r'\\(no)?limits(?![a-zA-Z])', ''),
    (r'\{(aligned|align|alignedat)\}', '{align*}'),
    (r'\{(gathered|gather\*?)\}', '{matrix}'),
    (r'\{equation\*?\}', '{split}'),
    (r'(?<!\\)~', r'\\ '),
    (r'\\mspace\{[^{}]*\}', r'\\;'),
]
AFTER = [
    (r'<mi>;</mi>', '<mo separator="true">;</mo>'),
    (r'<mi>(&#x0007E;|~)</mi>', '<mo>∼</mo>'),
    # the name of a function: a little room around it, upright
    (r'<(m[io])(?: [^<>]*)?>([a-zA-Z]{2,}(?:\u2009[a-z]+)?)</\1>', r'<mo lspace="0.17em" rspace="0.1em">\2</mo>'),
    (r'<mtd columnalign="(left|right|center)"', r'<mtd columnalign="\1" style="text-align:-webkit-\1"'),
    (r'<mtable (?=[^>]*columnspacing="0em)', '<mtable class="aligned" '),
]


def tags(latex):
    r"The numbers of an equation: what its `\tag{…}` say."
    return TAG.findall(latex)


def letters(variant, text):
    "`text` in the letters that Unicode has for a mathvariant; None if it lacks one of them."
    upper, lower, digit = ALPHABETS[variant]
    out = []
    for c in text:
        start, first = (upper, 'A') if c.isupper() else (digit, '0') if c.isdigit() else (lower, 'a')
        if not (c.isascii() and c.isalnum()) or start is None:
            return None
        out.append(HOLES.get(variant, {}).get(c) or chr(start + ord(c) - ord(first)))
    return ''.join(out)


def _variant(m):
    "One element with a mathvariant, as browsers show it."
    element, variant, text = m[1], m[2], html.unescape(m[3])
    if element == 'mtext':
        return f'<mtext style="{TEXT_STYLE.get(variant, "")}">{m[3]}</mtext>'
    if variant == 'normal':
        return m[0]
    shown = letters(variant, text) if variant in ALPHABETS else None
    if shown is None:  # italic, which a single letter is already, or a letter without a twin
        style = ' style="font-weight:bold"' if 'bold' in variant else ''
        return f'<{element}{style}>{m[3]}</{element}>'
    return f'<{element}>{shown}</{element}>'


def _operatorname(m):
    "`arg\\,max` in one piece: latex2mathml would take it apart."
    return r'\operatorname{' + re.sub(r'\\[,;: ]|\s+', '\u2009', m[1]) + '}'


def _join_upright(m):
    "`IoU` of `\\mathrm{IoU}` as one word, not three letters."
    return '<mi mathvariant="normal">' + ''.join(re.findall(r'>([^<])</mi>', m[0])) + '</mi>'


def to_mathml(
    latex,  # without the dollars
    block=False,  # an equation of its own, not within a line
):
    r"""The `<math>` element. Numbers (`\tag`) are left out: the page puts them at its edge.
    ValueError names what cannot be read, so that a page never shows a command."""
    source = source_text = TAG.sub('', latex).strip()
    for pattern, by in BEFORE:
        source = re.sub(pattern, by, source)
    source = re.sub(r'\\operatorname\*?\{([^{}]*)\}', _operatorname, source)
    try:
        made = convert(source, display='block' if block else 'inline')
    except Exception as e:
        raise ValueError(f'equation {latex!r}: {type(e).__name__} {e}') from e
    unknown = re.findall(r'\\[a-zA-Z]+', html.unescape(made))
    if unknown:
        raise ValueError(f'equation {latex!r}: latex2mathml does not know {", ".join(unknown)}')
    made = re.sub(r'(<mtext[^>]*>)(.*?)(</mtext>)', lambda m: m[1] + html.escape(html.unescape(m[2])) + m[3], made)
    made = re.sub(r'(?:<mi mathvariant="normal">[a-zA-Z]</mi>){2,}', _join_upright, made)
    made = re.sub(r'<(m[inot]\w*) mathvariant="([\w-]+)">([^<]*)</\1>', _variant, made)
    for pattern, by in AFTER:
        made = re.sub(pattern, by, made)
    made = re.sub(r'&(?!#?\w+;)', '&amp;', made)
    # the source, for those who have the page read to them, or copy the equation
    return made.replace('<math ', f'<math alttext="{html.escape(source_text)}" ', 1)
