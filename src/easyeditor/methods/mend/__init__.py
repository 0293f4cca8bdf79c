"""MEND: learnt transformation of gradients; nets, training and editing."""
