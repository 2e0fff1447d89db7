"""The command that looks whether workers could start: here, and on other hosts."""

from __future__ import annotations

import argparse
from pathlib import Path

from jug_notebook.cli import Arguments, Command, UsageError, existing, url_of


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    parser.add_argument(
        "--host", action="append", default=[], metavar="H", help="a host to look at, over ssh; may be given again"
    )
    parser.add_argument("--hosts-file", metavar="F", help="the hosts in a file, one a line")
    parser.add_argument("--python", metavar="P", help="the Python to run there")
    parser.add_argument("--setup", metavar="CMD", default="", help="shell commands to run there first")
    parser.add_argument(
        "--remote-dir", metavar="HERE=THERE", help="where a folder of this host is there; THERE: where the store's is"
    )


def _doctor(arguments: Arguments) -> int:
    """Starts nothing. Exit status 0 where workers could start on all hosts, else 1."""
    from jug_notebook.clock import CLOCK
    from jug_notebook.launch import CrewOptions, here, preflight, start
    from jug_notebook.store import open_store, split

    store = open_store(existing(url_of(arguments, arguments.url)))
    scheme, rest = split(store.url)
    folder = Path(rest).parent if scheme == "file" else Path.cwd()
    words: list[str | Path] = [word for written in arguments.host for word in written.split(",") if word]
    if arguments.hosts_file:
        words.append(Path(arguments.hosts_file))
    if not words and (arguments.python or arguments.setup or arguments.remote_dir):
        raise UsageError("--python, --setup and --remote-dir are for other hosts: name one with --host")
    reports = [here.look(store)]
    if words and not reports[0].failure:
        folders = start.folders_of(arguments.remote_dir, folder)
        options = CrewOptions(0, python=arguments.python, setup=arguments.setup, folders=folders)
        reports += start.look(store, folder, options, start.read_hosts(words, Path.cwd()), CLOCK)
    store.close()
    print(preflight.table(reports))
    return 1 if any(report.failure for report in reports) else 0


COMMANDS = {
    "doctor": Command("can workers start, here and on other hosts? what stands in the way?", _add_doctor, _doctor),
}
