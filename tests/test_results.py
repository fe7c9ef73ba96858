"""No row of nbs/results is lost by a rename: each CSV has the columns on record (tests/recorded/results.json),
each row's settings still build what they describe, and today's plans still find the rows.

    python tests/test_results.py     # write the record anew, after rows or columns were added

In the record, for each CSV: its columns; `settings`, the column with settings as JSON; `found_by`, who
finds rows by which columns; `rows`, how many it had; `found`, how many of them today's plans found."""

import importlib, inspect, json, sys
from dataclasses import fields
from pathlib import Path

import pytest, torch

from idrnet_nb.experiments import compare, costs, pair_rows as pairs, speed, trials
from idrnet_nb.experiments.ablation import ABLATIONS, ablation_pairs
from idrnet_nb.experiments.benchmark import SUITES
from idrnet_nb.experiments.compare import build, read_variants
from idrnet_nb.experiments.costs import cost_runs
from idrnet_nb.experiments.results import read_rows
from idrnet_nb.experiments.runner import key, run_missing
from idrnet_nb.experiments.pair_rows import pair_rows
from idrnet_nb.experiments.statistics import Difference
from idrnet_nb.experiments.trials import config_of
from idrnet_nb.models.head import FRAMEWORKS, HeadConfig
from idrnet_nb.models.plugin_module import IDRClassifier
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.models.variants import parse_variant
from idrnet_nb.training.inference import EvalProtocol
from idrnet_nb.training.recipes import RECIPES

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / 'tools'),
    str(Path(__file__).parent),
    str(Path(__file__).parent / 'models'),
]
import ablation as ablation_tool, context_photo, cost, exchange, gpu, lesson_times, loader, mutants, plug_ab, relation_measures  # noqa: E402
import softmax_order, test_battery, zoo  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / 'nbs' / 'results'
RECORD = Path(__file__).parent / 'recorded' / 'results.json'
KEPT = json.loads(RECORD.read_text())
each_file = pytest.mark.parametrize('name', KEPT)

COMPARED = 'world.csv', 'camvid.csv', 'camvid_upernet.csv', 'stanford.csv', 'ccp.csv'  # by `idrnet compare`

# --- columns

COLUMNS = {  # of the files, as those who write them say
    **dict.fromkeys(('bench.csv', 'ablation.csv', 'camvid_bench.csv'), trials.COLUMNS),
    **dict.fromkeys(('bench_pairs.csv', 'ablation_pairs.csv'), pairs.PAIR_COLUMNS),
    'bench_costs.csv': costs.COST_COLUMNS,
    **dict.fromkeys(('speed.csv', 'speed_gpu.csv', 'speed_authors.csv'), speed.COLUMNS),
    **dict.fromkeys((*COMPARED, 'plug.csv'), compare.COLUMNS),
    'recipes.csv': cost.COLUMNS,
    'loader.csv': loader.COLUMNS,
    'exchange.csv': exchange.COLUMNS,
    'backbones.csv': zoo.COLUMNS,
    'softmax_order.csv': softmax_order.COLUMNS,
    'relations.csv': relation_measures.COLUMNS,
    'context_photo.csv': context_photo.COLUMNS,
    'lesson_times.csv': lesson_times.COLUMNS,
    'mutants.csv': mutants.COLUMNS,
}


def columns_of(name):
    with open(RESULTS / name, newline='', encoding='utf-8') as f:
        return f.readline().strip().split(',')


def test_every_file_is_on_record():
    assert {f.name for f in RESULTS.rglob('*.csv')} == KEPT.keys(), (
        'write the record anew: python tests/test_results.py'
    )


@each_file
def test_columns(name):
    assert columns_of(name) == KEPT[name]['columns']
    if name in COLUMNS:
        assert set(COLUMNS[name]) == set(KEPT[name]['columns']), 'new rows would have other columns'


@each_file
def test_who_finds_rows_is_there(name):
    for path, columns in KEPT[name]['found_by'].items():
        module, _, thing = path.partition(':')
        assert hasattr(importlib.import_module(module), thing), f'{path} is gone; change it in {RECORD.name}'
        assert set(columns) <= set(KEPT[name]['columns'])


