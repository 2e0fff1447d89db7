"""Workers on other hosts, over a real sshd: what works, and how each thing that doesn't is told."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.clock import CLOCK, SystemClock
from jug_notebook.launch import ssh, start
from jug_notebook.launch.remote import Preflight, Report
from jug_notebook.launch.ssh import clock_check, clock_offset, refused
from jug_notebook.session import Session
from jug_notebook.store import keyring, open_store
from jug_notebook.task import definitions
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.execution import mapped
from tests import sshd
from tests.crews import total_of_what_is_elsewhere
from tests.servers import Server, free_port
from tests.workbench import PATIENCE, wait_until

needs_sshd = pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())
WHERE = "import os\ndef where(x): return os.getpid(), os.getcwd(), x\n"


class Field:
    """A session, and a server that stands for as many hosts as there are names for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = sshd.Sshd(folder / "ssh")
        self.session = jn.connect(folder / "work" / "jugdata", notebook=folder / "work" / "a.ipynb")
        self.path = os.pathsep.join(filter(None, (sshd.ROOT, os.environ.get("PYTHONPATH", ""))))

    def host(self, name: str = "a", **options: str) -> str:
        return self.server.host(name, **options)

    def reports(self, *hosts: str, **options: object) -> list[Report]:
        return list(self.session.workers.look(hosts or [self.host()], **options))  # type: ignore[arg-type]

    def failure(self, **options: object) -> str:
        """What stands in the way, in a line; and a launch says the same."""
        host = self.host()
        [report] = self.reports(host, **options)
        crew = self.session.execute(1, hosts=[host], **options)  # type: ignore[arg-type]
        with pytest.raises(jn.LaunchError) as messages:
            wait_until(crew.store, lambda: not crew.starting)
        assert str(messages.value) == report.failure
        assert crew.messages(PATIENCE) == crew.failures == [report.failure]
        assert not crew.starting  # it is said once
        assert crew.alive() == 0
        assert "\n" not in report.failure
        return report.failure.removeprefix("a: ")

    def until_gone(self) -> None:
        wait_until(self.session.access.store, lambda: not any(
            alive and info.kind == "supervisor" for info, alive, _ in self.session.access.store.processes()
        ))  # fmt: skip

    def close(self) -> None:
        self.session.stop(now=True)
        self.until_gone()
        self.session.close()
        self.server.close()


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    (tmp_path / "work").mkdir()
    definitions.clear()  # of other tests
    made = Field(tmp_path)
    monkeypatch.setenv(ssh.COMMAND, made.server.command)
    yield made
    made.close()


def task(source: str, name: str) -> jn.TaskFunction:
    from tests.workbench import cell

    return jn.task(cell(source, name))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_a_host_is_written_as_ssh_takes_it_with_a_number_of_workers() -> None:
    assert ssh.host_of("a") == ssh.Host("a", 0)
    assert ssh.host_of("me@b.example.org:8") == ssh.Host("me@b.example.org", 8)
    assert ssh.host_of("me@[::1]:8") == ssh.Host("me@::1", 8)
    assert ssh.Host("me@b", 8).place == "b"


@pytest.mark.parametrize("word", ["", "-oProxyCommand=x", "a b", "a:0", "a:many", "a@b@c:1", "::1"])
def test_what_is_no_host_is_refused_by_name(word: str) -> None:
    with pytest.raises(jn.LaunchError, match="is not a host; give HOST"):
        ssh.host_of(word)


def test_hosts_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# the new ones\na\nme@b:4  # slow\n\nc slots=8\nd 2\n")
    assert ssh.hosts_in(tmp_path / "hosts") == [ssh.Host("a"), ssh.Host("me@b", 4), ssh.Host("c", 8), ssh.Host("d", 2)]
    (tmp_path / "wrong").write_text("a\nb is slow\n")
    with pytest.raises(jn.LaunchError, match=r"wrong, line 2: 'b is slow' is not a host"):
        ssh.hosts_in(tmp_path / "wrong")
    with pytest.raises(jn.LaunchError, match="can't be read: No such file"):
        ssh.hosts_in(tmp_path / "none")


