"""The tests bite: each mutation changes one thing in one function, and a golden file, a reference
implementation by loops or a small check must notice.

To add one: two lines in MUTATIONS, and its function's name in WHERE if it is not there yet. How edits
and patterns are written: mutate.py. After a rename or a move in the package: change one line of WHERE.
A mutation that finds nothing to change fails."""

import ast, random
from pathlib import Path

import pytest, torch
import torch.nn.functional as F

import golden_check, test_twins
from idrnet_nb.models.head import HeadConfig, SegHead
from mutate import argument, by_function, edited, find, mutated, node_of, result, rewrite, source_of

GOLDEN = [Path(__file__).parents[1] / 'golden' / f'{name}.safetensors' for name in ('fcn', 'upernet_ppm_before')]


def at(module, *same, **other):
    "Functions of a module by what mutations call them: the name that they have there, or another."
    return {word: f'{module}:{name}' for word, name in (*zip(same, same), *other.items())}


WHERE = {  # where everything is that mutations speak of
    **at('idrnet_nb.method.layers', 'upsample', classify='Classifier.classify', dropout_mask='Classifier.dropout_mask'),
    **at(
        'idrnet_nb.models.tiled_cross_entropy', 'interpolation_matrix', tiled='tile_by_tile', tile_losses='_tile_losses'
    ),
    **at('idrnet_nb.method.spatial_context', 'region_weights'),
    **at('idrnet_nb.method.attention', 'attend'),
    **at('idrnet_nb.method.grouping', 'group', 'pixel_weights', 'bilinear_weights', 'update_memory'),
    **at('idrnet_nb.method.relation', 'relation_weights', 'interact', 'class_context'),
    **at(
        'idrnet_nb.method.deletion',
        'sample_deleted',
        'zero_context',
        'remove_class',
        'class_loss_stats',
        'update_relation',
    ),
    **at(
        'idrnet_nb.method.idr',
        refine='IDRContext.refine',
        idr_interact='IDRContext.interact',
        diagnose='IDRContext.diagnose',
        learn_relations='IDRContext.learn_relations',
        learn_memory='IDRContext.learn_memory',
    ),
    **at(
        'idrnet_nb.models.head',
        forward='SegHead.forward',
        head_classify='SegHead.classify',
        fixed_part='SegHead.fixed_part',
    ),
    # attributes and settings: what each is called now
    'memory': 'memory',
    'idr': 'idr',
    'config': 'config',
    'memory_momentum': 'memory_momentum',
}

