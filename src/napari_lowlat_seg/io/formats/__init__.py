"""Formats of one file (or a folder of files), a module each: `read`, and `check` and `write` for labels."""
