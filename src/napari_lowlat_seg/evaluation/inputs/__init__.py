"""What a benchmark reads: data sets, ground truth, segmenters."""
