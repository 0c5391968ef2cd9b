"""Linear SVMs on frozen features of PASCAL VOC, with all or few labels."""
