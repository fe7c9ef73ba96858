"""The tests bite: each mutation changes one line of a module (or moves it), and a golden file, a loop twin or a small check must notice.
One subprocess loads every mutated copy in turn. `python test_mutations.py FOLDER` is that subprocess."""
import importlib, json, os, random, shutil, subprocess, sys
from pathlib import Path
import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent/'idrnet_nb'
GOLDEN = 'fcn', 'upernet_ppm_before'

LEARN = "    learn_memory(idr, out['feat'], label, c.memory_momentum)\n"
MUTATIONS = { # name -> (module, [(old, new), ...], checker)
    'table read transposed': ('relation', [('score = score.expand(', 'score = score.T.expand(')], 'golden'),
    'table written transposed': ('intervene', [('(1-momentum)**hit.sum(0) * table + (hit*step).sum(0)', '(1-momentum)**hit.sum(0).T * table + (hit*step).sum(0).T')], 'golden'),
    'relation weights transposed': ('relation', [("heard = einsum(weights, means, 'b i j, b j c -> b i c')", "heard = einsum(weights, means, 'b j i, b j c -> b i c')")], 'golden'),
    'negatives kept in the mean table': ('relation', [('if positive else table', 'if False else table')], 'golden'),
    'negatives silenced in the variance table': ('relation', [('relate(means, memory, table_var, present, False)', 'relate(means, memory, table_var, present, True)')], 'golden'),
    'absent classes speak': ('relation', [(".masked_fill(~there, -torch.inf)", '')], 'golden'),
    'no softmax weights in grouping': ('classes', [('return score.softmax(-1) * member', 'return member / member.sum(-1, keepdim=True).clamp(min=1)')], 'golden'),
    'softmax over all pixels in grouping': ('classes', [('full_precision(coarse).masked_fill(~member, -torch.inf)', 'full_precision(coarse)')], 'golden'),
    'deleted pixels keep context': ('idrnet', [('silence(idr.talk(', '(lambda heard,_: heard)(idr.talk(')], 'golden'),
    'deleted class still speaks': ('idrnet', [('without(view.present, deleted)', 'view.present')], 'golden'),
    'loss with minus loss without': ('idrnet', [('mean_-mean, var_-var', 'mean-mean_, var-var_')], 'golden'),
    'sample variance': ('intervene', [('mean.gather(1, slot))**2) / count.', 'mean.gather(1, slot))**2) / (count-1).')], 'twin test_class_stats'),
    'void pixels have statistics': ('intervene', [('slot = torch.where((label>=0) & (label<k), label, k)', 'slot = torch.where((label>=0) & (label<k), label, 0)')], 'golden'),
    'void pixels count in the mean loss': ('head', [('(label!=ignore).sum()', '(label==label).sum()')], 'golden'),
    'one pixel is enough for a variance': ('idrnet', [('n>1, momentum', 'n>0, momentum')], 'twin test_learning'),
    'pictures of a batch not one after the other': ('intervene', [('(1-momentum)**later * ', '')], 'twin test_update_relations'),
    'counter not incremented': ('idrnet', [('idr.count.add_(F.one_hot(deleted, idr.k).sum(0))', 'idr.count.add_(0)')], 'golden'),
    'counter not incremented within a batch': ('intervene', [('count = count + F.one_hot(picked[-1], len(count))', 'count = count + 0')], 'twin test_pick_class'),
    'class picked without its counter': ('intervene', [('(time*count).masked_fill', 'time.masked_fill')], 'twin test_pick_class'),
    'memory learnt before the first pass reads it': ('idrnet', [(LEARN, ''), ("        logits, again = _answer(self, pyramid, out)\n",
        "        if self.training: learn_memory(self.refiner, out['feat'], label, self.config.memory_momentum)\n        logits, again = _answer(self, pyramid, out)\n")], 'golden'),
    'memory learnt before the second pass reads it': ('idrnet', [(LEARN, ''), ("    if c.learn_tables and noise", f"{LEARN}    if c.learn_tables and noise")], 'golden'),
    'absent classes forget': ('classes', [('(counts>0)[:,None] & new.isfinite()', 'new.isfinite()')], 'twin test_memory'),
    'memory not upsampled by half pixels': ('classes', [('+.5)*(coarse/fine)-.5', ')*(coarse/fine)')], 'golden'),
    'memory missing among what pixels know': ('idrnet', [('torch.cat([self.memory.to(heard)', 'torch.cat([0*self.memory.to(heard)')], 'golden'),
    'regions share no pixel': ('context', [('((pixel+1)*s > region*n)', '(pixel*s >= region*n)')], 'twin test_pool_regions'),
    'regions are summed, not averaged': ('context', [('inside.to(dtype) / inside.sum(-1, keepdim=True)', 'inside.to(dtype)')], 'golden'),
    'corners aligned': ('head', [("mode='bilinear', align_corners=False", "mode='bilinear', align_corners=True")], 'golden'),
    'corners aligned in the loss': ('head', [("mode='linear', align_corners=False", "mode='linear', align_corners=True")], 'golden'),
    'the slope of a strip is its softmax': ('head', [('scatter_(1, at, true.exp()-1)', 'scatter_(1, at, true.exp())')], 'golden'),
    'attention without its scale': ('attention', [('F.scaled_dot_product_attention(query, key, value)', 'F.scaled_dot_product_attention(query, key, value, scale=1.)')], 'golden'),
    'second pass with other dropout': ('idrnet', [('head.final.finish(grown, keep, track)', 'head.final.finish(grown, head.final.keep(grown), track)')], 'dropout'),
    'second pass moves the norms by itself': ('idrnet', [('lesion(idr, view, gone, c.track_deleted)', 'lesion(idr, view, gone, True)')], 'norms'),
}

