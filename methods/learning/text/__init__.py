"""This package fetches training text, packs its examples into rows and computes the loss on them."""
