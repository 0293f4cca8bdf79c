"""Losses and gradient factors of a model."""
