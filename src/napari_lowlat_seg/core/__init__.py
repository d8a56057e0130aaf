"""Values that every room uses: volumes, frames, prompts, masks, boxes, labels. No torch, no napari."""
