"""Functions that are called at certain points of an execution."""

from jug_notebook.compat.jug.hooks.register import jug_hook, register_hook, register_hook_once, reset_all_hooks

__all__ = ["jug_hook", "register_hook", "register_hook_once", "reset_all_hooks"]
