"""Timing of a real window."""
