"""A training that is interrupted anywhere, in whatever way, and resumed, is the training that was not: the same bits, and never a lost best.

The loop itself is held against a plain one written out here, and its options against closed forms."""

import copy, itertools, json, math, multiprocessing as mp, os, random, resource, signal, sys, time, warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from noisy_images import NoisyImages
from safetensors import safe_open
from torch import nn
from idrnet_nb.training import checkpoint
from idrnet_nb.models.any_size import pad_to_multiple
from idrnet_nb.training.checkpoint import checkpoints, load_checkpoint, pack, save_checkpoint, unpack
from idrnet_nb.common.checks import IGNORE
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.common.device import seed_everything
from idrnet_nb.data.transforms import Augment
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.inference import evaluate
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.sampler import batches, batch_indices
from idrnet_nb.training.schedule import param_groups
from idrnet_nb.training.trainer import train
from idrnet_nb.training.logger import read_log

K, SMALL = 4, dict(width=8, attention_width=6, aux_width=8)
SPACE = LabelSpace('made up', tuple(f'class {i}' for i in range(K)), tuple(map(tuple, palette(K).tolist())))


def make(framework='fcn', seed=0, **settings):
    seed_everything(seed)
    return build_segmentor(framework, 'tiny', K, **{**SMALL, **settings})


def png(array):
    import io

    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def rows(n=10, size=20):
    "Rows as a dataset gives them, in memory; some pixels are void."
    r = np.random.default_rng(0)
    label = [np.where((y := r.integers(0, K + 1, (size, size))) == K, IGNORE, y).astype(np.uint8) for _ in range(n)]
    image = [r.integers(0, 256, (size, size, 3)).astype(np.uint8) for _ in range(n)]
    return [
        dict(image=dict(bytes=png(x), path=f'photo{i}.png'), label=dict(bytes=png(y), path=f'mask{i}.png'))
        for i, (x, y) in enumerate(zip(image, label))
    ]


def pairs(n=10, augment=True):
    return SegmentationDataset(rows(n), SPACE, augment=Augment(crop=(16, 16), seed=1) if augment else None)


def chance():
    return NoisyImages(pairs(augment=False))


CONFIG = TrainConfig(steps=7, batch_size=4, lr=1e-2, warmup=2, seed=3, log_every=2)


def same(a, b, at=''):
    "Two nested states, bit for bit."
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for k in a:
            same(a[k], b[k], f'{at}/{k}')
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f'{at}/{i}')
    else:
        assert a == b, f'{at}: {a} {b}'


class Killed(BaseException):
    pass


def stop_after(n):
    def on_step(step):
        if step == n - 1:
            raise Killed

    return on_step


def finish(out, data, config, framework='fcn', stop=None, seed=0, **how):
    "One life of a training: up to the end, or to the step after which it is killed."
    model = make(framework, seed)
    how = {**dict(save_every=3, keep=2), **how}
    try:
        return model, train(model, data, config, 'cpu', False, stop_after(stop) if stop else None, out=out, **how)
    except Killed:
        return model, None


def untimed(out):
    return [{k: v for k, v in l.items() if k != 'time'} for l in read_log(out)]


# --- the loop is the plain loop


def plain_loop(model, data, config):
    "What `train` does with the plain settings, written out; a shuffled DataLoader, LambdaLR, nothing else."
    picking, records = seed_everything(config.seed), []
    model.train()
    opt = (torch.optim.AdamW if config.optimiser == 'adamw' else lambda g: torch.optim.SGD(g, momentum=0.9))(
        param_groups(model, config)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min(1.0, (s + 1) / max(1, config.warmup)) * (1 - s / config.steps) ** config.power
    )
    loader = torch.utils.data.DataLoader(
        data, config.batch_size, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(config.seed)
    )

    def endless():
        for epoch in itertools.count():
            if hasattr(data, 'set_epoch'):
                data.set_epoch(epoch)
            yield from loader

    for step, (images, labels) in zip(range(config.steps), endless()):
        noise = torch.rand(len(images), K, generator=picking)
        with torch.autocast('cpu', torch.bfloat16, enabled=config.amp == 'bf16'):
            out = model(images, labels, uniform=noise)
        opt.zero_grad()
        out.loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        opt.step()
        schedule.step()
        if step % config.log_every == 0 or step == config.steps - 1:
            records.append(
                dict(
                    step=step,
                    lr=opt.param_groups[-1]['lr'],
                    loss=out.loss.item(),
                    **{n: l.item() for n, l in out.losses.items()},
                )
            )
    return records


@pytest.mark.parametrize(
    'framework,change',
    [
        ('fcn', {}),
        ('pspnet', dict(optimiser='sgd', clip=0.5, power=1.0)),
        ('upernet', dict(warmup=0, backbone_lr=0.1, log_every=1)),
        ('ocrnet', dict(amp='bf16')),
    ],
)
@pytest.mark.parametrize('data', [pairs, chance])
def test_train_is_the_plain_loop(framework, change, data):
    "Order, chance, learning rate, losses, weights, and where torch's generator stands at the end: not a bit differs."
    config, got = replace(CONFIG, **change), []
    for f in (plain_loop, lambda m, d, c: train(m, d, c, 'cpu', progress=False)):
        model = make(framework)
        records = f(model, data(), config)
        got.append((records, model.state_dict(), torch.get_rng_state()))
    same(*got)


