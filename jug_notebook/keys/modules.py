"""Modules of the project: which they are, whether they are up to date, and how they travel to workers.

They travel whole, as source, under their own names. A worker never imports them from its own disk: it gets the source
that the notebook used, in one bundle per content, and changes from one version to another without mixing the two.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from blake3 import blake3

from jug_notebook.errors import BadTask
from jug_notebook.keys import syntax
from jug_notebook.keys.register import SIZE

_COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_NEVER = frozenset({"__main__", "__mp_main__", "builtins", "jug_notebook", "kernel_ext"})

#: Names of scripts that run under another name than ``__main__``: workers don't import them, so what they define
#: travels by value, and has its bare name in keys, as in a notebook.
scripts: set[str] = {"__main__"}


def root_of(name: str) -> str:
    """Return the top-level name of a dotted one."""
    return name.partition(".")[0]


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return how a top-level module is or would be imported. Nothing is executed for it."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if isinstance(spec, importlib.machinery.ModuleSpec):
        return spec
    if module is None and _carried is not None and name in _carried.active:
        return _carried.find_spec(name)
    return importlib.machinery.PathFinder.find_spec(name)


def _places(name: str) -> list[str]:
    """Return the file of a module, or the folders of a package."""
    spec = _spec(name)
    if spec is None:
        file = getattr(sys.modules.get(name), "__file__", None)
        return [file] if file else []
    if spec.submodule_search_locations:
        return list(spec.submodule_search_locations)
    return [spec.origin] if spec.origin and spec.has_location else []


def of_project(name: str, project: Path | None) -> bool:
    """Return True if a module is in the project's folder, and neither Python's own nor in an installed package."""
    root = root_of(name)
    if _carried is not None and root in _carried.active:
        return True
    if project is None or root in _NEVER or root in scripts or root in sys.stdlib_module_names:
        return False
    module = sys.modules.get(root)
    known = _belongs.get((root, project))
    if known is not None and known[0] is module:
        return known[1]
    inside = os.path.realpath(project) + os.sep
    found = any(os.path.realpath(place).startswith(inside) and not syntax.of_library(place) for place in _places(root))
    if module is not None:
        _belongs[root, project] = (module, found)
    return found


_belongs: dict[tuple[str, Path], tuple[ModuleType, bool]] = {}


def edited(name: str) -> bool:
    """Return True if a loaded module was edited on the disk since we first saw it, but for its functions."""
    text = _text(name)
    if text is None:
        return False
    spec = getattr(sys.modules[name], "__spec__", None)  # each reload makes a new one
    seen = _seen.get(name)
    if seen is not None and seen[0] is not spec:
        _reloaded.add(name)
    if seen is None or seen[0] is not spec:
        _seen[name] = (spec, text)
    elif seen[1] != text:
        try:
            if beside_functions(seen[1]) != beside_functions(text):
                return True
        except SyntaxError:
            return True
        _seen[name] = (spec, text)
    return False


def reloaded(name: str) -> bool:
    """Return True if a loaded module was reloaded since we first saw it."""
    edited(name)
    return name in _reloaded


_reloaded: set[str] = set()


def notice(project: Path) -> None:
    """Note the texts of the project's modules that were imported since the last call: what is on the disk now."""
    global _noticed
    here = set(sys.modules)
    for name in here - _noticed:
        if of_project(name, project):
            edited(name)
    _noticed = here


_noticed: set[str] = set()


def written(name: str, attribute: str, cls: str = "") -> tuple[Any, ...]:
    """Return the value that a loaded module's text gives to a name (of a class), in a tuple; else ()."""
    text = _text(name)
    if text is None:
        return ()
    found: dict[str, Any] = _analysed((name, cls), text, lambda: literals(text, cls)) or {}
    return (found[attribute],) if attribute in found else ()


