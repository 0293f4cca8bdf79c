"""MALMEN: learnt value differences and one least-squares solve; nets, training and editing."""
