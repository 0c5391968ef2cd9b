"""PASCAL VOC segmentation by fine-tuning: a class for every pixel."""
