"""Fine-tuning for PASCAL VOC detection: Fast R-CNN on precomputed proposals, and Faster R-CNN."""
