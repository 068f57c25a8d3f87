"""What lies in a text data set: its documents and their splits, without the text."""

import contextlib
import dataclasses
import filecmp
import glob
import hashlib
import os
import pathlib
import platform
import re
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence

from normjax.core.errors import UserError
from normjax.core.paths import local_path
from normjax.data import plain_text
from normjax.data.split_names import named_splits

SPLITS = ("train", "validation", "test")

_LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__"),  # not of the library
    *("test", "tests", "idle_test", "__phello__"),
    *("encodings", "pydoc_data", "lib2to3"),  # tables and what programs wrote
    *("distutils", "ensurepip", "idlelib", "tkinter", "turtledemo"),  # not everywhere
}
"""Folders of the standard library that pytext leaves out."""

_HELD_OUT = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
"""Which part of a file that stands alone is which split."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text somewhere.

    Attributes:
      name: of the file, relative to the corpus.  path: of the file or its zip.
      member: name inside the zip, or "".
      part: "" for all of it, or the split that takes its part of a lone file.
    """

    name: str
    path: pathlib.Path
    member: str = ""
    part: str = ""


Place = tuple[str, Document]
"""A document and the split that it is in."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of every split, in order.

    Attributes:
      name: of the data set.  splits: documents by split.
      fingerprint: changes with the text, as far as names, sizes and times tell.
      field: of lines of JSON and rows of Parquet, that holds a document.
    """

    name: str
    splits: dict[str, list[Document]]
    fingerprint: str
    field: str = "text"

    def read(self, split: str) -> Iterator[tuple[str, bytes]]:
        """Name and text of every document that is not empty, see `plain_text`.

        Raises:
          UserError: a file that cannot be read, or is no text.
        """
        archive, opened = pathlib.Path(), None
        with contextlib.ExitStack() as stack:
            for document in self.splits[split]:
                try:
                    if document.member and document.path != archive:
                        archive = document.path
                        opened = stack.enter_context(zipfile.ZipFile(archive))
                    raw = (
                        opened.read(document.member)
                        if document.member and opened
                        else document.path.read_bytes()
                    )
                except _UNREADABLE as error:
                    where = f"{document.member or document.name!r}"
                    raise UserError(
                        f"{self.name}: cannot read {where} of "
                        f"{str(document.path)!r} ({error})"
                    ) from None
                try:
                    yield from _texts(document, raw, self.field)
                except plain_text.NotText as error:
                    raise UserError(f"{self.name}: {document.name!r} {error}") from None


def _texts(document: Document, raw: bytes, field: str) -> Iterator[tuple[str, bytes]]:
    text, name = plain_text.plain_text(raw, document.name)
    whole = plain_text.ending(name) == plain_text.ROWS
    if document.part and text and not whole:
        text = part_of(text, document.part)
    texts: Iterable[bytes] = plain_text.documents_of(text, name, field)
    if document.part and whole:
        texts = list(texts)
        low, high = (round(len(texts) * share) for share in _HELD_OUT[document.part])
        texts = texts[low:high]
    return ((document.name, text) for text in texts if text)


_UNREADABLE = (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError)


_OFFICE = ("[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF")
"""Members that tell zips of another purpose: .docx, .xlsx, .odt, .epub, .jar."""