@each_file
def test_no_row_is_gone(name):
    assert len(read_rows(RESULTS / name)) >= KEPT[name]['rows']


# --- the settings of a row build what they describe


def parameters(*functions):
    return {p for f in functions for p in inspect.signature(f).parameters}


def head(framework, settings, **switch):
    "HeadConfig of a row; what is not of the head must be an argument of those who build the model."
    mine = {f.name for f in fields(HeadConfig)}
    settings = {**settings, **switch}
    settings.pop('wide', None)  # of `variants.SWITCHES`
    strange = settings.keys() - mine - parameters(build, build_segmentor)
    assert not strange, f'nobody takes {strange}'
    return HeadConfig(3, **{**FRAMEWORKS[framework], **{k: v for k, v in settings.items() if k in mine}})


def of_run(row, run):
    framework, switch = parse_variant(run['arm'])
    variant = ABLATIONS[run['variant']] if 'variant' in run else None
    if variant:
        assert run['arm'].endswith(variant.arm) and variant.settings.items() <= run['model'].items()
    assert row['size'] == 'x'.join(map(str, run['size']))
    return config_of(run, 1000), head(framework, run['model'], **switch)


def of_costs(row, run):
    assert run['framework'] == row['framework']
    switches = [parse_variant(run['framework'] + arm)[1] for arm in run['arms']]
    return config_of(dict(run, seed=0), 1000), *(head(run['framework'], run['model'], **s) for s in switches)


def of_pair(row, setting):
    framework = row['framework'].split(',')[0]  # 'fcn, noisy coarse'
    return config_of(dict(setting, seed=0), 1000), head(framework, setting.get('model', {}))


def of_comparison(row, config):
    framework, switch = parse_variant(row['arm'])
    return config_of(dict(config, seed=int(row['seed'])), 1000), head(framework, config['model'], **switch)


def of_order(row, config):
    protocol = EvalProtocol(**config.pop('protocol'))
    assert (
        protocol.average == row['average']
        and {n: getattr(protocol, n) for n in softmax_order.LOOKS[row['looks']]} == softmax_order.LOOKS[row['looks']]
    )
    return of_comparison(row, config)


def of_photo(row, config):
    return of_comparison({**row, 'seed': row['seed'] or 0}, config)  # a difference is of all seeds


def of_plug(row, config):
    assert config['model']['name'] in plug_ab.MODELS
    if config['plug']:
        IDRClassifier(torch.nn.Conv2d(8, 3, 1), **config['plug'])
    return (config_of(dict(config, seed=int(row['seed'])), 1000),)


def of_speed(row, run):
    assert (row['kind'], row['k'], row['grid']) == (run['kind'], str(run['k']), 'x'.join(map(str, run['grid'])))
    return run['kind'] in speed.MEASURES, run.get('framework', 'fcn') in FRAMEWORKS


def of_authors(row, run):
    assert (run['kind'], str(run['k']), str(run['b'])) == ('authors', row['k'], row['b'])
    return (row['what'] == ', '.join(['step', *([run['amp']] if 'amp' in run else [])]),)


BUILD = {
    **dict.fromkeys(('bench.csv', 'ablation.csv', 'camvid_bench.csv'), of_run),
    **dict.fromkeys(('bench_pairs.csv', 'ablation_pairs.csv'), of_pair),
    **dict.fromkeys(COMPARED, of_comparison),
    'bench_costs.csv': of_costs,
    'plug.csv': of_plug,
    **dict.fromkeys(('speed.csv', 'speed_gpu.csv'), of_speed),
    'speed_authors.csv': of_authors,
    'softmax_order.csv': of_order,
    'relations.csv': of_comparison,
    'context_photo.csv': of_photo,
}


@pytest.mark.parametrize('name', [n for n in KEPT if KEPT[n]['settings']])
def test_settings_build(name):
    for i, row in enumerate(read_rows(RESULTS / name)):
        try:
            built = BUILD[name](row, json.loads(row[KEPT[name]['settings']]))
        except Exception as e:
            raise AssertionError(
                f'{name}, row {i + 2}: its settings build nothing any more ({type(e).__name__}: {e})'
            ) from e
        assert all(built)


