"""Models with an explicit density p(x), which they are trained to make large."""
