"""The predictor, which embeds an image once and predicts masks from prompts, and its backends."""
