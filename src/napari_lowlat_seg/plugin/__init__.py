"""The napari side: the only room that imports napari, Qt or magicgui."""
