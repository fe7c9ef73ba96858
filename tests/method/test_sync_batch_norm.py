"""A deletion pass normalises by the statistics of all processes where the pass before it did."""

import torch
from torch import nn
from idrnet_nb.method.layers import batch_norm


def test_synchronised_norms_are_asked_and_do_not_move(monkeypatch):
    "The module itself computes (over processes there), with no momentum, and is as it was."
    torch.manual_seed(0)
    plain, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    plain(x + 1)
    norm = nn.SyncBatchNorm(3)
    norm.load_state_dict(plain.state_dict())
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    asked = []
    forward = nn.SyncBatchNorm.forward

    def spy(self, x):
        asked.append(self.momentum)
        return forward(self, x)

    monkeypatch.setattr(nn.SyncBatchNorm, 'forward', spy)
    monkeypatch.setattr(nn.SyncBatchNorm, '_check_non_zero_input_channels', lambda self, x: None)
    out = batch_norm(norm, x, update_stats=False)
    assert asked == [0.0] and norm.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.allclose(out, batch_norm(plain, x, update_stats=False), atol=1e-6)
    moved = batch_norm(norm, x)
    assert asked[1] == 0.1 and torch.allclose(moved, out, atol=1e-6)
    assert not torch.equal(norm.running_mean, before['running_mean']) and norm.num_batches_tracked == 2
