"""Volumes, frames, prompts, masks and labels: values that every package uses, without torch or napari."""
