"""The table of objects: its rows, its controls, and what its keys do to a session."""
