"""Few labels: logistic regression on frozen features of some images a class."""
