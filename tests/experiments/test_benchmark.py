"""The benchmark: paired statistics against brute force, arms alike but for one thing, runs that survive a kill, a command that says what is wrong."""

import itertools, json, os, signal, subprocess, sys, time, warnings
from functools import partial

import numpy as np
import pytest, torch
from idrnet_nb.experiments import benchmark, compare as comparison, costs, trials
from idrnet_nb.experiments.benchmark import SUITES, bench
from idrnet_nb.experiments.benchmark_tables import show_forest, show_pairs
from idrnet_nb.experiments.compare import build, compare
from idrnet_nb.models.variants import widened
from idrnet_nb.experiments.costs import cost_runs, measure_costs
from idrnet_nb.experiments.results import append_rows, read_rows
from idrnet_nb.experiments.runner import Outcome, complete, key, run_missing
from idrnet_nb.experiments.pair_rows import pair_rows, update_pairs
from idrnet_nb.experiments.statistics import paired, verdict
from idrnet_nb.experiments.tasks import toy_world_task
from idrnet_nb.experiments.trials import BENCH_VARIANTS, COLUMNS, Trial, counts_file, read_counts, run_trial
from idrnet_nb.cli import main
from idrnet_nb.models.variants import SWITCHES
from idrnet_nb.models.head import FRAMEWORKS, HeadConfig, SegHead
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.metrics import scores

TINY = dict(backbone='tiny', width=16, attention_width=8, aux_width=8)
TOY = Trial('world', (32, 32), dict(steps=3, batch_size=4), TINY, ('fcn',), 2, pictures=(16, 6))


def counts(rng, s, n, k, skill):  # `s n k k`; some classes are not in some pictures
    c = rng.poisson(3, (s, n, k, k)) + rng.poisson(40 * skill, (s, n, k, 1)) * np.eye(k, dtype=int)
    return c * (rng.random((1, n, k, 1)) < 0.7)


def by_loops(a, b, pictures, seeds):  # difference of mean IoU, as a person would say it
    gains = []
    for s in seeds:
        means = []
        for arm in (a, b):
            total, ious = sum(arm[s, p] for p in pictures), []
            for c in range(total.shape[0]):
                either = total[c].sum() + total[:, c].sum() - total[c, c]
                if either:
                    ious.append(100 * total[c, c] / either)
            means.append(sum(ious) / len(ious))
        gains.append(means[0] - means[1])
    return sum(gains) / len(gains)


@pytest.mark.parametrize('seed', range(6))
def test_gain_is_that_of_the_loops_and_of_the_meter(seed):
    rng = np.random.default_rng(seed)
    a, b = counts(rng, 3, 7, 4, 1.0), counts(rng, 3, 7, 4, 0.8)
    found = paired(a, b, 50)
    assert found.gain == pytest.approx(by_loops(a, b, range(7), range(3)))
    meter = [np.mean([scores(torch.from_numpy(arm[s].sum(0)))['miou'] for s in range(3)]) for arm in (a, b)]
    assert found.gain == pytest.approx(meter[0] - meter[1], abs=1e-4)
    gains = [by_loops(a, b, range(7), [s]) for s in range(3)]
    half = 4.302653 * np.std(gains, ddof=1) / 3**0.5
    assert (found.t_low, found.t_high) == pytest.approx((np.mean(gains) - half, np.mean(gains) + half), rel=1e-5)


def test_interval_is_that_of_all_resamples():
    "Three pictures, two seeds: 27 x 4 equally likely resamples, so that quantiles are known."
    rng = np.random.default_rng(0)
    a, b = counts(rng, 2, 3, 3, 1.0) + 1, counts(rng, 2, 3, 3, 0.5) + 1
    every = [
        by_loops(a, b, p, s)
        for p in itertools.product(range(3), repeat=3)
        for s in itertools.product(range(2), repeat=2)
    ]
    found = paired(a, b, 20000, level=0.8)
    assert found.low == pytest.approx(np.quantile(every, 0.1), abs=0.6) and found.high == pytest.approx(
        np.quantile(every, 0.9), abs=0.6
    )
    assert found.better == pytest.approx(np.mean(np.array(every) > 0), abs=0.02)


