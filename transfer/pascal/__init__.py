"""PASCAL VOC: devkit, metrics and published results."""
