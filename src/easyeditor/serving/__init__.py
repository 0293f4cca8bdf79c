"""Serving a model with its patches: one name per set of patches, behind OpenAI's interface."""
