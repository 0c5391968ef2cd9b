"""Weighted k-nearest-neighbour classification on frozen features, without training or a learning rate to tune."""
