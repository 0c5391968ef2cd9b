"""Published ImageNet top-1 accuracies (%) of linear classifiers on AlexNet's conv1 … conv5.

Source: Zhang, Isola and Efros, "Split-Brain Autoencoders" (CVPR 2017), Table 2. It corrects the colorization row of
Fig. 7 in their earlier paper.
"""

ATTRIBUTION = "Split-Brain Autoencoders (Zhang et al. 2017), Table 2, maps resized bilinearly"
IMAGENET_PROBES: dict[str, tuple[float, ...]] = {
    "ImageNet labels": (19.3, 36.3, 44.2, 48.3, 50.5),
    "random Gaussian": (11.6, 17.1, 16.9, 16.3, 14.1),
    "k-means": (17.5, 23.0, 24.5, 23.2, 20.6),
    "Doersch et al. (context)": (16.2, 23.3, 30.2, 31.7, 29.6),
    "Pathak et al. (inpainting)": (14.1, 20.7, 21.0, 19.8, 15.5),
    "Donahue et al. (BiGAN)": (17.7, 24.5, 31.0, 29.9, 28.0),
    "Noroozi & Favaro (jigsaw, conv1 at stride 2)": (19.2, 30.1, 34.7, 33.9, 28.3),
    "Zhang et al. (colorization)": (13.1, 24.8, 31.0, 32.6, 31.8),
    "Zhang et al. (split-brain)": (17.7, 29.3, 35.4, 35.2, 32.8),
}
