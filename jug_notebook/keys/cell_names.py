"""A cell as a task: which names it reads and sets, and the function that has the cell as its body."""

from __future__ import annotations
import __future__

import ast
from collections.abc import Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from jug_notebook.errors import BadTask
from jug_notebook.keys import syntax


class CellNames(NamedTuple):
    """The names of a cell, by Python's scope rules."""

    reads: frozenset[str]  #: read before the cell sets them itself (builtins among them)
    assigns: tuple[str, ...]  #: set by the cell, functions and classes too, in order; neither imports nor deleted ones
    imports: frozenset[str]  #: bound by imports
    defines: frozenset[str]  #: functions and classes


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_OUT = "__jug_outputs__"
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def cell_names(source: str) -> CellNames:
    """Return which names a cell reads and sets. Raises SyntaxError as Python would, BadTask for a star import."""
    tree = _parse(source)
    return _Names().of(tree.body)


def _classes_read_what_they_seem_to(tree: ast.Module, own: set[str]) -> None:
    """Raise BadTask for a class whose body reads a name of ``own``, the cell's, before it sets it itself.

    Python would read the module's global there, which in a cell task isn't the cell's variable: another value.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        inside = _Names()
        inside._run(node.body)
        clash = sorted(own.intersection(inside.reads).intersection([*inside.assigned, *inside.deleted]))
        of_cell = [name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names]
        if clash or (of_cell and any(isinstance(one, ast.Global) for one in node.body)):
            name = (clash or of_cell)[0]
            raise BadTask(
                f"line {node.lineno}: class {node.name} and the cell both set {name!r}, which a cell task can't keep "
                f"apart. Rename one of them"
            )


def _parse(source: str, filename: str = "<cell>") -> ast.Module:
    tree = ast.parse(source, filename)
    compile(source, filename, "exec", flags=_AWAIT, dont_inherit=True)  # says what parsing alone lets pass
    return tree


class _Names(ast.NodeVisitor):
    """Walks statements in the order in which they run. ``bound``: names that are surely set at this point."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.reads: dict[str, None] = {}
        self.later: dict[str, None] = {}  #: read when a function is called: by then the cell may have set it
        self.assigned: dict[str, None] = {}
        self.imports: set[str] = set()
        self.defines: set[str] = set()
        self.deleted: set[str] = set()

    def of(self, body: Sequence[ast.stmt]) -> CellNames:
        self._run(body)
        late = [name for name in self.later if name not in self.assigned and name not in self.imports]
        gone = self.deleted - self.bound
        assigned = tuple(name for name in self.assigned if name not in self.imports and name not in gone)
        return CellNames(frozenset([*self.reads, *late]), assigned, frozenset(self.imports), frozenset(self.defines))

    def _run(self, statements: Iterable[ast.AST]) -> None:
        for statement in statements:
            self.visit(statement)

    def _read(self, name: str) -> None:
        if name not in self.bound and name != "get_ipython":  # what !cmd and %magic become: each process has its own
            self.reads[name] = None

    def _set(self, name: str) -> None:
        self.bound.add(name)
        self.deleted.discard(name)
        self.imports.discard(name)
        self.assigned[name] = None

    def _maybe(self, *branches: Iterable[ast.AST]) -> None:
        """Visit branches, of which one runs: surely set is what each of them sets."""
        before = set(self.bound)
        after: list[set[str]] = []
        for branch in branches:
            self.bound = set(before)
            self._run(branch)
            after.append(self.bound)
        self.bound = set.intersection(*after)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self._set(node.id)
        else:
            self._read(node.id)
            self._unset(node.id)

    def _unset(self, name: str) -> None:
        self.bound.discard(name)
        self.deleted.add(name)

    # assignments: the value first, then the target

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._run(node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)
        elif not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._set(node.target.id)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "__future__":
            return
        for alias in node.names:
            if alias.name == "*":
                raise BadTask(
                    f"'from {node.module} import *' hides which names the cell sets, so it can't be in a cell task. "
                    f"Name what you need: from {node.module} import …"
                )
            self._import(alias.asname or alias.name)

    def _import(self, name: str) -> None:
        self._set(name)
        self.imports.add(name)

    # branches that may not run

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._maybe(node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._maybe([node.body], [node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        self._maybe(node.values[1:], [])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._maybe(node.body, [])
        self._maybe(node.orelse, [])

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._maybe([node.target, *node.body], [])
        self._maybe(node.orelse, [])

    visit_AsyncFor = visit_For

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.visit(item.optional_vars)
        self._run(node.body)

    visit_AsyncWith = visit_With

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        before = set(self.bound)
        self._run(node.body)
        tried = self.bound
        ends: list[set[str]] = []
        self._run(node.orelse)
        ends.append(self.bound)
        for handler in node.handlers:
            self.bound = before & tried
            if handler.type is not None:
                self.visit(handler.type)
            if handler.name:
                self._set(handler.name)
            self._run(handler.body)
            if handler.name:
                self._unset(handler.name)  # Python unsets it at the handler's end
            ends.append(self.bound)
        self.bound = set.intersection(*ends)
        self._run(node.finalbody)

    visit_TryStar = visit_Try

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        branches: list[list[ast.AST]] = [
            [case.pattern, *([case.guard] if case.guard else []), *case.body] for case in node.cases
        ]
        self._maybe(*branches, [])

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.pattern is not None:
            self.visit(node.pattern)
        if node.name:
            self._set(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self._set(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self._set(node.rest)

    # inner scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._run(node.decorator_list)
        self._signature(node.args)
        if node.returns is not None:
            self.visit(node.returns)
        self._set(node.name)
        self.defines.add(node.name)
        self._inner(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._signature(node.args)
        self._inner(node)

    def _signature(self, arguments: ast.arguments) -> None:
        self._run(default for default in [*arguments.defaults, *arguments.kw_defaults] if default is not None)
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        self._run(one.annotation for one in every if one is not None and one.annotation is not None)

    def _inner(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Note the names that a function reads from the cell; those it declares global are the cell's."""
        module = ast.Module([node] if not isinstance(node, ast.Lambda) else [ast.Expr(node)], [])
        for name in _free(module):
            if name not in self.bound:
                self.later[name] = None
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global):
                for name in inner.names:
                    self.assigned.setdefault(name, None)

    def visit_Global(self, node: ast.Global) -> None:
        """At the top of a cell it changes nothing."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._run([*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)])
        body = _Names()
        body.bound = set(self.bound)
        body._run(node.body)
        for name in body.reads:
            self._read(name)
        for name in body.later:
            if name not in self.bound:
                self.later[name] = None
        self._set(node.name)
        self.defines.add(node.name)

    def visit_ListComp(self, node: ast.AST) -> None:
        """A comprehension runs at once, in a scope of its own; what ``:=`` sets in it is the cell's."""
        assert isinstance(node, _COMPREHENSIONS)
        self.visit(node.generators[0].iter)
        own: set[str] = set()
        for generator in node.generators:
            own |= {one.id for one in ast.walk(generator.target) if isinstance(one, ast.Name)}
        added = own - self.bound
        before = dict(self.assigned)
        self.bound |= own
        for number, generator in enumerate(node.generators):
            self._run([*([generator.iter] if number else []), *generator.ifs])
        self._run([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.bound -= added
        self.assigned = {name: None for name in self.assigned if name in before or name not in own}

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def _free(module: ast.Module) -> list[str]:
    """Return the global names that the functions in ``module`` read, by Python's own compiler."""
    code = compile(ast.fix_missing_locations(module), "<names>", "exec", dont_inherit=True, flags=_AWAIT)
    names: dict[str, None] = {}
    for inner in syntax.nested(code):
        if inner is not code:
            reads = syntax.reads(inner)
            names.update(dict.fromkeys((*reads.names, *reads.writes)))
    return list(names)


# -- the function ------------------------------------------------------------------------------------------------------


class _Globals(ast.NodeTransformer):
    """``global x`` in a function of the cell means the cell's x, which is a local of the cell's function."""

    def __init__(self) -> None:
        self._depth = 0

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        fresh: ast.stmt = ast.Nonlocal(node.names) if self._depth else ast.Pass()
        return ast.copy_location(fresh, node)

    def _function(self, node: ast.AST) -> ast.AST:
        self._depth += 1
        node = self.generic_visit(node)
        self._depth -= 1
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function


def cell_function(
    name: str,
    source: str,
    filename: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    namespace: dict[str, Any],
    *,
    prelude: str = "",
    show: str = "",
) -> FunctionType:
    """Return the function NAME(*inputs) whose body is the cell; it returns {output: value} of outputs that were set.

    ``prelude`` are statements that run first, ``show`` names a function that is called with the value of the cell's
    last expression, if it ends with one. With ``await`` at the cell's top it is a coroutine function. Its code has
    ``filename``, so that tracebacks show the cell's lines.
    """
    tree = _parse(source, filename)
    names = _Names().of(tree.body)
    flags, body = 0, []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for alias in statement.names:
                flags |= getattr(__future__, alias.name).compiler_flag
        else:
            body.append(_Globals().visit(statement))
    if show and body and isinstance(last_one := body[-1], ast.Expr):
        call = ast.Call(ast.Name(show, ast.Load()), [last_one.value], [])
        last_one.value = ast.fix_missing_locations(ast.copy_location(call, last_one.value))
    local = {*names.assigns, *names.imports, *inputs}
    _classes_read_what_they_seem_to(_parse(source), local)
    ending = [f"{_OUT} = {{}}"]
    ending += [f"try: {_OUT}[{one!r}] = {one}\nexcept NameError: pass" for one in outputs]
    ending.append(f"return {_OUT}")
    beginning = [f"if 0: {one} = None" for one in sorted(local - set(inputs))]
    made = ast.parse(
        f"{'async ' if _awaits(source) else ''}def {name}({', '.join(inputs)}):\n"
        + "\n".join("    " + line for part in [*beginning, *ending] for line in part.split("\n"))
    )
    function = made.body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    last = max((node.end_lineno or 1 for node in body), default=1)
    for node in ast.walk(function):  # what we add has no line of its own: it gets the first or the last
        if isinstance(node, ast.stmt | ast.expr | ast.excepthandler | ast.arg):
            node.lineno = node.end_lineno = 1 if node is function else last
            node.col_offset = node.end_col_offset = 0
    first = ast.parse(prelude).body
    for node in (inner for one in first for inner in ast.walk(one)):
        if isinstance(node, ast.stmt | ast.expr):
            node.lineno = node.end_lineno = 1
            node.col_offset = node.end_col_offset = 0
    function.body[len(beginning) : len(beginning)] = [*first, *body]
    code = compile(made, filename, "exec", flags=flags, dont_inherit=True)
    inner = next(const for const in code.co_consts if isinstance(const, CodeType) and const.co_name == name)
    syntax.attach(inner, function)
    made_function = FunctionType(inner, namespace, name)
    made_function.__module__ = str(namespace.get("__name__", "__main__"))
    return made_function


def _awaits(source: str) -> bool:
    """Return True if the cell awaits at its top: Python compiles it to a coroutine."""
    code = compile(source, "<cell>", "exec", flags=_AWAIT, dont_inherit=True)
    return bool(code.co_flags & 0x80)
