"""Segmentation on frozen layers: linear, and by nearest neighbours."""
