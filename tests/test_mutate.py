"""How the edits of mutate.py behave, on a module that is made here: what they find, what they change,
and that whatever they do not find is an error."""

import ast, json

import pytest

from mutate import argument, edited, find, move, mutated, node_of, result, rewrite

SOURCE = '''
def gather(x, weights, scale=1.):
    "A docstring."
    y = einsum(weights, x, 'b i j, b j c -> b i c') # a comment
    for _ in range(2): y = stretch(y, scale, mode='linear', exact=False)
    note(y)
    if scale>1: return y
    return y-scale
class A:
    def gather(self, x): return self.memory*x
'''


def body(edit, where='gather', source=SOURCE, words=None):
    "The statements of the edited function, without its docstring."
    words = words or {'gather': 'm:gather'}
    function = node_of(edited(source, where, [edit], words), where)
    return [ast.unparse(s) for s in function.body[bool(ast.get_docstring(function)) :]]


def test_rewrite():
    assert body(rewrite('gather', '_y - _s', '_s - _y'))[-1] == 'return scale - y'
    assert body(rewrite('gather', '_y > 1', '_y > _1'))[-2] == 'if scale > weights:\n    return y'
    assert body(rewrite('A.gather', '_self.memory', '_0'), 'A.gather') == ['return x * x']


def test_further_arguments():
    loop = "for _ in range(2):\n    y = "
    faster = rewrite('gather', 'stretch(...)', 'stretch(..., fast=True)')
    assert body(faster)[1] == loop + "stretch(y, scale, mode='linear', exact=False, fast=True)"
    exact = rewrite('gather', 'stretch(_y, ..., exact=False)', 'stretch(0, ..., exact=True)')
    assert body(exact)[1] == loop + "stretch(0, scale, mode='linear', exact=True)"


@pytest.mark.parametrize(
    'pattern', ['b i j, b j c -> b i c', 'n q k,n k d->n q d', 'batch one two, batch two dim -> batch one dim']
)
def test_letters_of_einsum_are_free(pattern):
    assert body(rewrite('gather', f'einsum(_w, _x, {pattern!r})', '_x'))[0] == 'y = x'


@pytest.mark.parametrize('pattern', ['b j i, b j c -> b i c', 'b i j, b j c -> b c i', 'bij, bjc -> bic'])
def test_another_einsum_is_another(pattern):
    with pytest.raises(LookupError, match='0 times'):
        body(rewrite('gather', f'einsum(_w, _x, {pattern!r})', '_x'))


def test_argument_and_result():
    assert body(argument('gather', 1, '_.T + _0'))[0] == 'weights = weights.T + x'
    assert body(argument('A.gather', 0, '-_'), 'A.gather')[0] == 'x = -x'
    returned = ['if scale > 1:\n    return y.T', 'return (y - scale).T']
    assert body(result('gather', '_.T'))[-2:] == returned


def test_move():
    assert body(move('gather', 'note(...)', before='stretch(...)'))[1] == 'note(y)'


def test_a_renamed_function_is_one_line_of_the_table():
    source = SOURCE.replace('gather', 'collect').replace('stretch', 'resize')
    edit = rewrite('gather', 'stretch(...)', '0')
    for now in ('other.place:resize', 'other.place:Part.resize', 'resize'):
        words = dict(gather='m:collect', stretch=now)
        assert body(edit, 'collect', source, words)[1] == 'for _ in range(2):\n    y = 0'
    with pytest.raises(LookupError, match='0 times'):
        body(edit, 'collect', source)


@pytest.mark.parametrize(
    'edit,said',
    [
        (rewrite('gather', '_a + _b', '_a'), r"gather: '_a \+ _b' is found 0 times; the function"),
        (rewrite('gather', 'scale', '0'), 'is found 3 times'),  # not one place
        (rewrite('gather', '_a - _a', '0'), '0 times'),  # equal letters, unequal parts
        (rewrite('gather', '_a - _b', '_c'), '_c stands for nothing'),
        (rewrite('gather', '_a - _b', '_a - _b'), 'changes nothing'),
        (argument('gather', 3, '-_'), 'no parameter 3'),
        (result('gather', '_ + _9'), '_9 stands for nothing'),
        (move('gather', 'note(...)', 'y-scale'), 'already'),
        (move('gather', 'note(...)', 'lost(...)'), 'stands in 0'),
        (move('gather', 'stretch(...)', 'einsum(...)'), 'is 0 statements'),
    ],
)
def test_what_is_not_found_is_an_error(edit, said):
    with pytest.raises(LookupError, match=said):
        body(edit)


@pytest.mark.parametrize('path', ['json:lost', 'json.lost:dumps', 'json:JSONEncoder.lost', 'json:JSONEncoder', 'json'])
def test_a_function_that_is_not_there_is_an_error(path):
    edits = [argument('dump', 0, '-_')]
    with pytest.raises(LookupError, match=path), mutated(edits, dict(dump=path)):
        pass
    with pytest.raises(LookupError, match="no word 'dump'"), mutated(edits, {}):
        pass


def test_everybody_gets_the_edited_function_and_then_the_old_one():
    from json import dumps  # as whoever has imported it before

    words = dict(dumps='json:dumps', encode='json:JSONEncoder.encode')
    before = find(words['dumps']).__code__
    with mutated([argument('dumps', 0, '[_, 2]')], words):
        assert dumps(1) == json.dumps(1) == '[1, 2]'
    with mutated([result('encode', '_[1:]')], words):
        assert json.JSONEncoder().encode(12) == '2'
    assert dumps(1) == '1' and find(words['dumps']).__code__ is before
    with pytest.raises(ZeroDivisionError), mutated([argument('dumps', 0, '[_]')], words):
        1 / 0
    half = [argument('dumps', 0, '[_]'), argument('encode', 9, '[_]')]  # the second is not possible
    with pytest.raises(LookupError), mutated(half, words):
        pass
    assert dumps(1) == '1' and find(words['dumps']).__code__ is before
