"""Train a compact network."""
