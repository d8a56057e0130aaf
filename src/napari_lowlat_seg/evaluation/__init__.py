"""Benchmarks: simulated annotators, metrics, reports."""
