"""Ablations: a variant is what it says and nothing else; opinions on relations leave the model alone; a world with bystanders that say nothing."""

from dataclasses import replace

import pytest, torch
from idrnet_nb.method import idr as room
from idrnet_nb.method.relation import Interaction
from idrnet_nb.experiments.ablation import (
    Busy,
    ABLATIONS,
    ablations,
    agreement,
    attention_matrix,
    busy_task,
    deletion_matrix,
    ablate,
    run_ablation,
    gradient_matrix,
    interaction_inputs,
    presence,
    relation_matrices,
)
from idrnet_nb.experiments.benchmark import SUITES
from idrnet_nb.experiments.trials import run_trial
from idrnet_nb.experiments.tasks import toy_world_task
from idrnet_nb.common.device import seed_everything
from idrnet_nb.models.head import FRAMEWORKS
from idrnet_nb.models.segmentor import build_segmentor
from idrnet_nb.method.toy_world import ToyWorld, true_relations

TINY = dict(backbone='tiny', width=16, attention_width=8, aux_width=8)
TOY = replace(
    SUITES['small'][0],
    frameworks=('fcn',),
    seeds=1,
    size=(32, 32),
    pictures=(16, 8),
    train=dict(batch_size=4, steps=5, lr=3e-3),
    model=TINY,
)


def row(variant, tmp_path):
    return run_ablation(ablations(TOY, (variant,))[0], out=tmp_path, device='cpu')


@pytest.mark.parametrize(
    'variant, arm',
    [
        ('full', '+idr'),
        ('plain', ''),
        ('attention', '+attention'),
        ('identity', '+frozen'),
        ('published norms', '+tracked'),
    ],
)
def test_variants_that_are_arms(variant, arm, tmp_path):
    run = replace(TOY, arms=(arm,)).runs[0]
    mine, theirs = row(variant, tmp_path), run_trial(run, {}, out=tmp_path, device='cpu')
    assert (mine['loss'], mine['miou'], mine['iou']) == (theirs['loss'], theirs['miou'], theirs['iou'])


@pytest.fixture(scope='module')
def batch():
    return tuple(torch.stack(t) for t in zip(*toy_world_task(8, 6, 32).test))


def trained(batch, framework='fcn', **how):
    seed_everything(3)
    model = build_segmentor(framework, num_classes=12, **{**TINY, 'dropout': 0.0, **how})
    for _ in range(4):
        model.train()(*batch)
    return model


CHANGES = [v for v in ABLATIONS if ABLATIONS[v].arm == '+idr' and v != 'full']


@pytest.mark.parametrize('variant', CHANGES)
def test_a_variant_trains_and_differs(variant, batch):
    "Each gives finite gradients, and another loss, table or state than IDRNet as it is after some steps."
    found = []
    for v in ('full', variant):
        seed_everything(3)
        model = build_segmentor('fcn', num_classes=12, **TINY, dropout=0.0, **ABLATIONS[v].settings)
        after = ablate(model, ABLATIONS[v], [y for y in batch[1]], 0)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            loss = model.train()(*batch, uniform=torch.full((6, 12), 0.5)).loss
            opt.zero_grad()
            loss.backward()
            opt.step()
            if after:
                after(step)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        found.append((loss.detach(), *(b.clone() for b in model.buffers())))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(*found))


def test_more_deletions_turn_the_counter(batch):
    for n in (1, 2, 4):
        model = trained(batch, deletions=n)
        assert model.head.idr.deletion_count.sum().round() == 4 * 6 * n


def test_deletions_of_one_picture_are_several_classes(batch, monkeypatch):
    "No class twice before each has been deleted once; then the race begins again."
    seen, learn = [], room.IDRContext.learn_relations

    def watch(idr, deleted, *rest):
        seen.append(deleted.tolist())
        learn(idr, deleted, *rest)

    monkeypatch.setattr(room.IDRContext, 'learn_relations', watch)
    torch.manual_seed(0)
    model = build_segmentor('fcn', num_classes=12, **TINY, deletions=5).train()
    for _ in range(3):
        seen.clear()
        present = model(*batch).grouping.present.sum(1).tolist()
        for picture, n in zip(zip(*seen), present):
            assert len(set(picture[:n])) == min(n, 5) and len(picture) == 5
    assert max(present) > 1