def test_folders_are_mapped_by_the_longest_that_holds_them() -> None:
    folders = [("/home/me", "/mnt/me"), ("/home/me/big/", "/big")]
    assert mapped("/home/me/a/b", folders) == "/mnt/me/a/b"
    assert mapped("/home/me/big/b", folders) == "/big/b"
    assert mapped("/home/me", folders) == "/mnt/me"
    assert mapped("/home/mean", folders) == "/home/mean"
    assert start.folders_of("/there", Path("/here")) == (("/here", "/there"),)
    assert start.folders_of("/x=/there", Path("/here")) == (("/x", "/there"),)
    with pytest.raises(jn.LaunchError, match="not an absolute path"):
        start.folders_of("there", Path("/here"))


def test_a_store_outside_the_mapped_folder_is_refused_before_anything_is_called(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jugdata")
    with pytest.raises(jn.LaunchError, match="is not below /elsewhere; give their place there"):
        ssh.Call(store, WorkerOptions(1, folders=(("/elsewhere", "/there"),)), b"", "1")
    store.close()
    with pytest.raises(jn.LaunchError, match="lives in this process alone"):
        ssh.Call(open_store("memory:x"), WorkerOptions(1), b"", "1")


def test_a_clock_is_off_only_by_what_the_way_of_the_answer_cannot_explain() -> None:
    assert clock_offset(100.4, 100.0, 101.0) == 0
    assert clock_offset(99.0, 100.0, 101.0) == -1
    assert clock_offset(4000.0, 100.0, 101.0) == 3899
    assert clock_check(1.9).remedy == ""
    assert clock_check(-300).message == "its clock is 5 min behind"
    assert clock_check(30).message == "its clock is 30 s ahead"


def test_what_ssh_complains_of_is_told_with_the_remedy() -> None:
    lines = {
        "me@a: Permission denied (publickey,password).": "accepts none of your ssh keys; put one there: ssh-copy-id a",
        "Host key verification failed.": "host key is not known here; look at it",
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": "ssh-keygen -R a",
        "ssh: Could not resolve hostname a: Name or service not known": "the host name can't be resolved",
        "ssh: connect to host a port 22: Connection refused": "can't be reached (Connection refused)",
        "ssh: connect to host a port 22: No route to host": "can't be reached (No route to host)",
        "Connection closed by 10.0.0.1 port 22": "can't be reached",
        "/etc/ssh: line 3: Bad configuration option: x": "ssh failed: /etc/ssh: line 3: Bad configuration option: x",
    }
    for complaint, line in lines.items():
        assert line in Report("a", (refused("a", complaint),)).failure


def test_a_request_shows_neither_key_nor_password(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jugdata")
    call = ssh.Call(store, WorkerOptions(1), b"s" * 32, "1")
    request = call.request(ssh.Host("a"), check=False)
    assert request.secret == (b"s" * 32).hex()
    assert request.secret not in repr(request)
    assert call.request(ssh.Host("a"), check=True).secret == ""
    assert request.secret not in call.script()
    store.close()


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "tcsh", "fish"])
def test_the_call_means_the_same_in_everybody_s_login_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = b'echo one \'two"\' $((1 + 2))\nread line\necho "heard $line"\n---\nthe rest\n'
    ran = subprocess.run([shell, "-c", ssh._READ], input=script, capture_output=True, check=True)
    assert ran.stdout == b'one two" 3\nheard the rest\n'


# -- a real server -----------------------------------------------------------------------------------------------------


