"""What we prune: loading, anatomy, masks, slicing and checkpoints of decoder-only language models."""

if __name__ != "prunebench.models":
    raise ImportError("import prunebench.models, not models: the folders at the top of the repository have no names of their own.")
