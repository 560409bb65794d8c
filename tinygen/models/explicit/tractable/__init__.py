"""Densities that can be computed: fully visible belief networks, log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})."""