def part_of(text: bytes, split: str) -> bytes:
    """The first nine tenths of `text` (train), the next or the last twentieth.

    Cut at line ends where that leaves no part empty, else between characters of UTF-8.
    """
    marks = [len(text) * tenths // 20 for tenths in (18, 19)]
    cuts = [text.rfind(b"\n", 0, mark) + 1 for mark in marks]
    if not 0 < cuts[0] < cuts[1]:
        cuts = marks
        while cuts[0] and text[cuts[0]] & 0xC0 == 0x80:
            cuts[0] -= 1
        while cuts[1] > cuts[0] and text[cuts[1]] & 0xC0 == 0x80:
            cuts[1] -= 1
    bounds = [0, *cuts, len(text)]
    index = SPLITS.index(split)
    return text[bounds[index] : bounds[index + 1]]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def scan_pytext(root: str | os.PathLike | None = None) -> Corpus:
    """The Python sources of the standard library, one document a file.

    A file's split depends on the hash of its relative path alone: about one in twenty
    is validation, another test. Tests, generated tables, third-party packages and
    parts that distributions ship apart are left out.

    Args:
      root: where to look; None: the library of this Python.

    Raises:
      UserError: there are no sources.
    """
    library = pathlib.Path(root or sysconfig.get_path("stdlib"))
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    digest, names = hashlib.sha256(), []
    for folder, folders, files in os.walk(library):
        folders[:] = [f for f in folders if f not in _LEFT_OUT and "config-" not in f]
        inside = pathlib.Path(folder).relative_to(library)
        names += [(inside / f).as_posix() for f in files if f.endswith(".py")]
    for name in sorted(names):
        if name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize")):
            continue  # written for this machine
        text = (library / name).read_bytes()
        digest.update(repr((name, len(text))).encode() + text)
        share = int.from_bytes(_hash(name)[:8], "big") / 2**64
        split = "test" if share < 0.05 else "validation" if share < 0.1 else "train"
        splits[split].append(Document(name, library / name))
    if not all(splits.values()):
        hint = "use text_file with a text of your own"
        raise UserError(f"pytext: too few Python sources in {str(library)!r}; {hint}")
    python = f"{sys.implementation.name}-{platform.python_version()}"
    return Corpus("pytext", splits, f"{python}-{digest.hexdigest()[:12]}")


def scan_text(path: str, parts: dict[str, str], field: str = "text") -> Corpus:
    """The documents of `text_file`: every file, and every file in a zip, is one.

    Args:
      path: of a file or zip, or a glob of such (`**` crosses folders). Where all names
        tell a split, they count (see `named_splits`). Else of three files or more a
        twentieth, at least one, is test, and as many are validation: those with the
        smallest hashes of their names, and copies of these are not trained on. One or
        two are cut, see `part_of`.
      parts: paths of the same kinds by split, instead of `path`.
      field: see `Corpus`.

    Raises:
      UserError: both or neither are given, no such file, no text in it, a damaged zip,
        a file or a copy of it in two splits, names of which only some tell a split.
    """
    given = {split: part for split, part in parts.items() if part}
    if bool(path) == bool(given):
        fields = ", ".join(f"text.{split}_path" for split in SPLITS)
        state = "both" if path else "neither"
        raise UserError(f"text_file takes either path or {fields}; {state} given")
    digest = hashlib.sha256()
    if given:
        splits = {split: _list(part, digest) for split, part in given.items()}
        _check_apart(splits)
    else:
        documents = _list(path, digest)
        splits = _by_name(documents) or _hold_out(documents)
    digest.update(repr({s: [d.name for d in ds] for s, ds in splits.items()}).encode())
    digest.update(field.encode() * (field != "text"))
    return Corpus("text_file", splits, digest.hexdigest()[:24], field)


def _list(pattern: str, digest) -> list[Document]:
    """The documents that are not empty, sorted by name."""
    local_path("text_file: path", pattern)
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        paths, root = [pattern], os.path.dirname(pattern)
    else:
        paths, root = sorted(glob.glob(pattern, recursive=True)), _fixed(pattern)
    if os.path.isdir(pattern):
        hint = "name its files by a glob such as 'folder/**/*.txt'"
        raise UserError(f"text_file: {pattern!r} is a folder; {hint}")
    documents, seen = [], set()
    for path in map(pathlib.Path, paths):
        if path.is_dir() or path.resolve() in seen:  # a link to one that is there
            continue
        seen.add(path.resolve())
        name = path.relative_to(root).as_posix()
        if _is_zip(path):
            documents += _list_zip(path, "" if len(paths) == 1 else name + "/", digest)
            continue
        try:
            stat = path.stat()
        except OSError as error:  # a link to nothing
            reason = f"{str(path)!r} ({error.strerror})"
            raise UserError(f"text_file: cannot read {reason}") from None
        digest.update(
            repr((str(path.absolute()), stat.st_size, stat.st_mtime_ns)).encode()
        )
        if stat.st_size:
            documents.append(Document(name, path.absolute()))
    if not documents:
        reason = "is empty" if paths else "matches no file (a file, a .zip or a glob)"
        raise UserError(f"text_file: {pattern!r} {reason}")
    return sorted(documents, key=lambda document: document.name)


def _fixed(pattern: str) -> pathlib.Path:
    """The folders of a glob before the first that has a wildcard."""
    root = pathlib.Path()
    for part in pathlib.Path(pattern).parent.parts:
        plain = re.sub(r"\[([*?[])\]", r"\1", part)
        if glob.escape(plain) != part:
            break
        root /= plain
    return root


def _is_zip(path: pathlib.Path) -> bool:
    if path.suffix.lower() == ".zip":
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
    return False


def _list_zip(path: pathlib.Path, prefix: str, digest) -> list[Document]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"text_file: {str(path)!r} is no readable zip ({error})"
        ) from None
    if any(member.filename in _OFFICE for member in members):
        hint = "take the text out of it"
        raise UserError(f"text_file: {str(path)!r} is a document of an office: {hint}")
    path, documents = path.absolute(), []
    for member in members:
        name = member.filename
        parts = name.split("/")
        if member.is_dir() or any(p.startswith(".") or p == "__MACOSX" for p in parts):
            continue
        digest.update(repr((str(path), name, member.file_size, member.CRC)).encode())
        if member.file_size:
            documents.append(Document(prefix + name, path, name))
    return documents


