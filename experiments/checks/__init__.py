"""What refuses a cell before it costs anything, and, in its stages, numbers that would be false."""
