"""What names a task: digests of its arguments' values and of the code that it runs.

Values: `digest` is the way in, `encoder` writes, `objects` and `arrays` say how each type is written (a new hashable
type goes there). Code: `code` is the way in, `walk` follows a function's helpers, `syntax` leaves out what doesn't
count, such as comments, and `modules` are the project's own, which travel to workers. `advice` are the warnings.
"""

from jug_notebook.keys import code  # noqa: F401  (registers how functions and classes are written, for every digest)
