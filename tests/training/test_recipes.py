"""What recipes cost: counts against torch's profiler, against a real step, against sums by hand; timed runs that shrink; the tool that keeps the rows."""

import importlib.util, json, math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest, torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from idrnet_nb.models import head as head_room
from idrnet_nb.training import costs as room
from idrnet_nb.data.datasets import DATASETS
from idrnet_nb.data.mirrored_classes import left_right
from idrnet_nb.method.layers import mean_loss, pixel_losses, upsample
from idrnet_nb.models.profiling import count_flops
from idrnet_nb.experiments.results import read_rows
from idrnet_nb.models.author_weights import PUBLISHED, settings_of
from idrnet_nb.training.costs import cost, hours, show_costs, timed
from idrnet_nb.training.inference import EvalProtocol
from idrnet_nb.training.recipes import RECIPES, REPORTED, mini

ROOT = Path(__file__).resolve().parents[2]
FCN, UPER, LIP = (
    mini(RECIPES[f'idrnet_{n}'], 48)
    for n in ('fcn_resnet50os8_ade20k', 'upernet_resnet50os8_ade20k', 'aspp_resnet50os8_lip')
)


def how(recipe, **changes):
    return replace(recipe, train=replace(recipe.train, **changes))


KEPT = {}


def priced(recipe, batch_size=None, processes=1, pictures=100):
    "`cost`, once for each question."
    key = json.dumps([recipe.to_json(), batch_size, processes, pictures])
    if key not in KEPT:
        KEPT[key] = cost(recipe, pictures, batch_size, processes)
    return KEPT[key]


def without(cost, *keys):
    return {k: v for k, v in cost.items() if k not in keys}


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('tools_cost', ROOT / 'tools' / 'cost.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- values


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_recipe_is_the_published_model(name):
    "recipes.json and the settings that a converted checkpoint is built with say the same."
    recipe, of = RECIPES[name], settings_of(name)
    of = dict(of, protocol=EvalProtocol(**of['protocol']))
    assert (recipe.space, recipe.backbone, recipe.head, recipe.protocol) == (
        of['space'],
        of['backbone'],
        of['head'],
        of['protocol'],
    )


def test_left_and_right_in_recipes():
    "Flip pairs are written in recipes.json; the label spaces know them as well."
    for name, recipe in RECIPES.items():
        pairs = left_right(recipe.space)
        assert recipe.augment.flip_pairs in ((), pairs) and recipe.protocol.flip_pairs in ((), pairs), name
        if not name.startswith('idrnet'):
            assert recipe.augment.flip_pairs == recipe.protocol.flip_pairs == pairs, name


# ---- bytes


def profiled(f):
    "The most bytes that torch's own profiler saw allocated and not yet freed, and the largest buffer that an operation had for itself."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        f()
    todo, found = list(p.profiler.kineto_results.experimental_event_tree()), []
    while todo:
        e = todo.pop()
        todo += e.children
        if e.tag.name == 'Allocation':
            found.append((e.start_time_ns, e.extra_fields.alloc_size))
    now = peak = 0
    for _, n in sorted(found, key=lambda x: x[0]):
        now += n
        peak = max(peak, now)
    assert len(found) > 4
    return peak


def held(f, known=lambda: ()):
    with room.MemoryTracker() as h:
        for t in known():
            h.follow(t.untyped_storage())
        t = None  # noqa: F841, or the last would live on
        f()
    return h


@pytest.mark.parametrize('rows,hidden,layers', [(1000, 64, 2), (300, 200, 3), (7, 5, 4)])
def test_bytes_are_those_of_the_profiler(rows, hidden, layers):
    net = nn.Sequential(
        *[m for i in range(layers) for m in (nn.Linear(8 if i == 0 else hidden, hidden), nn.ReLU())],
        nn.Linear(hidden, 4),
    )
    x, weights = torch.rand(rows, 8), sum(p.nbytes for p in net.parameters())

    def step():
        net(x).sum().backward()

    seen = profiled(step)
    net.zero_grad()
    assert held(step, net.parameters).peak == seen + weights  # which were there before the profiler looked


def test_nothing_stays_and_views_are_free():
    def f():
        x = torch.rand(100, 100)
        y = x.t().reshape(-1)[5:]
        x.add_(1)
        y.view(-1)
        x.split(10)

    h = held(f)
    assert h.peak == 2 * 40000 and h.now == 0 and not h.sizes


@pytest.mark.parametrize('recipe', [FCN, UPER, LIP], ids=lambda r: r.name)
@pytest.mark.parametrize('amp', [None, 'bf16'])
def test_a_fake_step_holds_what_a_real_one_holds(recipe, amp, monkeypatch):
    "Equal where losses are taken on whole maps, as they are counted; training takes them strip by strip, and holds no more."
    short, counted = _real(recipe, amp), priced(how(recipe, amp='bf16'))['amp_bytes' if amp else 'peak_bytes']

    def whole(z, y, ignore):
        each = pixel_losses(upsample(z, y.shape[-2:]), y, ignore)
        return mean_loss(each, y, ignore), each.detach()

    monkeypatch.setattr(head_room, 'tiled_cross_entropy', whole)
    assert math.isclose(counted, _real(recipe, amp), rel_tol=1e-3 if amp else 1e-6)
    assert short <= 1.02 * counted


def _real(recipe, amp):  # the most that a real step holds
    model = recipe.build()
    opt = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)

    def step():
        opt.step()
        opt.zero_grad()
        room._forward_backward(recipe, model, 4, amp)
        opt.step()

    return held(step, lambda: [*model.parameters(), *model.buffers(), *[p.grad for p in model.parameters()]]).peak