def source(name: str, attribute: str) -> tuple[str, str] | None:
    """Return the loaded module, and the name in it, that a loaded module imports a name from; None if it doesn't."""
    text = _text(name)
    if text is None:
        return None
    analysis: tuple[dict[str, tuple[str, int, str]], list[tuple[str, int]]] | None
    analysis = _analysed((name,), text, lambda: imported_names(text))
    found, whole = analysis or ({}, [])
    package = getattr(sys.modules[name], "__package__", None) or ""
    places = [found[attribute]] if attribute in found else [(*place, attribute) for place in reversed(whole)]
    for module, level, there in places:
        if level and not package:
            continue
        home = importlib.util.resolve_name("." * level + module, package) if level else module
        if there in getattr(sys.modules.get(home), "__dict__", {}):
            return home, there
    return None


def _analysed(key: tuple[str, ...], text: str, analyse: Callable[[], Any]) -> Any:
    """Return what ``analyse()`` finds in a module's text, made once per text; None if the text is no Python."""
    known = _analyses.get(key)
    if known is None or known[0] != text:
        try:
            known = _analyses[key] = (text, analyse())
        except SyntaxError:
            return None
    return known[1]


def changed(name: str, attribute: str, digest: bytes) -> bool:
    """Return True if an attribute of a loaded module has changed since it was first used, and without a reload."""
    if _carried is not None and root_of(name) in _carried.active:
        return False
    spec = getattr(sys.modules.get(name), "__spec__", None)
    seen = _used.get((name, attribute))
    if seen is None or seen[0] is not spec:
        _used[name, attribute] = (spec, digest)
        return False
    return seen[1] != digest


def _text(name: str) -> str | None:
    """Return the text of a module on the disk here, as it is now; None if it is elsewhere."""
    if _carried is not None and root_of(name) in _carried.active:
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    return syntax.text_of(file) if file and file.endswith(".py") else None


_seen: dict[str, tuple[Any, str]] = {}
_analyses: dict[tuple[str, ...], tuple[str, Any]] = {}
_used: dict[tuple[str, str], tuple[Any, bytes]] = {}


def bundle(root: str) -> dict[str, bytes]:
    """Return the files of a project module or package: path below its folder -> source text. Raises BadTask."""
    if _carried is not None and root in _carried.active:
        return dict(_carried.texts[_carried.active[root]])
    places = _places(root)
    if not places:
        raise BadTask(f"module {root!r} can't be found any more, so it can't be sent to workers. Import it again.")
    files: dict[str, bytes] = {}
    for place in map(Path, places):
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in paths:
            if path.name.endswith(_COMPILED):
                raise BadTask(
                    f"module {root!r} has a compiled part ({path.name}), which can't be sent to workers as source. "
                    f"Install it as a package (pip install) where the workers run."
                )
            if path.suffix == ".py":
                below = path.relative_to(place.parent) if place.is_dir() else Path(path.name)
                files[below.as_posix()] = path.read_bytes()
    if not files:
        raise BadTask(f"module {root!r} has no source, so it can't be sent to workers. Install it where they run.")
    return files


def source_path(name: str) -> str | None:
    """Return the file of a (sub)module, without importing it."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file:
        return str(file)
    for place in _places(root_of(name)):
        below = name.split(".")[1:]
        if not below and place.endswith(".py"):
            return place
        stem = os.path.join(place, *below)
        for path in (f"{stem}.py", os.path.join(stem, "__init__.py")):
            if os.path.exists(path):
                return path
    return None


@functools.lru_cache(10_000)
def imported(text: bytes | str, package: str) -> frozenset[str]:
    """Return the absolute names of all modules that a text imports anywhere; ``package`` resolves relative ones."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(from_names(node.module or "", node.level, [alias.name for alias in node.names], package))
    return frozenset(names)


def from_names(module: str, level: int, taken: Sequence[str], package: str) -> set[str]:
    """Return what ``from module import taken`` may import: the module and the names, which may be modules."""
    base = importlib.util.resolve_name("." * level + module, package) if level and package else module
    return {base, *(f"{base}.{name}" for name in taken)} - {""}


