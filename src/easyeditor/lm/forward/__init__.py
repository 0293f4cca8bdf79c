"""Forward passes that do less: batching, prefix caches, partial passes, activation memory."""
