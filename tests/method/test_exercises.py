"""Each lesson's exercise: its solution is right, three typical wrong answers are not, and a function that is not
written yet is said to be so. What runs is what a reader runs: the check cell of the notebook alone."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
LESSONS = [p for p in sorted((ROOT / 'nbs' / '1_method').glob('*.ipynb')) if 'self_test' not in p.name]
ANSWERS = Path(__file__).parent / 'exercise_answers'


def exercise(path):
    "Name of the function, source of the check cell, and solution."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells]
    checks = [s for s in sources if s.startswith('# exercise: ')]
    assert len(checks) == 1, f'{path.name} has {len(checks)} cells that begin with "# exercise: "'
    name = checks[0].split('\n')[0].removeprefix('# exercise: ').strip()
    stubs = [s for s in sources if re.fullmatch(rf'(#.*\n)*def {name}\(.*\)(->.*)?:\s*\.\.\.(\s*#.*)?', s.strip())]
    assert len(stubs) == 1, f'{path.name} needs one cell with `def {name}(…): ...`'
    solutions = re.findall(
        r'<summary>Solution</summary>\s*```python\n(.*?)```\s*</details>', '\n'.join(sources), flags=re.S
    )
    assert len(solutions) == 1, f'{path.name} has {len(solutions)} folded solutions'
    return name, stubs[0], checks[0], solutions[0]


def checked(answer, check):
    "What the check cell says of an answer."
    *statements, last = split(check)
    names = dict(torch=torch)
    exec(answer, names)
    exec('\n'.join(statements), names)
    return eval(last, names)


def split(check):
    "The check cell as its statements and its last expression."
    import ast

    tree = ast.parse(check)
    return [ast.unparse(node) for node in tree.body]


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_exercise(path):
    name, stub, check, solution = exercise(path)
    assert checked(stub, check).startswith('Not written yet')
    assert checked(solution, check).startswith('Right')
    wrong = runpy.run_path(str(ANSWERS / f'{path.stem}.py'))['WRONG']
    assert len(wrong) >= 3
    for answer in wrong:
        assert f'def {name}(' in answer
        assert checked(answer, check).startswith('Not yet'), f'this wrong answer passes:\n{answer}'


def test_check_cell_keeps_its_output():
    "A reader sees what the cell says before anything is written."
    for path in LESSONS:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        cell = next(c for c in cells if ''.join(c['source']).startswith('# exercise: '))
        assert 'Not written yet' in json.dumps(cell['outputs']), path.name
