"""Two processes (gloo) move tables, memory and counter exactly as one process with the whole batch does."""

import torch
from idrnet_nb.models.head import HeadConfig, SegHead
from processes import in_processes

K, CHANNELS = 4, [6, 7]


def make():
    torch.manual_seed(0)
    model = SegHead(CHANNELS, HeadConfig(K, width=8, attention_width=6, aux_width=8, dropout=0.0))
    for m in model.modules():  # norms that look at their own process only would differ: use the running statistics
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    torch.manual_seed(1)
    pyramid, label = [torch.randn(4, c, 5, 6) for c in CHANNELS], torch.randint(0, 3, (4, 20, 24))
    label[2:, :5] = 3  # class 3 is seen by the second process alone
    return model, pyramid, label, torch.tensor([0, 1, 1, 2])


def state(model):
    return {n: getattr(model.idr, n).clone() for n in ('relation_mean', 'relation_var', 'memory', 'deletion_count')}


def work(rank):
    model, pyramid, label, deleted = make()
    part = slice(2 * rank, 2 * rank + 2)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped([p[part] for p in pyramid], label[part], deleted=deleted[part]).loss.backward()
    moved = {n: t.tolist() for n, t in state(model).items()}
    return moved, {n: p.grad.tolist() for n, p in model.named_parameters()}


def test_two_processes_are_one():
    got = in_processes(work)
    model, pyramid, label, deleted = make()
    for _ in range(2):
        model(pyramid, label, deleted=deleted)
    want = state(model)
    for n, t in want.items():
        a, b = (torch.tensor(got[r][0][n]) for r in range(2))
        assert torch.equal(a, b), f'{n} differs between the processes'
        torch.testing.assert_close(a, t, rtol=1e-5, atol=1e-5)
    assert (want['memory'][3].abs().sum() > 0) and not torch.allclose(want['relation_mean'], torch.eye(K))
    for n in got[0][1]:
        torch.testing.assert_close(torch.tensor(got[0][1][n]), torch.tensor(got[1][1][n]))
