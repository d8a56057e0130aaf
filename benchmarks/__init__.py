"""Measurements that no user runs: timing of real windows, and networks that are only timed. Not in the wheel.

Run them from the repository's root: `python -m benchmarks.window.gui_gap --help`, and
`lowlat-seg benchmark latency -m benchmarks/reference/sam.py:mobile_sam`.
"""
