"""Plain data that every module speaks: tasks and their outcomes, events, and the views that people look at."""

from jug_notebook.model.limits import *  # noqa: F403
from jug_notebook.model.tasks import *  # noqa: F403
from jug_notebook.model.views import *  # noqa: F403
