"""Embed an image once, answer prompts on it: the predictor and what it runs on."""
