"""Data: where images come from and how they become uint8 crops.

``open_images`` turns what a user names into an :class:`ImageSet`; ``CropStream`` turns an ImageSet into crops
whose order and augmentation are pure functions of (seed, epoch, position); ``crop_loader`` batches them.
"""

from crosschannel.data.crops import CropConfig
from crosschannel.data.images import ImageSet, MemoryImages
from crosschannel.data.open import open_images, open_training_images
from crosschannel.data.stream import Batch, BrokenImages, CropStream, crop_loader

__all__ = [
    "Batch",
    "BrokenImages",
    "CropConfig",
    "CropStream",
    "ImageSet",
    "MemoryImages",
    "crop_loader",
    "open_images",
    "open_training_images",
]
