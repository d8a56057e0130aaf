"""Labels layers that results are written to, in memory and on disk."""
