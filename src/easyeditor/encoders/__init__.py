"""Auxiliary text encoders and networks, beside the model being edited."""