def test_workers_change_nothing():
    "All chance of these pictures is seeded by picture and epoch; without workers and with, over three epochs, persistent workers included."
    data, told = pairs(), []
    for workers in (0, 2):
        told.append([(x.clone(), y.clone()) for x, y in itertools.islice(batches(data, 4, 5, workers), 6)])
    same(*told)
    assert not told[0][0][0].equal(told[0][2][0])


def test_chance_in_workers_does_not_depend_on_who_they_are():
    got = [
        [x.clone() for x, _ in itertools.islice(batches(chance(), 4, 5, w, start), n)]
        for w, start, n in ((1, 0, 5), (2, 0, 5), (2, 2, 3))
    ]
    same(got[0], got[1])
    same(got[0][2:], got[2])


# --- resumed is uninterrupted


@pytest.mark.parametrize('framework,workers', [(f, 0) for f in FRAMEWORKS] + [('fcn', 2), ('upernet', 2)])
def test_resumed_is_uninterrupted(framework, workers, tmp_path):
    "Killed in the middle of the second epoch, one step after the last checkpoint, by another process's chance and weights resumed."
    config = replace(CONFIG, workers=workers)
    model, records = finish(tmp_path / 'whole', pairs(), config, framework)
    finish(tmp_path / 'cut', pairs(), config, framework, stop=4)
    assert [c['step'] for c in checkpoints(tmp_path / 'cut' / 'checkpoints')] == [3]
    torch.rand(7)
    random.random()
    other, again = finish(tmp_path / 'cut', pairs(), config, framework, resume=True, seed=9)
    same(model.state_dict(), other.state_dict())
    same(records, again)
    same(untimed(tmp_path / 'whole'), untimed(tmp_path / 'cut'))
    same(
        *(load_checkpoint(tmp_path / d / 'checkpoints')['state'] for d in ('whole', 'cut'))
    )  # optimiser, chance, everything
    assert not torch.equal(next(model.parameters()), next(make(framework, 9).parameters()))


OPTIONS = dict(
    sgd=dict(optimiser='sgd', floor=0.01, weight_decay=5e-4),
    ema=dict(ema=0.9),
    parts=dict(accumulate=2, clip=0.5),
    bf16=dict(amp='bf16'),
    fp16=dict(amp='fp16'),
    frozen=dict(frozen=True),
    weights=dict(class_weights=(1.0, 2.0, 3.0, 0.5), ohem=0.3, ohem_least=50),
    warm=dict(warmup=5, warmup_from=1e-6, power=1.0),
)


@pytest.mark.parametrize('option', OPTIONS)
@pytest.mark.parametrize('stops', [(1,), (3, 5), (2, 4, 5, 6)], ids=str)
def test_resumed_with_options(option, stops, tmp_path):
    config, judge = replace(CONFIG, **OPTIONS[option]), lambda m: float(next(m.parameters()).detach().sum())
    model, records = finish(tmp_path / 'whole', chance(), config, eval_fn=judge, save_every=1)
    for n in stops:
        finish(
            tmp_path / 'cut',
            chance(),
            config,
            stop=n,
            resume=True,
            eval_fn=judge,
            save_every=1,
            seed=n if checkpoints(tmp_path / 'cut' / 'checkpoints') else 0,
        )
    other, again = finish(
        tmp_path / 'cut',
        chance(),
        config,
        resume=True,
        eval_fn=judge,
        save_every=1,
        seed=8 if stops != (1,) else 0,
    )
    same(model.state_dict(), other.state_dict())
    same(records, again)
    same(untimed(tmp_path / 'whole'), untimed(tmp_path / 'cut'))
    same(*([(c['step'], c['score']) for c in checkpoints(tmp_path / d / 'checkpoints')] for d in ('whole', 'cut')))
    same(*(load_checkpoint(tmp_path / d / 'checkpoints')['state'] for d in ('whole', 'cut')))


def test_a_finished_training_is_finished(tmp_path):
    model, records = finish(tmp_path, pairs(), replace(CONFIG, ema=0.5))
    again, told = finish(tmp_path, pairs(), replace(CONFIG, ema=0.5), resume=True, seed=1)
    same(model.state_dict(), again.state_dict())
    same(records, told)


def test_resume_before_the_first_checkpoint(tmp_path):
    "Killed at once: the lines it logged are forgotten."
    finish(tmp_path, pairs(), CONFIG, stop=2)
    assert len(read_log(tmp_path)) == 1 and not checkpoints(tmp_path / 'checkpoints')
    model, records = finish(tmp_path, pairs(), CONFIG, resume=True)
    assert [l['step'] for l in read_log(tmp_path)] == [0, 2, 4, 6] == [r['step'] for r in records]


def test_what_may_change_and_what_may_not(tmp_path):
    finish(tmp_path, pairs(), CONFIG, stop=4)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}

    def fails(error, match, data=None, config=CONFIG, model=None, **how):
        net = model or make()
        was = copy.deepcopy(net.state_dict())
        with pytest.raises(error, match=match):
            train(net, data or pairs(), config, 'cpu', False, out=tmp_path, **how)
        same(was, net.state_dict())
        assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before

    fails(FileExistsError, 'holds a training: give resume=True')
    fails(
        ValueError,
        r'another training: config.lr was 0.01, is 0.02; config.steps was 7, is 9',
        config=replace(CONFIG, lr=0.02, steps=9),
        resume=True,
    )
    fails(ValueError, 'pictures was 10, is 8', data=pairs(8), resume=True)
    fails(ValueError, r'model.head.dropout was 0.1, is 0.0', model=make(dropout=0.0), resume=True)
    fails(ValueError, r'model.head.context was None, is .ppm.', model=make('pspnet'), resume=True)
    monkey = make()
    monkey.to_config = lambda: make().to_config()
    monkey.head.bottleneck.conv = nn.Conv2d(1, 1, 1)
    fails(
        ValueError,
        r'of another model: head.bottleneck.conv.bias is missing; head.bottleneck.conv.weight is .*, not \(1, 1, 1, 1\)',
        model=monkey,
        resume=True,
    )
    finish(tmp_path, pairs(), replace(CONFIG, workers=1, log_every=3), resume=True)  # these may
    assert checkpoints(tmp_path / 'checkpoints')[-1]['step'] == 7


