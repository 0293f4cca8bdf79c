"""Trains the networks of a method with transformers' ``Trainer``."""