def test_mirror_and_order():
    rng = np.random.default_rng(1)
    a, b = counts(rng, 2, 9, 4, 1.0), counts(rng, 2, 9, 4, 0.8)
    x, y = paired(a, b, 400), paired(b, a, 400)
    assert (x.gain, x.low, x.high, x.better) == pytest.approx((-y.gain, -y.high, -y.low, 1 - y.better))
    assert paired(a, b, 400) == x, 'the same draw for the same question'
    swapped = paired(a[::-1], b[::-1], 400)
    assert swapped.gain == pytest.approx(x.gain)


def test_covers_no_difference():
    "Two arms of one skill: their difference is zero, and the interval should nearly always hold it."
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        f = paired(counts(rng, 4, 12, 3, 1.0), counts(rng, 4, 12, 3, 1.0), 200, seed=seed)
        held += f.low <= 0 <= f.high
    assert held >= 46, held  # nominal 57; few seeds make the bootstrap narrow, which 5_experiments/09_benchmark says


def test_absent_class_is_nobodys_loss():
    rng = np.random.default_rng(2)
    a, b = counts(rng, 2, 5, 4, 1.0), counts(rng, 2, 5, 4, 0.7)
    a[:, :, 3] = b[:, :, 3] = 0
    a[:, :, :, 3] = b[:, :, :, 3] = 0
    f = paired(a, b, 100)
    assert (
        np.isnan(f.by_class[3])
        and np.isnan(f.class_low[3])
        and np.isfinite(f.by_class[:3]).all()
        and np.isfinite(f.gain)
    )


# ---- arms


@pytest.mark.parametrize('framework', FRAMEWORKS)
@pytest.mark.parametrize('width', [32, 128])
def test_wide_is_as_large_as_idr(framework, width):
    channels, how = [16, 24, 40, 80], dict(width=width, attention_width=32, aux_width=16, **FRAMEWORKS[framework])
    size = lambda **c: sum(p.numel() for p in SegHead(channels, HeadConfig(7, **{**how, **c})).parameters())
    plain, idr = size(idr=False), size(idr=True)
    wide = size(idr=False, width=widened(channels, HeadConfig(7, idr=False, **how)))
    assert abs(wide - idr) < 0.05 * idr and wide > plain


def test_wide_scales_a_pyramids_own_width():
    task = toy_world_task(4, 2, 32)
    model = build('upernet+wide', task, 0, **{**TINY, 'fpn_width': 8})
    c = model.head.config
    assert c.width > 16 and c.fpn_width == 8 * c.width // 16 and c.idr is False


def test_arms_begin_alike():
    task = toy_world_task(4, 2, 32)
    first = [build('fcn' + a, task, 5, **TINY).backbone.state_dict() for a in BENCH_VARIANTS]
    assert all(torch.equal(v, other[n]) for other in first[1:] for n, v in first[0].items())
    assert {a.lstrip('+') for a in BENCH_VARIANTS} <= set(SWITCHES)


def test_suites_hold_what_was_promised():
    frameworks = {'fcn', 'pspnet', 'deeplabv3', 'upernet', 'ocrnet'}
    for name in ('real', 'full'):
        assert all(set(t.frameworks) == frameworks and t.arms == BENCH_VARIANTS and t.seeds >= 3 for t in SUITES[name])
        assert {t.weights for t in SUITES[name]} == {'imagenet', 'scratch'} and {
            'camvid',
            'stanford_background',
            'ccp16',
        } <= {t.data for t in SUITES[name]}
    runs = {name: [key(r) for t in trials for r in t.runs] for name, trials in SUITES.items()}
    assert all(len(r) == len(set(r)) for r in runs.values()) and set(runs['small']) < set(runs['real']), (
        'the small suite makes rows of the table again'
    )
    assert all(t.data == 'world' and t.seeds >= 3 for t in SUITES['small'])


# ---- runs


