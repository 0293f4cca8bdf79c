"""Which parts of a model an answer comes from."""
