"""Volumes, frames, prompts, masks, boxes and labels: values that all packages use, without torch or napari."""
