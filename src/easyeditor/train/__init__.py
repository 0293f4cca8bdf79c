"""Training what a method learns, on transformers' own ``Trainer``."""
