"""Image classification sets by name: embedded, people's own, and those of TFDS."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of
from normjax.data import prepared
from normjax.data.class_order import in_order
from normjax.data.decode import OneRange
from normjax.data.folder import HELD_OUT, Folder, scan
from normjax.data.in_place import FolderSource
from normjax.data.shards import scan_shards
from normjax.data.sources import ImageSource
from normjax.data.table_images import scan_hf

EMBEDDED = ("digits", "image_folder", "hf_dataset", "webdataset")
"""Data sets that need no TFDS preparation by the user."""

UNDECODABLE = ("stop", "skip")
"""What to do with an image that cannot be decoded: raise, or take the next that can."""

FOLDERS: Mapping[str, Callable[..., Folder]] = {
    "image_folder": scan,
    "hf_dataset": scan_hf,
    "webdataset": scan_shards,
}
"""Sets of people's own, and what lists the images at their path."""


class ImageSet:
    """An image classification set, found once; its splits are opened one by one.

    Args:
      name: "digits" (scikit-learn's), a key of `FOLDERS` (people's own, see the
        functions there), or a TFDS name such as "cifar10", prepared as array_record
        before; nothing is ever downloaded.
      data_dir: where prepared sets lie. Default: for embedded sets the environment
        variable NORMJAX_DATA_DIR, else ~/.cache/normjax; for others TFDS's own.
      path: of a set of `FOLDERS`.
      undecodable: what is to happen with images that cannot be decoded: "stop" raises;
        "skip" leaves them out when an image folder is prepared, and takes the next
        image that can be decoded where another set has them.
      channels: 3 makes gray images RGB; None leaves them.
      held_out: the part of each class that is `test` where a set of `FOLDERS` has no
        splits.
      in_place: read the images of such a set where they lie, as RGB unless `channels`
        is 1, instead of preparing a copy.
      classes: the order of their classes, see `class_order.in_order`; "": by name.
      label_field: column of the labels of an hf_dataset; "" where one alone may be it.

    Raises:
      UserError: unknown name, a set that is not prepared or in a format without random
        access, a faulty folder.

    Example:
      >>> from normjax import data
      >>> digits = data.ImageSet("digits")
      >>> digits.splits
      ('train', 'test')
      >>> len(digits.split("train")), len(digits.split("test"))
      (1437, 360)
    """

    def __init__(
        self,
        name: str,
        *,
        data_dir: str | os.PathLike | None = None,
        path: str | os.PathLike | None = None,
        undecodable: str = "stop",
        channels: int | None = None,
        held_out: float = HELD_OUT,
        in_place: bool = False,
        classes: str = "",
        label_field: str = "",
    ):
        if undecodable not in UNDECODABLE:
            raise UserError(one_of("data.undecodable", undecodable, UNDECODABLE))
        if name in FOLDERS and path is None:
            raise UserError(f"data set {name!r} needs data.path, where it lies")
        if name not in FOLDERS and path is not None:
            rule = f"path says where {_listed(FOLDERS)} lie, and only that"
            raise UserError(f"data set {name!r} with path={str(path)!r}: {rule}")
        if label_field and name != "hf_dataset":
            raise UserError("data.label_field is a column of hf_dataset, and only that")
        if name not in FOLDERS and (in_place or classes):
            field = "in_place" if in_place else "classes"
            raise UserError(f"data.{field} is of {_listed(FOLDERS)}, and only that")
        self.name, self._skip = name, undecodable == "skip"
        self._folder: Folder | None = None
        self._gray = OneRange()
        self._cache = prepared.cache_dir(data_dir if name in EMBEDDED else None)
        self._keys, self._ignored = ("image", "label"), {}
        if name == "digits":
            self._builder = _open_digits(self._cache)
            shape = self._builder.info.features["image"].shape
        elif path is not None:
            more = {"label_field": label_field} if label_field else {}
            folder = FOLDERS[name](path, held_out, **more)
            folder = in_order(folder, classes) if classes else folder
            if in_place:
                self._folder, self._channels = folder, channels or 3
                return
            self._builder = _open_folder(self._cache, folder, skip=self._skip)
            shape = self._builder.info.metadata["image_shape"]
            self._ignored = folder.left_out
        else:
            self._builder = prepared.open_tfds(name, data_dir, EMBEDDED)
            self._keys = _classification_keys(name, self._builder.info.features)
            shape = self._builder.info.features[self._keys[0]].shape
        self._shape = (*shape[:2], channels or shape[-1])

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of what can be opened."""
        return tuple(self._folder.splits if self._folder else self._builder.info.splits)

    def split(self, split: str) -> ImageSource | FolderSource:
        """One split.

        Args:
          split: "train", "test", ...; TFDS slices such as "train[:90%]" work too. Of
            people's own, each takes that part of every class.

        Raises:
          UserError: an unknown or empty split.
        """
        if self._folder:
            given = {"channels": self._channels, "skip": self._skip}
            return FolderSource(self._folder, split, **given, gray=self._gray)
        image_key, label_key = self._keys
        return ImageSource(
            self.name,
            split,
            self._builder,
            image_key=image_key,
            label_key=label_key,
            shape=self._shape,
            cache=self._cache,
            skip=self._skip,
            ignored=self._ignored,
        )


def open_images(name: str, split: str, **given: Any) -> Any:
    """One split of an image classification set; embedded sets are prepared first.

    Args:
      name: "digits", "image_folder", ..., or a TFDS name, see `ImageSet`.
      split: "train", "test", ...; TFDS slices such as "train[:90%]" work too.
      **given: further arguments of `ImageSet`: `path`, `data_dir`, ...

    Returns:
      an `ImageSource`, or what reads images where they lie (`in_place`).

    Raises:
      UserError: unknown name or split, a set that is not prepared, a faulty folder.

    Example:
      >>> from normjax import data
      >>> source = data.open_images("digits", "test")
      >>> len(source), source.shape, source.num_classes
      (360, (8, 8, 1), 10)
    """
    return ImageSet(name, **given).split(split)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _open_digits(root: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    target = root / "digits" / builders.VERSION
    builders.prepare(builders.Digits, target)
    return tfds.builder_from_directory(target)


def _open_folder(root: pathlib.Path, folder: Folder, *, skip: bool) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    # What was prepared without an undecodable image is good for both.
    key = folder.fingerprint
    if folder.held_out not in (None, HELD_OUT):
        key += f"-{folder.held_out}"
    target = root / folder.kind / key / builders.FOLDER_VERSION
    if skip and not target.is_dir():
        target = target.parent / "skip" / builders.FOLDER_VERSION
    builders.prepare_folder(folder, target, skip=skip)
    return tfds.builder_from_directory(target)


def _classification_keys(name: str, features) -> tuple[str, str]:
    """The features that hold the image and its class."""
    import tensorflow_datasets as tfds

    kinds = (("image", tfds.features.Image), ("label", tfds.features.ClassLabel))
    keys = []
    for key, kind in kinds:
        found = [k for k, feature in features.items() if isinstance(feature, kind)]
        if key not in found and len(found) != 1:
            held = ", ".join(features)
            raise UserError(f"{name!r} is no image classification set (has: {held})")
        keys.append(key if key in found else found[0])
    image = features[keys[0]]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3):
        kind = f"{np.dtype(image.np_dtype)} {image.shape}"
        raise UserError(f"images of {name!r} are {kind}; need uint8, 1 or 3 channels")
    return keys[0], keys[1]
