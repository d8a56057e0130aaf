"""Objects propagated from plane to plane, interpolated, linked, and compared along three axes."""
