"""Pixels are counted before the first step; 'balanced' weights come from the counts, and belong to the training."""

import io
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from idrnet_nb.data.dataset import SegmentationDataset
from idrnet_nb.data.labels import LabelSpace, palette
from idrnet_nb.data.transforms import Augment
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.training.checkpoint import checkpoints
from idrnet_nb.training.config import TrainConfig
from idrnet_nb.training.label_counts import advice_for_imbalance, count_pixels, resolve_class_weights
from idrnet_nb.training.logger import read_log
from idrnet_nb.training import trainer
from idrnet_nb.training.trainer import train, try_one_batch

SPACE = LabelSpace(
    'made up', ('road', 'car', 'pole'), tuple(map(tuple, palette(3).tolist())), {7: 0, 8: 1, 9: 2, 0: 255}
)
CONFIG = TrainConfig(steps=4, batch_size=2, warmup=0, class_weights='balanced', log_every=1)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def rows(n=4, image=None):
    "Row i: 16 x 16, 10 ignored pixels, 20 of a car, i of a pole, the rest road."
    out = []
    for i in range(n):
        mask = np.full(256, 7, np.uint8)
        mask[:10], mask[10:30], mask[30 : 30 + i] = 0, 8, 9
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        out.append(dict(image=dict(bytes=image or png(noise)), label=dict(bytes=png(mask.reshape(16, 16)))))
    return out


COUNTS = (4 * 226 - 6, 80, 6)


def small(seed=0):
    torch.manual_seed(seed)
    return build_segmentor('fcn', 'tiny', 3, width=8, attention_width=4, aux_width=4)


def test_counts_masks_alone():
    "The images are broken: nobody reads them. Augmentation and size do not matter."
    data = SegmentationDataset(rows(image=b'no image'), SPACE, size=(8, 8), augment=Augment(crop=(4, 4)))
    assert count_pixels(data, 3) == COUNTS
    assert count_pixels(data, 3, workers=1) == COUNTS
    assert count_pixels(Subset(Subset(data, [3, 1]), [0]), 3) == (223, 20, 3)


def test_counts_of_any_data():
    items = [(None, torch.tensor([[0, 1], [255, 1]])), (None, np.array([[2, 2]]))]
    assert count_pixels(items, 4) == (1, 2, 2, 0)
    assert count_pixels(ConcatDataset([items, items]), 3) == (2, 4, 4)
    assert count_pixels([(None, torch.tensor([[-1, 1]]))], 2, ignore=-1) == (0, 1)


def test_chance_stays():
    class Draws(list):
        def __getitem__(self, i):
            torch.rand(1), np.random.rand()
            return super().__getitem__(i)

    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    count_pixels(Draws([(None, torch.zeros(2, 2).long())]), 2)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


def test_what_cannot_be_counted():
    with pytest.raises(ValueError, match='label of image 1.*7'):
        count_pixels([(None, torch.zeros(2, 2).long()), (None, torch.full((2, 2), 7))], 3)
    with pytest.raises(ValueError, match='every pixel in 1 labels is ignored'):
        count_pixels([(None, torch.full((2, 2), 255))], 3)
    broken = rows()
    broken[2] = dict(broken[2], label=dict(bytes=b'no mask'))
    with pytest.raises(ValueError):
        count_pixels(SegmentationDataset(broken, SPACE), 3)
    skips = SegmentationDataset(broken, SPACE, augment=Augment(crop=(8, 8)), on_unreadable='skip')
    assert count_pixels(skips, 3) == (226 * 3 - 4, 60, 4)


def test_the_weights():
    "1/ln(1.02 + share), ENet; a class of three pixels in 10⁸ weighs 50, not 10⁶."
    weights = resolve_class_weights(CONFIG, (97_000_000, 2_999_997, 3)).class_weights
    assert weights == (1.453204, 20.495946, 50.498275)
    assert resolve_class_weights(CONFIG, (1, 1, 0)).class_weights[2] == 1
    given = replace(CONFIG, class_weights=(1, 2, 3))
    assert resolve_class_weights(given, COUNTS) is given


class Killed(BaseException):
    pass


def run(out, config=CONFIG, kill_at=None, seed=0, **how):
    def on_step(step):
        if step + 1 == kill_at:
            raise Killed

    model = small(seed)
    try:
        train(model, SegmentationDataset(rows(), SPACE), config, 'cpu', False, on_step, out, save_every=1, **how)
    except Killed:
        pass
    return model


def test_balanced_is_the_training_with_these_numbers(tmp_path, monkeypatch):
    "Logged, part of what a resumed training compares, and counted once."
    numbers = resolve_class_weights(CONFIG, COUNTS)
    model, other = run(tmp_path / 'a'), run(tmp_path / 'b', numbers)
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())
    first = read_log(tmp_path / 'a')[0]
    assert first['step'] == -1 and tuple(first['pixels']) == COUNTS
    assert tuple(first['class_weights']) == numbers.class_weights
    about = checkpoints(tmp_path / 'a' / 'checkpoints')[-1]['about']
    assert tuple(about['config']['class_weights']) == numbers.class_weights

    run(tmp_path / 'cut', kill_at=3)
    monkeypatch.setattr(trainer, 'count_pixels', None)  # a resumed training has the counts in its log
    again = run(tmp_path / 'cut', seed=9, resume=True)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    logs = [[{**line, 'time': 0} for line in read_log(tmp_path / name)] for name in ('a', 'cut')]
    assert logs[0] == logs[1]
    with pytest.raises(ValueError, match='config.class_weights was .*, is None'):
        run(tmp_path / 'cut', replace(CONFIG, class_weights=None), resume=True)


def test_needs_numbers_before_a_step():
    data = SegmentationDataset(rows(), SPACE)
    assert try_one_batch(small(), data, CONFIG, 'cpu') is None
    with pytest.raises(ValueError, match='are no numbers yet'):
        trainer.TrainState(small(), CONFIG, torch.device('cpu'))
    with pytest.raises(ValueError, match="a list of numbers or 'balanced' or None"):
        TrainConfig(class_weights='sqrt')


def test_advice():
    advice = advice_for_imbalance((970, 25, 5, 0), ('road', 'car', 'pole', 'bear'))
    assert advice[0] == 'bear has no pixel: it cannot be learnt, and its IoU will be 0'
    assert advice[1] == 'pole has 0.5 % of the pixels'
    assert (
        "class_weights='balanced'" in advice[2] and 'a pixel of pole count 28 times as much as one of road' in advice[2]
    )
    assert len(advice) == 3 and advice_for_imbalance((50, 1), 'ab') == []
    assert advice_for_imbalance((5, 0), 'ab') == ['b has no pixel: it cannot be learnt, and its IoU will be 0']