MUTATIONS = {  # what is wrong -> (who must notice, edits)
    'table read transposed': ('golden', argument('relation_weights', 0, '_.T')),
    'table written transposed': ('golden', argument('update_relation', 0, '_.T'), result('update_relation', '_.T')),
    'relation weights transposed': (
        'golden',
        rewrite('interact', "einsum(_w, _m, 'b i j, b j c -> b i c')", "einsum(_w.mT, _m, 'b i j, b j c -> b i c')"),
    ),
    'negatives kept in the mean table': ('golden', argument('relation_weights', 2, 'False')),
    'negatives silenced in the variance table': (
        'golden',
        rewrite(
            'class_context',
            'interact(_a, _b, _c, _d, drop_negative=False)',
            'interact(_a, _b, _c, _d, drop_negative=True)',
        ),
    ),
    'absent classes speak': ('golden', rewrite('relation_weights', '_x.masked_fill(~_p, -torch.inf)', '_x')),
    'no softmax weights in grouping': (
        'golden',
        rewrite('pixel_weights', '_x.softmax(-1) * _m', '_m / _m.sum(-1, keepdim=True).clamp(min=1)'),
    ),
    'softmax over all pixels in grouping': (
        'golden',
        rewrite('pixel_weights', '_x.masked_fill(~_m, -torch.inf)', '_x'),
    ),
    'deleted pixels keep context': ('golden', rewrite('idr_interact', 'zero_context(_c, _d)', '_c')),
    'deleted class still speaks': ('golden', rewrite('idr_interact', 'remove_class(_p, _d)', '_p')),
    'loss with minus loss without': ('golden', argument('update_relation', 1, '-_')),
    'sample variance': (
        'twin test_class_stats',
        rewrite('class_loss_stats', '_s(_x**2) / _n.clamp(min=1)', '_s(_x**2) / (_n-1).clamp(min=1)'),
    ),
    'void pixels have statistics': (
        'golden',
        rewrite('class_loss_stats', 'torch.where(_v, _l, _k)', 'torch.where(_v, _l, 0)'),
    ),
    'void pixels count in the mean loss': ('golden', rewrite('tiled', '(_l != _i).sum()', '(_l == _l).sum()')),
    'one pixel is enough for a variance': ('twin test_learning', rewrite('learn_relations', '_n > 1', '_n > 0')),
    'pictures of a batch not one after the other': (
        'twin test_update_relations',
        rewrite('update_relation', '_h.flip(0).cumsum(0).flip(0) - _h', '0 * _h'),
    ),
    'counter not incremented': ('golden', rewrite('learn_relations', '_c.add_(_n)', '_c.add_(0)')),
    'counter not incremented within a batch': (
        'twin test_pick_class',
        rewrite('sample_deleted', '_c.index_add(0, _d, _o)', '_c + 0'),
    ),
    'class picked without its counter': (
        'twin test_pick_class',
        rewrite('sample_deleted', '(_t * _c).masked_fill(...)', '_t.masked_fill(...)'),
    ),
    'memory learnt before the first pass reads it': (
        'golden',
        rewrite('forward', '_self.idr.learn_memory(_f, _l, _m)', 'None'),
        rewrite(
            'forward',
            '_self.idr.group(_f, _c)',
            '''(_self.training and _self.idr.learn_memory(
            _f, _1, _self.config.memory_momentum), _self.idr.group(_f, _c))[1]''',
        ),
    ),
    'memory learnt before the second pass reads it': (
        'golden',
        rewrite('forward', '_self.idr.learn_memory(_f, _l, _m)', 'None'),
        rewrite(
            'forward',
            '_self.fixed_part(_f, _d)',
            '''(_self.training and _self.idr.learn_memory(
            _f, _1, _self.config.memory_momentum), _self.fixed_part(_f, _d))[1]''',
        ),
    ),
    'absent classes forget': ('twin test_memory', rewrite('update_memory', '(_n > 0)[:,None] & _f', '_f')),
    'memory not upsampled by half pixels': ('golden', rewrite('bilinear_weights', '_c*_r - .5', '(_c-.5)*_r')),
    'memory missing among what pixels know': ('golden', rewrite('refine', '_self.memory', '0*_self.memory')),
    'regions share no pixel': (
        'twin test_pool_regions',
        rewrite('region_weights', '(_p+1)*_s > _r*_n', '_p*_s >= _r*_n'),
    ),
    'regions are summed, not averaged': ('golden', rewrite('region_weights', '_a / _b.sum(-1, keepdim=True)', '_a')),
    'corners aligned': ('golden', rewrite('upsample', '_f(..., align_corners=False)', '_f(..., align_corners=True)')),
    'corners aligned in the loss': (
        'golden',
        rewrite('interpolation_matrix', '_f(..., align_corners=False)', '_f(..., align_corners=True)'),
    ),
    'the slope of a strip is its softmax': ('golden', rewrite('tile_losses', '_t.exp() - 1', '_t.exp()')),
    'attention without its scale': (
        'golden',
        rewrite('attend', 'F.scaled_dot_product_attention(...)', 'F.scaled_dot_product_attention(..., scale=1.)'),
    ),
    'second pass with other dropout': (
        'dropout',
        rewrite('head_classify', '_c.classify(_x, _k, _t)', '_c.classify(_x, _c.dropout_mask(_x), _t)'),
    ),
    'second pass moves the norms by itself': (
        'norms',
        rewrite('diagnose', '_self.refine(_a, _b, _c, _t)', '_self.refine(_a, _b, _c, True)'),
    ),
}

# --- who must notice: raise AssertionError, or find nothing wrong


def golden():
    "The authors' numbers."
    for file in GOLDEN:
        for what, error, tolerance in golden_check.compare(file):
            assert error <= tolerance, f'{file.stem}: {what} is off by {error:.1e}'


def twin(name):
    "A reference implementation by loops, on 60 small cases."
    rng = random.Random(0)
    for seed in range(60):
        b, k, c, h, w = (rng.randint(1, most) for most in (4, 8, 4, 4, 4))
        case = test_twins.Case(b, k, c, h, w, seed, 'float32', test_twins.KINDS[seed % 4])
        test_twins.PLAIN[name](case, case.rng())


def one_step(**settings):
    """A head of 4 classes after one training step, and what it gave.
    What IDR adds is zero, so that a deletion changes nothing."""
    torch.manual_seed(0)
    config = HeadConfig(4, width=8, attention_width=4, aux_width=4, **settings)
    head = SegHead([4, 4, 6, 8], config).train()
    torch.nn.init.zeros_(head.idr.attention.out.norm.weight)
    pyramid, label = [torch.randn(3, c, 6, 6) for c in (4, 4, 6, 8)], torch.randint(4, (3, 12, 12))
    return head, head(pyramid, label)


