"""What names a task: digests of its arguments' values and of the code that it runs."""
