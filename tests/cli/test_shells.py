"""``completion`` in the shells it is for, and ``shell``: IPython on a store."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jug_notebook.cli import FILES, completion
from tests.cli.test_command_line import Shell
from tests.cli.test_watching import SCRIPT
from tests.workbench import is_readable

#: a jugfile; completing runs nothing of it
WORDS = """
from jug import Task, TaskGenerator
from jug.mapreduce import reduce

def lines(path):
    return open(path).readlines()

@TaskGenerator
def count(lines):
    return len(lines)

def combine(a, b):
    return a + b

def common(x):
    return x

1 / 0
total = reduce(combine, [count(Task(lines, path)) for path in ("a", "b")])
"""


def store_with_program(folder: Path) -> Shell:
    """Return a store "jugdata" with tasks of two functions, and `jug-notebook` on the path."""
    shell = Shell(folder)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "words.py").write_text(WORDS)
    shell.python("script.py", "2")
    program = folder / "bin" / "jug-notebook"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jug_notebook "$@"\n')
    program.chmod(0o755)
    shell.environment |= {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    return shell


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A store that completing only looks at."""
    return store_with_program(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def scripts(shell: Shell) -> dict[str, str]:
    """What `jug-notebook completion SHELL` prints, for each shell."""
    details = {name: shell.run("completion", name) for name in completion.SHELLS}
    assert not [name for name, ran in details.items() if ran.returncode]
    return {name: ran.stdout for name, ran in details.items()}


def asked(shell: Shell, *words: str) -> set[str]:
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


BASH = """
source {script}
COMP_LINE="jug-notebook $*" COMP_TYPE=9
COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=(jug-notebook "$@"); COMP_CWORD=$#
$(complete -p jug-notebook | sed 's/.*-F \\([^ ]*\\) .*/\\1/') jug-notebook
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
#: zsh completes only at a prompt: one is made, and what it would insert is read off
ZSH = """
zmodload zsh/zpty
zpty -b z zsh -f -i
zpty -w z "PS1=; fpath=({folder} \\$fpath); autoload -U compinit; compinit -u -d {folder}/dump; cd {folder}"
zpty -w z "zstyle ':completion:*' list-colors; unsetopt zle_bracketed_paste; LISTMAX=1000; echo re''ady"
while zpty -r z line; do [[ $line == ready* ]] && break; done
zpty -n -w z "jug-notebook $*"$'\\t\\t'
while zpty -r z line '*{wanted}*'; do print -r -- $line; break; done
zpty -d z
"""
CASES = [
    (["sta"], {"status"}),
    (["status", "--sh"], {"--short"}),
    (["retry", "d"], {"double", "divide"}),
    (["--jugdir", "jugdata", "log", "dou"], {"double"}),
    (["worker", "--target", "di"], {"divide"}),
    (["completion", "f"], {"fish"}),
    (["execute", "scr"], {"script.py"}),
    (["execute", "script.py", "--keep-g"], {"--keep-going"}),
    (["execute", "words.py", "--target", "co"], {"count", "combine"}),
    (["execute", "words.py", "--name", "li"], {"lines"}),
    (["invalidate", "words.py", "--pattern", "li"], {"lines"}),
    (["cleanup", "words.py", "--lo"], {"--locks-only"}),
    (["webstatus", "wo"], {"words.py"}),
    (["retry", "wo"], {"words.py"}),
    (["log", "words.py", "comb"], {"combine"}),
]
IDS = [" ".join(words) for words, _ in CASES]


@pytest.mark.parametrize(("words", "wanted"), CASES, ids=IDS)
def test_bash_completes(shell: Shell, scripts: dict[str, str], words: list[str], wanted: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = shell.folder / "complete.bash"
    script.write_text(scripts["bash"])
    assert asked(shell, "bash", "-c", BASH.format(script=script), "bash", *words) == wanted


@pytest.mark.parametrize(("words", "wanted"), CASES, ids=IDS)
def test_tcsh_completes(shell: Shell, scripts: dict[str, str], words: list[str], wanted: set[str]) -> None:
    if shutil.which("tcsh") is None:
        pytest.skip("tcsh is not installed")
    (shell.folder / "complete.tcsh").write_text(scripts["tcsh"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(shell.folder)
        os.execvpe("tcsh", ["tcsh", "-f", "-i"], shell.environment)
    try:
        os.write(terminal, b"source complete.tcsh; set autolist; echo re''ady\n")
        _read(terminal, lambda printed: "ready" in printed.replace("re''ady", ""))
        os.write(terminal, f"jug-notebook {' '.join(words)}\t".encode())
        _read(terminal, lambda printed: wanted <= set(printed.replace("\x07", "").split()))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read(terminal: int, enough: Callable[[str], bool]) -> None:
    """Read what a terminal shows until that is enough."""
    printed = ""
    while not enough(printed):
        assert is_readable(terminal), f"no more than {printed!r}"
        printed += os.read(terminal, 4096).decode()


@pytest.mark.parametrize(("words", "wanted"), CASES, ids=IDS)
def test_fish_completes(shell: Shell, scripts: dict[str, str], words: list[str], wanted: set[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = shell.folder / "complete.fish"
    script.write_text(scripts["fish"])
    details = asked(shell, "fish", "-c", f"source {script}; complete -C 'jug-notebook {' '.join(words)}'")
    assert {line.split("\t")[0] for line in details} == wanted


@pytest.mark.parametrize(("words", "wanted"), [case for case in CASES if len(case[1]) == 1])
def test_zsh_completes(shell: Shell, scripts: dict[str, str], words: list[str], wanted: set[str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (shell.folder / "_jug-notebook").write_text(scripts["zsh"])
    [word] = wanted
    script = ZSH.format(folder=shell.folder, wanted=word)
    details = subprocess.run(
        ["zsh", "-f", "-c", script, "zsh", *words],
        cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert word in details.stdout, details


@pytest.mark.parametrize("name", completion.SHELLS)
def test_the_script_is_text_alone(shell: Shell, scripts: dict[str, str], name: str) -> None:
    assert shell.run("--print-completion", name).stdout == scripts[name], "as Jug spells it"
    if name in ("bash", "zsh") and shutil.which(name):
        asked(shell, name, "-n", "-c", scripts[name])


def test_every_command_is_completed(shell: Shell) -> None:
    assert set(shell.run("completion", "--line", "jug-notebook", "").stdout.split()) == set(FILES)


def test_where_no_store_can_be_read_no_name_is_offered_and_nothing_is_said(tmp_path: Path) -> None:
    done = Shell(tmp_path).run("completion", "--line", "jug-notebook", "--jugdir", "nothing", "log", "dou")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert not (tmp_path / "nothing").exists()


def test_a_shell_that_is_not_known_is_told_in_a_line(tmp_path: Path) -> None:
    for words in ([], ["csh"]):
        done = Shell(tmp_path).run("completion", *words)
        assert done.returncode == 2
        assert "bash" in done.stderr


TYPED = """
print(sorted(tasks), len(tasks["double"]), sorted(value(tasks["double"])))
print("failed:", [t.name for t in get_tasks(failed=True)], "of", len(get_tasks()), len(get_tasks(loadable=True)))
status()
log("divide")
%jug_status --short
tasks["nothing"]
print(tasks[tasks["double"][0].key[:12]][0] is not None)
print("again:", invalidate("double"), [t.state.value for t in tasks["double"]])
quit()
"""


def test_the_shell_has_the_stores_tasks_and_jugs_helpers(tmp_path: Path) -> None:
    shell = store_with_program(tmp_path)
    assert shell.run("execute", "jugdata", "-n", "1").returncode == 1
    shell.environment |= {"IPYTHONDIR": str(shell.folder / "ipython"), "TERM": "dumb"}
    done = shell.run("shell", "jugdata", given=TYPED)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "3 of 4 finished" in printed.partition("In [1]")[0], "the banner says how things stand"
    assert "['divide', 'double'] 2 [0, 2]" in printed
    assert "failed: ['divide'] of 4 3" in printed
    assert "ZeroDivisionError" in printed
    assert "NoTasks" in printed
    assert "again: 2 ['ready', 'ready']" in printed
