"""Whole volumes without a window: embed, propagate seeds, segment automatically; here or on a cluster."""
