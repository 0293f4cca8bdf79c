"""Edits in the formats of other programs."""
