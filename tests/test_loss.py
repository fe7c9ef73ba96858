"""Each loss against loops on random cases, void, absent classes, half precision; no host sync, one graph."""
import random
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from idrnet_nb.head import mean_loss, pixel_loss
from idrnet_nb.loss import Criterion, balanced_weights, focal, hard_mean, lovasz, soft_dice

WORDS = ('ce', 'focal', 'dice', 'lovasz', 'ce+dice', '0.5*ce+1.5*lovasz')

def case(seed, dtype=torch.float32, ignore=255):
    g, r = torch.Generator().manual_seed(seed), random.Random(seed)
    b, k, h, w = r.randint(1,3), r.randint(1,5), r.randint(1,6), r.randint(1,6)
    label = torch.randint(0, r.randint(1,k), (b,h,w), generator=g)
    label[torch.rand(b, h, w, generator=g) < r.choice([0,0,.3,.9,1.1])] = ignore # the last: all void
    return (r.choice([.1,1,5])*torch.randn(b, k, h, w, generator=g)).to(dtype), label

def pixels(logits, label, ignore=255): # (probabilities, class) of each labelled pixel
    p = logits.double().softmax(1)
    return [(p[b,:,y,x], int(c)) for (b,y,x),c in zip(torch.cartesian_prod(*(torch.arange(n) for n in label.shape)).reshape(-1,3).tolist(), label.flatten()) if c!=ignore]

def dice_loop(px, k):
    out = []
    for c in {c for _,c in px}: out.append(1-2*sum(p[c] for p,t in px if t==c)/(sum(p[c] for p,_ in px)+sum(t==c for _,t in px)))
    return sum(out)/len(out) if out else 0.

def lovasz_loop(px, k): # Jaccard loss of the sets of the 1, 2, … worst pixels
    out = []
    for c in {c for _,c in px}:
        worst = sorted(((1-p[c] if t==c else p[c]).item(), t==c) for p,t in px)[::-1]
        true, value, before = sum(t for _,t in worst), 0., 0.
        for i,(error,_) in enumerate(worst):
            missed = sum(t for _,t in worst[:i+1]); loss = 1-(true-missed)/(true+(i+1-missed))
            value, before = value+error*(loss-before), loss
        out.append(value)
    return sum(out)/len(out) if out else 0.

@pytest.mark.parametrize('part', range(4))
def test_equal_to_loops(part):
    for seed in range(60*part, 60*part+60):
        logits, label = case(seed); px, k = pixels(logits, label), logits.shape[1]
        n = max(1, len(px))
        want = dict(ce=sum(-p[c].log() for p,c in px)/n, focal=sum((1-p[c])**2*-p[c].log() for p,c in px)/n, dice=dice_loop(px, k), lovasz=lovasz_loop(px, k))
        for name,v in want.items():
            torch.testing.assert_close(Criterion(name)(logits, label).double(), torch.as_tensor(v).double(), rtol=1e-4, atol=2e-5, msg=lambda m: f'{name}, case {seed}: {m}')
        torch.testing.assert_close(Criterion('0.5*ce+2*dice')(logits, label).double(), torch.as_tensor(.5*want['ce']+2*want['dice']).double(), rtol=1e-4, atol=4e-5)

def test_usual_is_the_models():
    for seed in range(30):
        logits, label = case(seed)
        assert torch.equal(Criterion()(logits, label), mean_loss(pixel_loss(logits, label), label))
        w = tuple((torch.arange(logits.shape[1])+1.).tolist())
        if (label!=255).any(): torch.testing.assert_close(Criterion(class_weights=w)(logits, label), F.cross_entropy(logits, label, torch.tensor(w), ignore_index=255))

@pytest.mark.parametrize('name', WORDS)
def test_void_is_as_if_it_were_not_there(name):
    for seed in range(40):
        logits, label = case(seed); a, b = (torch.cat([logits, x], -1) for x in (logits.flip(0), 9*logits))
        wide = torch.cat([label, torch.full_like(label, 255)], -1)
        assert torch.allclose(Criterion(name)(a, wide), Criterion(name)(b, wide)) and torch.allclose(Criterion(name)(a, wide), Criterion(name)(logits, label), atol=1e-6)

