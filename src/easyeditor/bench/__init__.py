"""Benchmarks: run methods over many cases, resumably, and report what came of it."""
