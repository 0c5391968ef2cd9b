"""Published results on PASCAL VOC, in percent: Zhang et al., ECCV 2016, Table 2."""

COLUMNS = ("classification fc8", "classification fc6-8", "classification all", "detection", "segmentation")
ATTRIBUTION = (
    "Zhang et al. 2016, Table 2: classification and detection on VOC 2007, segmentation on VOC 2012; a * marks methods "
    "that pretrained only some of the layers, a ~ marks values that the text gives as approximate"
)

# AlexNet: mAP, mAP, mAP, mAP, mean IU (Table 2); None: not reported.
TABLE_2: dict[str, tuple[float | None, ...]] = {
    "ImageNet labels": (76.8, 78.9, 79.9, 56.8, 48.0),
    "random Gaussian": (None, None, 53.3, 43.4, 19.8),
    "autoencoder": (24.8, 16.0, 53.8, 41.9, 25.2),
    "k-means": (32.0, 39.2, 56.6, 45.6, 32.6),
    "Agrawal et al. (ego-motion)": (31.2, 31.0, 54.2, 43.9, None),
    "Wang & Gupta (video tracks)": (28.1, 52.2, 58.7, 44.0, None),
    "Doersch et al. (context) *": (44.7, 55.1, 65.3, 51.1, None),
    "Pathak et al. (inpainting) *": (None, None, 56.5, 44.5, 29.7),
    "Donahue et al. (BiGAN) *": (38.2, 50.2, 58.6, 45.1, 35.0),
    "Zhang et al. (colorization, grey)": (52.4, 61.5, 65.9, 46.9, 35.0),
    "Zhang et al. (colorization, Lab)": (52.4, 61.5, 65.6, 47.9, 35.6),
}

# (pretraining, column) of approximate values. The paper's text calls this one "approximately equal to" its own 35.0.
UNCERTAIN = {("Donahue et al. (BiGAN) *", "segmentation")}
