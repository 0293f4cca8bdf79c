"""What an edit is: weight patches, the stack a model carries, files, LoRA export."""
