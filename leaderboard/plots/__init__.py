"""Plots of the page. Every function takes entries and gives `Plot`s whose files are written."""
