"""Evaluation of colorization methods, as in the paper's Table 1."""
