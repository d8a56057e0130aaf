"""How long a napari window and its prediction worker take."""
