"""Passing edits on: folders with a manifest, signatures, and repositories on a hub."""