def test_runs_do_not_depend_on_who_else_ran(tmp_path):
    runs = TOY.runs
    run_missing(
        runs,
        partial(run_trial, roots={}, out=tmp_path / 'a', device='cpu'),
        tmp_path / 'a.csv',
        COLUMNS,
        progress=False,
    )
    run_missing(
        runs[::-1],
        partial(run_trial, roots={}, out=tmp_path / 'b', device='cpu'),
        tmp_path / 'b.csv',
        COLUMNS,
        jobs=2,
        progress=False,
    )
    a, b = ({r['run']: (r['miou'], r['loss']) for r in read_rows(tmp_path / f'{n}.csv')} for n in 'ab')
    assert a == b and len(a) == len(runs)
    assert all(torch.equal(read_counts(r, tmp_path / 'a'), read_counts(r, tmp_path / 'b')) for r in runs)


SCRIPT = '''
import time, sys
from pathlib import Path
from idrnet_nb.experiments.runner import run_missing
def slow(run): time.sleep(.05); return dict(data=run['n'])
run_missing([dict(n=n, data='x', seed=0) for n in range(40)], slow, sys.argv[1], ('data','run'))
'''


def test_killed_it_goes_on(tmp_path):
    file, done = tmp_path / 'n.csv', []
    for _ in range(4):
        p = subprocess.Popen([sys.executable, '-c', SCRIPT, str(file)], stdout=subprocess.DEVNULL)
        want = len(done) + 3
        for _ in range(1200):
            if len(read_rows(file)) >= want or p.poll() is not None:
                break
            time.sleep(0.05)
        p.send_signal(signal.SIGKILL)
        p.wait()
        now = [r['data'] for r in read_rows(file)]
        assert now[: len(done)] == done and len(now) >= want, 'rows were lost'
        done = now
    subprocess.run([sys.executable, '-c', SCRIPT, str(file)], check=True, stdout=subprocess.DEVNULL)
    assert [int(r['data']) for r in read_rows(file)] == list(range(40))


def test_a_broken_run_loses_itself_only(tmp_path, capsys):
    def do(run):
        if run['n'] == 1:
            raise MemoryError('no room')
        return dict(data=run['n'])

    with pytest.raises(RuntimeError, match='1 of 3 runs failed.*no room'):
        run_missing([dict(n=n, data='x', seed=n) for n in range(3)], do, tmp_path / 'a.csv', ('data', 'run'))
    assert [r['data'] for r in read_rows(tmp_path / 'a.csv')] == ['0', '2'] and 'FAILED' in capsys.readouterr().out


def test_pairs_only_where_counts_are(tmp_path):
    for r in TOY.runs[:4]:
        run_trial(r, {}, out=tmp_path, device='cpu')
    rows = pair_rows(TOY.runs, tmp_path, resamples=20)
    assert {r['seeds'] for r in rows} == {1} and all(r['t_low'] is None for r in rows) and len(rows) == 5
    assert all(json.loads(r['setting'])['data'] == 'world' and 'arm' not in json.loads(r['setting']) for r in rows)


def test_costs_are_those_of_the_training(monkeypatch):
    "In the precision and the memory order of the suite, not of a plain float32 model."
    seen, time_interleaved = [], costs.time_interleaved

    def record(steps, rounds):
        for step in steps.values():
            step.model.head.coarse_classifier.register_forward_hook(
                lambda m, x, y: seen.append(
                    (y.dtype, x[0].is_contiguous(memory_format=torch.channels_last), x[0].is_contiguous())
                )
            )
        return time_interleaved(steps, rounds)

    monkeypatch.setattr(costs, 'time_interleaved', record)
    few = lambda **train: cost_runs(Trial('world', (32, 32), dict(TOY.train, **train), TINY, ('fcn',), arms=('+idr',)))[
        0
    ]
    (plain,) = measure_costs(few(), 'cpu', 1)
    assert seen[0] == (torch.float32, False, True)
    seen.clear()
    (lean,) = measure_costs(few(amp='bf16', channels_last=True), 'cpu', 1)
    assert seen[0] == (torch.bfloat16, True, False) and lean['gmacs'] == plain['gmacs']


def test_costs_know_the_arms():
    rows = {r['arm']: r for r in measure_costs(cost_runs(TOY)[0], 'cpu', 1)}
    assert set(rows) == {'plain', 'wide', 'attention', 'idr'} and rows['plain']['step_ratio'] == 1
    assert rows['wide']['parameters'] == pytest.approx(rows['idr']['parameters'], rel=0.06)
    assert rows['plain']['gmacs'] < rows['attention']['gmacs'] < rows['idr']['gmacs']
    assert 0 < rows['plain']['peak_bytes'] < rows['attention']['peak_bytes'] < rows['idr']['peak_bytes']


