"""tools/livable.py counts what it says, on a package made up here."""

import importlib.util, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('tools_livable', ROOT / 'tools' / 'livable.py')
livable = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = livable  # dataclasses look there
spec.loader.exec_module(livable)

ONE = f'''"""A module."""
from .two import open_, _closed
from tiny.two import _closed as closed

def first(a, b): # a comment with ; and raise
    "A docstring."
    x = a; y = b
    if x: raise ValueError('no; never')
    return x+y

def _second(): return 1
class Third:
    def _method(self): return lambda: 2
    def other(self):
        def _inner(): raise ValueError
        return _inner
class _Fourth: pass
try:
    def fifth(ä="ä"): return "ää", ä
except NameError: raise
{'#' * 101}
{'#' * 100}
"{'x' * 119}"
'''
TWO = 'import json\nfrom json import _default_decoder\nopen_ = _closed = json\n'


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / 'tiny' / 'part').mkdir(parents=True)
    (tmp_path / 'tiny' / 'one.py').write_text(ONE, encoding='utf-8')
    (tmp_path / 'tiny' / 'part' / 'two.py').write_text(TWO)
    (tmp_path / 'tiny' / '_modidx.py').write_text('x = 1; y = 2\n' * 100)
    (tmp_path / 'tiny' / 'notes.txt').write_text('; raise')
    return tmp_path / 'tiny'


def test_counts(tiny):
    c = livable.count(tiny)
    assert (c.lines, c.over_100, c.over_120) == (21 + 3, 2, 1)
    assert c.semicolons == 1 and c.raises == 3  # neither in comments nor in texts
    assert (c.private, c.public) == (2, 3)  # _second, _Fourth; first, Third, fifth
    assert c.imported == 2  # from .two and from tiny.two, not from json
    methods = [(4, 'one.py:Third._method'), (9, 'one.py:Third.other')]
    assert c.bodies == [(20, 'one.py:first'), (2, 'one.py:_second'), *methods, (4, 'one.py:fifth')]


def test_tokens():
    c = livable.Counts()
    c.add('x = f(1) # none\n\n\ny = """a\nb"""\n', 'a.py', 'p')
    assert (c.lines, c.tokens) == (3, 6 + 3)


def test_table(tiny):
    head, rule, line = livable.table([tiny]).splitlines()
    assert head.count('|') == rule.count('|') == line.count('|')
    cells = [c.strip() for c in line.strip('|').split('|')]
    tokens = livable.count(tiny).tokens
    assert cells == ['tiny', '24', '8.3 %', '4.2 %', f'{tokens / 24:.1f}', '4 / 9 / 20', '42', '0.67', '12.5', '2']


def test_many_sizes():
    c = livable.Counts(lines=1, bodies=[(n, 'f') for n in range(1, 12)])
    assert livable.row('p', c)[5] == '6 / 10 / 11'


def test_what_cannot_be_counted_is_named(tmp_path, monkeypatch, capsys):
    for text, said in (
        (None, 'no Python in'),
        ('def f(:', r"a\.py' cannot be read as Python"),
        ('x = (', r"a\.py' cannot be"),
    ):
        if text:
            (tmp_path / 'a.py').write_text(text)
        with pytest.raises(ValueError, match=said):
            livable.count(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['livable.py', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match='no Python in'):
        livable.main()


def test_of_our_package(monkeypatch, capsys):
    "It runs on the package itself; what the numbers are is no test's business."
    monkeypatch.setattr(sys, 'argv', ['livable.py', str(ROOT / 'idrnet_nb'), '--longest', '2'])
    livable.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith('| idrnet_nb | ') and len(lines) == 7 and '.py:' in lines[-1]


def test_limits_bite(tiny):
    said = '\n'.join(livable.beyond_limits(livable.count(tiny)))
    assert 'one.py:23 is wider than 120' in said and '1 statements end with `;`' in said and '2 private names' in said
    assert '1 of 24 lines have code beyond 100' in said  # lines of # alone are comments
    (tiny / 'part' / 'two.py').unlink()
    (tiny / 'one.py').write_text(
        'def f():\n    return 1 ' + '#' * 100 + '\n' + '# ' + 'x' * 110 + '\n__all__ = ["' + 'x' * 200 + '"]\n'
    )
    assert not livable.beyond_limits(livable.count(tiny))
    (tiny / 'one.py').write_text('def f():\n' + '    x = 1\n' * 200)
    assert livable.beyond_limits(livable.count(tiny)) == ['one.py:f has 600 tokens, 450 is the limit']
    (tiny / 'one.py').write_text('def f(): pass\n' + ''.join(f'def _f{i}(): pass\n' for i in range(2)))
    assert 'private functions' in livable.beyond_limits(livable.count(tiny))[0]
