"""Scores token sequences with a transformers causal LM, every distinct token computed once."""
