"""napari's layers as prompts and previews."""
