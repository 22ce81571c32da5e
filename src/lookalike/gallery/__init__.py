"""Galleries: images become vectors, a store keeps them, and a search finds the most similar ones."""
