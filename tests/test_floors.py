"""The house has floors: imports go downwards only, and no two rooms need each other."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    "model errors clock",
    "process digest code codec board render",
    "task patterns",
    "store",
    "worker supervisor",
    "launch",
    "session __init__",
    "__main__ headless",
    "kernel_ext",
]
