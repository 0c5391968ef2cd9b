"""Fine-tuning for PASCAL VOC multi-label classification (20 classes)."""