def test_a_renamed_setting_is_noticed():
    row = read_rows(RESULTS / 'bench.csv')[0]
    run = json.loads(row['run'])
    for part, old, new in (('train', 'lr', 'rate'), ('model', 'width', 'channels'), ('model', 'backbone', 'body')):
        other = {**run, part: {new if k == old else k: v for k, v in run[part].items()}}
        with pytest.raises((TypeError, AssertionError)):
            of_run(row, other)


# --- today's plans find the rows


def runs_found(runs, name, columns):
    "How many rows are of runs that need not be made again."
    missing = set()

    def do(run):
        missing.add(key(run))
        raise ValueError('it would be made again')

    try:
        run_missing(runs, do, RESULTS / name, columns, progress=False)
    except RuntimeError:
        pass  # that is what it says of `do`
    there = {key(r) for r in runs} - missing
    return rows_found(name, lambda row: row['run'] in there)


def pairs_found(make, name):
    "How many rows would be in the place of a row of `make`, if the counts of all runs were there."
    place = lambda r: (r['setting'], r['framework'], r['arm'], r['against'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, 'read_counts', lambda run, out: torch.zeros(2, 2, 2))
        patch.setattr(pairs, 'paired', lambda *counts, resamples: Difference(*[0.0] * 6, [], [], []))
        made = {place(r) for r in make()}
    return sum(place(r) in made for r in read_rows(RESULTS / name))


def arms_found(name, *comparisons):
    found = [read_variants(RESULTS / name, arms) for arms in comparisons]
    return sum(len(rows) for arms in found for rows in arms.values())


def rows_found(name, good):
    return sum(map(good, read_rows(RESULTS / name)))


TRIALS = [trial for suite in SUITES.values() for trial in suite]
BENCH = [run for trial in TRIALS for run in trial.runs]
COSTS = [run for trial in TRIALS for run in cost_runs(trial)]
ABLATION = [run for runs, _ in ablation_tool.groups(5).values() for run in runs]
JUDGED = [run for run in ABLATION if 'every' not in run]  # and not watched
SPEED = speed.planned(True) + speed.planned(False)
SPEED_NAMES = {
    (r['kind'], speed.name_of(r)) for r in SPEED + speed.planned(False, 'cuda')
}  # of rows on a GPU, which another plan measured
FREE = 'graph breaks', 'host reads', 'CUDA graph'  # rows of the run `free`
CAMVID_GPU = [run for trial in gpu.camvid_trials() for run in trial.runs]
FCN, UPERNET = ('fcn', 'fcn+idr'), ('upernet', 'upernet+idr')
SWITCHES = 'fcn', 'fcn+attention', 'fcn+frozen', 'fcn+tracked', 'fcn+idr'
PLUGGED = [f'{model} + {arm}'.removesuffix(' + plain') for model in plug_ab.MODELS for arm in plug_ab.ARMS]
ZOO = [(network, concat) for _, network, _, concat in zoo.plan()]
BATTERY = [tuple(map(str, tuple(case))) for case in test_battery.ALL]

FOUND = {
    'bench.csv': lambda n: runs_found(BENCH, n, trials.COLUMNS),
    'bench_pairs.csv': lambda n: pairs_found(lambda: pair_rows(BENCH, ''), n),
    'bench_costs.csv': lambda n: runs_found(COSTS, n, costs.COST_COLUMNS),
    'ablation.csv': lambda n: runs_found(ABLATION, n, trials.COLUMNS),
    'ablation_pairs.csv': lambda n: pairs_found(lambda: ablation_pairs(JUDGED, ''), n),
    'speed.csv': lambda n: runs_found(SPEED, n, speed.COLUMNS),
    'speed_gpu.csv': lambda n: rows_found(
        n, lambda r: (r['kind'], r['what']) in SPEED_NAMES or r['kind'] == 'free' and r['what'] in FREE
    ),
    'speed_authors.csv': lambda n: rows_found(
        n, lambda r: r['kind'] == r['than'] == 'authors' and float(r['ratio']) > 1
    ),
    'camvid_bench.csv': lambda n: runs_found(CAMVID_GPU, n, trials.COLUMNS),
    'world.csv': lambda n: arms_found(n, SWITCHES),
    'camvid.csv': lambda n: arms_found(n, FCN),
    'camvid_upernet.csv': lambda n: arms_found(n, UPERNET),
    'stanford.csv': lambda n: arms_found(n, FCN, UPERNET),
    'ccp.csv': lambda n: arms_found(n, FCN, UPERNET),
    'plug.csv': lambda n: rows_found(n, lambda r: r['arm'].removeprefix('trained ') in PLUGGED),
    'recipes.csv': lambda n: rows_found(n, lambda r: r['recipe'] in RECIPES and r['kind'] in ('counted', 'timed')),
    'loader.csv': lambda n: rows_found(n, lambda r: r['row'] in loader.ROWS),
    'exchange.csv': lambda n: rows_found(n, lambda r: r['form'] in exchange.FORMS),
    'backbones.csv': lambda n: rows_found(n, lambda r: (r['network'], r['form'] == 'side by side') in ZOO),
    'softmax_order.csv': lambda n: rows_found(
        n, lambda r: r['looks'] in softmax_order.LOOKS and r['average'] in softmax_order.WORDS
    ),
    'relations.csv': lambda n: rows_found(
        n, lambda r: r['measure'] in relation_measures.MEASURES and r['arm'] in relation_measures.ARMS
    ),
    'context_photo.csv': lambda n: rows_found(
        n, lambda r: r['kind'] in context_photo.KINDS and r['arm'] in context_photo.ARMS
    ),
    'lesson_times.csv': lambda n: rows_found(n, lambda r: r['lesson'] in {path.stem for path in lesson_times.LESSONS}),
    'battery.csv': lambda n: rows_found(n, lambda r: (r['framework'], r['backbone'], r['idr']) in BATTERY),
    'mutants.csv': lambda n: rows_found(n, lambda r: (mutants.ROOT / 'nbs' / f'{r["notebook"]}.ipynb').exists()),
}


@each_file
def test_rows_are_found(name):
    found = FOUND[name](name)
    assert found >= KEPT[name]['found'], f'{name}: {found} rows are found, there were {KEPT[name]["found"]}'


def test_a_plan_with_other_words_is_noticed():
    renamed = lambda run: {**run, 'train': {'rate' if k == 'lr' else k: v for k, v in run['train'].items()}}
    other = [renamed(run) for run in BENCH]
    assert runs_found(other, 'bench.csv', trials.COLUMNS) == 0
    assert pairs_found(lambda: pair_rows(other, ''), 'bench_pairs.csv') == 0


LOST_BEFORE = {'speed.csv': 18}  # measured with 3 rounds, of which the plan now wants 5; not by a rename


def test_all_are_found_that_were_not_lost_before():
    for name, kept in KEPT.items():
        assert kept['found'] == kept['rows'] - LOST_BEFORE.get(name, 0), name


# --- the other files of results


def test_tables_of_relations():
    for name in ('world_tables.json', 'camvid_tables.json'):
        found = json.loads((RESULTS / name).read_text())
        assert found.keys() == {'arm', 'classes', 'mean_table_by_seed'}
        k = len(found['classes'])
        assert all(len(t) == k and len(t[0]) == k for t in found['mean_table_by_seed'].values())


def test_kept_models_load():
    "Models of format 1 that notebooks read."
    from idrnet_nb.training.inference import load_model

    for folder, idr in ((RESULTS / 'world_inside', True), (RESULTS / 'world_inside' / 'plain', False)):
        model, space = load_model(folder)
        assert (model.head.idr is not None) == idr and space.num_classes == 12
        if idr:
            assert not torch.equal(model.relations[0], torch.eye(12))


if __name__ == '__main__':
    now = {}
    for name in sorted(FOUND):
        counts = dict(rows=len(read_rows(RESULTS / name)), found=FOUND[name](name))
        now[name] = {**KEPT[name], 'columns': columns_of(name), **counts}
    RECORD.write_text(json.dumps(now, indent=1) + '\n')
    for name, kept in now.items():
        print(f'{name:20} {kept["rows"]:4} rows, {kept["found"]:4} found')
