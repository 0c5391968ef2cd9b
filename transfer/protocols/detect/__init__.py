"""PASCAL VOC detection by fine-tuning: Fast R-CNN on proposals, Faster R-CNN."""