def test_needs_a_folder():
    for how in (dict(resume=True), dict(eval_fn=len), dict(tensorboard=True)):
        with pytest.raises(ValueError, match='need a folder: give out='):
            train(make(), pairs(), CONFIG, 'cpu', False, **how)


def test_moved_elsewhere_is_said(tmp_path, monkeypatch):
    finish(tmp_path, pairs(), CONFIG, stop=4)
    monkeypatch.setattr(torch, '__version__', '99.0.0')
    with pytest.warns(UserWarning, match='resumed elsewhere.*torch was .*, is .99.0.0'):
        finish(tmp_path, pairs(), CONFIG, resume=True)


# --- the best, and the look at unseen pictures


def test_the_best_stays(tmp_path):
    scores = iter([0.2, 0.9, 0.1, 0.9, 0.3, float('nan'), 0.4])
    finish(tmp_path, pairs(), CONFIG, save_every=1, eval_fn=lambda m: next(scores))
    assert [c['step'] for c in checkpoints(tmp_path / 'checkpoints')] == [2, 6, 7] and load_checkpoint(
        tmp_path / 'checkpoints', 'best'
    )['step'] == 2
    assert [l['step'] for l in read_log(tmp_path) if l.get('score') == 0.9] == [1, 3]


def test_a_look_changes_nothing(tmp_path):
    "A judge that draws and that leaves the model in evaluation mode; the frozen norms stay frozen, too."

    def judge(m):
        torch.rand(3), random.random(), np.random.rand()
        m.eval()
        return evaluate(m.train(), pairs(2, False)).scores()['miou']

    for frozen in (False, True):
        config = replace(CONFIG, frozen=frozen)
        a, b = (
            finish(tmp_path / f'{frozen}a', pairs(), config, save_every=2, eval_fn=judge, restore_best=False)[0],
            finish(tmp_path / f'{frozen}b', pairs(), config)[0],
        )
        same(a.state_dict(), b.state_dict())


# --- faults of the disk


def full(tensors, path, metadata):
    Path(path).write_bytes(b'half')
    raise OSError(28, 'No space left on device')


def test_disk_full(tmp_path, monkeypatch):
    "Clear error; what was there is there, and after making room the training ends as if nothing had been."
    whole = finish(tmp_path / 'whole', pairs(), CONFIG)[0]
    finish(tmp_path / 'cut', pairs(), CONFIG, stop=4)
    before = {p.name: p.read_bytes() for p in (tmp_path / 'cut' / 'checkpoints').iterdir()}
    with monkeypatch.context() as m:
        m.setattr('safetensors.torch.save_file', full)
        with pytest.raises(
            OSError, match=r'checkpoint .*step-00000006.* could not be written \(.*No space.*free disk space and resume'
        ):
            finish(tmp_path / 'cut', pairs(), CONFIG, resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / 'cut' / 'checkpoints').iterdir()} == before
    same(whole.state_dict(), finish(tmp_path / 'cut', pairs(), CONFIG, resume=True)[0].state_dict())


def limited(folder, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the system itself refuses the rest of the file
    try:
        save_checkpoint(folder, 2, dict(a=torch.ones(9999)))
    except BaseException as e:
        queue.put((type(e).__name__, str(e)))


def test_a_write_the_system_cuts_short(tmp_path):
    save_checkpoint(tmp_path, 1, dict(a=torch.ones(9)))
    ctx = mp.get_context('fork')
    queue = ctx.SimpleQueue()
    child = ctx.Process(target=limited, args=(tmp_path, queue))
    child.start()
    child.join(60)
    kind, text = queue.get()
    assert (
        kind == 'OSError'
        and 'could not be written' in text
        and [p.name for p in tmp_path.iterdir()] == ['step-00000001.safetensors']
    )
    assert load_checkpoint(tmp_path)['state']['a'].shape == (9,)


def test_cut_short_falls_back(tmp_path):
    whole = finish(tmp_path / 'whole', pairs(), CONFIG)[0]
    finish(tmp_path / 'cut', pairs(), CONFIG, stop=6, save_every=2)
    last = checkpoints(tmp_path / 'cut' / 'checkpoints')[-1]['path']
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match='step-00000004.safetensors cannot be read .* and is left out'):
        again = finish(tmp_path / 'cut', pairs(), CONFIG, resume=True, save_every=2)[0]
    same(whole.state_dict(), again.state_dict())


@pytest.mark.filterwarnings('ignore:checkpoint step-')
def test_every_cut_is_found(tmp_path):
    save_checkpoint(tmp_path, 1, dict(a=torch.ones(3)))
    path = save_checkpoint(tmp_path, 2, dict(a=torch.ones(5), b=(1, 'x')))
    good = path.read_bytes()
    for n in range(len(good)):
        path.write_bytes(good[:n])
        assert load_checkpoint(tmp_path)['step'] == 1, n
    path.write_bytes(good)
    assert load_checkpoint(tmp_path)['step'] == 2


