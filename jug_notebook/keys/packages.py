"""Versions of installed packages: those that a task's key covers, whether this process has them, what changed since."""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from typing import TypeAlias

from jug_notebook.errors import BadTask
from jug_notebook.keys.code import Code
from jug_notebook.keys.walk import hashed
from jug_notebook.model import Environment

PYTHON = "python"  #: pins the version of Python as a whole, 3.11.2, not only 3.11 as any task
_OURS = frozenset({"jug_notebook", "kernel_ext", "blake3", "cloudpickle", "msgspec", "typing_extensions"})
Change: TypeAlias = tuple[str, str, str]
"""What differs from an earlier environment: its name, the version then, the version now."""

_LOADED = time.time()  #: workers are forked later, and before any package of the user's is imported


# -- versions ----------------------------------------------------------------------------------------------------------


def version_of(module: str) -> str:
    """Return the version of an imported top-level module; empty for what has none."""
    found = sys.modules.get(module)
    version = getattr(found, "__dict__", {}).get("__version__")  # a package's own __getattr__ may warn, or import
    if isinstance(version, str):
        return str.__str__(version)  # torch's is a class of its own
    with suppress(Exception):  # a package's metadata may be anything
        return metadata.version(module)
    with suppress(Exception):
        if _is_installed(str(getattr(found, "__file__", ""))):  # which takes far less than to look at all packages
            return metadata.version(_distributions()[module])
    return ""


def _is_installed(file: str) -> bool:
    """Return whether a top-level module lies where packages are installed."""
    folder = os.path.dirname(os.path.dirname(file) if os.path.basename(file).startswith("__init__.") else file)
    return any(name.endswith(".dist-info") for name in os.listdir(folder))


def system_text() -> str:
    """Return the system that this process runs on, "Linux x86_64 glibc 2.36"."""
    libc = " ".join(platform.libc_ver()).strip()
    return " ".join(filter(None, (platform.system(), platform.machine(), libc)))


def installed(name: str) -> str:
    """Return the version of an installed package, by its name for pip or for ``import``; empty if there is none.

    Raises BadTask where the package was installed anew since this process loaded it: what is loaded is another version.
    """
    if name == PYTHON:
        return platform.python_version()
    found = _distribution(name)
    if found is None:
        return ""
    loaded = [sys.modules[module] for module in _modules_of(found) if module in sys.modules]
    if _is_newer(found) and any(getattr(module, "__version__", None) != found.version for module in loaded):
        raise BadTask(
            f"{name} was installed anew since this process loaded it, so it has another version than is pinned: "
            f"restart {'the kernel' if 'ipykernel' in sys.modules else 'this process'}, and workers started before"
        )
    return found.version


def _distribution(name: str) -> metadata.Distribution | None:
    """Return the package of that name, for pip or for ``import``."""
    with suppress(metadata.PackageNotFoundError, ValueError):
        return metadata.distribution(name)
    with suppress(metadata.PackageNotFoundError, ValueError):
        return metadata.distribution(_distributions().get(name, ""))
    return None


@functools.cache
def _distributions() -> dict[str, str]:
    """Return the package that each importable top-level name belongs to."""
    return {module: names[0] for module, names in metadata.packages_distributions().items()}


def _modules_of(found: metadata.Distribution) -> list[str]:
    listed = (found.read_text("top_level.txt") or "").split()
    return listed or [module for module, name in _distributions().items() if name == found.metadata["Name"]]


def _is_newer(found: metadata.Distribution) -> bool:
    """Return True if a package was installed after this process began to load packages."""
    with suppress(OSError, AttributeError):
        return os.stat(str(found._path)).st_ctime > _LOADED  # type: ignore[attr-defined]
    return False


# -- pins --------------------------------------------------------------------------------------------------------------


def pinned(code: Code, names: Iterable[str]) -> Code:
    """Return the code with the versions of these packages in its digest. Raises BadTask for what isn't installed."""
    pins: dict[str, str] = {}
    for name in sorted(names):
        pins[name] = installed(name)
        if not pins[name]:
            raise BadTask(f"pin={name!r}: no package of this name is installed here; `pip list` shows the names")
    if not pins:
        return code
    parts = {f"package {name}": version for name, version in pins.items()}
    digest = hashed(code.digest, *(text for part in parts.items() for text in part)).hex()
    return code._replace(digest=digest, parts={**code.parts, **parts}, pins=pins)


def check_pins(pins: Mapping[str, str]) -> None:
    """Raise BadTask where this process has a package in another version than a task's key promises."""
    for name, version in pins.items():
        if (here := installed(name)) != version:
            has = f"{name} {here}" if here else f"no {name}"
            raise BadTask(
                f"the task is pinned to {name} {version}, and {platform.node()} has {has}: install {name} {version} "
                "there and start workers anew, or run the cell in a kernel with the pinned version"
            )


# -- what changed ------------------------------------------------------------------------------------------------------


def changes(then: Environment) -> Iterator[Change]:
    """Yield what differs here from the environment of a run: ("numpy", "2.4.6", "2.5.0").

    Packages that aren't installed here are left out, and so are those that jug_notebook itself needs.
    """
    if then.python != platform.python_version():
        yield "Python", then.python, platform.python_version()
    if then.system != (here := system_text()):
        yield "system", then.system, here
    for name, version in then.packages.items():
        if name not in _OURS and (now := _version_here(name)) and now != version:
            yield name, version, now


def _version_here(module: str) -> str:
    if module in sys.modules:
        return version_of(module)
    found = _distribution(module)
    return "" if found is None else found.version
