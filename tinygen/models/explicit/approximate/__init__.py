"""Models whose density cannot be computed but is bounded from below: variational models."""
