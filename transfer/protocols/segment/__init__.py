"""Fine-tuning for PASCAL VOC semantic segmentation."""
