"""What lies in an image folder: splits, classes and files of a directory or archive."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping

from normjax.core.errors import UserError
from normjax.core.paths import local_path
from normjax.data import decode, tar
from normjax.data.layout import Splits, arrange
from normjax.data.listing import EXPECTED, Listing, list_files, members

Reader = Callable[[str], bytes]
"""From the name of an image to its encoded bytes; threads may share it."""

UNREADABLE = (
    decode.Undecodable,
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
)
"""What a damaged image, or a damaged or encrypted archive around it, raises."""

HELD_OUT = 0.1
"""The share of each class that is the test split where nothing says what is.

Example:
  >>> from normjax import data
  >>> data.HELD_OUT
  0.1
"""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Images with classes, without their pixels. It pickles.

    Attributes:
      kind: name of the data set.  path: absolute, of where they lie.
      class_names: in the order of the labels.
      splits: for each split, its (name, label), in order.
      left_out: numbers of what is no example, by reason.
      notes: what people might not expect of this folder, a line each.
      held_out: the part of each class that is `test`; None where splits were there.
      fingerprint: changes with the path, and with any file's name, size or times
        (directory) or checksum (zip).
      num_bytes: of all images, or of the files around them.
      reader: opens a `Reader` of the names.
    """

    kind: str
    path: pathlib.Path
    class_names: tuple[str, ...]
    splits: Splits
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    held_out: float | None
    fingerprint: str
    num_bytes: int
    reader: Callable[[], contextlib.AbstractContextManager[Reader]]


def scan(path: str | os.PathLike, held_out: float = HELD_OUT) -> Folder:
    """List an image folder.

    With top folders of splits (train/ and test/; `layout.SPLITS` has all names) these
    are the splits. Without any a part of each class, chosen by a hash of the file
    names, is the test split. A single folder around everything is looked through.
    Hidden files, what systems leave behind, and files that are no images are left out,
    as are images right inside the folder of a split other than train.

    Args:
      path: of a directory, a zip or a tar.
      held_out: the part of each class that is `test` where no folder is a split.

    Raises:
      UserError: no such path, not an image folder, a class folder without images, an
        image outside the class folders, classes that differ between splits, folders
        that may be splits or classes.
    """
    root = local_path("image_folder: path", path).expanduser().absolute()
    if not os.path.exists(root):
        raise UserError(f"image_folder: no such path {str(root)!r}; {EXPECTED}")
    listing = list_files(root)
    if not listing.images:
        there = counted(listing.left_out)
        found = f" (there are files: {there})" if there else ""
        hint = _other_kind(listing)
        raise UserError(f"image_folder: no image in {str(root)!r}{found}; {hint}")
    digest = hashlib.sha256(repr((str(root), sorted(listing.folders))).encode())
    for name in sorted(listing.images):
        digest.update(repr((name, listing.images[name])).encode())
    try:
        class_names, splits, notes, cut = arrange(listing, held_out)
    except UserError as error:
        shards = "of shards" in (hint := _other_kind(listing))
        more = f"; {hint}" if shards else ""
        raise UserError(f"image_folder {str(root)!r}: {error}{more}") from None
    return Folder(
        kind="image_folder",
        path=root,
        class_names=class_names,
        splits=splits,
        left_out=dict(listing.left_out),
        notes=tuple(notes),
        held_out=held_out if cut else None,
        fingerprint=digest.hexdigest()[:16],
        num_bytes=sum(content[0] for content in listing.images.values()),
        reader=functools.partial(_opened, root, listing.tar),
    )


def _other_kind(listing: Listing) -> str:
    """What to do with a folder that is another kind of set."""
    there = listing.left_out
    if there[".arrow"] or there[".parquet"]:
        return "of .arrow and .parquet: config.data.name=hf_dataset"
    if there[".cls"] or there[".tar"]:
        return "of shards with .cls or .json: config.data.name=webdataset"
    return EXPECTED


@contextlib.contextmanager
def _opened(
    path: pathlib.Path, index: Mapping[str, tar.Member] | None
) -> Iterator[Reader]:
    """Archives are read in place."""
    if path.is_dir():
        yield functools.partial(_whole, path)
    elif index is not None:
        with tar.opened(index) as read:
            yield read
    else:
        with zipfile.ZipFile(path) as archive:
            inside = members(archive)
            yield lambda name: archive.read(inside[name])


def _whole(path: pathlib.Path, name: str) -> bytes:
    # Without a buffer, for each of whose calls threads would hand each other Python.
    with open(f"{path}/{name}", "rb", buffering=0) as file:
        return file.read()


def counted(left_out: Mapping[str, int]) -> str:
    """{".txt": 2, "hidden ...": 1} as "2 .txt, 1 hidden ...", the most first."""
    by_number = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {reason}" for reason, number in by_number if number)
