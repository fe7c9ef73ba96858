"""The pages of compare, evaluate and train: one file that loads nothing, valid, with the numbers of the JSON and the CSV."""

import base64, io, json, re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest, torch
from PIL import Image
from idrnet_nb.cli import main
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.experiments.compare import compare
from idrnet_nb.experiments.compare_page import Comparison, RunRecord, conclude
from idrnet_nb.experiments.gallery import GalleryItem
from idrnet_nb.experiments.page import Page
from idrnet_nb.experiments.page_parts import fold_classes, gain_table, unchanged
from idrnet_nb.experiments.results import read_rows
from idrnet_nb.experiments.statistics import Difference, bootstrap_scores, paired, verdict
from idrnet_nb.experiments.tasks import Task, recipe_task, toy_world_task
from idrnet_nb.method.toy_world import TOY_WORLD
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.metrics import scores
from idrnet_nb.training.recipes import laptop, mini

SMALL = dict(width=8, attention_width=8, aux_width=8)
HOSTILE = '<script>alert(1)</script>', 'a & "b" \'c\'', '$x^$', '</table>'
EMPTY = {'meta', 'link', 'img', 'br', 'hr'}


class Parsed(HTMLParser):
    "Elements with their attributes; tables as lists of rows of texts. Raises AssertionError for what is not balanced."

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == 'table':
            self.tables.append(dict(caption='', rows=[]))
        elif tag == 'tr':
            self.tables[-1]['rows'].append([])
        elif tag in ('td', 'th'):
            self.tables[-1]['rows'][-1].append('')

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f'</{tag}> closes {self.open[-3:]}'

    def handle_data(self, data):
        if 'caption' in self.open:
            self.tables[-1]['caption'] += data
        elif self.open and self.open[-1] in ('td', 'th'):
            self.tables[-1]['rows'][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def table(self, words):  # row name -> the other cells
        (found,) = [t for t in self.tables if words in t['caption']]
        return {row[0]: row[1:] for row in found['rows']}


def check(text):
    "What holds for every page."
    page = Parsed(text)
    for tag, attrs in page.elements:
        for name in ('src', 'href', 'srcset', 'data', 'action'):
            assert attrs.get(name, '#').startswith(('#', 'data:')), f'{tag} loads {attrs[name][:60]}'
        assert tag not in ('script', 'iframe', 'object', 'embed'), tag
        assert not [name for name in attrs if name.startswith('on')]
    style = re.sub(r'base64,[A-Za-z0-9+/=]+', '', text)
    assert 'url(' not in style and '@import' not in style
    assert all(len(image.get('alt', '')) > 3 for image in page.all('img'))
    assert page.tables and all(t['caption'].strip() and len(t['rows']) > 1 for t in page.tables)
    for t in page.tables:
        assert len({len(row) for row in t['rows']}) == 1, t['caption']
    ids = [attrs['id'] for _, attrs in page.elements if 'id' in attrs]
    assert len(ids) == len(set(ids))
    links = [a['href'][1:] for a in page.all('a')]
    assert links and set(links) == set(ids)
    assert text.startswith('<!doctype html>') and {'lang': 'en'} in page.all('html')
    assert any(meta.get('name') == 'viewport' for meta in page.all('meta'))
    assert 'prefers-color-scheme: dark' in text and '@media print' in text and len(text) < 3_000_000
    return page


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    "Two variants, two seeds, classes with hostile names: (folder, what `compare` returned, text of the page)."
    out = tmp_path_factory.mktemp('compared')
    task = toy_world_task(16, 8, 32)
    task.space = replace(TOY_WORLD, name='<world>', classes=(*HOSTILE, *TOY_WORLD.classes[4:]))
    task.name, task.recipe = '<world>', None
    config = TrainConfig(steps=4, batch_size=4, log_every=1)
    result = compare(task, ('fcn', 'fcn+idr'), (0, 1), out, config, 'cpu', 1, False, results=out / 'rows.csv', **SMALL)
    return out, result, (out / 'report.html').read_text(encoding='utf-8')


def test_page_of_a_comparison_is_whole(compared):
    page = check(compared[2])
    assert [a['href'] for a in page.all('a')] == [f'#part{i}' for i in range(1, 10)]
    captions = ' '.join(t['caption'] for t in page.tables)
    for words in ('mIoU of each variant', 'Differences to fcn', 'IoU of each class', 'largest confusions', 'costs'):
        assert words in captions, words


def test_html5lib_finds_nothing_wrong(compared):
    html5lib = pytest.importorskip('html5lib')
    html5lib.HTMLParser(strict=True).parse(compared[2])


def test_names_of_classes_are_text(compared):
    text = compared[2]
    assert '<script' not in text and '&lt;script&gt;' in text and '<h1>fcn, fcn+idr on &lt;world&gt;</h1>' in text
    rows = Parsed(text).table('fcn+idr against fcn: IoU of each class')
    assert set(HOSTILE) <= set(rows)


def test_numbers_are_those_of_the_files(compared):
    out, result, text = compared
    page, saved = Parsed(text), json.loads((out / 'compare.json').read_text(encoding='utf-8'))
    rows = read_rows(out / 'rows.csv')
    shown = page.table('mIoU of each variant')
    for variant in 'fcn', 'fcn+idr':
        mean = np.mean([float(row['miou']) for row in rows if row['arm'] == variant])
        assert float(shown[variant][1]) == pytest.approx(mean, abs=0.051)
        counts = [np.load(out / 'counts' / f'{variant}-{seed}.npz')['counts'] for seed in (0, 1)]
        for row, of_seed in zip(saved['arms'][variant], counts):
            assert scores(torch.tensor(of_seed.sum(0)))['miou'] == pytest.approx(row['miou'])
        found = bootstrap_scores(np.stack(counts))
        assert shown[variant][2] == f'[{found.low:.1f}, {found.high:.1f}]'
    difference = saved['differences']['fcn+idr']
    cells = page.table('Differences to fcn')['fcn+idr – fcn']
    gains = [
        b['miou'] - a['miou'] for a, b in zip(saved['arms']['fcn'], saved['arms']['fcn+idr']) if a['seed'] == b['seed']
    ]
    assert difference['gain'] == pytest.approx(np.mean(gains)) and cells[0] == f'{difference["gain"]:+.1f}'
    assert cells[1] == f'[{difference["low"]:.1f}, {difference["high"]:.1f}]'
    assert cells[2] == f'[{difference["t_low"]:.1f}, {difference["t_high"]:.1f}]'
    first = page.table('fcn+idr against fcn: IoU of each class')
    for i, name in enumerate((*HOSTILE, *TOY_WORLD.classes[4:])):
        gain = difference['by_class'][i]
        assert first[name][4] == ('–' if gain is None else f'{gain:+.1f}')
    cost = page.table('What each variant costs')
    assert [cost[v][0] for v in ('fcn', 'fcn+idr')] == [f'{saved["arms"][v][0]["parameters"]:,}' for v in saved['arms']]
    assert int(cost['fcn+idr'][4].replace(',', '')) >= 1
    assert saved['conclusion'] == result['conclusion'] and saved['conclusion'] in text


def test_the_first_sentence_comes_first(compared):
    body = compared[2].partition('<h1>')[2]
    assert re.sub('<[^>]+>', '', body).split('\n')[1] == compared[1]['conclusion']


def test_numbers_are_right_aligned_and_words_are_not(compared):
    text = compared[2]
    assert re.search(r'<td class="number">\[[-\d., ]+\]</td>', text)
    assert not re.search(r'<td class="number">(not settled|gains|loses|better|worse)</td>', text)


@pytest.mark.parametrize('seed', range(8))
def test_the_sentence_is_settled_where_the_verdict_is(seed):
    rng = np.random.default_rng(seed)
    a = rng.poisson(5, (3, 12, 3, 3)) + 40 * np.eye(3, dtype=int)
    b = rng.poisson(5 + rng.choice([0, 2, 9]), (3, 12, 3, 3)) + 40 * np.eye(3, dtype=int)
    found = paired(a, b, 300)
    text = conclude('idr', 'fcn', found, 3)
    low, high = map(float, re.search(r'\[(-?[\d.]+), (-?[\d.]+)\]', text).groups())
    word = verdict(found._asdict())
    assert {'more': 'is better than', 'less': 'is worse than', 'open': 'not settled'}[word] in text
    assert (low > 0) == (word != 'open') or abs(low) < 0.05
    assert low <= abs(found.gain) + 0.05 and high >= found.gain - 0.05


def test_one_seed_settles_nothing():
    found = Difference(5.0, 4.0, 6.0, 1.0, float('nan'), float('nan'), [], [], [])
    assert 'not settled: +5.0 points of mIoU [4.0, 6.0] by one seed (95 %, images and seeds)' in conclude(
        'idr', 'fcn', found, 1
    )


def test_a_comparison_is_read_again_from_its_folder(compared):
    out, result, _ = compared
    task = toy_world_task(16, 8, 32)
    found = Comparison.read(task, result['arms'], out)
    assert found.conclusion() == result['conclusion'] and [len(r) for r in found.records.values()] == [2, 2]
    with pytest.raises(FileNotFoundError):
        Comparison.read(task, {'upernet': [dict(seed=0)]}, out)


def test_large_images_become_small():
    item = GalleryItem(
        'large', torch.randint(0, 256, (3, 900, 1600)), dict(label=torch.zeros(900, 1600, dtype=torch.long))
    )
    page = Page('t', 's').section('Images').gallery([item] * 6, TOY_WORLD)
    text = page.html()
    sizes = set()
    for kind, data in re.findall(r'data:image/(\w+);base64,([A-Za-z0-9+/=]+)', text):
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format.lower() == kind
        sizes.add(image.size)
    assert sizes == {(320, 180)} and len(text) < 600_000


@pytest.mark.parametrize('folder', ['alien', 'file'])
def test_a_file_of_somebody_else_is_not_written_over(folder, tmp_path, capsys):
    (tmp_path / 'alien').mkdir()
    (tmp_path / 'alien' / 'report.html').write_text('<p>my diary</p>')
    (tmp_path / 'file').write_text('mine')
    out = tmp_path / folder
    small = ['--pictures', '8', '4', '--size', '32', '--width', '8', '--steps', '1', '--quiet', '--device', 'cpu']
    for command in ['train', *small], ['compare', '--arms', 'fcn', '--seeds', '1', *small]:
        assert main([*command, '--out', str(out)]) == 2
        err = capsys.readouterr().err
        assert ('has not written it' if folder == 'alien' else 'is a file') in err
    assert (tmp_path / 'alien' / 'report.html').read_text() == '<p>my diary</p>' and (
        out.is_file() or folder == 'alien'
    )
    assert len([*tmp_path.rglob('*')]) == 3


def test_train_and_evaluate_leave_a_page(tmp_path, capsys):
    small = ['--pictures', '8', '4', '--quiet', '--device', 'cpu']
    out = tmp_path / 'run'
    words = ['--size', '32', '--width', '8', '--steps', '4', '--batch', '4', '--save-every', '2', '--judge', 'test']
    assert main(['train', *small, *words, '--out', str(out)]) == 0
    told = capsys.readouterr().out
    page = check((out / 'report.html').read_text(encoding='utf-8'))
    summary, _ = told.strip().splitlines()[-2:]
    assert f'the page: {out / "report.html"}' in told and summary.startswith(f'The model in {out}: mIoU ')
    kept = page.table('Checkpoints that are kept')
    best = max((float(cells[0]), -int(step)) for step, cells in kept.items() if step != 'step')
    assert f'the checkpoint of step {-best[1]}, the best of 2 that are kept: {best[0]:.1f}' in summary
    miou = re.search(r'^mIoU +([\d.]+)', told, re.M)[1]
    assert float(page.table('Scores on 4 unseen')['mean IoU (mIoU)'][0]) == pytest.approx(float(miou), abs=0.051)

    report = tmp_path / 'report.json'
    again = ['evaluate', '--model', str(out), '--json', str(report), *small]
    assert main(again) == 0 and 'the page' not in capsys.readouterr().out
    assert main([*again, '--out', str(tmp_path / 'judged')]) == 0
    assert 'unseen images of world.\nthe page: ' in capsys.readouterr().out
    page = check((tmp_path / 'judged' / 'report.html').read_text(encoding='utf-8'))
    saved = json.loads(report.read_text())
    assert float(page.table('Scores on 4 unseen')['mean IoU (mIoU)'][0]) == pytest.approx(saved['miou'], abs=0.051)
    classes = page.table('Classes, the lowest IoU first')
    for name, value in saved['iou'].items():
        assert classes[name][2] == ('–' if value is None else pytest.approx(value, abs=0.051)) or float(
            classes[name][2]
        ) == pytest.approx(value, abs=0.051)
    (tmp_path / 'judged' / 'report.html').write_text('mine')
    assert main([*again, '--out', str(tmp_path / 'judged')]) == 2


def fake_comparison(groups=None, images=12, seeds=2, **of_task):
    "25 classes, of which the model finds 0 to 4 and never 5 to 9; class 10 is nowhere in training; the others are nowhere."
    k, rng = 25, np.random.default_rng(0)
    space = LabelSpace('many', tuple(f'c{i}' for i in range(k)), tuple(map(tuple, palette(k).tolist())))
    train_pixels = [9] * 10 + [0] * 15
    task = Task('many', space, [], [], groups=groups, train_pixels=train_pixels, **of_task)
    rows, records = {}, {}
    for variant in 'fcn', 'fcn+idr':
        rows[variant] = [dict(arm=variant, seed=s, miou=50.0, parameters=9, seconds=1.0) for s in range(seeds)]
        records[variant] = []
        for _ in range(seeds):
            counts = np.zeros((images, k, k), np.int32)
            for c in range(11):
                counts[:, c, 0] = rng.poisson(5, images) + 1
                if c < 5:
                    counts[:, c, c] += rng.poisson(30, images).astype(np.int32)
            records[variant].append(RunRecord(counts, np.arange(2), np.ones(2), 10**6))
    return Comparison(task, rows, records)


def test_a_trial_begins_with_that():
    found = fake_comparison(trial=True)
    assert found.conclusion().startswith('A trial (--mini): ') and not fake_comparison().conclusion().startswith('A t')
    assert recipe_task(mini(laptop(TOY_WORLD)), dict(train=[], test=[])).trial
    assert not recipe_task(laptop(TOY_WORLD), dict(train=[], test=[])).trial


@pytest.mark.parametrize('groups, unit', [(None, 'images'), ([i // 3 for i in range(12)], 'groups')])
def test_intervals_say_what_is_drawn(groups, unit):
    found = fake_comparison(groups)
    assert f'95 %, {unit} and seeds' in found.score_table().columns and f'95 %, {unit} and seeds' in (
        found.difference_table().columns
    )
    few = '4 groups and 2 seeds' if groups else '2 seeds'
    assert found.caution() == f'Caution: the intervals rest on {few}, which is few; do not trust their ends.'
    assert found.caution() in found.conclusion() and fake_comparison(seeds=3).caution() == ''
    d = found.differences['fcn+idr']
    which = 'seeds alone' if f'[{d.t_low:.1f}, {d.t_high:.1f}]' in found.conclusion() else f'{unit} and seeds'
    assert f'(95 %, {which})' in found.conclusion()


def test_classes_that_are_never_found_are_counted_and_folded():
    found = fake_comparison()
    for text in found.coverage().values():
        assert 'The mIoU averages 11 of 25 classes' in text
        assert '6 of 25 classes are never found (c5, c6, c7, c8, c9, c10)' in text
        assert '1 class is in these labels, but in no mask to train on, and cannot be learnt: c10.' in text
    names, d = found.task.space.classes, found.differences['fcn+idr']
    scores = found.scores['fcn'], found.scores['fcn+idr']
    table = gain_table(d, scores, found.counts['fcn'][0], names, ('fcn', 'fcn+idr'))
    shown, left_out = fold_classes(table, ['fcn', 'fcn+idr'])
    assert sorted(shown.index) == ['c0', 'c1', 'c2', 'c3', 'c4']
    assert '6 classes that are never found (IoU 0): c5,' in left_out and '14 classes that are neither' in left_out
    assert sum(unchanged(d)) == 6
