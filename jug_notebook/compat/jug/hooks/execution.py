"""How long tasks take."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from jug_notebook.compat.jug.hooks.register import register_hook_once


class TimeTasks:
    """Collects how long tasks of each name take."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._began = 0.0

    def start(self, t: Any) -> None:
        self._began = time.monotonic()

    def stop(self, t: Any) -> None:
        self.times[t.name].append(time.monotonic() - self._began)

    def print_summary(self) -> None:
        print("TIMES")
        print("-----\n")
        for name, times in self.times.items():
            print(f"{name:20} {sum(times) / len(times):.2f}s ({len(times)} tasks)")


def register_time_tasks() -> None:
    """Print the mean time of each function's tasks when the execution ends."""
    times = TimeTasks()
    register_hook_once("execute.task-pre-execute", "register_time_tasks", times.start)
    register_hook_once("execute.task-executed1", "register_time_tasks", times.stop)
    register_hook_once("execute.finished_post_status", "register_time_tasks", times.print_summary)