# ---- the command


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(SUITES, 'small', (TOY,))


def test_command(toy, tmp_path, capsys):
    words = ['bench', '--out', str(tmp_path / 'b'), '--jobs', '1', '--device', 'cpu', '--seeds', '2']
    assert main(words) == 0
    said = capsys.readouterr().out
    assert 'idr – attention' in said and 'bootstrap 95 %' in said and 'peak GB' in said
    assert {p.name for p in (tmp_path / 'b').iterdir()} == {
        'bench.csv',
        'bench_pairs.csv',
        'bench_costs.csv',
        'forest.png',
        'counts',
        '.lock',
    }
    before = {p.name: p.read_bytes() for p in (tmp_path / 'b').glob('bench.csv')}
    assert main(words) == 0 and {p.name: p.read_bytes() for p in (tmp_path / 'b').glob('bench.csv')} == before, (
        'nothing is run twice'
    )
    rows = read_rows(tmp_path / 'b' / 'bench.csv')
    assert len(rows) == 8 and all(
        r['date'] and r['torch'] and r['device'] and json.loads(r['run'])['train'] for r in rows
    )


@pytest.mark.parametrize(
    'words, said',
    [
        (['--suite', 'real'], None),
        (['--frameworks', 'fcm'], 'no frameworks fcm'),
        (['--root', 'camvid'], 'DATA=DIR'),
        (['--root', 'kamvid=.'], 'no such dataset'),
        (['--root', 'camvid=nowhere'], 'no such folder'),
        (['--weights', 'nowhere.safetensors'], 'no such file'),
        (['--seeds', '0'], 'whole number from 1'),
    ],
)
def test_command_says_what_is_wrong(words, said, tmp_path, capsys, monkeypatch):
    if said is None:
        monkeypatch.setitem(SUITES, 'real', SUITES['real'][1:])
        said = 'no trial of suite'
    try:
        code = main(['bench', '--out', str(tmp_path), *words])
    except SystemExit as e:
        code = e.code  # of argparse, which prints the usage first
    told = capsys.readouterr().err
    assert code == 2 and said in told and said in told.strip().splitlines()[-1]


def test_failed_runs_are_said(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials, 'run_variant', lambda *a, **k: (_ for _ in ()).throw(ValueError('no luck')))
    assert main(['bench', '--out', str(tmp_path / 'b'), '--jobs', '1', '--device', 'cpu']) == 2
    assert 'no luck' in capsys.readouterr().err


def test_other_file_is_left_alone(toy, tmp_path, capsys):
    (tmp_path / 'bench.csv').write_text('a,b\n1,2\n')
    assert main(['bench', '--out', str(tmp_path), '--jobs', '1', '--device', 'cpu']) == 2
    assert 'a different file' in capsys.readouterr().err and (tmp_path / 'bench.csv').read_text() == 'a,b\n1,2\n'


# ---- idrnet speed


def test_speed_command(tmp_path, capsys, monkeypatch):
    from idrnet_nb.experiments import speed as gauge

    monkeypatch.setattr(
        gauge, 'planned', lambda quick, device: [dict(kind='loops', k=5, grid=[8, 8], c=16, b=2, rounds=1)] * quick
    )
    assert main(['speed', '--quick', '--out', str(tmp_path), '--device', 'cpu']) == 0
    said = capsys.readouterr().out
    assert 'loops' in said and 'not measured' in said and len(read_rows(tmp_path / 'speed.csv')) == 1
    (tmp_path / 'speed.csv').write_text('a\n1\n')
    assert (
        main(['speed', '--quick', '--out', str(tmp_path), '--device', 'cpu']) == 2
        and 'a different file' in capsys.readouterr().err
    )
    assert (
        main(['speed', '--quick', '--out', str(tmp_path / 'x'), '--device', 'tpu']) == 2
        and 'tpu' in capsys.readouterr().err
    )


