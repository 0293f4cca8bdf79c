"""Files of edits → cases."""
