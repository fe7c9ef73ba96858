"""Mutations of the package's functions, for tests that must notice them.

While a block of code runs, one thing in one function is another. The function is found by a word of
a table (word -> 'module:qualified.name'), read as a syntax tree, edited and compiled; its `__code__`
is exchanged and afterwards put back. So it does not matter who has imported it, and no file is
written. Edits:

    rewrite('relate', '_a > 1', '_a > 0')      an expression that looks so becomes another
    argument('relate', 2, '_.T')               the function gets `_.T` for `_` as parameter 2
    result('relate', '_.T')                    the function returns `_.T` for `_`
    move('train', 'step(...)', 'log(...)')     the statement `step(...)` goes before that with `log`

A pattern is a Python expression. In it
    _a … _z        stand for any expression, equal letters for equal ones
    _0, _1 …       are the function's parameters, self is not counted; _self is self
    f(...)         is a call with any arguments, f(_a, ...) with any further ones
    words          of the table are whatever they are called now
    einsum         patterns may have other letters
So the names of local variables, line breaks, comments and moved modules do not matter.
What is not found exactly once is a LookupError."""

import ast, copy, importlib, inspect, re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
CHANGED = 'the function has changed, change the mutation'

# --- functions and their trees


def find(path):
    "The function at 'module:qualified.name', without decorators. LookupError where there is none."
    module, _, name = path.partition(':')
    try:
        thing = importlib.import_module(module)
        for part in name.split('.'):
            thing = inspect.getattr_static(thing, part)
    except (ImportError, AttributeError) as e:
        raise LookupError(f'{path!r} is not there ({e}); change its line in the table of words') from e
    thing = getattr(thing, 'fget', None) or getattr(thing, '__func__', thing)
    function = inspect.unwrap(thing)
    if not inspect.isfunction(function):
        raise LookupError(f'{path!r} is a {type(function).__name__}, not a function')
    return function


def source_of(function):
    return inspect.getsource(inspect.getmodule(function))


def own_nodes(body):
    "All nodes below some statements, but not what is inside of other functions and classes."
    todo = list(body)
    while todo:
        node = todo.pop(0)
        yield node
        if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
            todo += ast.iter_child_nodes(node)


def node_of(module, qualname):
    "The definition of a function in the tree of its module."
    node = module
    for part in qualname.split('.'):
        found = [n for n in own_nodes(node.body) if isinstance(n, DEFINITIONS) and n.name == part]
        if len(found) != 1:
            raise LookupError(f'{qualname!r}: {part!r} is defined {len(found)} times')
        node = found[0]
    return node


def code_of(module, qualname, file):
    "What a function of a module's tree compiles to."
    code = compile(module, file, 'exec', dont_inherit=True)
    for part in qualname.split('.'):
        code = next(c for c in code.co_consts if inspect.iscode(c) and c.co_name == part)
    return code


def parameters(function):
    "Names of a function's parameters, and the name of its self (or None)."
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return (names[1:], names[0]) if names[:1] in (['self'], ['cls']) else (names, None)


# --- does an expression look like a pattern?


def is_any(node):
    return isinstance(node, ast.Name) and re.fullmatch('_[a-z]', node.id)


def is_rest(node):
    return isinstance(node, ast.Constant) and node.value is ...


def has_rest(node):
    return isinstance(node, ast.Call) and any(map(is_rest, node.args))


def name(word):
    return ast.Name(word, ast.Load())


def same_letters(text):
    "An einsum pattern with its axes numbered as they appear; other texts as they are."
    if '->' not in text:
        return text
    axes = list(dict.fromkeys(re.findall(r'\w+', text)))
    return ''.join(re.sub(r'\w+', lambda axis: f'<{axes.index(axis[0])}>', text).split())


def looks_like(pattern, node, found):
    "Whether `node` looks like `pattern`; what its letters stand for is put into the dict `found`."
    if is_any(pattern):
        return ast.dump(found.setdefault(pattern.id, node)) == ast.dump(node)
    if type(pattern) is not type(node):
        return False
    if has_rest(pattern):
        return call_looks_like(pattern, node, found)
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(looks_like(p, n, found) for p, n in zip(pattern, node))
    if isinstance(pattern, str):
        return same_letters(pattern) == same_letters(node)
    if not isinstance(pattern, ast.AST):
        return pattern == node
    fields = [f for f in pattern._fields if f not in ('ctx', 'kind')]
    return all(looks_like(getattr(pattern, f), getattr(node, f), found) for f in fields)


def call_looks_like(pattern, node, found):
    "The same for a call whose pattern has `...`: the further arguments are put into found['...']."
    first = [a for a in pattern.args if not is_rest(a)]
    wanted = {k.arg: k.value for k in pattern.keywords}
    given = {k.arg: k.value for k in node.keywords}
    if len(node.args) < len(first) or not wanted.keys() <= given.keys():
        return False
    found['...'] = node.args[len(first) :], [k for k in node.keywords if k.arg not in wanted]
    return (
        looks_like(pattern.func, node.func, found)
        and looks_like(first, node.args[: len(first)], found)
        and all(looks_like(value, given[k], found) for k, value in wanted.items())
    )


class Fill(ast.NodeTransformer):
    "Puts what was found into a pattern."

    def __init__(self, found):
        self.found = found

    def visit_Name(self, node):
        return copy.deepcopy(self.found.get(node.id, node))

    def visit_Call(self, node):
        node = self.generic_visit(node)
        if has_rest(node) and '...' in self.found:
            args, keywords = copy.deepcopy(self.found['...'])
            node.args = [a for a in node.args if not is_rest(a)] + args
            node.keywords = keywords + node.keywords
        return node


