"""Where pictures come from, how they are split, ordered and turned into tensors."""
