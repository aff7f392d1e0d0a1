"""What happens to every pruned model after slicing, the same for all methods: one file a recovery."""
