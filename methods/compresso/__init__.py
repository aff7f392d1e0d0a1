"""Compresso learns masks and LoRA together, with a prompt that asks the model to help (arXiv 2310.05015)."""
