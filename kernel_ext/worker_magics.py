"""The magics that start and stop workers: %jug_execute (on this host, other hosts, an executor) and %jug_stop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from jug_notebook.errors import LaunchError
from jug_notebook.render import plural
from jug_notebook.session import Session
from jug_notebook.worker import options_in
from kernel_ext.display import label, outcome_text, tally
from kernel_ext.frontend import is_kernel
from kernel_ext.magics import JugMagics, await_first_worker
from kernel_ext.notification import BROWSER, BrowserNotice
from kernel_ext.options import TARGET, count, line_magic, option, options, read, resources, seconds

PATIENCE = 4.0  #: seconds for which a cell waits for hosts to report; the status shows what comes later


@magics_class
class WorkerMagics(Magics):
    """Start and stop workers."""

    shell: Any

    def __init__(self, shell: Any, main: JugMagics) -> None:
        super().__init__(shell)
        self.main = main
        self._notice: BrowserNotice | None = None
        self._asked: dict[str, int] = {}  # the number of workers asked for, by the name of their crew

    @line_magic
    @options()
    @option("-n", "--workers", type=count, metavar="N", help="total number of workers (default: one per core)")
    @option("--wait", action="store_true", help="wait until no task of this notebook is left to run")
    @option("--target", metavar="T", help=f"run only these and what they need ({TARGET})")
    @option("--not-target", metavar="T", help="run all but these")
    @option(
        "--gpus", metavar="IDS",
        help="GPUs that tasks may use: 0,1 or none (default: all). With --slurm: how many each job gets",
    )  # fmt: skip
    @option(
        "--resources", type=resources, default={}, metavar="NAME=N,…",
        help="other things that tasks may need, and how much there is: license=2,mem=16G",
    )  # fmt: skip
    @option(
        "--env", action="append", default=[], metavar="K=V",
        help="an environment variable for workers, which everyone on their host can read; repeatable",
    )  # fmt: skip
    @option("--max-tasks", type=count, metavar="N", help="end each worker after this many tasks")
    @option("--max-time", type=seconds, metavar="S", help="start no new tasks after this many seconds")
    @option(
        "--idle-timeout", type=seconds, default=600, metavar="S",
        help="end workers after this many seconds without a task to run (600)",
    )  # fmt: skip
    @option(
        "--patience", type=seconds, default=600, metavar="S",
        help="how many seconds to wait for the store's server when it is away (600)",
    )  # fmt: skip
    @option(
        "--keep-attached", choices=["yes", "no"],
        help="keep idle workers while a notebook is open (yes; with --on or --slurm, where that may cost money, no)",
    )  # fmt: skip
    @option(
        "--wait-for-workers", type=seconds, metavar="S",
        help="how many seconds to wait for results while no worker is running, as a queue may start them late (0)",
    )  # fmt: skip
    @option(
        "--notify", action="append", default=[], metavar="T",
        help="send a line there when all is done, or nothing can go on: a shell command, a URL, desktop, browser (for "
        "as long as this page is open); repeatable. To keep a token out of sight: env:NAME, @FILE",
    )  # fmt: skip
    @option(
        "--python", metavar="P", help="the Python to run workers with: the same minor version, maybe other packages"
    )
    @option(
        "--host", action="append", default=[], metavar="H[:N]",
        help="start them on this host, over ssh: host, user@host, user@host:8; repeatable",
    )  # fmt: skip
    @option("--hosts-file", metavar="F", help="start them on the hosts listed in a file, one per line")
    @option("--setup", metavar="CMD", help="shell commands to run there first: 'module load python; source env/…'")
    @option("--remote-dir", metavar="D", help="this notebook's folder on those hosts; HERE=THERE for another folder")
    @option("--on", metavar="VAR", help="run them on what a variable holds: a Dask client, an executor, a view")
    @option("--slurm", action="store_true", help="run them as jobs of Slurm, one worker each; they end when idle")
    @option("--walltime", metavar="T", help="of each job: 30min, 2h, 1d (default: the partition's)")
    @option("--mem", metavar="M", help="memory of each job: 4G")
    @option("--partition", metavar="P", help="the partition of the jobs")
    @option(
        "--slurm-option", action="append", default=[], metavar="O",
        help="a further option of sbatch: --slurm-option constraint=avx; repeatable",
    )  # fmt: skip
    @option("--up-to", type=count, metavar="N", help="run as many jobs as there is work for, up to this number")
    @option("--here", action="store_true", help="run the tasks in this kernel, one after another; start no workers")
    @option(
        "--dry-run", action="store_true", help="only show what would run, what is stored, and how long it would take"
    )
    def jug_execute(self, line: str) -> None:
        """Start workers in the background, and show their progress. They go on when the kernel ends.

        %jug_execute -n 4                        four workers on this host; run again, it starts no more than four
        %jug_execute -n 2 --target is_prime      only tasks of is_prime, and what they need
        %jug_execute -n 4 --wait                 wait until all is done
        %jug_execute -n 4 --notify env:MY_URL    a line there when all is done, even if the notebook is closed
        %jug_execute -n 4 --dry-run              what would run, and for how long?
        %jug_execute --here                      no workers: run the tasks in this kernel, now
        %jug_execute -n 8 --host a --host me@b:4 eight on a and four on b, over ssh; --dry-run checks both hosts first
        %jug_execute -n 8 --on client            on a Dask client or an executor. Security: this gives it permission to
                                                 run code as you, and the reverse
        %jug_execute --slurm -n 20 --walltime 2h --mem 4G           twenty jobs of Slurm, as one array
        %jug_execute --slurm --up-to 200 --walltime 2h              as many as there is work for

        To end them: %jug_stop
        """
        asked = read(self.jug_execute, line)
        elsewhere = bool(asked.host or asked.hosts_file or asked.on or asked.slurm)
        if asked.here:
            self._execute_here(asked, elsewhere)
            return
        if not elsewhere and (asked.setup or asked.remote_dir):
            raise UsageError("%jug_execute: --setup and --remote-dir are for other hosts: --host H")
        slurm = _slurm(asked)
        session = self.main.session
        notify, after = (asked.notify, 0.0) if asked.notify else (self.main.notify, self.main.notify_after)
        session.workers.notify([one for one in notify if one != BROWSER], after, asked.dry_run, _hosts(asked))
        if asked.dry_run:
            print(self._plan(session, asked, slurm))
            return
        notice = self._in_browser(session, asked, after) if BROWSER in notify else None
        crew, lines = self._start(session, asked, elsewhere, slurm)
        if note := session.workers.headless_note():
            lines.append(note)
        if self.main.as_text:
            print("\n".join(lines))
        else:
            await_first_worker(crew)
            self.main.picture(session, all=False, message=" · ".join(lines))
        if notice is not None:
            notice.ask()
            self.main.live.until(notice)
        if asked.wait:
            session.barrier()
            print(outcome_text(session.status().counts))

    def _in_browser(self, session: Session, asked: argparse.Namespace, after: float) -> BrowserNotice | None:
        """Return what notifies in the browser, in place of the one before; None where there is none."""
        if not is_kernel(self.shell):
            if BROWSER in asked.notify:
                raise UsageError("%jug_execute: --notify browser needs a notebook that is open in a browser")
            return None
        if self._notice is not None:
            self._notice.end()
        self._notice = BrowserNotice(session, after)
        return self._notice

    def _start(
        self, session: Session, asked: argparse.Namespace, elsewhere: bool, slurm: dict[str, Any] | None
    ) -> tuple[Any, list[str]]:
        """Start the workers that are missing. Return their crew, and a line for each host.

        Waits a moment for other hosts to report. Raises LaunchError where no worker could be started.
        """
        earlier, alive = list(session.workers.crews), [view for view in session.status(all=True).workers if view.alive]
        crew = session.execute(
            asked.workers,
            hosts=_hosts(asked),
            on=self._variable(asked.on),
            slurm=slurm,
            remote_dir=asked.remote_dir,
            not_target=asked.not_target,
            namespace=self.shell.user_ns,
            wait_for_workers=asked.wait_for_workers,
            **options_in(asked) | {"keep_attached": asked.keep_attached and asked.keep_attached == "yes"},
        )
        if not elsewhere:
            return crew, [self._started(session, crew, earlier, {view.info.supervisor for view in alive})]
        lines = crew.messages(PATIENCE)
        if len(crew.failures) == len(crew.groups):
            raise LaunchError("\n".join(crew.failures))
        return crew, lines

    def _started(self, session: Session, crew: Any, earlier: Sequence[Any], supervisors: set[str]) -> str:
        """Return how many workers of this host were started: those asked for, less those there before."""
        there = [info for info in crew.supervisors if info.id in supervisors]
        again = bool(there) or any(one.name == crew.name and (one.supervisors or one.starting) for one in earlier)
        had = max([self._asked.get(crew.name, 0) if again else 0, *(info.size for info in there)])
        self._asked[crew.name] = max(crew.size, had)
        if not had:
            store = label(session.display_url, session.folder, self.main.as_text)
            return f"started {plural(crew.size, 'worker')} on {store}"
        if had < crew.size:
            return f"started {plural(crew.size - had, 'more worker')}: {crew.size} in all"
        return f"{plural(had, 'worker')} {'is' if had == 1 else 'are'} running already; none was started"

    def _variable(self, name: str | None) -> Any:
        if name is not None and name not in self.shell.user_ns:
            raise UsageError(f"%jug_execute: no variable {name!r}; --on takes one that holds a client or an executor")
        return None if name is None else self.shell.user_ns[name]

    def _plan(self, session: Session, asked: argparse.Namespace, slurm: dict[str, Any] | None) -> str:
        """Return what would run, what is in the way on each host, what Slurm would get: as text always the same."""
        if asked.on:
            raise UsageError("%jug_execute: --dry-run can't look into an executor: leave --on out")
        attached = not slurm if asked.keep_attached is None else asked.keep_attached == "yes"
        options = session.workers.options(
            not_target=asked.not_target, namespace=self.shell.user_ns, remote_dir=asked.remote_dir,
            **options_in(asked) | {"keep_attached": attached},
        )  # fmt: skip
        return session.workers.dry_run(asked.workers, options, _hosts(asked), slurm, self.main.as_text)

    def _execute_here(self, asked: argparse.Namespace, elsewhere: bool) -> None:
        if elsewhere:
            raise UsageError("%jug_execute --here runs tasks in this kernel: leave out --host, --on and --slurm")
        if asked.workers or asked.python:
            raise UsageError("%jug_execute --here runs tasks in this kernel: leave out -n and --python")
        if asked.gpus or asked.resources or asked.env or asked.notify:
            raise UsageError(
                "%jug_execute --here runs tasks in this kernel: leave out --gpus, --resources, --env and --notify"
            )
        session = self.main.session
        ran = session.run_here(
            asked.target, asked.max_tasks, asked.max_time, self.shell.user_ns, not_target=asked.not_target
        )
        if ran:
            print(f"{plural(ran)} ran here; now {tally(session.status().counts)}")
        else:
            print("nothing to run: no task is ready")

    @line_magic
    @options()
    @option("--now", action="store_true", help="at once: their current tasks are requeued, for other workers to run")
    @option("--host", metavar="H", help="only the workers on this host")
    def jug_stop(self, line: str) -> None:
        """Stop the workers of this store.

        %jug_stop               after their current task
        %jug_stop --now         at once; only the work on current tasks is lost
        %jug_stop --host a      only those on one host
        """
        asked = read(self.jug_stop, line)
        stopping = self.main.session.stop(now=asked.now, host=asked.host)
        self._asked.clear()
        there = f" on {asked.host}" if asked.host else ""
        if stopping and asked.now:
            ended = self.main.session.workers.ended(PATIENCE, asked.host)
            print(f"{plural(stopping, 'worker')}{there} {'stopped' if ended else 'will stop now'}")
        elif stopping:
            print(f"{plural(stopping, 'worker')}{there} will stop after the current task")
        elif not self.main.session.workers.stopped:
            print(f"no workers to stop{there}")
        for line in self.main.session.workers.stopped:
            print(line)


def _hosts(asked: argparse.Namespace) -> list[str | Path]:
    """Return the hosts of ``--host``, and the file of ``--hosts-file``."""
    hosts: list[str | Path] = [host for written in asked.host for host in written.split(",") if host or not written]
    return [*hosts, Path(asked.hosts_file)] if asked.hosts_file else hosts


def _slurm(asked: argparse.Namespace) -> dict[str, Any] | None:
    """Return what jobs ask Slurm for; None where they are no jobs of Slurm."""
    given = {"walltime": asked.walltime, "mem": asked.mem, "partition": asked.partition}
    given |= {"options": asked.slurm_option, "up_to": asked.up_to}
    given = {name: value for name, value in given.items() if value}
    if given and not asked.slurm:
        names = ", ".join(f"--{'slurm-option' if name == 'options' else name.replace('_', '-')}" for name in given)
        raise UsageError(f"%jug_execute: {names} {'is' if len(given) == 1 else 'are'} for jobs of Slurm: add --slurm")
    if not asked.slurm:
        return None
    number, asked.gpus = asked.gpus, None  # which ones each job finds itself
    return {"walltime": 0, **given, **({"gpus": number} if number else {})}
