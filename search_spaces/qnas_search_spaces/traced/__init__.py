"""The space of a network that the user brings: traced by torch.fx, its layers' bit-widths are searched."""
