"""The command that brings the key of a store to another machine."""

from __future__ import annotations

import argparse
import sys
from typing import IO

from jug_notebook.cli import Arguments, Command, UsageError, store_of


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("export", "import"), help="export: to the output; import: from the input")


def _key(arguments: Arguments) -> int:
    """The secret goes through pipes only: an argument would stand in the process list and the shell's history."""
    return _export_key(arguments, sys.stdout) if arguments.action == "export" else _import_key(sys.stdin)


def _export_key(arguments: Arguments, to: IO[str]) -> int:
    from jug_notebook.store import keyring

    store = store_of(arguments)
    print(store.id, keyring.secret(store.id).hex(), file=to)
    store.close()
    if to.isatty():
        print("jug-notebook: whoever has this line can run code as you; keep it to yourself", file=sys.stderr)
    return 0


def _import_key(source: IO[str]) -> int:
    from jug_notebook.store import keyring

    words = source.readline().split()
    try:
        store_id, secret = words[0], bytes.fromhex(words[1])
    except (IndexError, ValueError):
        secret = b""
    if len(words) != 2 or len(secret) != 32:
        raise UsageError("this is no key; pipe in the line that `jug-notebook key export` prints on the other machine")
    if keyring.put(store_id, secret) != secret:
        raise UsageError(f"there is another key of store {store_id} in {keyring.folder()}; move that file away first")
    print(f"key of store {store_id} kept")
    return 0


COMMANDS = {
    "key": Command("bring the key of a store to another machine", _add_key, _key),
}
