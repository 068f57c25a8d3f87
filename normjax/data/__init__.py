"""Data: images and text without TensorFlow, a resumable order, augmentation, batches.

`open_images` and `open_text` give a random-access source, `train_batches` and
`eval_batches` iterate over it; `augment` describes per-image transforms on the host,
and `normjax.data.mix` (imported by name, it needs jax) mixes examples on the device.
"""

from normjax.data import augment
from normjax.data.order import example_indices, permutation
from normjax.data.pipeline import eval_batches, train_batches
from normjax.data.rows import image_shape
from normjax.data.sources import ImageSource, open_images
from normjax.data.text import TextSource, open_text

__all__ = [
    "ImageSource",
    "TextSource",
    "augment",
    "eval_batches",
    "example_indices",
    "image_shape",
    "open_images",
    "open_text",
    "permutation",
    "train_batches",
]
