"""In-context editing: facts in front of every prompt."""
