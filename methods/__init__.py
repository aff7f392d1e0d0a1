"""Pruning methods behind one interface: `Pruner` decides what stays, the framework does the rest."""