_APPEND = "import sys; from idrnet_nb.experiments.results import append_rows\nfor i in range(15): append_rows(sys.argv[1], [dict(who=sys.argv[2], i=i)], ('who','i'))"


def test_rows_of_two_processes(tmp_path):
    import subprocess, sys

    both = [subprocess.Popen([sys.executable, '-c', _APPEND, str(tmp_path / 'a.csv'), who]) for who in 'ab']
    assert [p.wait() for p in both] == [0, 0]
    assert sorted((r['who'], int(r['i'])) for r in read_rows(tmp_path / 'a.csv')) == [
        (w, i) for w in 'ab' for i in range(15)
    ]


def test_more_seeds_stay(tmp_path):
    row = dict(setting='s', framework='fcn', arm='idr', against='plain', gain=1.0)
    update_pairs(tmp_path / 'p.csv', [{**row, 'seeds': 5}])
    assert update_pairs(tmp_path / 'p.csv', [{**row, 'seeds': 3, 'gain': 2.0}])[0]['seeds'] == '5'
    assert update_pairs(tmp_path / 'p.csv', [{**row, 'seeds': 5, 'gain': 3.0}])[0]['gain'] == '3.0'


def test_the_same_run_twice_in_a_plan(tmp_path):
    assert (
        run_missing(
            [dict(arm='x', seed=0)] * 2,
            lambda run: dict(arm='x', seed=0, miou=1.0, seconds=0.0),
            tmp_path / 'r.csv',
            COLUMNS,
            progress=False,
        )
        == 1
    )


def _deadly(run):
    if run['seed'] == 1:
        os._exit(1)  # as the kernel does it where memory ends
    return dict(arm=run['arm'], seed=run['seed'], miou=1.0, seconds=0.0)


def test_a_process_that_dies_loses_one_run(tmp_path):
    runs = [dict(arm='x', seed=s) for s in range(6)]
    with pytest.raises(RuntimeError, match='1 of 6 runs failed.*seed 1: MemoryError: its process died'):
        run_missing(runs, _deadly, tmp_path / 'r.csv', COLUMNS, jobs=2, progress=False)
    assert sorted(r['seed'] for r in read_rows(tmp_path / 'r.csv')) == list('02345')


def test_a_run_of_another_process_is_not_written_twice(tmp_path):
    "Two benches in one folder: whoever ends second finds the row, and the seeds are not doubled."
    file = tmp_path / 'b.csv'

    def do(run):
        append_rows(file, [dict(miou=1.0, seconds=0.0, run=key(run))], COLUMNS)
        return dict(miou=1.0, seconds=0.0)

    run_missing([dict(data='x', seed=0)], do, file, COLUMNS, progress=False)
    assert len(read_rows(file)) == 1


def test_lost_and_broken_counts_are_said(toy, tmp_path, capsys):
    out = tmp_path / 'b'
    main(['bench', '--suite', 'small', '--seeds', '2', '--out', str(out), '--jobs', '1'])
    capsys.readouterr()
    lost, broken = sorted((out / 'counts').iterdir())[:2]
    lost.unlink()
    broken.write_bytes(b'half')
    with pytest.warns(UserWarning, match='cannot be read'):
        assert main(['bench', '--suite', 'small', '--seeds', '2', '--out', str(out), '--jobs', '1']) == 0
    assert '1 of 8 runs have a row but no counts' in capsys.readouterr().out


def test_judged_on_other_pictures(tmp_path):
    a, b = (dict(TOY.runs[i]) for i in (0, 2))
    for run, n in ((a, 4), (b, 5)):
        from safetensors.torch import save_file

        save_file({'counts': torch.ones(n, 12, 12, dtype=torch.int32)}, counts_file(run, tmp_path))
    with pytest.raises(ValueError, match=r'different numbers of images, \[4, 5\]'):
        pair_rows([a, b], tmp_path)


def test_nothing_but_void():
    "No class anywhere: no gain, no chance of one, and a figure all the same."
    found = paired(np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4, 4)), 50)
    assert np.isnan(found.gain) and np.isnan(found.better)
    row = dict(
        framework='fcn',
        data='x',
        size='8x8',
        how='9 steps',
        weights='scratch',
        arm='idr',
        against='plain',
        seeds='2',
        **{k: '' for k in ('gain', 'low', 'high', 'better', 't_low', 't_high')},
    )
    assert 'one seed' not in show_pairs([row]).to_string() and verdict(row) == 'open' and show_forest([row]).axes


