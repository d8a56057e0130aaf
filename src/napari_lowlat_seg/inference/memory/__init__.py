"""The memory of other planes at work: its step on a plane, and an object's sweeps through a volume."""
