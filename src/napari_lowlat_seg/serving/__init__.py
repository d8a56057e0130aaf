"""Predictions from another process, with embeddings cached in memory and on disk."""
