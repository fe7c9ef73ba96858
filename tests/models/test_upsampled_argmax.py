"""The prediction of an image that is too large for a map of all classes."""

import torch

from idrnet_nb.models.profiling import peak_memory
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.models.upsampled_argmax import upsampled_argmax
from idrnet_nb.training.inference import EvalProtocol, evaluate, predict, probabilities


def test_12_megapixels_of_150_classes_within_2_gigabytes():
    "A map of all classes would be 7.2 GB."
    logits = torch.randn(1, 150, 375, 500)
    found = []
    assert peak_memory(lambda: found.append(upsampled_argmax(logits, (3000, 4000)))) < 2e9
    assert found[0].shape == (1, 3000, 4000)
    assert len(found[0].unique()) == 150


def test_predictions_are_those_of_the_map():
    "Sizes that are padded and that are not, every way to average, and protocols that need the map."
    torch.manual_seed(0)
    model = build_segmentor('fcn', 'tiny', 7, idr=True, width=16).train()
    for size in ((32, 48), (37, 50)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        for average in ('probabilities', 'grid_probabilities', 'logits'):
            for changes in ({}, {'flip': True}, {'resize': (24, 40)}, {'window': (32, 32)}, {'scales': (0.5, 1)}):
                protocol = EvalProtocol(average=average, **changes)
                wanted = probabilities(model, images, protocol)
                top = wanted.topk(2, dim=1).values
                clear = top[:, 0] - top[:, 1] > 1e-6  # a tie may be rounded either way
                got = predict(model, images, protocol)
                assert clear.float().mean() > 0.99
                assert torch.equal(got[clear], wanted.argmax(1)[clear]), (size, average, changes)
    assert model.training
    assert predict(model, images, size=(9, 11)).shape == (2, 9, 11)
    data = [(images[i], torch.zeros(size, dtype=torch.int64)) for i in range(2)]
    counted = evaluate(model, data).total[0]  # all pixels are of class 0
    assert torch.equal(counted, predict(model, images).flatten().bincount(minlength=7))
