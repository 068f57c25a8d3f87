"""Data: images and text without TensorFlow, a resumable order, augmentation, batches.

`open_images`, `open_text`, `open_transduction`, `open_lines` and `open_graphs` give a
random-access source, `train_batches` and `eval_batches` iterate over it; `augment`
describes per-image transforms on the host, and `normjax.data.mix` (imported by name, it
needs jax) mixes examples on the device.
"""

from normjax.data import augment
from normjax.data.communities import Communities, open_graphs
from normjax.data.digit_lines import DigitLines, open_lines
from normjax.data.folder import HELD_OUT
from normjax.data.image_sets import ImageSet, open_images
from normjax.data.order import example_indices, permutation
from normjax.data.pipeline import eval_batches, train_batches
from normjax.data.rows import STOOD_IN, image_shape
from normjax.data.sources import ImageSource
from normjax.data.text import TextSource, open_text
from normjax.data.transduction import ReversedCase, open_transduction

__all__ = [
    "HELD_OUT",
    "STOOD_IN",
    "Communities",
    "DigitLines",
    "ImageSet",
    "ImageSource",
    "ReversedCase",
    "TextSource",
    "augment",
    "eval_batches",
    "example_indices",
    "image_shape",
    "open_graphs",
    "open_images",
    "open_lines",
    "open_text",
    "open_transduction",
    "permutation",
    "train_batches",
]
