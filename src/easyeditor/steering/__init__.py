"""Directions in the residual stream: found in texts of two kinds, added by patches, ablated."""
