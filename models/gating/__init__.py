"""Gates in the forward pass: soft masks, the products that they take part in, and attention functions of our own."""
