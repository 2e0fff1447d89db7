"""The commands for jugfiles only, and how the other commands act on jugfiles."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from jug_notebook.cli import Arguments, Command, Parser, UsageError, flag, register


def add_selection(parser: Parser, dest: str, what: str, *more: str) -> None:
    """Add ``--name`` and ``--pattern``, and ``more`` names for ``--name``."""
    group = parser.for_jugfiles().add_mutually_exclusive_group()
    group.add_argument("--name", dest=f"{dest}_name", metavar="NAME", help=f"{what} of this name: f, module.f, f*")
    group.add_argument("--pattern", dest=f"{dest}_pattern", metavar="TEXT", help=f"{what} with this name, or /regex/")
    if more:
        group.add_argument(*more, dest=f"{dest}_name", metavar="NAME", help="the same as --name")


def users(name: str) -> Command | None:
    """Return the command that the user has written; None where there is none of that name."""
    from jug_notebook.compat.commands import cmdapi, help_of

    found = cmdapi.load().get(name)
    if found is None:
        return None

    def run(arguments: Arguments) -> int:
        from jug_notebook.compat import loading
        from jug_notebook.compat.jug.task import Task

        options = loading.settled(name, arguments, found.parse_defaults())
        with loading.loaded(options, read_only=False) as space:
            return int(found(options=options, store=Task.store, jugspace=space) or 0)

    return Command(help_of(found), found.parse, _needs_jugfile, "JUGFILE", run)


def _add_import(parser: Parser) -> None:
    flag(
        parser.for_jugfiles(),
        "--trust",
        "trust",
        "you trust all who could write to JUGDIR: its pickles can run code as you",
    )


@register(
    "import-jugdata",
    "import the results that Jug itself has stored",
    "JUGFILE JUGDIR",
    _add_import,
    jugfile=True,
)
def _needs_jugfile(arguments: Arguments) -> int:
    raise UsageError("name a jugfile (.py): this command is for jugfiles only")


PRIMES = """\
from time import sleep

from jug import TaskGenerator, barrier, value


@TaskGenerator
def is_prime(n):
    sleep(0.1)
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@TaskGenerator
def write(n):
    with open("output.txt", "w") as out:
        out.write(f"there are {n} primes up to 100\\n")


found = [is_prime(n) for n in range(1, 101)]
barrier()  # what comes next is known once all of these are done
write(sum(value(found)))
"""


@register("demo", "write a small jugfile to try things with")
def _demo(arguments: Arguments) -> int:
    folder = Path("jug-demo")
    print(
        f"A script, {folder}/primes.py, to try things with:\n\n"
        f"    cd {folder}\n"
        "    jug-notebook status primes.py\n"
        "    jug-notebook execute primes.py -n 4\n"
        "    jug-notebook status primes.py\n\n"
        "The result is then in output.txt. Run execute again, or several at the same time: nothing is computed twice."
    )
    if folder.exists():
        print(f"{folder} exists already")
        return 0
    folder.mkdir()
    (folder / "primes.py").write_text(PRIMES)
    return 0


@register("test-jug", "run a small jugfile, to see that everything works")
def _test(arguments: Arguments) -> int:
    """Run the demo, which has a barrier, in workers, and check what it writes."""
    from jug_notebook.compat import commands, loading

    before = os.getcwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a worker may still be leaving
        os.chdir(folder)
        try:
            Path("selftest.py").write_text(PRIMES.replace("sleep(0.1)", "sleep(0)"))
            given = argparse.Namespace(jugfile="selftest.py", jugdir="jugdata", user_args=[], execute_workers=2)
            status = commands.ACTIONS["execute"](loading.settled("execute", given))
            found = Path("output.txt").read_text() if status == 0 else ""
        finally:
            os.chdir(before)
    right = found == "there are 25 primes up to 100\n"
    print("all is well" if right else f"something is wrong: exit status {status}, output {found!r}")
    return 0 if right else 1


def _add_install(parser: Parser) -> None:
    parser.add_argument("--output", dest="install_skills_output", metavar="DIR", help="the folder to write to")
    flag(parser, "--force", "install_skills_force", "replace what is there")


@register("install-skills", "write a guide to jugfiles for coding assistants", add=_add_install)
def _install_skills(arguments: Arguments) -> int:
    from jug_notebook.compat.configuration import settle

    options = settle(vars(arguments), {})
    if not options["install_skills_output"]:
        raise UsageError("name the folder: install-skills --output DIR")
    target = Path(options["install_skills_output"]).expanduser().absolute() / "jug-notebook"
    if target.exists() and not options["install_skills_force"]:
        print(f"jug-notebook: it exists already; --force replaces it: {target}", file=sys.stderr)
        return 1
    try:
        target.mkdir(parents=True, exist_ok=True)
        with resources.as_file(resources.files("jug_notebook") / "compat" / "skill" / "SKILL.md") as source:
            shutil.copyfile(source, target / "SKILL.md")
    except OSError as refused:
        print(f"jug-notebook: {refused.strerror}: {refused.filename}", file=sys.stderr)
        return 1
    print(f"Installed in {target}")
    return 0
