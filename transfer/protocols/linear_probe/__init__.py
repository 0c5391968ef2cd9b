"""Linear probes: linear classifiers on the layers of a frozen backbone."""
