"""This package has what methods that learn their masks share; docs/training-methods.md is its guide."""
