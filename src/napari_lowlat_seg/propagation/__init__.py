"""Carry objects from plane to plane."""