@pytest.mark.parametrize('recipe', [FCN, UPER], ids=lambda r: r.name)
def test_linear_in_the_batch(recipe):
    two, four, eight = (priced(recipe, n) for n in (2, 4, 8))
    grown, floor = four['peak_bytes'] - two['peak_bytes'], 2 * two['peak_bytes'] - four['peak_bytes']
    assert eight['peak_bytes'] - four['peak_bytes'] == 2 * grown
    weights = sum(t.nbytes for t in [*recipe.build().parameters()])
    assert (
        3 * weights <= floor < 6 * weights
    )  # weights, AdamW's two means and the gradients that have come, and the running means
    assert math.isclose(four['tflops'], 2 * two['tflops'], rel_tol=1e-3) and math.isclose(
        eight['tflops'], 4 * two['tflops'], rel_tol=1e-3
    )
    assert (two['parameters'], two['steps'], eight['steps']) == (weights // 4, 8 * 50, 8 * 12)


def test_grows_with_the_crop():
    wide = replace(FCN, augment=replace(FCN.augment, crop=(48, 96)))
    a, b = priced(FCN, 2), cost(wide, 100, 2)
    assert (
        1.5 < b['peak_bytes'] / a['peak_bytes'] < 2.5
        and 1.9 < b['tflops'] / a['tflops'] < 2.5
        and b['parameters'] == a['parameters']
    )


@pytest.mark.parametrize('processes', [1, 4])
def test_a_share_is_a_smaller_batch(processes):
    shared, alone = priced(FCN, 8, processes), priced(FCN, 8 // processes)
    assert without(shared, 'processes', 'steps', 'exaflops') == without(alone, 'processes', 'steps', 'exaflops')
    assert (
        shared['processes'] == processes
        and shared['steps'] == 8 * 12
        and shared['exaflops'] == pytest.approx(shared['tflops'] * processes * 96 / 1e6)
    )


def test_optimisers_ema_frozen_accumulate():
    adamw, sgd, ema, frozen, parts = (
        priced(how(FCN, **c))
        for c in (dict(batch_size=4), dict(optimiser='sgd'), dict(ema=0.99), dict(frozen=True), dict(accumulate=2))
    )
    model = FCN.build()
    n = len([*model.parameters()])
    assert (
        adamw['peak_bytes'] - sgd['peak_bytes'] == 4 * adamw['parameters'] + 4 * n
    )  # one state more, and its count of steps
    assert ema['peak_bytes'] - adamw['peak_bytes'] == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert 1 / 3 < frozen['tflops'] / adamw['tflops'] < 0.9 and frozen['parameters'] == adamw['parameters']
    assert frozen['peak_bytes'] < adamw['peak_bytes'] - 4 * 3 * sum(p.numel() for p in model.backbone.parameters())
    assert parts['batch'] == 4 and priced(FCN, 2)['peak_bytes'] < parts['peak_bytes'] < 0.75 * adamw['peak_bytes']


def test_counting_leaves_no_trace():
    torch.manual_seed(3)
    before, tracked = torch.get_rng_state(), FCN.to_json()
    mode = torch.is_autocast_enabled('cpu')
    cost(how(FCN, amp='bf16'), 100)
    assert (
        torch.is_autocast_enabled('cpu') == mode
        and FCN.to_json() == tracked
        and type(torch.zeros(2)) is torch.Tensor
        and torch.zeros(2).sum().item() == 0
    )
    assert (
        before.shape == torch.get_rng_state().shape and (FCN.build()(torch.zeros(2, 3, 48, 48)).logits).isfinite().all()
    )


@pytest.mark.parametrize(
    'batch,processes,accumulate,said',
    [(8, 3, 1, 'shared by 3 processes'), (4, 4, 2, 'take a multiple of 8'), (6, 1, 4, 'in 4 parts each')],
)
def test_a_batch_that_cannot_be_shared(batch, processes, accumulate, said):
    with pytest.raises(ValueError, match=said):
        cost(replace(how(FCN, batch_size=8, accumulate=accumulate), name='r'), 100, batch, processes)


def test_too_few_pictures():
    with pytest.raises(ValueError, match='3 images make no batch of 4'):
        cost(FCN, 3)


# ---- operations


@pytest.mark.parametrize(
    'b,i,o,kernel,stride,groups,side',
    [(1, 8, 16, 3, 1, 1, 32), (2, 8, 16, 1, 2, 1, 9), (3, 12, 24, 5, 1, 12, 16), (1, 3, 64, 7, 2, 1, 33)],
)
def test_a_convolution_by_formula(b, i, o, kernel, stride, groups, side):
    from torch.utils.flop_counter import FlopCounterMode

    net = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups)
    x = torch.zeros(b, i, side, side)
    with FlopCounterMode(display=False) as f:
        y = net(x)
    assert f.get_total_flops() == 2 * b * o * (i // groups) * kernel**2 * y.shape[-1] * y.shape[-2]


def test_operations_of_a_plain_model_layer_by_layer():
    "Forward once and backward twice (to the input, to the weights) for each layer; nothing goes back into the pictures."
    plain = replace(FCN, head=replace(FCN.head, idr=False))
    model, found, first = plain.build(), [], []

    def look(m, x, y):
        first.append(not x[0].requires_grad)
        found.append(2 * y.numel() * m.weight[0].numel())

    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.register_forward_hook(look)
    room._forward_backward(plain, model, 4, None)
    part = [model.head.classifier.hidden.conv]  # the one whose weight is used without it
    found += [2 * 4 * 12 * 12 * m.weight.numel() for m in part]
    first += [False] * len(part)
    assert sum(first) == 1
    assert cost(plain, 100)['tflops'] * 1e12 == pytest.approx(
        sum(n * (2 if is_first else 3) for n, is_first in zip(found, first)), rel=1e-6
    )


def test_attention_is_counted_on_every_torch():
    q, k, v = (torch.rand(2, 4, n, 16, requires_grad=True) for n in (10, 20, 20))
    with count_flops() as f:
        y = nn.functional.scaled_dot_product_attention(q, k, v)
    once = 2 * 2 * 4 * 10 * 20 * 16
    assert f.get_total_flops() == 2 * once
    with count_flops() as f:
        y.sum().backward()
    assert f.get_total_flops() == 5 * once  # the scores are made again


def test_hours():
    found = priced(FCN)
    assert hours(found, 2 * found['tflops']) == pytest.approx(found['steps'] / 2 / 3600) and hours(
        {k: str(v) for k, v in found.items()}, 1
    ) == pytest.approx(hours(found, 1))
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match='state a positive speed'):
            hours(found, bad)


# ---- timed


@pytest.mark.parametrize('recipe', [FCN, UPER, LIP], ids=lambda r: r.name)
def test_timed_on_a_small_recipe(recipe):
    t = timed(recipe, 'cpu', steps=2, pictures=101)
    assert (
        0 < t['seconds'] < 20
        and t['spread'] >= 1
        and t['batch'] == 4
        and t['peak'] == 'counted'
        and t['scaled'] is False
        and t['steps'] == 8 * 25
    )
    assert t['peak_bytes'] == priced(recipe, 4)['peak_bytes'] and t['hours'] == pytest.approx(t['seconds'] * 200 / 3600)


@pytest.fixture
def trainings(monkeypatch):
    "Stands for `train`: notes how it was called, takes `pace` seconds a picture on a clock of its own; more than `most` pictures do not fit."

    class Noted(list):
        pace, most, now, first = 0.5, 10**9, 0.0, 0.0

    calls = Noted()

    def train(model, data, config, device, progress, on_step, try_first=True):
        calls.append((len(data), config))
        if len(data) > calls.most:
            raise MemoryError('step 0: out of memory')
        for i in range(config.steps):
            calls.now += calls.pace * len(data) * (1 + i % 2) + (calls.first if i == 0 else 0)
            on_step(i)

    monkeypatch.setattr(room, 'train', train)
    monkeypatch.setattr(room.time, 'perf_counter', lambda: calls.now)
    return calls


def test_the_first_step_is_not_timed(trainings):
    trainings.first = 100.0
    t = timed(FCN, 'cpu', 2, steps=4)
    assert (
        [c.steps for _, c in trainings] == [5]
        and t['spread'] == 2
        and t['seconds'] == 1.5
        and t['picture_seconds'] == 0.75
        and (t['hours'], t['steps']) == (None, None)
    )


def test_a_batch_that_does_not_fit_is_halved(trainings):
    trainings.most = 3
    t = timed(how(FCN, batch_size=16), 'cpu', steps=1, pictures=1600)
    assert [n for n, _ in trainings] == [2, 16, 8, 4, 2] and t['batch'] == 2 and t['scaled'] is True
    assert t['picture_seconds'] == 1.0 and t['hours'] == pytest.approx(16 * 800 / 3600)  # 8 epochs of 100 steps of 16


def test_two_that_do_not_fit(trainings):
    trainings.most = 1
    with pytest.raises(MemoryError):
        timed(FCN, 'cpu', 2)
    assert timed(FCN, 'cpu', 1)['batch'] == 1


@pytest.mark.parametrize('most,batch', [(60, 16), (8, 16), (7.9, 15), (2, 4), (0.1, 2)])
def test_a_slow_machine_sees_fewer_pictures(trainings, most, batch):
    assert timed(how(FCN, batch_size=16), 'cpu', steps=1, most=most)['batch'] == batch  # half a second a picture


def test_settings_reach_the_training(trainings):
    timed(
        how(FCN, batch_size=12, accumulate=6, amp='bf16', optimiser='sgd', warmup=9, warmup_from=0.1), 'cpu', 4, steps=1
    )
    c = trainings[-1][1]
    assert (c.batch_size, c.accumulate, c.amp, c.optimiser, c.warmup) == (4, 2, 'bf16', 'sgd', 0)


def test_bytes_under_amp(trainings):
    t = timed(how(FCN, amp='bf16'), 'cpu', steps=1)
    assert t['peak_bytes'] == priced(how(FCN, amp='bf16'))['amp_bytes'] != priced(FCN)['peak_bytes']


# ---- the rows that are kept


def test_kept_rows(tool):
    rows = read_rows(tool.FILE)
    assert set(rows[0]) == set(tool.COLUMNS)
    counted = {(r['recipe'], int(r['processes'])): r for r in rows if r['kind'] == 'counted'}
    assert Counter(r['kind'] for r in rows)['counted'] == len(counted) and {n for n, _ in counted} == set(RECIPES)
    assert all((n, 8) in counted for n in RECIPES if not n.startswith('laptop')) and set(tool.PICTURES) == set(DATASETS)
    for (name, n), r in counted.items():
        recipe, one = RECIPES[name], counted[name, 1]
        assert (
            int(r['batch']) * n == recipe.train.batch_size
            and int(r['pictures']) == tool.PICTURES[recipe.data]
            and int(r['steps']) == recipe.config(int(r['pictures'])).steps
        )
        assert float(r['exaflops']) == pytest.approx(
            float(r['tflops']) * n * int(r['steps']) / 1e6, rel=1e-3
        ) and float(r['tflops']) * n == pytest.approx(float(one['tflops']), rel=5e-3)
        assert (
            int(r['amp_bytes'] or 0) < int(r['peak_bytes']) <= int(one['peak_bytes'])
            and r['parameters'] == one['parameters']
        )


def test_a_kept_row_is_still_true(tool):
    row = next(
        r for r in read_rows(tool.FILE) if r['recipe'] == 'laptop_fcn_stanford_background' and r['kind'] == 'counted'
    )
    now = cost(RECIPES[row['recipe']], 572)
    assert now['parameters'] == int(row['parameters']) and now['tflops'] == pytest.approx(
        float(row['tflops']), rel=1e-3
    )
    assert now['peak_bytes'] == pytest.approx(int(row['peak_bytes']), rel=0.02)


def test_timed_rows(tool):
    found = [r for r in read_rows(tool.FILE) if r['kind'] == 'timed']
    assert {'laptop_fcn_camvid', 'laptop_upernet_camvid'} <= {r['recipe'] for r in found}
    for r in found:
        c = RECIPES[r['recipe']].config(int(r['pictures']))
        assert (
            float(r['hours']) == pytest.approx(float(r['picture_seconds']) * c.batch_size * c.steps / 3600, rel=1e-3)
            and r['device']
            and float(r['spread']) >= 1
        )
        assert (r['scaled'] == 'True') == (int(r['batch']) != c.batch_size)


def test_table(tool):
    told = show_costs([r for r in read_rows(tool.FILE) if r['recipe'] in REPORTED], tflops=50).split('\n')
    assert (
        told[0].split()[-1] == 'hours'
        and {line.split()[0] for line in told[1:21]} == set(REPORTED)
        and len({len(line) for line in told[:21]}) == 1
    )
    for data in DATASETS:
        text = show_costs(read_rows(tool.FILE), data, 500)
        assert f'laptop_fcn_{data} ' in text and len(
            [line for line in text.split('\n')[1:] if not line.startswith('timed')]
        ) == sum(r.data == data for r in RECIPES.values())


def test_rows_are_made_once(tool, tmp_path, monkeypatch, capsys):
    file, calls = tmp_path / 'recipes.csv', []

    def count(recipe, pictures, processes):
        calls.append((recipe.name, processes, recipe.train.amp))
        return dict(batch=2, processes=processes, tflops=1 / 3, peak_bytes=7)

    def clock(recipe, device, batch, steps, pictures):
        calls.append((recipe.name, batch))
        return dict(batch=batch or 8, seconds=1.0, picture_seconds=0.5)

    monkeypatch.setattr(tool, 'cost', count)
    monkeypatch.setattr(tool, 'timed', clock)
    big, small = 'idrnet_fcn_resnet50os8_ade20k', 'laptop_fcn_camvid'
    for _ in range(2):
        tool.count([big, small], file)
    assert calls == [(big, 1, 'bf16'), (big, 8, 'bf16'), (small, 1, 'bf16')]
    del calls[:]
    for batch in (2, 2, None, None, 4):
        tool.time([small], 'cpu', batch, 3, 'busy', file)
    tool.time([big], 'cpu', None, 3, '', file)
    tool.time([big], 'cpu', None, 3, '', file)
    assert calls == [(small, 2), (small, 4), (big, None)]  # without a batch, any row will do
    rows = read_rows(file)
    assert [(r['kind'], r['batch'], r['note']) for r in rows][2:5] == [
        ('counted', '2', ''),
        ('timed', '2', 'busy'),
        ('timed', '4', 'busy'),
    ] and rows[0]['tflops'] == '0.33333'
    assert (
        'cpu' in rows[3]['device']
        and rows[0]['device'].startswith('none')
        and rows[0]['date']
        and capsys.readouterr().out.count('\n') == 6
    )


def test_strange_columns_and_names(tool, tmp_path, monkeypatch, capsys):
    file = tmp_path / 'recipes.csv'
    file.write_text('recipe,kind,colour\nx,timed,red\n')
    with pytest.raises(ValueError, match="recipes.csv.*colour"):
        tool.add(dict(recipe='y', kind='timed'), file)
    assert file.read_text() == 'recipe,kind,colour\nx,timed,red\n'
    monkeypatch.setattr('sys.argv', ['cost.py', '--timed', 'laptop_fcn_camvid', 'nothing'])
    with pytest.raises(SystemExit):
        tool.main()
    assert 'no such recipes: nothing' in capsys.readouterr().err
