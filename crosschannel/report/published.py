"""Figures that papers report, in percent, to set measured ones beside. Zhang et al., ECCV 2016, Fig. 7 and Table 2."""

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")

# ImageNet top-1 of linear classifiers on AlexNet's layers, conv1 … conv5 (Fig. 7).
IMAGENET_PROBES: dict[str, tuple[float, ...]] = {
    "ImageNet labels": (19.3, 36.3, 44.2, 48.3, 50.5),
    "random Gaussian": (11.6, 17.1, 16.9, 16.3, 14.1),
    "k-means": (17.5, 23.0, 24.5, 23.2, 20.6),
    "Doersch et al. (context)": (16.2, 23.3, 30.2, 31.7, 29.6),
    "Pathak et al. (inpainting)": (14.1, 20.7, 21.0, 19.8, 15.5),
    "Donahue et al. (BiGAN)": (17.7, 24.5, 31.0, 29.9, 28.0),
    "Zhang et al. (colorization)": (12.5, 24.5, 30.4, 31.5, 30.3),
}

PASCAL_COLUMNS = ("VOC07 cls fc8", "VOC07 cls fc6-8", "VOC07 cls all", "VOC07 det", "VOC12 seg")

# AlexNet on PASCAL VOC: mAP, mAP, mAP, mAP, mean IU (Table 2); None: not reported.
PASCAL: dict[str, tuple[float | None, ...]] = {
    "ImageNet labels": (76.8, 78.9, 79.9, 56.8, 48.0),
    "random Gaussian": (None, None, 53.3, 43.4, 19.8),
    "autoencoder": (24.8, 16.0, 53.8, 41.9, 25.2),
    "k-means": (32.0, 39.2, 56.6, 45.6, 32.6),
    "Agrawal et al. (ego-motion)": (31.2, 31.0, 54.2, 43.9, None),
    "Wang & Gupta (video tracks)": (28.1, 52.2, 58.7, 44.0, None),
    "Doersch et al. (context)": (44.7, 55.1, 65.3, 51.1, None),
    "Pathak et al. (inpainting)": (None, None, 56.5, 44.5, 29.7),
    "Donahue et al. (BiGAN)": (38.2, 50.2, 58.6, 45.1, 35.0),
    "Zhang et al. (colorization, grey)": (52.4, 61.5, 65.9, 46.9, 35.0),
    "Zhang et al. (colorization, Lab)": (52.4, 61.5, 65.6, 47.9, 35.6),
}