def closed_over(roots: Sequence[str], project: Path | None) -> frozenset[str]:
    """Return ``roots`` and all the project modules that they import, which must travel along."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        root = todo.pop()
        if root in found:
            continue
        found.add(root)
        for path, text in bundle(root).items():
            stem = path.removesuffix(".py").split("/")
            package = ".".join(stem[:-1])
            try:
                names = imported(text, package)
            except SyntaxError:
                continue  # no such file can be imported
            todo.extend(root_of(name) for name in names if of_project(name, project))
    return frozenset(found)


@functools.lru_cache(10_000)
def text_digest(text: str) -> bytes:
    """Return the digest of a module's text, in which comments and formatting don't count."""
    return blake3(syntax.canonical(ast.parse(text))).digest(SIZE)


# -- what the text of a module says ------------------------------------------------------------------------------------


def literals(text: str, cls: str = "") -> dict[str, Any]:
    """Return the names that a module, or a class at its top, sets once, to a literal, with their values.

    Containers only if nothing in the text may change them.
    """
    tree = ast.parse(text)
    body = tree.body
    if cls:
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == cls]
        body = classes[0].body if len(classes) == 1 else []
    set_how_often: dict[str, int] = {}
    scope: Iterable[ast.AST] = (node for top in body for node in ast.walk(top)) if cls else ast.walk(tree)
    for node in scope:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            set_how_often[node.id] = set_how_often.get(node.id, 0) + 1
        elif isinstance(node, ast.Global):
            set_how_often.update(dict.fromkeys(node.names, 2))
    if cls:
        for node in ast.walk(tree):  # C.limit = 3, self.table.append(3), whatever C and self are
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                set_how_often[node.attr] = 2
    found: dict[str, Any] = {}
    changing: frozenset[str] | None = None
    for statement in body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if set_how_often[name] == 1 and isinstance(value, (ast.Constant, ast.UnaryOp, *_DISPLAYS)):
                if isinstance(value, _DISPLAYS):
                    changing = _changing(tree) if changing is None else changing
                    if name in changing:
                        continue
                try:
                    found[name] = ast.literal_eval(value)
                except (ValueError, TypeError):  # such as -x
                    continue
    return found


def imported_names(text: str) -> tuple[dict[str, tuple[str, int, str]], list[tuple[str, int]]]:
    """Return what a module imports at its top: name -> (module, level, name there), and modules of star imports.

    Names that it also sets in another way are left out.
    """
    found: dict[str, tuple[str, int, str]] = {}
    whole: list[tuple[str, int]] = []
    tree = ast.parse(text)
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if alias.name == "*":
                        whole.append((node.module or "", node.level))
                    else:
                        found[alias.asname or alias.name] = (node.module or "", node.level, alias.name)
            elif not isinstance(node, ast.expr | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                todo.append(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.pop(node.id, None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.pop(node.name, None)
    return found, whole


_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.Tuple)
_READ_ONLY = frozenset(
    {
        *("get", "items", "keys", "values", "copy", "index", "count", "union", "issubset", "issuperset"),
        *("len", "sorted", "sum", "min", "max", "list", "dict", "set", "tuple", "frozenset", "enumerate", "zip", "any"),
        *("all", "range", "print", "isinstance", "repr", "str"),
    }
)


def _changing(tree: ast.Module) -> frozenset[str]:
    """Return the names and attributes whose containers the text may change: all that it doesn't only read."""
    harmless: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=inner, ctx=ast.Load()):
                harmless.add(inner)
            case ast.Call(func=ast.Attribute(value=inner, attr=verb)) if verb in _READ_ONLY:
                harmless.add(inner)
            case ast.Call(func=ast.Name(id=verb), args=args) if verb in _READ_ONLY:
                harmless.update(args)
            case ast.Compare(left=left, comparators=others):
                harmless.update((left, *others))
            case ast.For(iter=inner) | ast.comprehension(iter=inner):
                harmless.add(inner)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):  # TABLE["a"]["b"] = 1
            inside: ast.AST = node
            while isinstance(inside, ast.Subscript):
                inside = inside.value
                harmless.discard(inside)
    for node in ast.walk(tree):
        if node not in harmless and isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(found)


