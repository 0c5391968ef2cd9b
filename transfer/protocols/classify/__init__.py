"""Fine-tuning for PASCAL VOC classification: 20 classes, of which an image may show several."""
