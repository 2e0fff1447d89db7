"""What a task ran with: the versions of imported packages, of Python and of the system. Kept once, as a blob."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable

import msgspec

from jug_notebook.keys.packages import system_text, version_of
from jug_notebook.model import Address, Environment


class EnvironmentRecord:
    """Knows the environment of this process, and stores it where it has changed: where a task imported something."""

    def __init__(self, put: Callable[[Iterable[bytes | memoryview]], Address]) -> None:
        self._put = put
        self._modules = 0  #: how many were loaded at the last look
        self._known: set[str] = set()  #: top-level names that were looked at
        self._packages: dict[str, str] = {}
        self._address: Address = ""

    def address(self) -> Address:
        """Return the blob that holds it as it is now. Raises StoreError."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            if new := {name.partition(".")[0] for name in list(sys.modules)} - self._known - sys.stdlib_module_names:
                self._known |= new
                public = (name for name in new if not name.startswith("_"))  # others belong to these, or to no package
                self._packages |= {name: version for name in public if (version := version_of(name))}
            packages = dict(sorted(self._packages.items()))
            record = Environment(platform.python_implementation(), platform.python_version(), system_text(), packages)
            self._address = self._put([msgspec.msgpack.encode(record)])
        return self._address
