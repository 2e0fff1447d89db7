"""The source of a function, in a canonical form: comments, docstrings and formatting are kept out of keys.

Sources that differ only in comments, docstrings, formatting, position or (if nothing reads them) annotations have the
same form. Comments are gone with `ast.parse`; `_body` leaves out docstrings, `_fields` the rest. The form holds chosen
fields only, so it doesn't follow each change of Python's `ast`. `reads` lists the names that code reads.
"""

from __future__ import annotations

import ast
import copy
import dis
import linecache
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType
from typing import Any, Generic, NamedTuple, TypeVar

from blake3 import blake3

from jug_notebook.keys import advice

T = TypeVar("T")
Ours = Callable[[ast.expr], bool]  #: is this decorator one of our own?

#: a function that reads one of these names may depend on what is otherwise left out
_READS_DOC = frozenset({"__doc__", "getdoc"})
_READS_ANNOTATIONS = frozenset({"__annotations__", "get_type_hints", "get_annotations", "signature", "getfullargspec"})
_READS_ORDER = frozenset({"vars", "__dict__"})
INSPECTED = {"docstrings": _READS_DOC, "annotations": _READS_ANNOTATIONS, "order": _READS_ORDER}

_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_OF_FUNCTION = 1  #: flag of the code of functions (inspect.CO_OPTIMIZED): other code is that of classes and modules
_PADDING = frozenset({"EXTENDED_ARG", "CACHE", "PRECALL", "PUSH_NULL", "NOP"})

#: Each module has its own: they say where code is, not what it does. And the shell: each process has its own.
_PLACES = frozenset(
    {
        "get_ipython",
        *("__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__builtins__", "__path__"),
        *("__annotations__", "__module__", "__qualname__", "__cached__", "__debug__"),
    }
)


class Reads(NamedTuple):
    """What a code object, with all that is nested in it, reads from outside by name."""

    names: tuple[str, ...]  #: globals and builtins read, sorted
    chains: dict[
        str, tuple[tuple[str, ...], ...]
    ]  #: per name: the chains of attributes read from it; () is the thing itself
    writes: tuple[str, ...]  #: globals it writes
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]  #: (module, level, names taken from it)
    maybe: tuple[
        str, ...
    ] = ()  #: read in class bodies that may or may not have set them first: globals, if there are such
    inspects: frozenset[str] = frozenset()  #: keys of `INSPECTED`: what it may read of other functions and classes


class Form(NamedTuple):
    """A function's canonical form. ``digest`` is empty if there is no source."""

    digest: bytes
    decorators: tuple[tuple[str, ...], ...] = ()  #: chains of names that the decorator expressions read
    stale: bool = False  #: the text was edited after the code was loaded
    uses: advice.Uses = advice.Uses()  #: what it uses that a key can't cover


LONGEST = 10_000  #: characters of a function's source that are kept for display


