"""Dense probes: segmentation by linear and nearest-neighbour classifiers on frozen layers."""