@needs_sshd
def test_tasks_of_the_notebook_run_on_another_host(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(field.folder / "work")  # as its kernel
    where = task(WHERE, "where")
    results = where.map(range(20))
    crew = field.session.execute(2, hosts=[field.host()])
    assert crew.starting
    values = results.result()
    assert [x for *_, x in values] == list(range(20))
    assert {folder for _, folder, _ in values} == {str(field.folder / "work")}
    assert crew.messages(PATIENCE) == ["a: started 2 workers"]
    wait_until(crew.store, lambda: crew.alive() == 2)
    assert {info.where for info in crew.workers} == {f"a ({system.host()})"}
    assert field.session.queries.hosts() == ["a"]
    assert "a (" in str(field.session.status())


@needs_sshd
def test_classes_and_project_modules_travel_to_a_host_that_has_neither(field: Field) -> None:
    (field.folder / "work" / "my_tools.py").write_text("class Pair:\n    def __init__(self, x): self.both = (x, x)\n")
    field.host()
    made = subprocess.run(
        [sys.executable, "-c",
         "import sys, jug_notebook as jn\n"
         "jn.connect('jugdata')\n"
         "import my_tools\n"
         "class Box:\n    def __init__(self, x): self.x = x\n"
         "@jn.task\ndef f(x): return Box(my_tools.Pair(x).both)\n"
         "t = f(4)\n"
         "crew = jn.execute(1, hosts=['a'])\n"
         "print(t.result().x, type(t.result()) is Box, t.provenance()['run']['pid'] != __import__('os').getpid())\n"
         "crew.stop(now=True)\n"],
        cwd=field.folder / "work", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": field.path},
    )  # fmt: skip
    assert made.stdout == "(4, 4) True True\n", made.stderr


@needs_sshd
def test_workers_of_a_host_survive_the_connection_and_the_session(field: Field) -> None:
    crew = field.session.execute(1, hosts=[field.host()])
    wait_until(crew.store, lambda: crew.alive() == 1)
    [worker], [supervisor] = crew.workers, crew.supervisors
    field.server.stop()
    field.session.close()
    field.session = jn.connect(field.folder / "work" / "jugdata", notebook=field.folder / "work" / "a.ipynb")
    assert task(WHERE, "where")(1).result()[0] == worker.pid
    assert os.getsid(supervisor.pid) == supervisor.pid
    assert field.session.stop(now=True, host="a") == 1  # through the store: there is no ssh any more
    field.until_gone()


@needs_sshd
def test_the_store_s_key_reaches_a_host_by_its_input_alone(field: Field) -> None:
    there = field.folder / "ssh" / "settings" / "jug_notebook" / "keys" / field.session.identity
    field.reports(field.host())
    assert not there.exists()  # looking around brings no key
    crew = field.session.execute(1, hosts=["a"])
    wait_until(crew.store, lambda: crew.alive() == 1)
    assert there.read_bytes() == keyring.secret(field.session.identity)
    assert there.stat().st_mode & 0o777 == 0o600
    secret = there.read_bytes().hex()
    for pid in (crew.workers[0].pid, crew.supervisors[0].pid):
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert secret.encode() not in seen


@needs_sshd
def test_workers_of_a_host_read_what_only_the_mirror_of_the_session_has_and_its_url_is_in_no_process_list(
    field: Field,
) -> None:
    bucket = field.folder / "bucket"
    total_of_what_is_elsewhere(field.session, field.folder, lambda: field.session.execute(1, hosts=[field.host()]))
    [crew] = field.session.workers.crews
    for pid in (crew.workers[0].pid, crew.supervisors[0].pid):
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert str(bucket).encode() not in seen
    assert not (field.folder / "ssh" / "settings" / "jug_notebook" / "also").exists(), "it may hold a password"


@needs_sshd
def test_asking_twice_is_asking_once_and_more_are_added(field: Field) -> None:
    host = field.host()
    first = field.session.execute(1, hosts=[host])
    assert first.messages(PATIENCE) == ["a: started 1 worker"]
    assert field.session.execute(1, hosts=[host]).messages(PATIENCE) == ["a: 1 worker is there already"]
    more = field.session.execute(hosts=[f"{host}:3"])
    assert more.messages(PATIENCE) == ["a: started 2 more: 3 in all"]
    wait_until(more.store, lambda: more.alive() == 3)
    assert len(more.supervisors) == 1
    more.scale(2)
    wait_until(more.store, lambda: more.alive() == 2)
    more.scale(3)
    wait_until(more.store, lambda: more.alive() == 3)


@needs_sshd
def test_workers_that_have_ended_come_again_when_more_are_wanted(field: Field) -> None:
    crew = field.session.execute(1, hosts=[field.host()])
    crew.messages(PATIENCE)
    field.session.stop(now=True)
    field.until_gone()
    crew.scale(2)
    assert crew.messages(PATIENCE) == ["a: started 2 workers"]
    wait_until(crew.store, lambda: crew.alive() == 2)


@needs_sshd
def test_workers_that_are_there_are_told_through_the_store_when_ssh_fails(field: Field) -> None:
    host = field.host()
    field.session.execute(1, hosts=[host]).messages(PATIENCE)
    field.server.stop()
    crew = field.session.execute(2, hosts=[host])
    messages = "\n".join(crew.messages(PATIENCE))
    assert messages.startswith(
        "a: started 1 more: 2 in all\na: can't be reached (Connection refused); its workers are running"
    )
    wait_until(crew.store, lambda: crew.alive() == 2)


@needs_sshd
def test_a_host_that_fails_holds_up_no_other(field: Field) -> None:
    silent = field.host("silent", ProxyCommand="sleep 1000")
    refusing = field.host("refusing", Port="1", ControlPath="none")
    crew = field.session.execute(1, hosts=[silent, refusing, field.host()])
    assert task(WHERE, "where")(1).result()[2] == 1
    assert crew.alive() == 1
    wait_until(crew.store, lambda: bool(crew.failures))
    assert crew.failures == [
        "refusing: can't be reached (Connection refused); is it up? Try in a terminal: ssh refusing"
    ]
    assert crew.starting  # one has not answered yet
    assert "note: refusing: can't be reached" in str(field.session.status())


@needs_sshd
def test_a_host_that_says_nothing_is_given_up(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "TIMEOUT", 0.3)
    [report] = field.reports(field.host("silent", ProxyCommand="sleep 1000"))
    assert report.failure == "silent: no answer within 0 s; is it up? Try in a terminal: ssh silent"


@needs_sshd
def test_ssh_s_refusals_come_from_the_real_thing(field: Field) -> None:
    settings = field.folder / "ssh"
    alone = {"ControlPath": "none", "ControlMaster": "no"}
    hosts = [
        field.host("unknown", UserKnownHostsFile=f"{settings}/known_nobody", **alone),
        field.host("changed", UserKnownHostsFile=f"{settings}/known_otherwise", **alone),
        field.host("locked", IdentityFile=f"{settings}/other", **alone),
        field.host("nowhere", HostName="nowhere.invalid", **alone),
    ]
    messages = [report.failure for report in field.reports(*hosts)]
    assert messages[0].startswith("unknown: its ssh host key is not known here; look at it and accept it once")
    assert messages[1].startswith("changed: its ssh host key has changed; if that is right: ssh-keygen -R changed")
    assert messages[2].startswith("locked: it accepts none of your ssh keys; put one there: ssh-copy-id locked")
    assert messages[3].startswith("nowhere: the host name can't be resolved")


@needs_sshd
def test_no_python_there(field: Field) -> None:
    assert field.failure(python="/no/python").startswith("no python there (tried /no/python); give one that is 3.")


@needs_sshd
def test_another_python_there(field: Field) -> None:
    pretend = 'code=$2; shift 2; exec %s -c "import sys; sys.version_info = (3, 2); $code" "$@"'
    python = script(field.folder / "python3.2", pretend % shlex.quote(sys.executable))
    line = field.failure(python=str(python))
    assert line.startswith("Python 3.2 (")
    assert f"there, and {system.python()} here: tasks run only on the same Python version; give a Python" in line


@needs_sshd
def test_a_python_without_this_package_there(field: Field) -> None:
    python = script(field.folder / "bare", f'unset PYTHONPATH; exec {shlex.quote(sys.executable)} -S "$@"')
    line = field.failure(python=str(python))
    assert "has no jug_notebook; install it there: " in line
    assert f"-m pip install jug-notebook=={jn.__version__}" in line


@needs_sshd
def test_another_version_of_this_package_there(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "VERSION", "9.9")
    assert field.failure().startswith("jug_notebook 0.1.0 there, and 9.9 here; install it there: ")


@needs_sshd
def test_a_store_that_is_not_there(field: Field) -> None:
    line = field.failure(remote_dir="/not/mounted")
    assert line == (
        "sees no store at /not/mounted/jugdata; mount that folder there, or say where it is: --remote-dir HERE=THERE"
    )


@needs_sshd
def test_another_store_in_its_place(field: Field) -> None:
    open_store(field.folder / "other" / "jugdata").close()
    line = field.failure(remote_dir=str(field.folder / "other"))
    assert line.startswith(f"another store is at file:{field.folder}/other/jugdata there")


@needs_sshd
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv, to lose rights")
def test_a_store_that_is_not_writable_there(field: Field) -> None:
    output = field.folder / "work" / "jugdata" / "output"
    output.chmod(0o500)
    weak = f'exec setpriv --bounding-set -dac_override,-dac_read_search {shlex.quote(sys.executable)} "$@"'
    line = field.failure(python=str(script(field.folder / "weak", weak)))
    assert line == (
        f"{system.user()} can't write to {field.folder}/work/jugdata there: Permission denied; mount it writable, "
        "or log in as a user who may write: --host USER@HOST"
    )


@needs_sshd
def test_a_setup_runs_first_and_what_it_prints_disturbs_nothing(field: Field) -> None:
    setup = "echo 'welcome to the cluster'\nread line\nexport COLOUR=red"
    crew = field.session.execute(1, hosts=[field.host()], setup=setup)
    colour = task("import os\ndef colour(): return os.environ.get('COLOUR')\n", "colour")
    assert colour().result() == "red", crew.failures


@needs_sshd
def test_a_setup_that_fails_says_what_it_said(field: Field) -> None:
    line = field.failure(setup="module() { echo \"no module '$2'\" >&2; return 7; }; module load python")
    assert line == "--setup failed there with status 7: no module 'python'; correct it"


@needs_sshd
def test_packages_that_tasks_import_are_looked_for(field: Field) -> None:
    function = task("import msgspec\ndef pack(x):\n    import not_there\n    return msgspec.json.encode(x)\n", "pack")
    assert start.imported(field.folder) == (["msgspec", "not_there"], [])
    assert function is not None
    crew = field.session.execute(1, hosts=[field.host()])
    started, warned = "\n".join(crew.messages(PATIENCE)).splitlines()
    assert started == "a: started 1 worker"
    assert warned.startswith("a: no package not_there there; tasks that import it will fail; install it there: ")
    assert warned.endswith("-m pip install not_there")


@needs_sshd
def test_a_compiled_project_module_is_named(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    from jug_notebook.keys import code

    folder = field.folder / "work"
    (folder / "fast").mkdir()
    (folder / "fast" / "__init__.py").write_text("")
    (folder / "fast" / "_core.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(code, "home", lambda: folder)
    function = task("def quick(x):\n    import fast\n    return x\n", "quick")
    assert function is not None
    assert field.failure().startswith("project module fast has a compiled part, which can't travel; install it")


@needs_sshd
def test_a_clock_that_is_off_is_warned_of(field: Field) -> None:
    class Behind(SystemClock):
        @staticmethod
        def now() -> float:
            return CLOCK.now() - 3600

    call = start.call(field.session.access.store, field.folder, WorkerOptions(1), Behind())
    [report] = ssh.look(call, [ssh.Host(field.host())])
    assert report.failure == ""
    assert report.warnings[0].startswith("a: its clock is 60 min ahead; retries come at wrong times")


@needs_sshd
def test_the_pre_flight_is_a_table(field: Field) -> None:
    text = repr(Preflight(field.reports(field.host(), workers=3)))
    marks = [line.split()[:2] for line in text.splitlines()[1:]]
    assert marks == [
        ["✓", word] for word in ("ssh", "python", "package", "store", "writing", "key", "workers", "clock")
    ]
    assert "0 are there, 3 would be started" in text


@needs_sshd
def test_a_users_own_connection_is_used(field: Field) -> None:
    field.reports(field.host())
    assert f"ControlPath={field.folder}" not in " ".join(ssh.command("a"))
    assert not any(word.startswith("ControlPath") for word in ssh.command("a"))
    plain = ssh.command(field.host("plain", ControlMaster="no", ControlPath="none"))
    assert "ControlMaster=auto" in plain
    assert "BatchMode=yes" in plain


@needs_sshd
def test_a_crew_that_is_stopped_while_it_comes_does_not_stay(field: Field) -> None:
    crew = field.session.execute(1, hosts=[field.host()])
    crew.stop(now=True)
    crew.messages(PATIENCE)
    field.until_gone()
    assert crew.alive() == 0
    assert not crew.starting


@needs_sshd
def test_a_host_needs_no_folder_where_it_reaches_a_redis_server(field: Field) -> None:
    port, password = free_port(), "open-sesame-7"
    server = Server("--port", str(port), "--requirepass", password)
    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0?project=far"
        session = jn.connect(url, notebook=field.folder / "not" / "there.ipynb")
        [report] = session.workers.look([field.host()])
        assert report.failure == ""
        crew = session.execute(2, hosts=["a"])
        assert task(WHERE, "where")(5).result()[2] == 5, crew.failures
        wait_until(crew.store, lambda: crew.alive() == 2)
        for info in (*crew.workers, *crew.supervisors):
            assert password not in Path(f"/proc/{info.pid}/cmdline").read_text()
        assert password not in "".join([repr(crew), str(session.status()), session.log(host="a"), str(report)])
        other = ssh.Call(session.access.store, WorkerOptions(1), b"", jn.__version__)
        assert password not in other.script()
        assert session.stop(now=True, host="a") == 2
        wait_until(crew.store, lambda: not crew.supervisors)
        session.close()
    finally:
        server.remove()


@needs_sshd
def test_the_logs_of_a_host_are_read_by_its_name(field: Field) -> None:
    crew = field.session.execute(1, hosts=[field.host()])
    wait_until(crew.store, lambda: crew.alive() == 1)
    assert f"pid {crew.supervisors[0].pid}, Python {system.python()} (" in field.session.log(host="a")
    crew.store.notice(crew.supervisors[0].id, "it is cold here\n")
    assert "it is cold here" in field.session.log(host="a")
    with pytest.raises(jn.NoSuchTask, match="no worker on host 'b'; there are some on a"):
        field.session.log(host="b")


@needs_sshd
def test_the_doctor_answers_for_this_host_and_others(field: Field) -> None:
    def doctor(*words: str) -> subprocess.CompletedProcess[str]:
        url = str(field.folder / "work" / "jugdata")
        command = [sys.executable, "-m", "jug_notebook", "doctor", url, *words]
        environment = {**os.environ, "PYTHONPATH": field.path}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    fine = doctor("--host", field.host())
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert [line for line in fine.stdout.splitlines() if not line.startswith(" ")] == ["this host", "a"]
    bad = doctor("--host", "a", "--python", "/no/python")
    assert bad.returncode == 1
    assert "× python   no python there (tried /no/python)" in bad.stdout
    odd = doctor("--python", "/no/python")
    assert (odd.returncode, odd.stderr.count("\n")) == (2, 1)


@needs_sshd
def test_a_session_without_hosts_does_not_take_options_for_hosts(field: Field) -> None:
    session: Session = field.session
    with pytest.raises(jn.LaunchError, match="are for other hosts"):
        session.execute(1, setup="true")