def _by_name(documents: Sequence[Document]) -> dict[str, list[Document]] | None:
    """Where the names of all tell a split; a lone file is what it is."""
    named = {document.name: document for document in documents}
    found = named_splits(list(named)) if len(documents) > 1 else None
    if found is None:
        return None
    splits = {s: [named[name] for name in found[s]] for s in SPLITS if s in found}
    _check_apart(splits)
    return splits


def _hold_out(documents: Sequence[Document]) -> dict[str, list[Document]]:
    if len(documents) < 3:
        return {
            split: [dataclasses.replace(d, part=split) for d in documents]
            for split in SPLITS
        }
    order = sorted(documents, key=lambda document: _hash(document.name))
    count = max(1, round(len(documents) / 20))
    test, validation = set(order[:count]), set(order[count : 2 * count])
    splits = {
        "train": [d for d in documents if d not in test | validation],
        "validation": [d for d in documents if d in validation],
        "test": [d for d in documents if d in test],
    }
    # What is held out must not be trained on under another name.
    for (first, twin), _ in list(_copies(splits)):
        if twin in splits[first]:
            splits[first].remove(twin)
    return splits


def _check_apart(splits: dict[str, list[Document]]) -> None:
    """Raises UserError if a document, or a copy of one, is in two splits."""
    seen: dict[tuple, str] = {}
    for split, documents in splits.items():
        for document in documents:
            other = seen.setdefault((document.path.resolve(), document.member), split)
            if other != split:
                both = f"in split {other!r} and in split {split!r}"
                raise UserError(f"text_file: {document.name!r} is {both}")
    for (first, twin), (second, document) in _copies(splits):
        both = f"in split {first!r}, {document.name!r} in split {second!r}"
        raise UserError(f"text_file: the same text is {twin.name!r} {both}")


def _copies(splits: dict[str, list[Document]]) -> Iterator[tuple[Place, Place]]:
    """Pairs of files of different splits that hold the same."""
    sizes: dict[int, list[Place]] = {}
    for split, documents in splits.items():
        for document in documents:
            if not document.member:
                size = document.path.stat().st_size
                sizes.setdefault(size, []).append((split, document))
    for alike in sizes.values():
        if len({split for split, _ in alike}) == 1:
            continue
        heads: dict[bytes, list[Place]] = {}
        for split, document in alike:
            with document.path.open("rb") as file:
                twins = heads.setdefault(file.read(4096), [])
            for other, twin in twins:
                if other != split and filecmp.cmp(twin.path, document.path, False):
                    yield (other, twin), (split, document)
            twins.append((split, document))
