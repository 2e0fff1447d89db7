"""Events in, task states and ready tasks out. Pure: no clock, no disk, no network."""
