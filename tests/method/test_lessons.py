"""What every lesson has: a head that says what is needed, how long it runs and what one can do afterwards; the figure
of the whole network; figures with captions; equations, numbered once over all lessons."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import lesson_times  # noqa: E402

from idrnet_nb.experiments.results import read_rows  # noqa: E402

LESSONS = lesson_times.LESSONS
each_lesson = pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
TIMES = {r['lesson']: float(r['seconds']) for r in read_rows(lesson_times.OUT)}
EQUATIONS = {  # lesson -> numbers of its equations
    '03_layers': (1, 2, 3),
    '04_spatial_context': (4,),
    '05_attention': (5,),
    '06_grouping': (6, 7, 8, 9),
    '07_relation': (10, 11),
    '08_deletion': (12, 13, 14, 15, 16),
    '09_idr': (17, 18, 19),
}


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def prose(path):
    return '\n\n'.join(''.join(c['source']) for c in cells(path) if c['cell_type'] == 'markdown')


def has_figure(cell):
    return any(
        'image/png' in out.get('data', {}) and 'text/html' not in out.get('data', {}) for out in cell.get('outputs', [])
    )


@each_lesson
def test_head(path):
    head = prose(path)[:2500]
    for words in ('**Needs:**', '**Afterwards you can**', '**Paper:**', '**Exports:**'):
        assert words in head, f'{path.name}: {words} is missing'
    said = int(lesson_times.TIME.search(head)[2])
    assert said == lesson_times.rounded(TIMES[path.stem]), f'{path.name}: run tools/lesson_times.py --heads'


def test_all_lessons_run_within_four_minutes():
    assert set(TIMES) == {p.stem for p in LESSONS}
    assert sum(TIMES.values()) <= 240


@each_lesson
def test_the_network_is_shown(path):
    sources = [''.join(c['source']) for c in cells(path) if c['cell_type'] == 'code']
    assert any('network_figure(' in s for s in sources), path.name


@each_lesson
def test_each_figure_has_a_caption(path):
    all_cells = cells(path)
    without = []
    for cell, after in zip(all_cells, all_cells[1:]):
        if has_figure(cell) and not re.match(r'\*Figure', ''.join(after['source'])):
            without.append(cell['id'])
    assert not without, f'{path.name}: no caption "*Figure: …*" after the cells {without}'


def test_equations_are_numbered_once():
    found = {p.stem: re.findall(r'\\tag\{(\d+)\}', prose(p)) for p in LESSONS}
    assert {k: tuple(map(int, v)) for k, v in found.items() if v} == EQUATIONS
    numbers = [n for lesson in EQUATIONS.values() for n in lesson]
    assert numbers == list(range(1, 20))


@each_lesson
def test_an_equation_that_is_cited_exists(path):
    cited = [int(n) for n in re.findall(r'[Ee]q(?:uation)?s?\.? \((\d+)\)', prose(path))]
    assert all(1 <= n <= 19 for n in cited), path.name


WORDS = 'hears heard listens lesion silence silenced void nasty judge invented'.split()


@each_lesson
def test_the_fields_words(path):
    "HOUSE: the field's terms, no words of our own."
    text = re.sub(r'`[^`]*`', '', prose(path)).lower()
    found = [w for w in WORDS if re.search(rf'\b{w}\b', text)]
    assert not found, f'{path.name} says {found}'


def test_self_test_has_25_questions():
    text = prose(next(p for p in LESSONS if 'self_test' in p.stem))
    assert (
        len(re.findall(r'^\*\*\d+\.\*\* .+\n+<details><summary>Answer</summary>', text.split('## Try')[0], re.M)) == 25
    )
