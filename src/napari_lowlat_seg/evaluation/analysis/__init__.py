"""What a benchmark explains: robustness, calibration, galleries, profiles."""
