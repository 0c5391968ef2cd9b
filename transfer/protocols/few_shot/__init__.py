"""Few-shot classification: logistic regression on the frozen features of a few training images per class."""
