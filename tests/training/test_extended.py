"""A training is extended by more steps: it goes on, on the schedule of the new length, and says what that means."""

from dataclasses import replace
import pytest
from test_eval_schedule import CONFIG, DATA, RISE_AND_FALL, life, lines, same, small, steps_on_disk
from idrnet_nb.training.schedule import poly
from idrnet_nb.training.trainer import train

LONGER = replace(CONFIG, steps=20, log_every=1)
MORE = {**RISE_AND_FALL, **{n: 1.0 for n in range(13, 21)}, 15: 10.0}


def test_goes_on(tmp_path):
    "The rate is that of the new length, the log goes on, the best of both parts is chosen, the optimiser is the old one."
    life(tmp_path, RISE_AND_FALL, eval_every=4, save_every=4)
    with pytest.warns(
        UserWarning, match='extended from 12 to 20 steps: the learning rate .* at step 12 from 0 to 0.0013'
    ):
        model, eval_fn = life(tmp_path, MORE, LONGER, seed=3, eval_every=5, save_every=4, resume=True)
    assert list(eval_fn.seen) == [15, 20] and same(model.state_dict(), eval_fn.seen[15])
    log = lines(tmp_path)
    assert [line['lr'] for line in log if line.get('step', 0) > 11 and 'lr' in line] == [
        LONGER.lr * poly(n + 1, LONGER) for n in range(12, 20)
    ]
    assert [line for line in log if 'extended' in line] == [dict(step=11, extended=20)]
    assert [line['chosen'] for line in log if 'chosen' in line] == [4, 15]


def test_killed_while_it_is_extended(tmp_path):
    "Before and after the first checkpoint of the extension; the same bits, one line for the extension."
    how = dict(eval_every=3, save_every=4, resume=True)
    ends = []
    for name, kills in (('whole', ()), ('cut', (14, 18))):
        life(tmp_path / name, RISE_AND_FALL, **how)
        for n in kills:
            life(tmp_path / name, MORE, LONGER, kill_at=n, seed=n, **how)
        ends.append(life(tmp_path / name, MORE, LONGER, seed=5, **how)[0].state_dict())
    assert same(*ends) and lines(tmp_path / 'whole') == lines(tmp_path / 'cut')
    assert steps_on_disk(tmp_path / 'whole') == steps_on_disk(tmp_path / 'cut')
    _, eval_fn = life(tmp_path / 'cut', MORE, LONGER, **how)  # it is finished now, and can be asked for again
    assert not eval_fn.seen


def test_early_stopping_waits_anew(tmp_path):
    how = dict(eval_every=1, save_every=50, patience=3, resume=True)
    life(tmp_path, RISE_AND_FALL, **how)
    assert steps_on_disk(tmp_path)[-1] == 8
    _, eval_fn = life(tmp_path, MORE, LONGER, **how)
    assert list(eval_fn.seen) == [9, 10, 11]
    _, eval_fn = life(tmp_path, MORE, LONGER, **how)
    assert not eval_fn.seen


@pytest.mark.filterwarnings('error')
def test_what_cannot_be_extended(tmp_path):
    life(tmp_path, RISE_AND_FALL, save_every=4)
    before = lines(tmp_path)

    def fails(text, config, data=DATA):
        with pytest.raises(ValueError, match=text):
            train(small(), data, config, 'cpu', False, out=tmp_path, resume=True)
        assert lines(tmp_path) == before

    fails('config.steps was 12, is 8. Resume it as it was', replace(CONFIG, steps=8))
    fails('config.lr was 0.003, is 0.1; config.steps was 12, is 20', replace(LONGER, lr=0.1))
    fails('config.steps was 12, is 20; pictures was 6, is 4', LONGER, DATA.__class__(4, size=32))


def test_only_a_finished_training_is_extended(tmp_path):
    "A checkpoint of fewer steps among those of a training that nobody extended is a stranger."
    life(tmp_path / 'run', RISE_AND_FALL, kill_at=9, save_every=4)
    with pytest.raises(ValueError, match='config.steps was 12, is 20, and 8 are done.*only a finished training'):
        train(small(), DATA, LONGER, 'cpu', False, out=tmp_path / 'run', resume=True)
    life(tmp_path / 'other', RISE_AND_FALL, replace(CONFIG, steps=5))
    stranger = tmp_path / 'other' / 'checkpoints' / 'step-00000005.safetensors'
    stranger.rename(tmp_path / 'run' / 'checkpoints' / stranger.name)
    with pytest.raises(ValueError, match='step-00000005.*config.steps was 5, is 12'):
        train(small(), DATA, CONFIG, 'cpu', False, out=tmp_path / 'run', resume=True)
