"""Compresso: masks and LoRA learnt together, with a prompt that asks the model to help (arXiv 2310.05015)."""
