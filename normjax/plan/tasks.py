"""Tasks without their data: only what a compiler needs to know of it."""

from typing import Any

from normjax.core.errors import UserError
from normjax.data.image_sets import EMBEDDED
from normjax.data.vocabulary import open_tokenizer
from normjax.tasks import TASKS
from normjax.tasks.classification import ImageClassification
from normjax.tasks.described import Images, Text
from normjax.tasks.language import LanguageModeling

SUFFIX = "_without_data"
"""Behind the name of a task: the same without its data."""


@TASKS.register(f"image_classification{SUFFIX}")
class ImagesWithoutData(ImageClassification):
    """Image classification; TFDS sets as TFDS describes them, prepared or not."""

    def _open(self, split):
        name = self._config.data.name
        return super()._open(split) if name in EMBEDDED else _described(name)


@TASKS.register(f"language_modeling{SUFFIX}")
class TextWithoutData(LanguageModeling):
    """Language modeling; no text is read, only the tokenizer's file.

    `config.data.vocab_size` is the number of its tokens where it is not there.
    """

    def _open(self, split):
        fields = self._config.data
        if fields.vocab_size:
            return Text(fields.vocab_size + 1)  # and the end of a document
        try:
            return Text(open_tokenizer(fields.text.tokenizer).size + 1)
        except UserError as error:
            hint = "or say how many tokens it has: --vocab_size=32000"
            raise UserError(f"{error}; {hint}") from None


def _described(name: str) -> Images:
    import tensorflow_datasets as tfds

    try:
        features: Any = tfds.builder(name).info.features
    except (tfds.core.DatasetNotFoundError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"data set {name!r}: TFDS cannot describe it: {reason}"
        ) from None
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    found: Any = [[f for f in features.values() if isinstance(f, k)] for k in kinds]
    if not all(found):
        raise UserError(f"data set {name!r} is no image classification set")
    image, label = (each[0] for each in found)
    shape = tuple(image.shape) if all(image.shape) else None
    return Images(name, label.num_classes, image.shape[-1], shape)
