"""Losses for embeddings: one per file, the losses of pytorch-metric-learning, and a cross-batch memory."""
