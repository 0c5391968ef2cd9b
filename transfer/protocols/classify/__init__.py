"""PASCAL VOC classification by fine-tuning: 20 classes, several of them in an image."""
