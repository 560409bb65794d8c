"""Densities that cannot be computed, and are bounded: variational."""
