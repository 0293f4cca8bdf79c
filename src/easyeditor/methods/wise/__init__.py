"""WISE: a side memory beside one linear layer, chosen by how strongly it answers a prompt."""