def test_same_deletion_given_twice_moves_the_row_twice(batch):
    x, y = batch
    gone = torch.zeros(6, dtype=torch.long)
    one, two = (trained(batch, deletions=n, learn_tables=True) for n in (1, 2))
    two.load_state_dict(one.state_dict())
    before = one.relations[0].clone()
    one.train()(x, y, deleted=gone)
    two.train()(x, y, deleted=gone)
    assert not torch.equal(one.relations[0], before) and not torch.equal(one.relations[0], two.relations[0])
    assert torch.equal(one.relations[0][1:], before[1:]) and torch.equal(two.relations[0][1:], before[1:])


@pytest.mark.parametrize('framework', FRAMEWORKS)
@pytest.mark.parametrize('training', [True, False])
def test_opinions_leave_the_model_alone(framework, training, batch):
    model = trained(batch, framework).train(training)
    before, chance = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    tables = relation_matrices(model, *batch)
    assert all(t.shape == (12, 12) and t.isfinite().all() and not t.requires_grad for t in tables.values())
    assert model.training is training and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert (
        torch.equal(chance, torch.get_rng_state())
        and not model.head.idr.interaction._forward_pre_hooks
        and all(p.grad is None for p in model.parameters())
    )


def test_changed_inputs_are_over_after_an_error(batch):
    model = trained(batch)
    with pytest.raises(ZeroDivisionError):
        with interaction_inputs(model, lambda feats, present: 1 / 0):
            model(batch[0])
    assert model.training and not model.head.idr.interaction._forward_pre_hooks
    model.eval()(batch[0])


def test_silent_relations_have_no_gradient_and_no_deletion(batch):
    "If classes hear nothing anyway, nothing is lost by a deletion and no vector has a gradient."
    model = trained(batch)

    class Nothing(Interaction):
        def forward(self, *inputs):
            return 0 * super().forward(*inputs)

    model.head.idr.interaction = Nothing()
    assert deletion_matrix(model, *batch).abs().max() == 0 and gradient_matrix(model, *batch).abs().max() == 0
    assert attention_matrix(model, batch[0]).max() > 0


def test_agreement_leaves_the_diagonal_out():
    truth = true_relations()
    t = truth.float()
    assert agreement(t + 100 * torch.eye(12), truth) == agreement(t - 100 * torch.eye(12), truth)
    assert agreement(-t, truth)['auroc'] == 0 and agreement(-t, truth)['spearman'] < -0.99


# ---- the busier world


def test_busy_is_the_world_with_patches():
    for size in (32, 64):
        busy, bare = Busy(12, size, 5, 6), ToyWorld(12, size, 5)
        for i in range(12):
            (x, y), (u, v) = busy[i], bare[i]
            patch = (y >= 12) & (y < 255)
            assert (
                torch.equal(x[:, ~patch], u[:, ~patch]) and torch.equal(y[~patch], v[~patch]) and (v[patch] == 0).all()
            )
            side = 6 * size // 64
            assert all((y == c).sum() in (0, side * side) or c < 12 for c in y.unique().tolist() if c < 255)
    assert torch.equal(Busy(3, 32, 5, 6)[2][1], Busy(12, 32, 5, 6)[2][1]) and torch.equal(
        Busy(12, 32, 5, 6)[-1][0], Busy(12, 32, 5, 6)[11][0]
    )


def test_company_without_information():
    "The patch is there whenever a ball is, lawn or court alike: knowing it does not tell which."
    task = busy_task(400, 20, 32, 1, (9, 10))
    there = presence([y for _, y in task.train], 13)
    assert (
        torch.equal(there[:, 12], there[:, [9, 10]].any(1)) and not task.truth[12].any() and not task.truth[:, 12].any()
    )
    lawn = there[there[:, 12]][:, 9].float().mean()
    assert 0.4 < lawn < 0.6


def test_changing_inputs_leaves_a_frozen_part_as_it_was():
    from idrnet_nb.experiments.ablation import attention_matrix, interaction_inputs
    from idrnet_nb.models.segmentor import build_segmentor

    model = build_segmentor('fcn', 'tiny', 12, width=16).train()
    model.backbone.eval()
    was = [m.training for m in model.modules()]
    with interaction_inputs(model, lambda feats, present: (feats, present)):
        assert not any(m.training for m in model.modules())
    attention_matrix(model, torch.rand(1, 3, 32, 32) * 255)
    assert [m.training for m in model.modules()] == was
    with pytest.raises(ValueError, match='no IDR'):
        with interaction_inputs(build_segmentor('fcn', 'tiny', 12, idr=False, width=16), None):
            pass