@pytest.mark.parametrize('name', WORDS)
@pytest.mark.parametrize('how', [{}, dict(class_weights=(1.,2.,3.), ohem=.7, ohem_least=4)])
def test_gradients(name, how):
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2,3,4)); label[0,0] = 255
    z = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: Criterion(name, **how)(z, label), z)
    for void in torch.full_like(label, 255), label:
        x = (60*torch.randn(2,3,3,4)).requires_grad_(); Criterion(name, **how)(x, void).backward() # very sure, or nothing to learn from
        assert x.grad.isfinite().all() and ((void==255).all()<=(x.grad==0).all())

def test_lovasz_is_the_jaccard_loss_of_sure_answers():
    for seed in range(60):
        logits, label = case(seed); said, valid = logits.argmax(1), label!=255
        sure = 1e4*F.one_hot(said, logits.shape[1]).movedim(-1,1).float()
        present = [c for c in range(logits.shape[1]) if (label==c).any()]
        ious = [(((said==c)&(label==c)).sum()/(((said==c)|(label==c))&valid).sum()).item() for c in present]
        assert abs(lovasz(sure, label).item() - (1-sum(ious)/len(ious) if ious else 0)) < 1e-5

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', WORDS)
def test_half_precision(name, dtype):
    logits, label = torch.randn(2,4,40,50), torch.randint(0,4,(2,40,50))
    low = Criterion(name)(logits.to(dtype), label)
    assert low.dtype==torch.float32; torch.testing.assert_close(low, Criterion(name)(logits.to(dtype).float(), label))

@pytest.mark.parametrize('name', WORDS)
def test_one_graph_and_no_look_at_values(name):
    c, (logits, label) = Criterion(name, (1.,2.,3.), .7, 9), (torch.randn(2,3,5,6), torch.randint(0,3,(2,5,6)))
    torch.testing.assert_close(torch.compile(c.__call__, fullgraph=True, backend='eager')(logits, label), c(logits, label))
    with FakeTensorMode(): # a value that reached the host would raise
        z = torch.empty(2,3,5,6, requires_grad=True); c(z, torch.empty(2,5,6, dtype=torch.long)).backward(); assert z.grad.shape==z.shape

def test_hard_pixels():
    for seed in range(60):
        logits, label = case(seed); each = pixel_loss(logits, label); px = pixels(logits, label)
        for below,least in ((.7,1), (.2,3), (0.,2)):
            sure = sorted(p[c].item() for p,c in px)
            limit = max([below]+[sure[min(least,len(sure))-1]+1e-7] if sure else [0])
            kept = [-p[c].log().item() for p,c in px if p[c]<limit]
            assert abs(hard_mean(each, label, 255, None, below, least).item() - (sum(kept)/len(kept) if kept else 0)) < 1e-4

def test_what_is_said():
    for bad in ('', 'hinge', 'ce+hinge', '2ce', 'ce,dice', '-ce'):
        with pytest.raises(ValueError, match='write a sum of'): Criterion(bad)
    with pytest.raises(ValueError, match='2 class_weights for 3 classes'): Criterion(class_weights=(1.,2.))(torch.zeros(1,3,2,2), torch.zeros(1,2,2).long())
    with pytest.raises(ValueError, match='differ in size'): Criterion()(torch.zeros(1,3,2,2), torch.zeros(1,4,4).long())
    with pytest.raises(ValueError, match='no pixel counts'): balanced_weights((1,-1))
    assert balanced_weights((1,1,1), 'median')==(1.,1.,1.) and focal(torch.tensor([0.]), 2.).item()==0 and soft_dice(torch.zeros(1,1,1,1), torch.zeros(1,1,1).long()).item()<1e-6
