"""Where calibration and training text comes from, how samples are drawn, and what is kept out of them."""
