"""Networks with random weights that are only timed."""