def beside_functions(text: str) -> bytes:
    """Return the form of what a module does when it is loaded, except for its functions and plain values."""
    tree = ast.parse(text)
    plain = {name for name, value in literals(text).items() if not isinstance(value, dict | list | set | tuple)}

    def strip(body: list[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.ClassDef):
                node.body = strip(node.body)
            elif body is tree.body and isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if all(isinstance(one, ast.Name) and one.id in plain for one in targets):
                    continue
            kept.append(node)
        return kept

    tree.body = strip(tree.body)
    return syntax.canonical(tree)


# -- in a worker -------------------------------------------------------------------------------------------------------


class _Carried:  # `importlib.abc` would be half of what a worker needs to start
    """Imports modules from the bundles that were sent here, before any on the disk."""

    def __init__(self) -> None:
        self.texts: dict[str, Mapping[str, bytes]] = {}  #: bundles by address
        self.active: dict[str, str] = {}  #: root -> address of its bundle in use
        self._unused: dict[str, dict[str, ModuleType]] = {}  #: modules of bundles that aren't in use, by address
        self._lock = threading.RLock()

    def use(self, root: str, address: str) -> None:
        """Make ``import root`` use the bundle at ``address``; the modules of the previous one are kept."""
        with self._lock:
            former = self.active.get(root)
            if former == address:
                return
            mine = {name: module for name, module in sys.modules.items() if root_of(name) == root}
            for name in mine:
                del sys.modules[name]
            if former is not None:
                self._unused[former] = mine
            self.active[root] = address
            sys.modules.update(self._unused.pop(address, {}))

    def _find(self, name: str) -> tuple[str, bool] | None:
        address = self.active.get(root_of(name))
        if address is None:
            return None
        stem, texts = name.replace(".", "/"), self.texts[address]
        if f"{stem}/__init__.py" in texts:
            return f"{stem}/__init__.py", True
        if f"{stem}.py" in texts:
            return f"{stem}.py", False
        return ("", True) if any(path.startswith(stem + "/") for path in texts) else None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        found = self._find(name)
        if found is None:
            if root_of(name) in self.active:
                raise ModuleNotFoundError(f"No module named {name!r} in the project that was sent here", name=name)
            return None
        place, package = found
        # The path in the notebook's folder, where the worker runs: so files beside the module are found.
        origin = os.path.abspath(place) if place else None
        spec = importlib.machinery.ModuleSpec(name, cast(Any, self), origin=origin, is_package=package)
        spec.has_location = origin is not None
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None  # as usual

    def is_package(self, name: str) -> bool:
        found = self._find(name)
        return found is not None and found[1]

    def get_source(self, name: str) -> str | None:
        found = self._find(name)
        if found is None or not found[0]:
            return None if found is None else ""
        return importlib.util.decode_source(self.texts[self.active[root_of(name)]][found[0]])

    def get_code(self, name: str) -> CodeType | None:
        found, text = self._find(name), self.get_source(name)
        if found is None or text is None:
            return None
        place = os.path.abspath(found[0] or name)
        linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
        code: CodeType = compile(text, place, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        if code is not None:
            exec(code, module.__dict__)


_carried: _Carried | None = None


def install(bundles: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> None:
    """Add bundles (root -> address, files) and use them from now on. Known ones need no files."""
    global _carried
    if not bundles:
        return
    if _carried is None:
        _carried = _Carried()
        sys.meta_path.insert(0, _carried)
    for root, (address, texts) in bundles.items():
        _carried.texts.setdefault(address, texts)
        _carried.use(root, address)


def importable(root: str) -> bool:
    """Return True if this process can import a top-level module by itself."""
    return root in sys.modules or _spec(root) is not None


def known(address: str) -> bool:
    """Return True if this bundle was sent here already."""
    return _carried is not None and address in _carried.texts


def use(modules: Mapping[str, str]) -> None:
    """Make imports use these bundles (root -> address): those of the function that is called next."""
    if _carried is not None:
        for root, address in modules.items():
            _carried.use(root, address)
