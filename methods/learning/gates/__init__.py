"""This package draws gates on heads, channels and the residual width, counts and presses their size, decides and folds them."""
