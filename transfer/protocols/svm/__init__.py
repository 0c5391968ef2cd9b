"""Linear SVMs on frozen features of PASCAL VOC, with all labels and low-shot."""
