"""Operators of a training step: what a GPU has to launch. At most 900, however many classes there are."""

from unittest.mock import patch

import pytest
import torch

from idrnet_nb.experiments.speed import CountedOperators
from idrnet_nb.models.profiling import TrainingStep
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.models.tiled_cross_entropy import TILE_SIZE


def operators(num_classes, amp=None, idr=True, images=8, size=64):
    "Counted by name, with the tiles that a GPU gets where it has no Triton (with Triton there are fewer)."
    torch.manual_seed(0)
    model = build_segmentor('fcn', 'resnet18', num_classes, idr=idr, output_stride=8, width=64, ignore=1000).train()
    batch = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    label = torch.randint(0, num_classes, (images, size, size))
    step = TrainingStep(model, batch, label, amp)
    with patch.dict(TILE_SIZE, cpu=2**26), CountedOperators() as counted:
        step()
    return counted.count


@pytest.mark.parametrize('num_classes', [2, 19, 150, 300])
def test_at_most_900(num_classes):
    assert operators(num_classes).total() <= 900


def test_the_number_does_not_depend_on_the_classes():
    assert operators(19) == operators(150)


def test_casts_of_mixed_precision():
    "One cast per weight and direction, and a few dozen of the module itself."
    plain, idr = (operators(19, 'bf16', idr)['aten::_to_copy'] for idr in (False, True))
    assert plain <= 66
    assert idr - plain <= 56


def test_each_image_adds_few():
    "The classes to delete are drawn one image after the other: four operators each."
    few, many = (operators(19, images=images).total() for images in (4, 8))
    assert many - few <= 4 * 4
