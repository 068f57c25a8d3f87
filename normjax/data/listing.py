"""Which files a directory or archive holds: images, and what else, by reason."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import stat
import zipfile
from collections.abc import Mapping

from normjax.core.errors import UserError, printable
from normjax.data.tar import ENDINGS, Member
from normjax.data.tar import members as members_of_tar

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga",
)
"""Files with these endings (in any case) are images."""

JUNK = frozenset((
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows
    "$recycle.bin", "recycler", "system volume information",
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # NAS
    "@tmp", "lost+found", "lost.dir", "__pycache__",
))
# fmt: on
"""What systems leave in folders, in lower case; as is what begins with a dot."""

EXPECTED = (
    "expected a directory, or a .zip or .tar of one, with one folder a class "
    "(cat/1.jpg, dog/2.png, ...), optionally under train/ and test/"
)

JUNK_REASON = "hidden or of the system"
LOOP_REASON = "links to a folder above"
SPECIAL_REASON = "no regular files"


@dataclasses.dataclass
class Listing:
    """The files of a directory or archive, by their path in it, with "/" between.

    Attributes:
      images: for each image, what changes with its content: size and times, or size and
        checksum.
      folders: all that are looked into.  left_out: numbers of other files, by reason.
      tar: where the files of a tar lie in it.
    """

    images: dict[str, tuple] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    left_out: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    tar: dict[str, Member] | None = None

    def is_image(self, name: str) -> bool:
        """Whether the ending of a file says so; counts it if not."""
        if name.lower().endswith(SUFFIXES):
            return True
        ending = printable(os.path.splitext(name)[1].lower())
        self.left_out[ending if 1 < len(ending) < 12 else "with another ending"] += 1
        return False


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by a system."""
    return name.startswith(".") or name.lower() in JUNK


def list_files(path: pathlib.Path) -> Listing:
    """Look through a directory, following links, a zip or a tar.

    Raises:
      UserError: what cannot be read.
    """
    try:
        if path.is_dir():
            return _list_directory(path)
        packed = path.name.lower().endswith(ENDINGS)
        return _list_tar(path) if packed else _list_zip(path)
    except OSError as error:  # no permission, or a link to nothing
        where = f"{error.filename!r} ({error.strerror})"
        raise UserError(f"image_folder: cannot read {where}") from None


def _list_directory(root: pathlib.Path) -> Listing:
    found = Listing()
    pending: list[tuple[str, frozenset]] = [("", frozenset())]
    while pending:
        prefix, above = pending.pop()
        here = os.stat(root / prefix)
        above |= {(here.st_dev, here.st_ino)}
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if is_junk(entry.name):
                    found.left_out[JUNK_REASON] += 1
                elif entry.is_dir():
                    what = entry.stat()
                    if (what.st_dev, what.st_ino) in above:
                        found.left_out[LOOP_REASON] += 1
                        continue
                    found.folders.add(name)
                    pending.append((name + "/", above))
                elif found.is_image(name):
                    what = entry.stat()
                    if stat.S_ISREG(what.st_mode):
                        # The last is of renaming, which the others do not tell.
                        times = what.st_mtime_ns, what.st_ctime_ns
                        found.images[name] = (what.st_size, *times)
                    else:
                        found.left_out[SPECIAL_REASON] += 1
    return found


def _list_zip(path: pathlib.Path) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = members(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        reason = f"{str(path)!r} is no readable zip ({error})"
        raise UserError(f"image_folder: {reason}; {EXPECTED}") from None
    files = {name: (member.file_size, member.CRC) for name, member in inside.items()}
    return _listed(files)


def _list_tar(path: pathlib.Path) -> Listing:
    inside, folders, others = members_of_tar(path)
    written = path.stat().st_mtime_ns  # members have no checksum
    files = {name: (m.size, m.time, written) for name, m in inside.items()}
    found = _listed({f"{folder}/": () for folder in folders} | files)
    found.left_out[SPECIAL_REASON] += others
    found.tar = inside
    return found


def _listed(files: Mapping[str, tuple]) -> Listing:
    """Of the files of an archive; folders end with "/"."""
    found = Listing()
    for name, content in files.items():
        *parents, last = name.split("/")
        if any(map(is_junk, (*parents, last))):
            found.left_out[JUNK_REASON] += bool(last)
            continue
        ends = range(1, len(parents) + 1)
        found.folders.update("/".join(parents[:end]) for end in ends)
        if last and found.is_image(name):
            found.images[name] = content
    return found


def members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What a zip holds by plain names: no "./" or "/" before, folders end with "/".

    Names that are not marked as UTF-8 are read as such if they are, else as zips were
    always meant to be (cp437). Some programs of Windows write "\\" between folders. Of
    two members of one name the last counts, as when the zip is unpacked.
    """
    infos = archive.infolist()
    windows = not any("/" in info.filename for info in infos)
    found = {}
    for info in infos:
        name = info.filename
        if not info.flag_bits & _IS_UTF8:
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode()
        name = name.replace("\\", "/") if windows else name
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if parts:
            found["/".join(parts) + "/" * name.endswith("/")] = info
    return found


_IS_UTF8 = 0x800