class _Memory(Generic[T]):
    """A cache by identity: equal code objects may have different sources (decorators aren't part of them)."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[weakref.ref[CodeType], T]] = {}

    def get(self, code: CodeType) -> T | None:
        held = self._items.get(id(code))
        return held[1] if held is not None and held[0]() is code else None

    def put(self, code: CodeType, what: T) -> T:
        name, table = id(code), self._items

        def forget(gone: weakref.ref[CodeType]) -> None:
            held = table.get(name)
            if held is not None and held[0] is gone:
                del table[name]

        table[name] = (weakref.ref(code, forget), what)
        return what


_lock = threading.RLock()
_forms: _Memory[Form] = _Memory()
_nodes: _Memory[ast.AST] = _Memory()
_adopted: _Memory[bytes] = _Memory()
_reads: _Memory[Reads] = _Memory()
_texts: _Memory[str] = _Memory()


# -- finding the text --------------------------------------------------------------------------------------------------


class _File:
    """One file or cell, parsed, with its functions by first line and name."""

    def __init__(self, name: str, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self.functions: dict[tuple[int, str], list[ast.AST]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                self.functions.setdefault((first, node.name), []).append(node)
            elif isinstance(node, ast.Lambda):
                self.functions.setdefault((node.lineno, "<lambda>"), []).append(node)
        self._codes: set[CodeType] | None = None
        self._name = name
        self._moved: dict[CodeType, ast.AST | None] = {}

    def made(self, code: CodeType) -> bool:
        """Return True if this text compiles to that code; False if it was edited since."""
        if self._codes is None:
            whole = compile(self.text, self._name, "exec", dont_inherit=True)
            self._codes = set(nested(whole))
        return code in self._codes

    def at(self, code: CodeType) -> ast.AST | None:
        """Return the function here that has the position and the name of ``code``."""
        found = self.functions.get((code.co_firstlineno, code.co_name), [])
        if len(found) > 1 and code.co_name == "<lambda>":
            return _spanned(found, code)
        return found[0] if len(found) == 1 else None

    def find(self, code: CodeType) -> ast.AST | None:
        """Return the function that compiles to that code at another position: it moved, or %autoreload put it there."""
        if code not in self._moved:
            wanted = compiled(code)
            found = [
                node
                for (_, name), nodes in self.functions.items()
                if name == code.co_name and name != "<lambda>"
                for node in nodes
                if wanted in _compiled_alone(node)
            ]
            self._moved[code] = found[0] if len(found) == 1 else None
        return self._moved[code]


def _compiled_alone(node: ast.AST) -> set[bytes]:
    """Return the forms that a function compiles to, in a module and as a method."""
    text = ast.unparse(node)
    inside = "class _:\n" + "\n".join(f"    {line}" for line in text.splitlines())
    name, found = getattr(node, "name", ""), set()
    for one in (text, inside):
        try:
            whole = compile(one, "<function>", "exec", dont_inherit=True)
        except SyntaxError:  # it uses what only its context gives it
            continue
        found |= {compiled(code) for code in nested(whole) if code.co_name == name}
    return found


_files: dict[str, _File] = {}
finders: list[Callable[[CodeType], Iterable[str]]] = []
"""Functions that return possible sources of code whose file name leads nowhere."""


def text_of(filename: str) -> str:
    """Return the text of a file or cell, as tracebacks show it; empty if there is none."""
    if os.path.isabs(filename):
        linecache.checkcache(filename)
    return "".join(linecache.getlines(filename))


def _file(filename: str) -> _File | None:
    text = text_of(filename)
    if not text:
        return None
    known = _files.get(filename)
    if known is not None and known.text == text:
        return known
    try:
        fresh = _File(filename, text)
    except (SyntaxError, ValueError):
        return None
    if len(_files) > 500:  # a long session has many cells; those in use are parsed again
        _files.clear()
    _files[filename] = fresh
    return fresh


def nested(code: CodeType) -> Iterator[CodeType]:
    """Yield the code objects inside ``code``, itself first."""
    open_ones = [code]
    while open_ones:
        code = open_ones.pop()
        yield code
        open_ones.extend(const for const in code.co_consts if isinstance(const, CodeType))


def _spanned(lambdas: Sequence[ast.AST], code: CodeType) -> ast.AST | None:
    """Return the lambda of one line that is ``code``: the innermost whose body spans all of its instructions."""
    spans = [
        (line, column, last, end)
        for line, last, column, end in code.co_positions()
        if None not in (line, last, column, end) and (line, column, last, end) != (line, 0, line, 0)
    ]
    if not spans:
        return None
    first = min((line, column) for line, column, _, _ in spans)
    last = max((line, column) for _, _, line, column in spans)
    inside = []
    for node in lambdas:
        assert isinstance(node, ast.Lambda)
        body = node.body
        begins, ends = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
        # Compare by what the code covers, except that a parenthesised body may begin a bit later than its code.
        if begins <= first and last <= ends:
            inside.append((begins, node))
    return max(inside, key=lambda pair: pair[0])[1] if inside else None


def _node(code: CodeType) -> tuple[ast.AST | None, bool]:
    """Return the syntax tree of ``code``, and whether the text was edited since it was loaded."""
    known = _nodes.get(code)
    if known is not None:
        return known, False
    on_disk = os.path.isabs(code.co_filename) and os.path.exists(code.co_filename)
    file = _file(code.co_filename)
    if file is None:
        if os.path.isabs(code.co_filename):
            return None, on_disk and bool(text_of(code.co_filename))
        return _asked_for(code), False
    if on_disk and not file.made(code):
        moved = file.find(code)
        return moved, moved is None
    return file.at(code), False


def _asked_for(code: CodeType) -> ast.AST | None:
    """Return the syntax tree of code without a file name: from the text that compiles to exactly this code."""
    for finder in finders:
        for text in finder(code):
            try:
                file = _File(code.co_filename, text)
                found = file.at(code)
                if found is not None and file.made(code):
                    return found
            except (SyntaxError, ValueError):
                continue
    return None


def edited(code: CodeType) -> bool:
    """Return True if the file on the disk was edited, so that it no longer compiles to this code."""
    return _node(code)[1]


def attach(code: CodeType, node: ast.AST) -> None:
    """Set the source of ``code``, for functions that are built, not written."""
    _nodes.put(code, node)


def adopt(code: CodeType, digest: bytes) -> None:
    """Set the digest of the form of ``code``, which came from elsewhere without its source."""
    _adopted.put(code, digest)


# -- the canonical form ------------------------------------------------------------------------------------------------


class _Scope(NamedTuple):
    kind: str  #: function, class, module
    annotations: bool = False
    docs: bool = False


_SKIPPED = frozenset({"ctx", "type_comment", "kind", "type_ignores"})


def _reading(node: ast.AST, wanted: frozenset[str]) -> bool:
    return any(
        (isinstance(part, ast.Attribute) and part.attr in wanted) or (isinstance(part, ast.Name) and part.id in wanted)
        for part in ast.walk(node)
    )


def _body(statements: list[ast.stmt], scope: _Scope) -> list[ast.stmt]:
    """Return statements without docstring and ``pass``."""
    first = statements[0] if statements else None
    if (
        not scope.docs
        and isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        statements = statements[1:]
    return [statement for statement in statements if not isinstance(statement, ast.Pass)]


def _fields(node: ast.AST, scope: _Scope, ours: Ours, root: bool) -> list[tuple[str, Any, _Scope]]:
    """Return what counts of ``node``, as (field, value, scope of the value)."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            decorators = [one for one in node.decorator_list if not ours(one)]
            inner = _Scope(
                "function",
                annotations=bool(decorators) or _reading(node, _READS_ANNOTATIONS),
                docs=_reading(node, _READS_DOC),
            )
            return [
                ("name", None if root else node.name, inner),
                ("args", node.args, inner),
                ("decorators", decorators, scope),
                ("returns", node.returns if inner.annotations else None, inner),
                ("body", _body(node.body, inner), inner),
            ]
        case ast.Lambda():
            return [("args", node.args, scope), ("body", node.body, scope)]
        case ast.ClassDef():
            inner = _Scope("class", annotations=True, docs=_reading(node, _READS_DOC))
            return [
                ("name", node.name, scope),
                ("bases", node.bases, scope),
                ("keywords", node.keywords, scope),
                ("decorators", [one for one in node.decorator_list if not ours(one)], scope),
                ("body", _body(node.body, inner), inner),
            ]
        case ast.arguments() if root:  # a function's defaults count by value
            return [(name, getattr(node, name), scope) for name in node._fields if "defaults" not in name]
        case ast.arg():
            return [("arg", node.arg, scope), ("annotation", node.annotation if scope.annotations else None, scope)]
        case ast.AnnAssign() if scope.kind != "class":
            return [("targets", [node.target], scope), ("value", node.value, scope)]
        case ast.Module():
            return [("body", _body(node.body, scope), scope)]
        case ast.JoinedStr():
            return [("values", _pieces(node.values), scope)]
    return [
        (
            name,
            _body(value, _Scope(scope.kind, docs=True))
            if isinstance(value, list) and name in ("body", "orelse", "finalbody")
            else value,
            scope,
        )
        for name in node._fields
        if name not in _SKIPPED
        for value in (getattr(node, name, None),)
    ]