def dropout():
    "Where IDR adds nothing a deletion moves no loss, whatever dropout draws: diagonal tables."
    head, out = one_step(dropout=0.5)
    assert out.deletion.deleted.numel() == 3
    for table in (head.idr.relation_mean, head.idr.relation_var):
        others = table - table.diag().diag()
        assert table.diag().min() < 1 and not others.any(), f'{table} is not diagonal'


def norms():
    "Each norm counts one batch a step."
    head, _ = one_step()
    for name, module in head.named_modules():
        seen = getattr(module, 'num_batches_tracked', 1)
        assert seen == 1, f'{name} has seen {seen} batches'


CHECKERS = dict(golden=golden, twin=twin, dropout=dropout, norms=norms)


def check(checker):
    name, *args = checker.split()
    CHECKERS[name](*args)


# --- the tests


def test_enough_of_them():
    functions = {edit.function for _, *edits in MUTATIONS.values() for edit in edits}
    assert len(MUTATIONS) >= 32 and len(functions) >= 20


@pytest.mark.parametrize('checker', sorted({checker for checker, *_ in MUTATIONS.values()}))
def test_the_package_itself_passes(checker):
    check(checker)


@pytest.mark.parametrize('name', MUTATIONS)
def test_mutation_is_caught(name):
    checker, *edits = MUTATIONS[name]
    with mutated(edits, WHERE):
        try:
            check(checker)
        except AssertionError:
            return  # another error would say that the mutated code does not even run
    pytest.fail(f'survivor: {name!r} is not noticed by {checker}')


class RenameLocals(ast.NodeTransformer):
    "Whatever a function binds gets another name: parameters, variables, inner functions."

    def __init__(self, function):
        bound = []
        for n in ast.walk(function):
            if isinstance(n, ast.arg):
                bound.append(n.arg)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                bound.append(n.id)
            if isinstance(n, ast.FunctionDef) and n is not function:
                bound.append(n.name)
        self.new = {n: f'other_{i}' for i, n in enumerate(dict.fromkeys(bound)) if n != 'self'}

    def visit_Name(self, node):
        return ast.Name(self.new.get(node.id, node.id), node.ctx)

    def visit_arg(self, node):
        return ast.arg(self.new.get(node.arg, node.arg), None)

    def visit_FunctionDef(self, node):
        node.name = self.new.get(node.name, node.name)
        return self.generic_visit(node)


@pytest.mark.parametrize('name', MUTATIONS)
def test_other_names_and_another_form_make_no_difference(name):
    "First edited and then renamed is the same as first renamed, written anew, and then edited."
    for function, edits in by_function(MUTATIONS[name][1:], WHERE):
        source, qualname = source_of(function), function.__qualname__
        module = ast.parse(source)
        here = node_of(module, qualname)
        renamed = RenameLocals(here)
        assert renamed.new
        renamed.visit(here)
        other = ast.unparse(module)  # other line breaks, no comments, one statement a line
        before = node_of(edited(source, qualname, edits, WHERE), qualname)
        after = node_of(edited(other, qualname, edits, WHERE), qualname)
        assert ast.dump(renamed.visit(before)) == ast.dump(after)


@pytest.mark.parametrize('name', MUTATIONS)
def test_patterns_name_nothing_local(name):
    "What a pattern names is a letter, a word of WHERE, or torch's."
    words = {*WHERE, 'torch', 'F', 'einsum', 'training'}
    for pattern in (p for edit in MUTATIONS[name][1:] for p in edit.patterns):
        for node in ast.walk(ast.parse(pattern)):
            if isinstance(node, ast.Name):
                assert node.id in words or node.id[0] == '_', f'{pattern}: {node.id}'
            if isinstance(node, ast.Attribute):
                known = any(hasattr(home, node.attr) for home in (torch.Tensor, torch, F))
                assert known or node.attr in words, f'{pattern}: {node.attr}'


def test_every_word_is_somewhere():
    for path in WHERE.values():
        assert ':' not in path or find(path)
    edits = [edit for _, *edits in MUTATIONS.values() for edit in edits]
    used = ' '.join([*(e.function for e in edits), *(p for e in edits for p in e.patterns)])
    assert not [word for word in WHERE if word not in used], 'words that no mutation uses'
