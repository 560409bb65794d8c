"""Models that draw samples and have no density that could be computed."""