def pattern_of(text, function, words):
    "The tree of a pattern for a function: its parameters and today's words stand in it."
    tree = ast.parse(text, mode='eval').body
    now = {word: re.split('[:.]', path)[-1] for word, path in words.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = now.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            node.attr = now.get(node.attr, node.attr)
    names, self = parameters(function)
    known = {f'_{i}': name(n) for i, n in enumerate(names)}
    if self:
        known['_self'] = name(self)
    return Fill(known).visit(tree)


def filled(text, function, words, found):
    "The tree of a pattern with what was found in it. LookupError where a letter stands for nothing."
    tree = Fill(found).visit(pattern_of(text, function, words))
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    left = [n for n in names if re.fullmatch('_([a-z0-9]|self)?', n)]
    if left:
        raise LookupError(f'{text!r}: {", ".join(left)} stands for nothing')
    return tree


class Exchange(ast.NodeTransformer):
    "Puts one node in the place of another."

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


# --- edits: `apply` changes the tree of a function


@dataclass(frozen=True)
class rewrite:
    "The one expression of the function that looks like `old` becomes `new`."

    function: str  # a word of the table
    old: str  # pattern
    new: str  # pattern

    @property
    def patterns(self):
        return self.old, self.new

    def apply(self, function, words):
        old, hits = pattern_of(self.old, function, words), []
        for node in (n for statement in function.body for n in ast.walk(statement)):
            if looks_like(old, node, found := {}):
                hits.append((node, found))
        if len(hits) != 1:
            raise LookupError(f'{self.function}: {self.old!r} is found {len(hits)} times; {CHANGED}')
        node, found = hits[0]
        new = filled(self.new, function, words, found)
        function.body = [Exchange(node, new).visit(s) for s in function.body]


@dataclass(frozen=True)
class argument:
    "The function gets `new` as its parameter `index`; `_` is what it was given."

    function: str  # a word of the table
    index: int  # of the parameter, self is not counted
    new: str  # pattern

    @property
    def patterns(self):
        return (self.new,)

    def apply(self, function, words):
        names, _ = parameters(function)
        if self.index >= len(names):
            raise LookupError(f'{self.function} has no parameter {self.index}; {CHANGED}')
        mine = names[self.index]
        value = filled(self.new, function, words, {'_': name(mine)})
        change = ast.Assign([ast.Name(mine, ast.Store())], value)
        function.body.insert(1 if ast.get_docstring(function) else 0, change)


@dataclass(frozen=True)
class result:
    "The function returns `new`; `_` is what it would have returned."

    function: str  # a word of the table
    new: str  # pattern

    @property
    def patterns(self):
        return (self.new,)

    def apply(self, function, words):
        returns = [n for n in own_nodes(function.body) if isinstance(n, ast.Return) and n.value]
        if not returns:
            raise LookupError(f'{self.function} returns nothing; {CHANGED}')
        for node in returns:
            node.value = filled(self.new, function, words, {'_': node.value})


@dataclass(frozen=True)
class move:
    "The one statement that looks like `what` goes before the one that contains `before`."

    function: str  # a word of the table
    what: str  # pattern of a whole statement of the function's body
    before: str  # pattern

    @property
    def patterns(self):
        return self.what, self.before

    def apply(self, function, words):
        what, before = (pattern_of(p, function, words) for p in self.patterns)
        body = function.body
        mine = [s for s in body if isinstance(s, ast.Expr) and looks_like(what, s.value, {})]
        there = [s for s in body if any(looks_like(before, n, {}) for n in ast.walk(s))]
        if len(mine) != 1 or len(there) != 1:
            raise LookupError(
                f'{self.function}: {self.what!r} is {len(mine)} statements, '
                f'{self.before!r} stands in {len(there)}; {CHANGED}'
            )
        if body.index(mine[0]) < body.index(there[0]):
            raise LookupError(f'{self.function}: {self.what!r} comes before {self.before!r} already')
        body.remove(mine[0])
        body.insert(body.index(there[0]), mine[0])


# --- the change itself


def edited(source, qualname, edits, words):
    """The tree of a module's source in which one function is edited.
    LookupError where an edit finds nothing, or changes nothing."""
    module = ast.parse(source)
    function = node_of(module, qualname)
    for edit in edits:
        before = ast.dump(function)
        edit.apply(function, words)
        if ast.dump(function) == before:
            raise LookupError(f'{edit} changes nothing')
    return ast.fix_missing_locations(module)


def by_function(edits, words):
    "Each function that is edited, with its edits."
    for word in dict.fromkeys(e.function for e in edits):
        if word not in words:
            raise LookupError(f'no word {word!r} in the table; there are {", ".join(words)}')
        yield find(words[word]), [e for e in edits if e.function == word]


@contextmanager
def mutated(edits, words):
    """While it lasts, the package's functions are the edited ones.
    LookupError, before anything is changed, where an edit finds nothing."""
    changes = []
    for function, mine in by_function(edits, words):
        module = edited(source_of(function), function.__qualname__, mine, words)
        file = inspect.getsourcefile(function)
        changes.append((function, code_of(module, function.__qualname__, file)))
    with ExitStack() as stack:
        for function, code in changes:
            stack.callback(setattr, function, '__code__', function.__code__)
            function.__code__ = code
        yield
