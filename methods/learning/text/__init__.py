"""Training text: where it comes from, how examples are packed into rows, and the loss on them."""