def test_a_torn_log(tmp_path):
    finish(tmp_path / 'whole', pairs(), CONFIG)
    finish(tmp_path / 'cut', pairs(), CONFIG, stop=4)
    with open(tmp_path / 'cut' / 'log.jsonl', 'a') as f:
        f.write('{"step": 3, "lo')
    finish(tmp_path / 'cut', pairs(), CONFIG, resume=True)
    same(untimed(tmp_path / 'whole'), untimed(tmp_path / 'cut'))


def test_a_newer_format(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(checkpoint, 'FORMAT', 3)
        finish(tmp_path, pairs(), CONFIG)
    with pytest.raises(ValueError, match='has format 3, this version .* reads up to 2; update'):
        finish(tmp_path, pairs(), CONFIG, resume=True)


def test_no_pickle(tmp_path):
    finish(tmp_path, pairs(), CONFIG)
    path = checkpoints(tmp_path / 'checkpoints')[-1]['path']
    with safe_open(path, 'pt') as f:
        names, head = set(f.keys()), json.loads(f.metadata()['checkpoint'])
    assert {n.split('/')[0] for n in names} == {'model', 'optimiser', 'picking', 'rng'} and head['step'] == 7
    for part in (
        'model/head.idr.memory',
        'model/head.idr.relation_var',
        'model/head.idr.deletion_count',
        'rng/0/torch',
        'picking',
    ):
        assert part in names
    assert sorted(p.name for p in tmp_path.rglob('*') if p.is_file()) == [
        'log.jsonl',
        'step-00000006.safetensors',
        'step-00000007.safetensors',
    ]


def test_pack_whatever():
    r = random.Random(0)

    def grow(depth):
        kind = r.randrange(9 if depth else 6)
        some = torch.tensor(r.random()).to(r.choice([torch.bfloat16, torch.float64, torch.bool, torch.int8]))
        if kind < 6:
            return [None, True, r.random() * 10 ** r.randint(-300, 300), r.randint(-(2**70), 2**70), 'é"\n', some][kind]
        inside = [grow(depth - 1) for _ in range(r.randrange(4))]
        return [tuple(inside), inside, {r.choice([i, str(i), f'a/{i}']): x for i, x in enumerate(inside)}][kind - 6]

    for _ in range(300):
        state = grow(4)
        tensors, tree = pack(state)
        same(state, unpack(tensors, json.loads(json.dumps(tree))))
    odd = {
        1: torch.ones(1),
        '1': torch.zeros(1),
        'a': {'b': torch.ones(2)},
        'a/b': torch.zeros(3),
    }  # names that would be one
    same(odd, unpack(*pack(odd)))


# --- SIGKILL

LIFE = TrainConfig(steps=120, batch_size=2, warmup=5, log_every=10, ema=0.9)


def wild(model):  # a score that goes up and down, and that only the weights decide
    return float(sum(p.detach().double().sum() for p in model.parameters())) * 1e3 % 1


def live(folder, started, seed, stall=None):
    "A life that may be ended from outside; `started` tells when. `stall`: 'at once', after a step (None), or at a moment of the writing, where it then hangs."
    torch.set_num_threads(1)
    if stall == 'at once':
        started.set()
    elif stall:
        where, save, swap, unlink = stall, checkpoint.write_atomic, os.replace, Path.unlink

        def hang():
            started.set()
            time.sleep(60)

        if where == 'half written':
            checkpoint.write_atomic = lambda path, write: save(
                path, lambda p: (write(p), os.truncate(p, os.path.getsize(p) // 2), hang())
            )
        if where == 'written':
            os.replace = lambda a, b: hang() if str(b).endswith('.safetensors') else swap(a, b)
        if where == 'renamed':
            os.replace = lambda a, b: (swap(a, b), hang() if str(b).endswith('.safetensors') else None)
        if where == 'dropping':
            Path.unlink = lambda self, missing_ok=False: (
                unlink(self, missing_ok),
                hang() if self.name.startswith('step-') else None,
            )
    train(
        make(seed=seed),
        pairs(),
        LIFE,
        'cpu',
        False,
        lambda step: started.set() if not stall else None,
        out=folder,
        resume=True,
        save_every=1,
        keep=2,
        eval_fn=wild,
    )


@pytest.mark.filterwarnings('ignore:.*fork')
def test_killed_at_any_moment(tmp_path):
    "At least twenty kills at moments of chance, and four at the worst moments of a write. Each child begins with other weights, once there is a checkpoint."
    ctx = mp.get_context('forkserver')
    ctx.set_forkserver_preload(
        [
            'torch._dynamo',
            'idrnet_nb.training.trainer',
            'idrnet_nb.data.dataset',
            'idrnet_nb.training.inference',
            'pytest',
            'PIL.PngImagePlugin',
            'tqdm.auto',
        ]
    )
    r, kills, best, steps, cut = random.Random(0), 0, -1.0, 0, tmp_path / 'cut0'

    def child(folder, seed, stall=None):
        started = ctx.Event()
        p = ctx.Process(target=live, args=(folder, started, seed, stall))
        p.start()
        assert started.wait(60)
        return p

    def compare(cut):
        whole.join(120)
        assert whole.exitcode == 0
        a, b = ([(c['step'], c['score']) for c in checkpoints(d / 'checkpoints')] for d in (tmp_path / 'whole', cut))
        assert a == b and len(a) in (2, 3)
        for which in ('last', 'best'):
            same(*(load_checkpoint(d / 'checkpoints', which)['state'] for d in (tmp_path / 'whole', cut)))
        same(untimed(tmp_path / 'whole'), untimed(cut))
        assert not [p for p in (cut / 'checkpoints').iterdir() if p.name.startswith('.')]

    whole = child(tmp_path / 'whole', 0)
    stalls = ['half written', 'written', 'renamed', 'dropping']
    for turn in range(99):
        stall = stalls.pop(0) if turn % 5 == 4 and steps > 2 and stalls else 'at once' if turn % 5 == 2 else None
        p = child(cut, turn if steps else 0, stall)
        if stall in (None, 'at once'):
            time.sleep(r.uniform(0, 0.25))
        kills += p.is_alive()
        p.kill()
        p.join(60)
        assert p.exitcode in (-signal.SIGKILL, 0)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # no file that looks like a checkpoint is ever broken
            found = checkpoints(cut / 'checkpoints')
            assert not any(c['fault'] for c in found)
            if not found:
                continue
            last, top = load_checkpoint(cut / 'checkpoints'), load_checkpoint(cut / 'checkpoints', 'best')
        assert last['step'] >= steps and top['score'] >= best, 'lost'
        steps, best = last['step'], top['score']
        if p.exitcode == 0:
            compare(cut)
            steps, best, cut = 0, -1.0, tmp_path / f'cut{turn + 1}'  # a quick machine: once more
        elif kills >= 24 and not stalls:
            break
    assert kills >= 24 and not stalls
    p = child(cut, 99 if steps else 0)
    p.join(120)
    assert p.exitcode == 0
    compare(cut)


# --- options against closed forms


def weights_after(config, data=None, model=None, **how):
    "The model, its weights after each step, and what `train` returned."
    model, seen = model or make(dropout=0.0), []
    records = train(
        model,
        data or pairs(augment=False),
        config,
        'cpu',
        False,
        lambda step: seen.append(copy.deepcopy(model.state_dict())),
        **how,
    )
    return model, seen, records


def test_running_mean():
    "e₁ = p₁, eₜ = d eₜ₋₁ + (1−d) pₜ for weights; tables, memory, counter and norms are those of the last step."
    config = replace(CONFIG, ema=0.75)
    model, seen, _ = weights_after(config)
    plain, seen_, _ = weights_after(replace(config, ema=None))
    same(seen, seen_)  # averaging does not touch the training
    for name, _ in model.named_parameters():
        mean = seen[0][name].double()
        for s in seen[1:]:
            mean = 0.75 * mean + 0.25 * s[name].double()
        torch.testing.assert_close(model.state_dict()[name].double(), mean, rtol=1e-5, atol=1e-7)
    for name, b in model.named_buffers():
        assert name not in seen[-1] or torch.equal(b, seen[-1][name]), name
    assert not torch.equal(seen[-1]['head.bottleneck.conv.weight'], model.state_dict()['head.bottleneck.conv.weight'])


@pytest.mark.parametrize('parts', [2, 4])
def test_parts_of_a_batch(parts):
    "One SGD step from a batch in parts: the mean of the gradients of the parts, one after the other; all chance is that of the whole batch."
    config = replace(CONFIG, steps=1, optimiser='sgd', accumulate=parts, weight_decay=0.0, warmup=0)
    _, seen, records = weights_after(config)
    model = make(dropout=0.0)
    picking = seed_everything(config.seed)
    model.train()
    items = [pairs(augment=False)[i] for i in batch_indices(10, 4, config.seed, 0)]
    images, labels = (torch.stack(x) for x in zip(*items))
    noise = torch.rand(4, K, generator=picking)
    losses = []
    for x, y, z in zip(images.chunk(parts), labels.chunk(parts), noise.chunk(parts)):
        losses.append(model(x, y, uniform=z).loss)
        losses[-1].backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(seen[0][name], p.detach() - config.lr * p.grad / parts, rtol=1e-5, atol=1e-7)
    for name, b in model.named_buffers():
        assert name not in seen[0] or torch.equal(b, seen[0][name]), name
    assert math.isclose(records[0]['loss'], sum(l.item() for l in losses) / parts, rel_tol=1e-6)


def test_clip():
    before = make(dropout=0.0).state_dict()
    _, seen, _ = weights_after(replace(CONFIG, steps=1, optimiser='sgd', clip=1e-3, weight_decay=0.0, warmup=0, lr=1.0))
    moved = sum(((seen[0][n] - before[n]) ** 2).sum() for n, _ in make().named_parameters()) ** 0.5
    torch.testing.assert_close(moved, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_learning_rates():
    "Once an optimiser step, whatever the number of parts; backbone and head apart."
    for parts in (1, 2):
        config = replace(CONFIG, steps=20, accumulate=parts, warmup=4, warmup_from=1e-6, floor=0.01, log_every=1)
        records = weights_after(config)[2]
        for r in records:
            t = r['step'] + 1  # the rate of the step to come
            up = 1 - (1 - t / 4) * (1 - 1e-6) if t < 4 else 1
            assert math.isclose(r['lr'], config.lr * up * (0.01 + 0.99 * (1 - t / 20) ** 0.9), rel_tol=1e-12)


def test_frozen_backbone():
    model, before = make(), make().state_dict()
    next(model.backbone.parameters()).requires_grad_(False)  # by its owner
    _, seen, _ = weights_after(replace(CONFIG, frozen=True), model=model)
    for n, x in before.items():
        assert torch.equal(x, seen[-1][n]) == n.startswith('backbone.'), n
    assert [p.requires_grad for p in model.backbone.parameters()] == [False] + [True] * (
        len(list(model.backbone.parameters())) - 1
    )


def twin_mean(logits, label, weights, below, least):
    "Weighted mean of the cross-entropy of the hard pixels, a pixel at a time."
    total = mass = 0.0
    at = [(b, y, x) for b, y, x in itertools.product(*map(range, label.shape)) if label[b, y, x] != IGNORE]
    sure = {p: logits[p[0], :, p[1], p[2]].softmax(0)[label[p]].item() for p in at}
    hardest = sorted(sure.values())[:least][-1]
    for p in at:
        if below is not None and sure[p] >= below and sure[p] > hardest:
            continue
        w = weights[label[p]] if weights else 1.0
        total, mass = total - w * math.log(sure[p]), mass + w
    return total / mass


@pytest.mark.parametrize('size', [20, 19])  # 19: padded before the backbone
@pytest.mark.parametrize(
    'weights,below,least', [((1.0, 3.0, 0.2, 0.0), None, 300), (None, 0.25, 100), ((1.0, 3.0, 0.2, 1.0), 0.25, 1300)]
)
def test_weights_and_hard_pixels(size, weights, below, least):
    "In a training step, for every part of the loss, padded pictures included."
    data = [(x[:, :size, :size], y[:size, :size]) for x, y in pairs(4, False)]
    records = weights_after(replace(CONFIG, steps=1, class_weights=weights, ohem=below, ohem_least=least), data)[2]
    model = make(dropout=0.0)
    picking = seed_everything(CONFIG.seed)
    model.train()
    images, labels = (torch.stack(x) for x in zip(*[data[i] for i in batch_indices(4, 4, CONFIG.seed, 0)]))
    out = model(images, labels, uniform=torch.rand(4, K, generator=picking))
    padded = pad_to_multiple(labels, model.backbone.pad_to, IGNORE)[0]
    for name, key, part, y in (
        ('final', 'logits', 1.0, labels),
        ('coarse', 'coarse_logits', 0.4, padded),
        ('aux', 'aux_logits', 0.4, padded),
    ):
        logits = nn.functional.interpolate(
            getattr(out, key).detach(), y.shape[-2:], mode='bilinear', align_corners=False
        )
        assert math.isclose(records[0][name], part * twin_mean(logits, y, weights, below, least), rel_tol=1e-4), name


def test_too_few_weights():
    with pytest.raises(ValueError, match='3 class_weights, but the model has 4 classes'):
        weights_after(replace(CONFIG, class_weights=(1, 2, 3)))


def test_weights_of_one_change_nothing():
    plain, weighed = (weights_after(replace(CONFIG, steps=1, class_weights=w))[1][-1] for w in (None, (1.0,) * K))
    for n in plain:
        torch.testing.assert_close(plain[n], weighed[n], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('change', [dict(channels_last=True), dict(compile='eager')])
def test_other_ways_to_the_same(change):
    plain, other = (weights_after(replace(CONFIG, steps=1, **c))[1][-1] for c in ({}, change))
    assert list(plain) == list(other)
    for n in plain:
        torch.testing.assert_close(plain[n], other[n], rtol=1e-3, atol=1e-4)


# --- losses that are not finite


class Spoilt(nn.Module):
    "A loss part that is not finite at some steps; what a model on a GPU, where nobody looks, would hand back."

    def __init__(self, model, steps):
        super().__init__()
        self.model, self.steps, self.step = model, steps, -1

    head = property(lambda self: self.model.head)
    backbone = property(lambda self: self.model.backbone)

    def forward(self, *a, **k):
        out, self.step = self.model(*a, **k), self.step + 1
        if self.step in self.steps:
            out = out._replace(
                losses={**out.losses, 'coarse': out.losses['coarse'] * math.inf}, loss=out.loss * math.nan
            )
        return out


def test_a_bad_loss_is_named(tmp_path):
    data, model = pairs(), Spoilt(make(), {4})
    names = [f'photo{i}.png' for i in batch_indices(10, 4, CONFIG.seed, 4)]
    with pytest.raises(
        FloatingPointError,
        match=rf"step 4: loss part 'loss', 'coarse' is not finite .*its batch: {', '.join(names)}, saved in .*bad-step-00000004.safetensors",
    ):
        train(model, data, CONFIG, 'cpu', False, out=tmp_path, save_every=2)
    assert all(p.isfinite().all() for p in model.parameters())  # the weights were not touched
    from safetensors.torch import load_file

    kept = load_file(tmp_path / 'bad-step-00000004.safetensors')
    data.set_epoch(2)
    want = [data[i] for i in batch_indices(10, 4, CONFIG.seed, 4)]
    same(
        dict(sorted(kept.items())),
        dict(images=torch.stack([x for x, _ in want]), labels=torch.stack([y for _, y in want])),
    )
    with safe_open(tmp_path / 'bad-step-00000004.safetensors', 'pt') as f:
        assert json.loads(f.metadata()['names']) == names
    assert [c['step'] for c in checkpoints(tmp_path / 'checkpoints')] == [2, 4]


def test_bad_losses_are_skipped(tmp_path):
    model = Spoilt(make(), {2, 3})
    before = []
    with pytest.warns(UserWarning, match="skipped: step [23]: loss part 'loss', 'coarse'") as told:
        records = train(
            model,
            pairs(),
            replace(CONFIG, on_bad='skip'),
            'cpu',
            False,
            lambda s: before.append(next(model.parameters()).detach().clone()),
            out=tmp_path,
        )
    assert (
        len([w for w in told if 'skipped' in str(w.message)]) == 2
        and before[1].equal(before[2])
        and before[2].equal(before[3])
        and not before[3].equal(before[4])
    )
    assert [r['step'] for r in records] == [0, 4, 6] and [l['step'] for l in read_log(tmp_path) if 'skipped' in l] == [
        2,
        3,
    ]
    with pytest.warns(UserWarning), pytest.raises(FloatingPointError, match='step 10: .*ten batches in a row'):
        train(Spoilt(make(), set(range(1, 99))), pairs(), replace(CONFIG, steps=30, on_bad='skip'), 'cpu', False)


def test_a_bad_loss_on_a_gpu(tmp_path, monkeypatch):
    "Nobody looks at each step there; the first bad step is named all the same, and no checkpoint is written from it on."
    import idrnet_nb.training.trainer as t

    monkeypatch.setattr(t, 'check_losses', lambda losses, step: {n: l.item() for n, l in losses.items()})
    for every in (2, 7):  # found when the log is written, or before a checkpoint
        with pytest.raises(FloatingPointError, match=r'step 3: the loss is not finite.*its batch: photo.*saved in'):
            train(
                Spoilt(make(), {3, 4, 5, 6}),
                pairs(),
                replace(CONFIG, log_every=99 if every == 2 else 1),
                'cpu',
                False,
                out=tmp_path / str(every),
                save_every=every,
            )
        assert [c['step'] for c in checkpoints(tmp_path / str(every) / 'checkpoints')] == ([2] if every == 2 else [])
    assert (tmp_path / '7' / 'bad-step-00000003.safetensors').is_file()


def test_wrong_labels_name_their_files():
    data = pairs(augment=False)
    data.rows[2]['label']['bytes'] = png(np.full((20, 20), K - 1, np.uint8))
    small = build_segmentor('fcn', 'tiny', K - 1, **SMALL)
    with pytest.raises(ValueError, match=r'labels of step 0: ids outside 0\.\.2 .*\(step 0: photo\d.png, photo'):
        train(small, data, CONFIG, 'cpu', False)
    with pytest.raises(ValueError, match=r'\(step 0: photo'):
        train(small, torch.utils.data.Subset(data, range(5, 10)), replace(CONFIG, batch_size=5), 'cpu', False)
    with pytest.raises(ValueError, match=r'\(step 0: image \d, image'):
        train(small, [data[i] for i in range(4)], CONFIG, 'cpu', False)


# --- logs


def test_log_and_board(tmp_path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def add_text(self, name, text):
            told.append((name, json.loads(text.strip('`\n'))['steps_done']))

        def flush(self):
            told.append('flushed')

        def close(self):
            told.append('closed')

    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', SimpleNamespace(SummaryWriter=Writer))
    _, records = finish(tmp_path, pairs(), CONFIG, tensorboard=True, eval_fn=lambda m: 0.5)
    lines = read_log(tmp_path)
    assert (
        [l for l in untimed(tmp_path) if 'loss' in l] == records
        and [l['step'] for l in lines if 'score' in l] == [2, 5, 6]
        and all(l['time'] > 1e9 for l in lines)
    )
    assert (
        [x for x in told if x[0] == 'loss'] == [('loss', r['loss'], r['step']) for r in records]
        and ('score', 0.5, 5) in told
        and told[0] == ('settings', 0)
        and told[-2:] == ['flushed', 'closed']
    )
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ValueError, match='pip install tensorboard'):
        finish(tmp_path / 'b', pairs(), CONFIG, tensorboard=True)
    assert not (tmp_path / 'b').exists()


def test_bar_tells_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)  # elsewhere lines are printed, no bar
    finish(tmp_path, pairs(), CONFIG, stop=4)
    train(make(), pairs(), CONFIG, 'cpu', True, out=tmp_path, resume=True)
    shown = capsys.readouterr().err
    assert '3/7' in shown and '<' in shown  # it goes on from where it was; elapsed<left


# --- memory


class Tight(type(build_segmentor('fcn', 'tiny', K, **SMALL))):
    "Cannot take more than `most` pictures at once."

    most, words = 2, 'CUDA out of memory. Tried to allocate 2.00 GiB'

    def forward(self, images, label=None, **args):
        if len(images) > self.most:
            raise torch.OutOfMemoryError(self.words) if 'CUDA' in self.words else RuntimeError(self.words)
        return super().forward(images, label, **args)


@pytest.mark.parametrize(
    'words',
    [
        'CUDA out of memory. Tried',
        'MPS backend out of memory (MPS allocated',
        "DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
@pytest.mark.parametrize(
    'most,said',
    [
        (3, 'with 4 images of 16x16 at once; 2 at once fit: accumulate=2 trains the same batch in parts of 2'),
        (1, '1 at once fit: accumulate=4'),
        (0, 'not even one at a time fits: smaller crops'),
    ],
)
def test_out_of_memory_says_what_fits(most, said, words, tmp_path):
    model = make()
    model.__class__ = type('Tight', (Tight,), dict(most=most, words=words))
    with pytest.raises(MemoryError) as e:
        train(model, pairs(), CONFIG, 'cpu', False, out=tmp_path)
    assert (
        said in str(e.value)
        and str(e.value).startswith('step 0: out of memory on cpu')
        and "amp='bf16'" in str(e.value)
    )
    if not most:
        return
    parts = 4 // (2 if most == 3 else 1)  # and what was advised works
    assert len(train(model, pairs(), replace(CONFIG, accumulate=parts), 'cpu', False)) == 4


def test_another_error_stays_itself():
    model = make()
    model.__class__ = type('Tight', (Tight,), dict(words='shape mismatch'))
    with pytest.raises(RuntimeError, match='shape mismatch'):
        train(model, pairs(), CONFIG, 'cpu', False)


# --- losses


@pytest.mark.parametrize(
    'how',
    [
        dict(loss='focal'),
        dict(loss='ce+dice'),
        dict(loss='0.5*ce+lovasz', class_weights=(1, 2, 1, 0.5)),
        dict(loss='ce', ohem=0.7, ohem_least=50),
    ],
)
def test_other_losses_learn_and_resume(how, tmp_path):
    "Parts of the loss are the criterion's on each answer, the tables still move, and a cut training is the uncut one."
    config = replace(CONFIG, **how)
    whole, records = finish(tmp_path / 'whole', pairs(), config)
    finish(tmp_path / 'cut', pairs(), config, stop=3)
    again, told = finish(tmp_path / 'cut', pairs(), config, resume=True)
    same(whole.state_dict(), again.state_dict())
    assert (
        told == records
        and set(records[0]) == {'step', 'lr', 'loss', 'final', 'coarse', 'aux'}
        and not whole.relations[0].equal(torch.eye(K))
    )
    assert records != finish(tmp_path / 'usual', pairs(), CONFIG)[1]


def test_criterion_reaches_every_part():
    from idrnet_nb.training.losses import Criterion

    model, (x, y) = make().eval(), torch.utils.data.default_collate([pairs(augment=False)[i] for i in range(2)])
    out, criterion = model(x, y, criterion=Criterion('dice')), Criterion('dice')
    assert torch.equal(out.losses['final'], criterion(out.logits, y, IGNORE))
    assert math.isclose(out.loss.item(), sum(v.item() for v in out.losses.values()), rel_tol=1e-6)


# --- several processes


def still(framework='fcn', **settings):
    "A model whose norms use their running statistics, so that it does not matter who sees which pictures; and whose counter hardly moves the picking."
    model = make(framework, dropout=0.0, **settings)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
            m.train = lambda mode=True: None
    if model.head.idr is not None:
        model.head.idr.deletion_count.fill_(1e6)
        with torch.no_grad():
            model.head.coarse_classifier.logits.bias.zero_()  # many classes are predicted, so that it matters whose chance picks
    return model


def clear():
    return [
        (x, y.clamp(max=K - 1)) for x, y in (pairs(augment=False)[i] for i in range(10))
    ]  # no void: a mean of means is the mean


def part(rank, world, folder, port, plan):
    "One of several processes, as torchrun would start it; each entry of the plan is a training."
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    for name, kind, config, stop, how in plan:
        model = still(**how.pop('model', {})) if kind == 'still' else make(seed=how.pop('seed', 0))
        try:
            records = train(
                model,
                clear() if kind == 'still' else pairs(),
                config,
                'cpu',
                False,
                stop_after(stop) if stop else None,
                out=folder / name,
                **how,
            )
        except Killed:
            records = None
        torch.save((model.state_dict(), records), folder / f'{name}-{rank}.pt')
    torch.distributed.destroy_process_group()


def together(folder, plan, world=2):
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    ctx = mp.get_context('spawn')
    procs = [ctx.Process(target=part, args=(r, world, folder, port, plan)) for r in range(world)]
    for p in procs:
        p.start()
    for p in procs:
        p.join(240)
    assert [p.exitcode for p in procs] == [0] * world
    return {name: [torch.load(folder / f'{name}-{r}.pt') for r in range(world)] for name, *_ in plan}


def test_two_processes(tmp_path):
    """Two processes with half a batch each are one with the whole batch: weights, tables, memory, losses. Cut and resumed they are what they were uncut; and
    one process goes on with what two began, and says so."""
    sgd, idr = replace(CONFIG, steps=3, optimiser='sgd', warmup=0, log_every=1), replace(CONFIG, ema=0.9)
    save = dict(save_every=3, keep=2)
    got = together(
        tmp_path,
        [
            ('plain', 'still', sgd, None, dict(model=dict(idr=False))),
            ('idr', 'still', sgd, None, {}),
            ('whole', 'make', idr, None, save),
            ('cut', 'make', idr, 4, save),
            ('cut', 'make', idr, None, dict(save, resume=True, seed=5)),
            ('left', 'make', idr, 4, save),
        ],
    )
    for name, settings in (('plain', dict(idr=False)), ('idr', {})):
        model = still(**settings)
        records = train(model, clear(), sgd, 'cpu', False)
        for n, x in model.state_dict().items():
            assert torch.equal(got[name][0][0][n], got[name][1][0][n]), n
            torch.testing.assert_close(
                got[name][0][0][n], x, rtol=1e-4, atol=1e-6, msg=lambda m, n=n: f'{name} {n}: {m}'
            )
        for a, b in zip(records, got[name][0][1]):
            assert a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-4) for k in a)
    assert not got['idr'][0][0]['head.idr.relation_mean'].equal(torch.eye(K))
    for r in range(2):
        same(got['whole'][r], got['cut'][r])
    same(*(load_checkpoint(tmp_path / d / 'checkpoints')['state'] for d in ('whole', 'cut')))
    assert (
        len(load_checkpoint(tmp_path / 'cut' / 'checkpoints')['state']['rng']) == 2
    )  # each process has its own chance
    with pytest.warns(UserWarning, match='resumed elsewhere.*processes was 2, is 1'):
        _, records = finish(tmp_path / 'left', pairs(), idr, resume=True)
    assert [r['step'] for r in records] == [0, 2, 4, 6] and records[0] == got['whole'][0][1][0]
