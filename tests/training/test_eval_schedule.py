"""When a training is evaluated, which step it ends with, and when it stops: killed or not, the same."""

import sys

import pytest
import torch
from idrnet_nb.method.toy_world import ToyWorld
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.checkpoint import checkpoints, load_checkpoint, model_weights
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.logger import read_log
from idrnet_nb.training.trainer import train

CONFIG = TrainConfig(steps=12, batch_size=2, warmup=0, log_every=3)
EMA = TrainConfig(steps=12, batch_size=2, warmup=0, log_every=3, ema=0.8)
DATA = ToyWorld(6, size=32)


class Killed(BaseException):
    pass


class Scores:
    "An eval_fn that gives a score by the number of steps, whatever the weights are, and keeps them."

    def __init__(self, by_step):
        self.by_step, self.seen, self.step = by_step, {}, 0

    def __call__(self, model):
        self.seen[self.step] = {name: x.clone() for name, x in model.state_dict().items()}
        return self.by_step[self.step]


def small(seed=0):
    torch.manual_seed(seed)
    return build_segmentor('fcn', 'tiny', 12, width=8, attention_width=4, aux_width=4)


def life(out, by_step, config=CONFIG, kill_at=None, seed=0, data=DATA, **how):
    "(model, eval_fn) of one life of a training, to its end or to the step before which it is killed."
    model, eval_fn = small(seed), Scores(by_step)

    def on_step(step):
        eval_fn.step = step + 1
        if step + 1 == kill_at:
            raise Killed

    try:
        train(model, data, config, 'cpu', False, on_step, out, eval_fn=eval_fn, **how)
    except Killed:
        pass
    return model, eval_fn


def same(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items())


def lines(out):
    return [{key: value for key, value in line.items() if key != 'time'} for line in read_log(out)]


def steps_on_disk(out):
    return [c['step'] for c in checkpoints(out / 'checkpoints')]


RISE_AND_FALL = {n: score for n, score in zip(range(1, 13), [1, 2, 3, 4, 9, 5, 4, 3, 9, 2, 1, 0])}


@pytest.mark.parametrize('config', [CONFIG, EMA])
def test_ends_with_the_best(config, tmp_path):
    "The first of the equal best; the last step stays beside it; with other rhythms the best is written at once."
    model, eval_fn = life(tmp_path, RISE_AND_FALL, config, eval_every=1, save_every=4, keep=1)
    assert same(model.state_dict(), eval_fn.seen[5]) and not same(model.state_dict(), eval_fn.seen[12])
    assert steps_on_disk(tmp_path) == [5, 12]
    last, best = [load_checkpoint(tmp_path / 'checkpoints', which)['state'] for which in ('last', 'best')]
    assert same(model_weights(last), eval_fn.seen[12]) and same(model_weights(best), eval_fn.seen[5])
    assert [line for line in lines(tmp_path) if 'chosen' in line] == [dict(step=11, chosen=5)]


def test_ends_with_the_last_if_wanted(tmp_path):
    model, eval_fn = life(tmp_path, RISE_AND_FALL, eval_every=1, restore_best=False)
    assert same(model.state_dict(), eval_fn.seen[12]) and not any('chosen' in line for line in lines(tmp_path))


def test_evaluated_in_its_own_rhythm(tmp_path):
    _, eval_fn = life(tmp_path, RISE_AND_FALL, eval_every=5, save_every=4, keep=9)
    assert list(eval_fn.seen) == [5, 10, 12]
    assert steps_on_disk(tmp_path) == [4, 5, 8, 12]
    assert [c['score'] for c in checkpoints(tmp_path / 'checkpoints')] == [None, 9, None, 0]
    _, eval_fn = life(tmp_path / 'usual', RISE_AND_FALL, save_every=5)
    assert list(eval_fn.seen) == [5, 10, 12] == steps_on_disk(tmp_path / 'usual')


