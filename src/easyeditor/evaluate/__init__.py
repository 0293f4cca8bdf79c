"""What an edit changed: observations of a model, and what they say before and after."""
