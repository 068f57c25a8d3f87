"""Data: image sources without TensorFlow, a resumable order, augmentation, batches.

`open_images` gives a random-access source, `train_batches` and `eval_batches` iterate
over it; `augment` describes per-image transforms on the host, and
`normjax.data.mix` (imported by name, it needs jax) mixes examples on the device.
"""

from normjax.data import augment
from normjax.data.order import example_indices, permutation
from normjax.data.pipeline import eval_batches, image_shape, train_batches
from normjax.data.sources import ImageSource, open_images

__all__ = [
    "ImageSource",
    "augment",
    "eval_batches",
    "example_indices",
    "image_shape",
    "open_images",
    "permutation",
    "train_batches",
]