# --- checkers: raise AssertionError, or find nothing
def golden():
    compare = importlib.import_module('golden_check').compare
    for name in GOLDEN:
        for what,err,tol in compare(HERE/'golden'/f'{name}.safetensors'): assert err<=tol, f'{name}: {what} is off by {err:.1e}'

def twin(name):
    "A loop twin on 60 small cases."
    twins, rng = importlib.import_module('test_twins'), random.Random(0)
    for seed in range(60):
        case = twins.Case(rng.randint(1,4), rng.randint(1,8), rng.randint(1,4), rng.randint(1,4), rng.randint(1,4), seed, 'float32', twins.KINDS[seed%4])
        twins.PLAIN[name](case, case.rng())

def step(**settings):
    "A model of 4 classes after one training step, what it gave, and its norms before."
    import torch
    from idrnet_nb.idrnet import HeadConfig, SegHead
    torch.manual_seed(0)
    head = SegHead([4,4,6,8], HeadConfig(4, width=8, attention_width=4, aux_width=4, **settings)).train()
    torch.nn.init.zeros_(head.refiner.refiner.out.norm.weight) # so the refiner says nothing, and deletion changes nothing
    pyramid, label = [torch.randn(3,c,6,6) for c in (4,4,6,8)], torch.randint(4, (3,12,12))
    return head, head(pyramid, label)

def dropout():
    "Where the refiner says nothing a deletion moves no loss, whatever dropout draws: tables stay diagonal."
    head, out = step(dropout=.5)
    for table in (head.refiner.relation_mean, head.refiner.relation_var):
        assert out['diagnosis']['deleted'].numel()==3
        assert table.diag().min()<1 and not (table-table.diag().diag()).any(), f'{table} is not diagonal'

def norms():
    "Each norm counts one batch a step."
    head, _ = step()
    for name,m in head.named_modules():
        if hasattr(m, 'num_batches_tracked'): assert m.num_batches_tracked==1, f'{name} has seen {m.num_batches_tracked} batches'

def check(checker):
    name,*args = checker.split()
    dict(golden=golden, twin=twin, dropout=dropout, norms=norms)[name](*args)

# --- the subprocess
def forget():
    for name in [n for n in sys.modules if n.split('.')[0] in ('idrnet_nb','golden_check','test_twins')]: del sys.modules[name]

def judge(folder, checker):
    "What `checker` says of the package in `folder`: None if it sees nothing wrong."
    forget()
    sys.path.insert(0, str(folder))
    try:
        loaded = Path(importlib.import_module('idrnet_nb').__file__)
        assert loaded.parent.resolve()==(folder/'idrnet_nb').resolve(), f'{loaded} was imported'
        check(checker)
    except AssertionError as e: return f'caught: {str(e)[:200]}'
    except Exception as e: return f'broken: {type(e).__name__}: {str(e)[:200]}'
    finally: sys.path.remove(str(folder))

def main(folder):
    for sub in sorted(folder.iterdir()):
        for line in (sub/'checkers').read_text().splitlines():
            print(json.dumps([(sub/'name').read_text(), line, judge(sub, line)]), flush=True)

# --- pytest
def mutate(text, edits, name):
    for old,new in edits:
        assert text.count(old)==1, f'{name}: {old!r} occurs {text.count(old)} times; the module has changed, change the mutation'
        text = text.replace(old, new)
    return text

@pytest.fixture(scope='module')
def verdicts(tmp_path_factory):
    "(name, checker) -> what was said; the name '' is the package as it is."
    root = tmp_path_factory.mktemp('mutants')
    everyone = sorted({c for *_,c in MUTATIONS.values()})
    for i,(name,(module,edits,checker)) in enumerate([('', ('', [], '\n'.join(everyone))), *MUTATIONS.items()]):
        copy = root/f'{i:02}'/'idrnet_nb'
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns('__pycache__'))
        (copy.parent/'name').write_text(name); (copy.parent/'checkers').write_text(checker)
        if name: (copy/f'{module}.py').write_text(mutate((copy/f'{module}.py').read_text(encoding='utf-8'), edits, name), encoding='utf-8')
    env = {**os.environ, 'PYTHONPATH':'', 'PYTHONDONTWRITEBYTECODE':'1', 'OMP_NUM_THREADS':'1'}
    p = subprocess.run([sys.executable, __file__, root], capture_output=True, text=True, env=env, cwd=root)
    assert p.returncode==0, p.stderr[-2000:]
    return {(name,checker):said for name,checker,said in map(json.loads, p.stdout.splitlines())}

def test_enough_of_them():
    assert len(MUTATIONS)>=10 and {m for m,_,_ in MUTATIONS.values()}>={'classes','relation','intervene','idrnet'}

def test_the_package_itself_passes(verdicts):
    wrong = {c:said for (name,c),said in verdicts.items() if name=='' and said}
    assert not wrong and len([n for n,_ in verdicts if n==''])>=5

@pytest.mark.parametrize('name', MUTATIONS)
def test_mutation_is_caught(verdicts, name):
    said = verdicts[name, MUTATIONS[name][2]]
    assert said, f'survivor: {name!r} is not noticed by {MUTATIONS[name][2]}'
    assert said.startswith('caught'), f'{name!r} does not even run: {said}'

if __name__=='__main__': main(Path(sys.argv[1]))