@pytest.mark.parametrize(
    'config,patience,kills',
    [(CONFIG, None, (1,)), (EMA, None, (5,)), (EMA, 2, (6, 7)), (CONFIG, 2, (8,)), (EMA, None, (10, 11))],
)
def test_killed_and_resumed_is_the_same(config, patience, kills, tmp_path):
    how = dict(eval_every=2, save_every=3, keep=2, patience=patience)
    by_step = {2: 0.1, 4: 0.7, 6: 0.3, 8: 0.2, 10: 0.9, 12: 0.1}
    whole, _ = life(tmp_path / 'whole', by_step, config, **how)
    for n in kills:
        other = n if steps_on_disk(tmp_path / 'cut') else 0
        life(tmp_path / 'cut', by_step, config, kill_at=n, seed=other, resume=True, **how)
    other = 9 if steps_on_disk(tmp_path / 'cut') else 0
    again, _ = life(tmp_path / 'cut', by_step, config, seed=other, resume=True, **how)
    assert same(whole.state_dict(), again.state_dict())
    assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
    assert steps_on_disk(tmp_path / 'whole') == steps_on_disk(tmp_path / 'cut')
    assert steps_on_disk(tmp_path / 'whole') == ([4, 6, 8] if patience else [10, 12])


def test_stops_early(tmp_path):
    how = dict(eval_every=1, save_every=100)
    model, eval_fn = life(tmp_path, RISE_AND_FALL, patience=3, **how)
    assert list(eval_fn.seen) == [*range(1, 9)] and steps_on_disk(tmp_path)[-1] == 8
    assert same(model.state_dict(), eval_fn.seen[5])
    assert lines(tmp_path)[-2:] == [
        dict(step=7, stopped='3 evaluations without a better score than 9 of step 5'),
        dict(step=7, chosen=5),
    ]
    before = lines(tmp_path)
    again, eval_fn = life(tmp_path, RISE_AND_FALL, patience=3, seed=1, resume=True, **how)
    assert not eval_fn.seen and lines(tmp_path) == before and same(model.state_dict(), again.state_dict())
    _, eval_fn = life(tmp_path, RISE_AND_FALL, patience=5, resume=True, **how)
    assert list(eval_fn.seen) == [9, 10]
    _, eval_fn = life(tmp_path, RISE_AND_FALL, resume=True, **how)
    assert list(eval_fn.seen) == [11, 12]


def test_scores_that_are_no_numbers(tmp_path):
    "Never the best; a training with none else ends with its last step."
    nan = float('nan')
    model, eval_fn = life(tmp_path / 'all', dict.fromkeys(range(1, 13), nan), eval_every=4)
    assert same(model.state_dict(), eval_fn.seen[12])
    model, eval_fn = life(tmp_path / 'one', {4: nan, 8: 0.1, 12: nan}, eval_every=4)
    assert same(model.state_dict(), eval_fn.seen[8])
    model, eval_fn = life(tmp_path / 'stop', dict.fromkeys(range(1, 13), nan), eval_every=1, patience=3)
    assert list(eval_fn.seen) == [1, 2, 3]


def test_shown_in_the_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)  # elsewhere lines are printed, no bar
    eval_fn = iter([0.25, 0.75, 0.5])
    train(small(), DATA, CONFIG, 'cpu', True, out=tmp_path, eval_fn=lambda m: next(eval_fn), eval_every=4, live=False)
    shown = capsys.readouterr().err
    assert 'score=0.25' in shown and 'best=0.75 (step 8)' in shown


@pytest.mark.parametrize(
    'how,text',
    [
        (dict(eval_every=2), 'eval_every=2 needs scores: give eval_fn='),
        (dict(patience=2), 'patience=2 needs scores: give eval_fn='),
        (dict(eval_fn=len, patience=0), 'patience=0; give a whole number'),
        (dict(eval_fn=len, eval_every=1.5), 'eval_every=1.5; give a whole number'),
        (dict(eval_fn=3), 'eval_fn=3 cannot be called'),
    ],
)
def test_wrong_words(how, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        train(small(), DATA, CONFIG, 'cpu', False, out=tmp_path / 'x', **how)
    assert not (tmp_path / 'x').exists()
