"""Figures that papers report, in percent, to set measured ones beside. Zhang et al., ECCV 2016, Fig. 7."""

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
