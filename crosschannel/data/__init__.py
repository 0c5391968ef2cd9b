"""Image sets, and the batches of samples that are drawn from them.

``open_images`` opens a data source as one :class:`ImageSet` per split. A :class:`Stream` applies a *view* (usually a
crop) to the images of an ImageSet; its order and random numbers are pure functions of (seed, epoch, position).
``load_batches`` loads the samples in batches.
"""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names

if TYPE_CHECKING:
    from crosschannel.config.training import CropConfig as CropConfig
    from crosschannel.data.images import ImageSet as ImageSet
    from crosschannel.data.images import MemoryImages as MemoryImages
    from crosschannel.data.images import Subset as Subset
    from crosschannel.data.open import open_images as open_images
    from crosschannel.data.open import open_training_images as open_training_images
    from crosschannel.data.record import Record as Record
    from crosschannel.data.stream import BrokenImages as BrokenImages
    from crosschannel.data.stream import Stream as Stream
    from crosschannel.data.stream import load_batches as load_batches
    from crosschannel.data.views import Batch as Batch
    from crosschannel.data.views import CentreCrop as CentreCrop
    from crosschannel.data.views import ImageBatch as ImageBatch
    from crosschannel.data.views import SampleRNG as SampleRNG
    from crosschannel.data.views import TenCrops as TenCrops
    from crosschannel.data.views import TrainingCrops as TrainingCrops
    from crosschannel.data.views import View as View

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.data.images": "ImageSet MemoryImages Subset",
        "crosschannel.data.record": "Record",
        "crosschannel.data.open": "open_images open_training_images",
        "crosschannel.data.stream": "BrokenImages Stream load_batches",
        "crosschannel.data.views": "Batch CentreCrop SampleRNG ImageBatch TenCrops TrainingCrops View",
        "crosschannel.config.training": "CropConfig",
    },
)
