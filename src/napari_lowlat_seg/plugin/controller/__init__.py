"""Between the window and the engine: one controller an image."""