def _pieces(values: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string. How Python cuts up its plain text differs between versions."""
    whole: list[ast.expr] = []
    for value in values:
        last = whole[-1] if whole else None
        if not isinstance(value, ast.Constant):
            whole.append(value)
        elif isinstance(last, ast.Constant):
            whole[-1] = ast.Constant(f"{last.value!s}{value.value!s}")
        elif value.value:
            whole.append(value)
    return whole


def canonical(tree: ast.AST, ours: Ours = lambda decorator: False, *, root: bool = True) -> bytes:
    """Return the form of a syntax tree. ``root``: the outermost function's name and default texts don't count."""
    out: list[bytes] = []

    def write(tag: bytes, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        out.append(b"%b%d:%b" % (tag, len(data), data))

    first = _Scope("module" if isinstance(tree, ast.Module) else "function")
    todo: list[tuple[Any, _Scope, bool]] = [(tree, first, root)]
    while todo:
        node, scope, outermost = todo.pop()
        if isinstance(node, ast.Constant):
            write(b"k", f"{type(node.value).__name__} {_text(node.value)}")
        elif isinstance(node, ast.AST):
            # an annotated assignment in a function is the assignment; without a value it only declares the name
            kind = type(node).__name__
            if isinstance(node, ast.AnnAssign) and scope.kind != "class" and node.value is not None:
                kind = "Assign"
            elif isinstance(node, ast.MatchSingleton):
                kind += f" {node.value!r}"
            below = outermost and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            kept = [entry for entry in _fields(node, scope, ours, outermost) if entry[1] is not None and entry[1] != []]
            write(b"n", kind)
            out.append(b"%d;" % len(kept))
            for name, value, inner in reversed(kept):
                todo.append((value, inner, below and name == "args"))
                todo.append((_Field(name), inner, False))
        elif isinstance(node, _Field):
            write(b"f", node)
        elif isinstance(node, list):
            out.append(b"l%d;" % len(node))
            todo.extend((item, scope, False) for item in reversed(node))
        else:
            write(b"v", repr(node))
    return b"".join(out)


class _Field(str):
    """A field's name that is to be written."""

    __slots__ = ()


def _chains(expressions: Sequence[ast.expr]) -> tuple[tuple[str, ...], ...]:
    """Return the dotted names that expressions read."""
    found: dict[tuple[str, ...], None] = {}
    for expression in expressions:
        inner: set[ast.AST] = set()
        for node in ast.walk(expression):
            if node in inner or not isinstance(node, ast.Attribute | ast.Name):
                continue
            if chain := advice.dotted(node):
                found[chain] = None
            while isinstance(node, ast.Attribute):
                node = node.value
                inner.add(node)
    return tuple(found)


def form(code: CodeType, ours: Ours) -> Form:
    """Return the canonical form of the function that has ``code``; made once."""
    known = _forms.get(code)
    if known is not None:
        return known
    with _lock:
        adopted = _adopted.get(code)
        if adopted is not None:
            return _forms.put(code, Form(adopted))
        node, stale = _node(code)
        if node is None:
            return _forms.put(code, Form(b"", stale=stale))
        decorators = getattr(node, "decorator_list", [])
        digest = blake3(canonical(node, ours)).digest(20)
        chains = _chains([one for one in decorators if not ours(one)])
        return _forms.put(code, Form(digest, chains, uses=advice.look(node)))


def written(code: CodeType, ours: Ours) -> str:
    """Return what counts of a function's source, as text for display; empty if there is no source."""
    known = _texts.get(code)
    if known is not None:
        return known
    with _lock:
        node = _node(code)[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node = copy.copy(node)
            node.decorator_list = [one for one in node.decorator_list if not ours(one)]
            node.body = _body(node.body, _Scope("function")) or [ast.Pass()]
        text = "" if node is None else ast.unparse(node)
        return _texts.put(code, text if len(text) <= LONGEST else text[:LONGEST] + "\n…")


def compiled(code: CodeType) -> bytes:
    """Return the form of a function without source: of its bytecode."""
    out = blake3()
    for one in nested(code):
        consts = [const for const in one.co_consts if not isinstance(const, CodeType)]
        flags = one.co_flags & 0xFFFF
        for item in (
            one.co_code,
            repr((one.co_argcount, one.co_posonlyargcount, one.co_kwonlyargcount, flags)).encode(),
            repr((one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars)).encode(),
            "".join(_plain(const) for const in consts).encode("utf-8", "surrogatepass"),
        ):
            out.update(b"%d:" % len(item) + item)
    return out.digest(20)


def _text(const: Any) -> str:
    """Return a plain constant in full; Python limits the decimal digits of an int, and they are slow."""
    return hex(const) if type(const) is int else repr(const)


def _plain(const: Any) -> str:
    """Return a constant as text, whatever the order of its sets."""
    if isinstance(const, frozenset):
        inside = ",".join(sorted(map(_plain, const)))
    elif isinstance(const, tuple):
        inside = ",".join(map(_plain, const))
    else:
        inside = _text(const)
    return f"{type(const).__name__} {len(inside)}:{inside}"


# -- names -------------------------------------------------------------------------------------------------------------


def reads(code: CodeType) -> Reads:
    """Return what ``code`` reads from outside by name: exactly what has to travel with it."""
    known = _reads.get(code)
    return known if known is not None else _reads.put(code, _scan(code))


def _scan(code: CodeType) -> Reads:
    chains: dict[str, dict[tuple[str, ...], None]] = {}
    writes: dict[str, None] = {}
    imports: dict[tuple[str, int, tuple[str, ...]], None] = {}
    inspects: set[str] = set()
    surely: set[str] = set()
    for one in nested(code):
        # a class with annotations names them itself, until Python 3.13
        names = one.co_names if one.co_flags & _OF_FUNCTION else {*one.co_names} - {"__annotations__"}
        inspects.update(names, (const for const in one.co_consts if type(const) is str and const.isidentifier()))
        stored: set[str] = set()  # a class body reads its own names first, if it has set them
        straight = not one.co_exceptiontable
        chain: list[str] = []
        consts: list[Any] = [None, None]

        def close(chain: list[str]) -> None:
            if chain:
                chains.setdefault(chain[0], {})[tuple(chain[1:])] = None
                chain.clear()

        for step in dis.get_instructions(one):
            operation, argument = step.opname, step.argval
            if operation in _PADDING:
                continue
            if operation in _ATTRIBUTES:
                inspects.add(argument)
                if chain:
                    chain.append(argument)
                    continue
            close(chain)
            if operation in _LOADS:
                own = operation != "LOAD_GLOBAL" and argument in stored
                if argument not in _PLACES and not (own and straight):
                    chain.append(argument)
                    if not own:
                        surely.add(argument)
            elif operation == "STORE_NAME":
                stored.add(argument)
            elif operation == "DELETE_NAME":
                stored.discard(argument)
            elif step.opcode in _JUMPS:
                straight = False
            elif operation == "STORE_GLOBAL":
                writes[argument] = None
            elif operation == "IMPORT_NAME":
                level, taken = consts[-2:]
                imports[(argument, level or 0, tuple(taken or ()))] = None
            elif operation == "LOAD_CONST":
                consts.append(argument)
        close(chain)
    return Reads(
        tuple(sorted(surely)),
        {name: tuple(sorted(found)) for name, found in chains.items()},
        tuple(sorted(writes)),
        tuple(imports),
        tuple(sorted(chains.keys() - surely)),
        frozenset(what for what, by in INSPECTED.items() if by & inspects),
    )


# -- files of libraries ------------------------------------------------------------------------------------------------

_LIBRARY = tuple(
    os.path.realpath(folder) + os.sep
    for folder in (os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib"), os.path.join(sys.prefix, "lib"))
)
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_library: dict[str, bool] = {}


def of_library(filename: str) -> bool:
    """Return True for files of Python, of installed packages and of this engine: their code counts by name."""
    known = _library.get(filename)
    if known is None:
        if filename.startswith("<frozen "):
            known = True
        elif not os.path.isabs(filename):
            known = False
        else:
            real = os.path.realpath(filename)
            parts = real.split(os.sep)
            known = (
                "site-packages" in parts
                or "dist-packages" in parts
                or real.startswith(_LIBRARY)
                or filename.startswith(_OURS)
                or os.path.join(os.path.dirname(os.path.dirname(_OURS)), "kernel_ext") + os.sep in real
            )
        _library[filename] = known
    return known
