"""tools/mutants.py finds what a notebook's tests do not notice: a planted notebook with a weak test and a strong one."""

import csv, json, os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import mutants  # noqa: E402

SLOPE = """#| export
def slope(
    x, # a number, not text
    limit:int=3, # at most
):
    "An error text and a default: 1 + 1."
    if x<0: raise ValueError(f'x={x} is below {0+0}')
    return min(x*x, limit)
"""
LEARN = """import torch
w = torch.ones(1, requires_grad=True)
(3*w).sum().backward()
assert w.grad==3
"""
HALF = """#| export
import torch
def half(x): return (x/2).sum() # é before a place counts bytes
"""


def code(id, source):
    return dict(cell_type='code', id=id, metadata={}, source=source, execution_count=None, outputs=[])


def plant(root, strong):
    "A project with one notebook; its second function is used only after autograd has run."
    test = 'assert slope(2)==3 and slope(1)==1 and slope(0)==0'
    if strong:
        test += '\ntry: slope(-1e-9)\nexcept ValueError: pass\nelse: raise AssertionError'
    cells = [
        code('first', '#| default_exp rooms.slope'),
        code('slope', SLOPE),
        code('skip', '#| cuda\nraise RuntimeError'),
        code('never', '#| eval: false\nraise RuntimeError'),
        code('test', test if strong else 'assert slope(2)==3'),
        code('learn', LEARN),
        code('half', HALF),
        code(
            'last',
            'w = torch.ones(2, requires_grad=True); half(w).backward()\nassert half(w)==1 and (w.grad==.5).all()',
        ),
    ]
    folder = root / 'nbs' / '1_rooms'
    folder.mkdir(parents=True)
    (root / 'nbs' / 'results').mkdir()
    (root / 'tools').mkdir()
    (folder / '01_slope.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def run(root, *words):
    "Exit code, and what the tool printed."
    command = [sys.executable, ROOT / 'tools' / 'mutants.py', '--root', root, '--notebooks', '1_rooms', *words]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, env=env)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout


def list_equivalent(root, *rows):
    with open(root / 'tools' / 'mutants_equivalent.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(mutants.EQUIVALENT)
        writer.writerows(('1_rooms/01_slope', *row, 'a reason') for row in rows)


BOUNDARY = 'if x<0: raise ValueError(f\'x={x} is below {0+0}\')'


def test_weak_and_strong(tmp_path):
    plant(tmp_path / 'weak', strong=False)
    done, said = run(tmp_path / 'weak', '--all', '--least', '90')
    assert done == 1 and '2 survived' not in said
    assert f'cell slope, line 7, slope\n      {BOUNDARY}\n    → {BOUNDARY.replace("<", "<=")}\n' in said
    assert 'limit:int=4' not in said and 'cell half' not in said  # killed, the latter after autograd

    plant(tmp_path / 'strong', strong=True)
    done, said = run(tmp_path / 'strong', '--all', '--least', '100')
    assert (done, 'survives' in said) == (0, False), said
    with open(tmp_path / 'strong' / 'nbs' / 'results' / 'mutants.csv', newline='') as file:
        (row,) = csv.DictReader(file)
    assert (row['notebook'], row['asked'], row['percent']) == ('1_rooms/01_slope', 'all', '100.0')
    assert row['killed'] == row['tried'] and row['commit'] and row['torch']


def test_equivalent_stale_and_wrong(tmp_path):
    plant(tmp_path, strong=False)
    list_equivalent(
        tmp_path,
        ('slope', BOUNDARY, BOUNDARY.replace('<', '<=')),
        ('slope', 'return min(x*x, limit)', 'return min(x*x, limits)'),
        ('slope', 'return min(x*x, limit)', 'return max(x*x, limit)'),
    )
    done, said = run(tmp_path, '--all', '--no-rows')
    assert done == 1 and '1 equivalent' in said
    assert BOUNDARY.replace('<', '<=') not in said
    assert 'stale in the list, there is no such mutant: slope: return min(x*x, limit) → return min(x*x, limits)' in said
    assert 'listed as equivalent, but cell test fails (AssertionError' in said
    assert not (tmp_path / 'nbs' / 'results' / 'mutants.csv').exists()


def test_a_notebook_that_fails_is_no_report(tmp_path):
    plant(tmp_path, strong=False)
    path = tmp_path / 'nbs' / '1_rooms' / '01_slope.ipynb'
    path.write_text(path.read_text().replace('w.grad==3', 'w.grad==4'))
    done, said = run(tmp_path, '--no-rows')
    assert done == 1 and said.strip() == '01_slope.ipynb fails unchanged, in cell learn: AssertionError:'


@pytest.mark.parametrize(
    'line,news',
    [
        ('a<b', ['a<=b']),
        ('a is not b', ['a is b']),
        ('(a) and ( # and\n b)', ['(a) or ( # and\n b)']),
        ('a+b', ['a-b']),
        ("a+'b'", []),
        ('~a', ['a']),
        ('not(a)', ['(a)']),
        ('1', ['2', '0']),
        ('.25', ['0.5']),
        ('1e-12', ['1.000000000001']),
        ('True', ['False']),
        ("f(x, 'b c n -> b n')", ["f(x, 'b c n -> n b')"]),
        ("f(x, y, 'a b, b c -> c')", ["f(x, y, 'b a, b c -> c')", "f(x, y, 'a b, c b -> c')"]),
        ('(x\n  .clamp(y) # why\n)', ['(x\n   # why\n)']),
        ('torch.where(a, b, c)', []),
        ('x.T', ['x']),
        ('x.amin(d)', ['x.amax(d)']),
        ('min(a, b)', ['max(a, b)']),
        ('sum(a)', []),
        ('x.f(min=a)', ['x.f(max=a)']),
        ('f(x, a=y, b=z, dtype=d)', ['f(x, a=z, b=z, dtype=d)', 'f(x, a=y, b=y, dtype=d)']),
        ("raise ValueError(f'{1+1}')", []),
        ('x:Literal[1]', []),
        ("'é'; a-b", ["'é'; a+b"]),
    ],
)
def test_mutants_of_a_line(line, news):
    found = mutants.mutants_of(code('one', line))
    assert [m.source for place in found for m in place] == news


def test_draw_is_seeded():
    places = [[f'{i}a', f'{i}b'] for i in range(50)]
    first = mutants.draw(places, 20, '0')
    assert first == mutants.draw(places, 20, '0') != mutants.draw(places, 20, '1')
    assert len({m[:-1] for m in first}) == 20  # a place once
    assert len(mutants.draw(places, 99, '0')) == 50 and len(mutants.draw(places, None, '0')) == 100


def test_the_list_is_not_stale():
    "Each line of tools/mutants_equivalent.csv is a mutant of today's notebook, and says why nothing can tell it."
    with open(ROOT / 'tools' / 'mutants_equivalent.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    for notebook in {row['notebook'] for row in rows}:
        places = mutants.places_of(mutants.cells_of(ROOT / 'nbs' / f'{notebook}.ipynb'))
        there = {mutants.name_of(m) for place in places for m in place}
        stale = [row for row in rows if row['notebook'] == notebook and mutants.name_of_row(row) not in there]
        assert not stale, f'the code has changed; mend or delete these lines of the list: {stale}'
    assert all(row['reason'] for row in rows)
