"""This package lets gates and attention functions of our own act on a model's forward pass, and takes them away without trace."""
