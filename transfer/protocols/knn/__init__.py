"""Weighted k-nearest-neighbour classification in frozen features: no training, no choice of a learning rate."""
