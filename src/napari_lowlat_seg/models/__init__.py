"""The networks. A wall: torch only; no napari, no numpy pictures, no prompts, nothing from outside."""
