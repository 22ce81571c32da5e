"""Lookalike: image recognition and look-alike search, trained from scratch and measured honestly."""

__version__ = "0.1.0"
