"""Gates on heads, channels and residual dimensions: how they are drawn, counted, pressed to a size, decided and folded in."""
