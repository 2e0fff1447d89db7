"""Matplotlib's backend in workers, by $MPLBACKEND: figures are drawn in memory, and ``show`` keeps them with the task.

Nothing of ours imports it: matplotlib does, on the task's first use of pyplot.
"""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg

from jug_notebook.worker import displays

FigureCanvas = FigureCanvasAgg


def show(*_: Any, **__: Any) -> None:
    """Keep all open figures, in order with what is printed, and close them."""
    buffer = displays.current()
    if buffer is not None:
        buffer.add_figures()
