"""The MLP as a linear associative memory: contexts, keys, values, moments, the solve."""
