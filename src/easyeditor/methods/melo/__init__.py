"""MELO: low-rank blocks behind a router."""
