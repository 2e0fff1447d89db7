"""Task functions, tasks and their values, as a notebook or a script handles them."""

from jug_notebook.task.function import TaskFunction, TaskGenerator, definitions, task

__all__ = ["TaskFunction", "TaskGenerator", "definitions", "task"]
