"""Densities in closed form: by the chain rule (belief networks), a change of variables (flows), or as a mixture."""
