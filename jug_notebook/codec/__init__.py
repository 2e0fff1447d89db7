"""Python values as signed bytes, and back: results, arguments, functions, exceptions."""

from jug_notebook.codec.pickling import INLINE, Get, Put, restore_class, track_classes
from jug_notebook.codec.signing import Seal
from jug_notebook.codec.values import (
    dump_call,
    dump_exception,
    dump_function,
    dump_value,
    inspect_call,
    load_call,
    load_exception,
    load_function,
    load_value,
    needs_exact,
    put_once,
    share,
    use_modules,
    writable,
)

__all__ = [
    "INLINE",
    "Get",
    "Put",
    "Seal",
    "dump_call",
    "dump_exception",
    "dump_function",
    "dump_value",
    "inspect_call",
    "load_call",
    "load_exception",
    "load_function",
    "load_value",
    "needs_exact",
    "put_once",
    "restore_class",
    "share",
    "track_classes",
    "use_modules",
    "writable",
]
