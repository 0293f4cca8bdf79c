"""Edit, evaluate, keep or put back."""
