"""KE: gates on a gradient, conditioned on the text of the edit; nets, training and editing."""