def test_costs_of_another_machine_are_measured_again(tmp_path, monkeypatch):
    SUITES['one'] = (
        Trial('world', (32, 32), dict(steps=1, batch_size=4), TINY, ('fcn',), 1, pictures=(16, 6), arms=('',)),
    )
    try:
        bench('one', tmp_path, jobs=1, progress=False)
        here = read_rows(tmp_path / 'bench_costs.csv')
        real = benchmark.provenance
        for room in benchmark, costs:
            monkeypatch.setattr(room, 'provenance', lambda d: dict(real(d), device='another'))
        found = bench('one', tmp_path, jobs=1, progress=False)
    finally:
        del SUITES['one']
    assert (
        len(read_rows(tmp_path / 'bench_costs.csv')) == 2 * len(here)
        and {r['device'] for r in found['costs']} == {'another'}
        and len(read_rows(tmp_path / 'bench.csv')) == 1
    )


def test_finished_runs_of_a_comparison_are_kept(tmp_path, monkeypatch):
    "The second of three fails: the row of the first is there, its error is what one sees, the third is not begun."
    began, run_variant = [], comparison.run_variant

    def second_fails(variant, *args, **how):
        began.append(variant)
        if len(began) == 2:
            raise ValueError('broken picture')
        return run_variant(variant, *args, **how)

    monkeypatch.setattr(comparison, 'run_variant', second_fails)
    settings = dict(jobs=1, progress=False, results=tmp_path / 'r.csv', width=8, attention_width=8, aux_width=8)
    with pytest.raises(ValueError, match='broken picture'):
        compare(
            toy_world_task(4, 2, 32),
            ('fcn',),
            (0, 1, 2),
            tmp_path,
            TrainConfig(steps=1, batch_size=2),
            'cpu',
            **settings,
        )
    assert [r['seed'] for r in read_rows(tmp_path / 'r.csv')] == ['0'] and len(began) == 2


def _begin(run):
    (run['out'] / str(run['n'])).touch()
    if run['n'] == 0:
        raise ValueError('broken picture')
    time.sleep(0.2)


def test_who_stops_reading_stops_the_work(tmp_path):
    "Two processes, twelve runs: after the first outcome nothing new is begun, and the error is the one that was raised."
    outcomes = complete([dict(n=n, out=tmp_path) for n in range(12)], _begin, jobs=2)
    first = next(outcomes)
    outcomes.close()
    assert isinstance(first, Outcome) and isinstance(first.error, ValueError) and str(first.error) == 'broken picture'
    assert len(list(tmp_path.iterdir())) <= 4


def _warn(run):
    warnings.warn('class 8 has no pixel')


def test_what_workers_warn_of_is_reported_once_by_the_parent():
    with pytest.warns(UserWarning) as caught:
        assert len(list(complete([1, 2, 3], _warn, jobs=2))) == 3
    assert [str(w.message) for w in caught] == ['class 8 has no pixel']


class Strange(Exception):
    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def _strange(run):
    raise Strange(run, 'no pickle')


def test_an_error_that_pickle_cannot_carry():
    found = list(complete([1, 2], _strange, jobs=2))
    assert sorted(str(o.error) for o in found) == ['Strange: 1 and no pickle', 'Strange: 2 and no pickle']


def test_a_comparison_in_processes_is_that_in_one(tmp_path):
    task, config = toy_world_task(8, 4, 32), TrainConfig(steps=2, batch_size=2)
    how = dict(device='cpu', progress=False, width=8, attention_width=8, aux_width=8)
    one, two = (
        compare(task, ('fcn', 'fcn+idr'), (0, 1), tmp_path / str(jobs), config, jobs=jobs, **how) for jobs in (1, 2)
    )
    for variant, rows in one['arms'].items():
        assert [(r['seed'], r['miou'], r['loss']) for r in rows] == [
            (r['seed'], r['miou'], r['loss']) for r in two['arms'][variant]
        ]
