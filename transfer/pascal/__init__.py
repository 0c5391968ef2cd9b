"""PASCAL VOC: the devkit, its metrics, the published figures."""
