"""Commands that change what is stored or runs: invalidate, accept, retry, stop."""

from __future__ import annotations

import argparse

from jug_notebook.cli import Arguments, Command, add_target, meant, opener_of, store_of


def _add_invalidate(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say which tasks are meant")


def _invalidate(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Target, Why
    from jug_notebook.system import user

    store = store_of(arguments)
    keys = meant(store, arguments.target)
    if arguments.dry_run:
        wanted = frozenset(keys)
        views = [view for view in store.tasks(target=Target(keys=wanted)) if view.key in wanted]
        print(render.tasks_text(opener_of(store).filled(views[: render.TASKS]), len(views)))
    else:
        count = len(store.invalidate(keys, Why.DIRECT, user()))
        them = "it" if count == 1 else "them"
        print(f"{render.plural(count)} lost their outcome; what was made from {them} will be computed again, too")
    store.close()
    return 0


def _add_accept(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--undo", action="store_true", help="take that back: what stood on it is computed after all")
    parser.add_argument("--dry-run", action="store_true", help="only say what would come of it")


def _accept(arguments: Arguments) -> int:
    from jug_notebook.clock import CLOCK
    from jug_notebook.session.accept import Accepting
    from jug_notebook.store.signed import seal_of
    from jug_notebook.system import user

    store = store_of(arguments)
    accepting = Accepting(store, seal_of(store), user())
    act = accepting.undo if arguments.undo else accepting.accept
    print(act(meant(store, arguments.target), CLOCK.now(), arguments.dry_run))
    store.close()
    return 0


def _retry(arguments: Arguments) -> int:
    from jug_notebook.model import State, Why
    from jug_notebook.render import plural
    from jug_notebook.system import user

    store = store_of(arguments)
    keys = meant(store, arguments.target)
    culprits = [
        key if state is State.FAILED else blamed
        for key, state, blamed in zip(keys, store.states(keys), store.blocking_tasks(keys), strict=True)
    ]
    failed = list(dict.fromkeys(key for key in culprits if key is not None))
    count = len(store.invalidate(failed, Why.RETRY, user())) if failed else 0
    print(f"{plural(count)} will be tried again" if count else "none of these has failed")
    store.close()
    return 0


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="at once, not after the current task")
    parser.add_argument("--host", metavar="H", help="only the workers of this host")


def _stop(arguments: Arguments) -> int:
    from jug_notebook.launch import send_order
    from jug_notebook.model import Stop
    from jug_notebook.render import plural

    store = store_of(arguments)
    living = [info for info, alive, _ in store.processes() if alive and info.is_on(arguments.host)]
    supervisors = [info for info in living if info.kind == "supervisor"]
    send_order(store, supervisors, Stop(now=arguments.now))
    store.close()
    if supervisors:
        workers = sum(info.kind == "worker" for info in living)
        hosts = ", ".join(sorted({info.where for info in supervisors}))
        how = "at once" if arguments.now else "after their current tasks"
        print(f"{plural(workers, 'worker')} on {hosts} will stop {how}")
    else:
        print("no worker is alive" + (f" on {arguments.host}" if arguments.host else ""))
    return 0


COMMANDS = {
    "invalidate": Command(
        "these values are wrong: compute them again, and all made from them", _add_invalidate, _invalidate
    ),
    "accept": Command("code was edited, and its former results stand", _add_accept, _accept),
    "retry": Command("try failed tasks again", add_target, _retry),
    "stop": Command("stop the workers of a store", _add_stop, _stop),
}
