"""What we prune: loading, anatomy, masks, slicing and checkpoints of decoder-only language models."""
