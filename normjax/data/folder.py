"""What lies in an image folder: splits, classes and files of a directory or a zip."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator

from normjax.core.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Files with these endings (in any case) are images; all others are ignored."""

SPLITS = {
    "train": "train",
    "test": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}
"""Names of top folders that hold a split, and the split they hold."""

EXPECTED = (
    "expected a directory, or a .zip of one, with one folder a class "
    "(cat/1.jpg, dog/2.png, ...), optionally under train/ and test/"
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of an image folder, without its pixels.

    Attributes:
      path: absolute path of the directory or zip.  class_names: sorted.
      splits: for each split, its (file name inside `path`, label), sorted.
      fingerprint: changes with the path, and with any file's name, size or time
        (directory) or checksum (zip).
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    fingerprint: str

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """A function from file name to the file's bytes; zips are read in place."""
        if self.path.is_dir():
            yield lambda name: (self.path / name).read_bytes()
        else:
            with zipfile.ZipFile(self.path) as archive:
                yield archive.read


def scan(path: str | os.PathLike) -> Folder:
    """List an image folder.

    With top folders train/ and test/ (or val/, validation/ for test) these are the
    splits; beside a test/, val/ is a split "validation" of its own. Without them a
    tenth of each class, chosen by a hash of the file names, is the test split. A
    single folder around everything, hidden files and `__MACOSX` are looked through.

    Raises:
      UserError: no such path, not an image folder, a class folder without images,
        an image outside the class folders, classes that differ between splits.
    """
    root = pathlib.Path(path).expanduser().absolute()
    if not os.path.exists(root):
        raise UserError(f"image_folder: no such path {str(root)!r}; {EXPECTED}")
    try:
        files, folders = _list_directory(root) if root.is_dir() else _list_zip(root)
    except OSError as error:  # no permission, or a link to nothing
        where = f"{error.filename!r} ({error.strerror})"
        raise UserError(f"image_folder: cannot read {where}") from None
    images = [name for name in sorted(files) if name.lower().endswith(SUFFIXES)]
    if not images:
        raise UserError(f"image_folder: no image in {str(root)!r}; {EXPECTED}")
    digest = hashlib.sha256(repr((str(root), sorted(folders))).encode())
    for name in images:
        digest.update(repr((name, files[name])).encode())
    try:
        class_names, splits = _arrange(images, folders)
    except UserError as error:
        raise UserError(f"image_folder {str(root)!r}: {error}") from None
    return Folder(root, class_names, splits, digest.hexdigest()[:16])


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _list_directory(root: pathlib.Path) -> tuple[dict[str, tuple], set[str]]:
    """Files with (size, time), and folders, by their path relative to `root`."""
    files, folders, pending = {}, set(), [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.add(name)
                    pending.append(name + "/")
                elif name.lower().endswith(SUFFIXES):
                    stat = entry.stat()
                    files[name] = (stat.st_size, stat.st_mtime_ns)
    return files, folders


def _list_zip(path: pathlib.Path) -> tuple[dict[str, tuple], set[str]]:
    """Files with (size, checksum), and folders, by their path inside the zip."""
    files, folders = {}, set()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        reason = f"{str(path)!r} is no readable zip ({error})"
        raise UserError(f"image_folder: {reason}; {EXPECTED}") from None
    for member in members:
        parts = member.filename.strip("/").split("/")
        if any(map(_hidden, parts)):
            continue
        parents = parts if member.is_dir() else parts[:-1]
        folders.update("/".join(parents[:i]) for i in range(1, len(parents) + 1))
        if not member.is_dir():
            files[member.filename] = (member.file_size, member.CRC)
    return files, folders


def _arrange(images: list[str], folders: set[str]):
    """Class names, and for each split its (name, label) pairs."""
    wrapper = _wrapper(images, folders)
    paths = {name: name.removeprefix(wrapper).split("/") for name in images}
    inner = {f.removeprefix(wrapper) for f in folders if f.startswith(wrapper)}
    tops = {parts[0] for parts in paths.values()} | {f.split("/")[0] for f in inner}
    found = _split_folders(paths, tops)
    depth = 1 if found else 0
    for name, parts in paths.items():
        if len(parts) < depth + 2:
            raise UserError(f"image {name!r} lies outside a class folder; {EXPECTED}")
    _check_filled(paths, inner, depth)
    class_names = tuple(sorted({parts[depth] for parts in paths.values()}))
    labels = {name: label for label, name in enumerate(class_names)}
    splits: dict[str, list[tuple[str, int]]] = {}
    for name, parts in paths.items():
        split = found[parts[0]] if found else "train"
        splits.setdefault(split, []).append((name, labels[parts[depth]]))
    if "train" in splits:
        _check_classes(class_names, splits["train"])
    return class_names, splits if found else _hold_out(splits["train"], paths)


def _wrapper(images: list[str], folders: set[str]) -> str:
    """Prefix of the single folders around everything, such as "pets/" or ""."""
    wrapper = ""
    while True:
        names = [n.removeprefix(wrapper).split("/") for n in images]
        names += [[f.removeprefix(wrapper)] for f in folders if f.startswith(wrapper)]
        tops = {name[0].split("/")[0] for name in names}
        shallow = any(len(name) < 3 for name in names[: len(images)])
        if len(tops) != 1 or shallow or (top := tops.pop()).lower() in SPLITS:
            return wrapper
        wrapper += top + "/"


def _split_folders(paths: dict[str, list[str]], tops: set[str]) -> dict[str, str]:
    """Top folders that hold splits, or {} where the top folders are the classes."""
    found = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    flat = {parts[0] for parts in paths.values() if len(parts) == 2}
    if not found or flat & set(found):  # "train" may well be a class, of vehicles
        return {}
    for top in sorted(tops - set(found)):
        splits = ", ".join(sorted(SPLITS))
        raise UserError(f"folder {top!r} is no split (allowed: {splits})")
    if any(top.lower() == "test" for top in found):
        found |= {top: "validation" for top in found if top.lower().startswith("val")}
    return found


def _check_filled(paths: dict[str, list[str]], folders: set[str], depth: int) -> None:
    filled = {"/".join(parts[: depth + 1]) for parts in paths.values()}
    for folder in sorted(f for f in folders if f.count("/") == depth):
        if folder not in filled:
            endings = ", ".join(SUFFIXES)
            raise UserError(f"class folder {folder!r} has no image ({endings})")


def _check_classes(class_names: tuple[str, ...], train: list[tuple[str, int]]) -> None:
    for label in sorted(set(range(len(class_names))) - {label for _, label in train}):
        raise UserError(f"class {class_names[label]!r} has no folder under train/")


def _hold_out(pairs: list[tuple[str, int]], paths: dict[str, list[str]]):
    """Move a tenth of each class, those with the smallest hash of their name, to test.

    At least one of each class stays in train, and one goes to test where there are two.
    """
    by_label: dict[int, list[str]] = {}
    for name, label in pairs:
        by_label.setdefault(label, []).append(name)
    test = set()
    for names in by_label.values():
        count = max(round(len(names) / 10), min(1, len(names) - 1))
        key = {n: hashlib.sha256("/".join(paths[n]).encode()).digest() for n in names}
        test.update(sorted(names, key=key.__getitem__)[:count])
    return {
        "train": [pair for pair in pairs if pair[0] not in test],
        "test": [pair for pair in pairs if pair[0] in test],
    }
