"""Data: where images come from and what is made of them.

``open_images`` turns what a user names into an :class:`ImageSet`; a :class:`Stream` turns an ImageSet into samples of a
*view* (crops, mostly), whose order and draws are pure functions of (seed, epoch, position); ``load_batches`` batches
them.
"""

from crosschannel.data.images import ImageSet, MemoryImages, Subset
from crosschannel.data.open import open_images, open_training_images
from crosschannel.data.stream import BrokenImages, Stream, load_batches
from crosschannel.data.views import Batch, CentreCrop, ImageBatch, TenCrops, TrainingCrops, View
from crosschannel.runs.config import CropConfig

__all__ = [
    "Batch",
    "BrokenImages",
    "CentreCrop",
    "CropConfig",
    "ImageBatch",
    "ImageSet",
    "MemoryImages",
    "Stream",
    "Subset",
    "TenCrops",
    "TrainingCrops",
    "View",
    "load_batches",
    "open_images",
    "open_training_images",
]
