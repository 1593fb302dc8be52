"""Finished rollouts become rows, and rows become files that no crash can tear or double."""
