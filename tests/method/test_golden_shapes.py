"""The golden harness takes any width, class count, batch, size and pyramid: files made here from our own head, under the authors' names.
This checks the harness, not the numbers (tests/method/test_golden.py does)."""

import json
from pathlib import Path
import pytest, torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from golden_check import build, compare, names as names_of

GOLDEN = Path(__file__).parents[1] / 'golden'
CASES = [  # file whose names are taken, K, B, picture, grid strides, channels, C, FPN width
    ('fcn', 2, 1, (40, 56), (4, 8, 8, 8), [4, 6, 10, 14], 8, None),
    ('pspnet', 150, 3, (48, 80), (8, 8, 8, 8), [5, 6, 7, 9], 16, None),
    ('pspnet_none_features', 19, 2, (33, 65), (4, 8, 16, 16), [5, 6, 7, 9], 12, None),
    ('deeplabv3', 3, 2, (64, 32), (4, 8, 8, 8), [8, 8, 8, 8], 10, None),
    ('upernet', 60, 2, (64, 96), (4, 8, 16, 32), [6, 7, 8, 9], 12, 20),
    ('upernet_ppm_before', 7, 2, (40, 72), (4, 8, 8, 8), [6, 7, 8, 9], 14, None),
]


def write(path, like, k, b, size, strides, channels, width, fpn):
    from idrnet_nb.method.relation import to_pixels

    with safe_open(GOLDEN / f'{like}.safetensors', 'pt') as f:
        case, names = json.loads(f.metadata()['case']), [n[7:] for n in f.keys() if n.startswith('state0.')]
    case.update(
        K=k,
        B=b,
        img=size,
        steps=2,
        channels=channels,
        feats_channels=width,
        fpn_channels=fpn,
        refine_channels=6,
        aux_channels=5,
        interventions=[],
        present=[],
        losses=[],
    )
    head = build(case)
    ours = names_of(head)
    for name in ('relation_mean', 'relation_var', 'memory'):
        torch.nn.init.normal_(getattr(head.idr, name), std=0.3)
    t = {}
    keep = lambda name, x: t.__setitem__(name, x.detach().clone().contiguous())
    grids = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    pyramid = [torch.randn(b, c, *g) for c, g in zip(channels, grids)]
    state = lambda at: [keep(f'{at}.{n}', head.state_dict()[ours[n]]) for n in names]
    state('state0')
    for i, p in enumerate(pyramid):
        keep(f'eval.in.pyramid{i}', p)
    keep('eval.out.logits', head.eval()(pyramid).logits)
    head.train()
    for s in range(2):
        pyramid, label = [torch.randn(b, c, *g) for c, g in zip(channels, grids)], torch.randint(0, k, (b, *size))
        label[:, :5] = -100
        memory = head.idr.memory.clone()
        out = head(pyramid, label)
        grouping, h = out.grouping, out.feats.shape[-2]
        px = lambda v: rearrange(to_pixels(v, grouping.pred), 'b c (h w) -> b c h w', h=h)
        for i, p in enumerate(pyramid):
            keep(f'step{s}.in.pyramid{i}', p)
        keep(f'step{s}.in.targets', label.short())
        known = torch.cat([out.feats, px(memory.expand(b, -1, -1))], 1)
        for n, x in dict(feats=out.feats, coarse_logits=out.coarse_logits, feats_with_memory=known).items():
            keep(f'step{s}.mid.{n}', x)
        heard = (*out.context.chunk(2, -1), *out.deletion.context.chunk(2, -1))
        for n, x in zip(('context_mean', 'context_var', 'do_context_mean', 'do_context_var'), heard):
            keep(f'step{s}.mid.{n}', px(x))
        head.zero_grad()
        out.loss.backward()
        keep(f'step{s}.out.loss', out.loss[None])
        keep(f'step{s}.out.grad_norm', torch.stack([p.grad.norm() for p in head.parameters()]).norm()[None])
        for n in ('class_relations_mean', 'class_relations_var', 'dl_cls_representations', 'selected_classes_counter'):
            keep(f'step{s}.out.{n}', head.state_dict()[ours[n]])
        case['interventions'].append(out.deletion.deleted.tolist())
        case['present'].append([p.nonzero().flatten().tolist() for p in grouping.present])
        case['losses'].append(
            {
                'loss_total': out.loss.item(),
                **{
                    f'loss_{n}': out.losses[m].item()
                    for n, m in (('cls_stage2', 'final'), ('cls_stage1', 'coarse'), ('aux', 'aux'))
                },
            }
        )
        with torch.no_grad():
            for p in head.parameters():
                p -= 0.01 * p.grad
    state('state1')
    save_file(t, path, metadata={'case': json.dumps(case)})


@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c[0]}-K{c[1]}-B{c[2]}')
def test_any_shape(case, tmp_path):
    torch.manual_seed(0)
    write(tmp_path / 'case.safetensors', *case)
    rows = list(compare(tmp_path / 'case.safetensors'))
    assert not [r for r in rows if not r[1] <= r[2]] and len(rows) > 60


def test_a_wrong_number_is_seen(tmp_path):
    "The harness fails when one entry of one table is off by a thousandth."
    torch.manual_seed(0)
    path = tmp_path / 'case.safetensors'
    write(path, *CASES[0])
    with safe_open(path, 'pt') as f:
        meta, t = f.metadata(), {n: f.get_tensor(n) for n in f.keys()}
    t['step0.out.class_relations_var'][0, 1] += 1e-3
    save_file(t, path, metadata=meta)
    assert [what for what, err, tol in compare(path) if not err <= tol] == ['step0.out.class_relations_var']
