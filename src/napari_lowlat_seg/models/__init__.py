"""The networks and their files. Only torch is imported here: no napari, images or prompts."""
