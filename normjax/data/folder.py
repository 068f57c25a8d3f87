"""What lies in an image folder: splits, classes and files of a directory or a zip."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping

from normjax.core.errors import UserError
from normjax.core.paths import local_path
from normjax.data.layout import Splits, arrange
from normjax.data.listing import EXPECTED, list_files, members


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of an image folder, without its pixels.

    Attributes:
      path: absolute path of the directory or zip.  class_names: sorted.
      splits: for each split, its (file name inside `path`, label), sorted.
      left_out: numbers of files that are no examples, by reason.
      notes: what people might not expect of this folder, a line each.
      fingerprint: changes with the path, and with any file's name, size or times
        (directory) or checksum (zip).
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    splits: Splits
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    fingerprint: str

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """A function from file name to the file's bytes; zips are read in place."""
        if self.path.is_dir():
            yield lambda name: (self.path / name).read_bytes()
        else:
            with zipfile.ZipFile(self.path) as archive:
                inside = members(archive)
                yield lambda name: archive.read(inside[name])


def scan(path: str | os.PathLike) -> Folder:
    """List an image folder.

    With top folders of splits (train/ and test/; `layout.SPLITS` has all names) these
    are the splits. Without any a tenth of each class, chosen by a hash of the file
    names, is the test split. A single folder around everything is looked through.
    Hidden files, what systems leave behind, and files that are no images are left out,
    as are images right inside the folder of a split other than train.

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
        raise UserError(f"image_folder: no image in {str(root)!r}{found}; {EXPECTED}")
    digest = hashlib.sha256(repr((str(root), sorted(listing.folders))).encode())
    for name in sorted(listing.images):
        digest.update(repr((name, listing.images[name])).encode())
    try:
        class_names, splits, notes = arrange(listing)
    except UserError as error:
        raise UserError(f"image_folder {str(root)!r}: {error}") from None
    return Folder(
        path=root,
        class_names=class_names,
        splits=splits,
        left_out=dict(listing.left_out),
        notes=tuple(notes),
        fingerprint=digest.hexdigest()[:16],
    )


def counted(left_out: Mapping[str, int]) -> str:
    """{".txt": 2, "hidden ...": 1} as "2 .txt, 1 hidden ...", the most first."""
    by_number = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {reason}" for reason, number in by_number if number)
