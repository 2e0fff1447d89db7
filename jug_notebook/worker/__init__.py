"""What runs tasks: the worker's loop, the supervisor that starts and watches workers, and what they capture."""
