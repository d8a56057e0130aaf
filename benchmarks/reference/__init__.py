"""Published networks with random weights: their latency means something, their masks do not."""
