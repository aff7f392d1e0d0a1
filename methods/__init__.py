"""Pruning methods behind one interface: `Pruner` decides what stays, the framework does the rest."""

if __name__ != "prunebench.methods":
    raise ImportError("import prunebench.methods, not methods: the folders at the top of the repository have no names of their own.")
