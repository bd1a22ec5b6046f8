"""Images in memory or streamed: three splits, the integer pixel grid, augmentation, batches."""

from qnas.data.augment import Augmentation
from qnas.data.batches import TrainBatches, batches
from qnas.data.images import ImageSet, ImageSource, StreamedImages, resize, resize_uint8
from qnas.data.splits import MIN_SPLIT, PIXEL_SAMPLE, SPLITS, Data, PixelGrid, Split, prepare

__all__ = [
    "MIN_SPLIT",
    "PIXEL_SAMPLE",
    "SPLITS",
    "Augmentation",
    "Data",
    "ImageSet",
    "ImageSource",
    "PixelGrid",
    "Split",
    "StreamedImages",
    "TrainBatches",
    "batches",
    "prepare",
    "resize",
    "resize_uint8",
]
