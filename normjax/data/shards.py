"""Shards of webdataset: tars of KEY.jpg beside KEY.cls, KEY.json, KEY.txt."""

import functools
import hashlib
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from normjax.core.errors import UserError
from normjax.core.paths import local_path
from normjax.data import tar
from normjax.data.folder import HELD_OUT, Folder
from normjax.data.labelled import Labels, labelled_folder
from normjax.data.listing import SUFFIXES
from normjax.data.split_names import named_splits


def scan_shards(path: str | os.PathLike, held_out: float = HELD_OUT) -> Folder:
    """The images of webdataset shards: tars of KEY.jpg beside KEY.cls or KEY.json.

    The label is the integer or name in KEY.cls, else the "label" or "cls" of KEY.json.
    Shards of one split are cut as an image folder is.

    Args:
      path: a shard, a folder of them, a glob, or "shard-{000..012}.tar".

    Raises:
      UserError: no shard, one that is damaged, no image, labels of two kinds.
    """
    root, shards = shards_of(path)
    digest, left_out = hashlib.sha256(str(root).encode()), Counter()
    index: dict[str, tar.Member] = {}
    keys: dict[str, list[str]] = {}
    labels: Labels = {}
    names = list(shards)
    by_split = named_splits(names) or {"train": names}
    for split, parts in by_split.items():
        keys[split], labels[split] = [], []
        for part in parts:
            inside, _, _ = tar.members(shards[part])
            stat = shards[part].stat()
            digest.update(repr((part, stat.st_size, stat.st_mtime_ns)).encode())
            with tar.opened(inside) as read:
                for files in samples_of(inside).values():
                    image = next((n for n in files.values() if _is_image(n)), None)
                    if image is None:
                        left_out["samples without an image"] += 1
                        continue
                    index[f"{part}/{image}"] = inside[image]
                    keys[split].append(f"{part}/{image}")
                    labels[split].append(_label(files, read, part))
    return labelled_folder(
        kind="webdataset",
        path=root,
        keys=keys,
        labels=labels,
        names=None,
        held_out=held_out,
        fingerprint=digest.hexdigest()[:16],
        num_bytes=sum(member.size for member in index.values()),
        reader=functools.partial(tar.opened, index),
        left_out=left_out,
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def samples_of(inside: Mapping[str, tar.Member]) -> dict[str, dict[str, str]]:
    """{key: {ending: name}}: the key is all before the first dot of the file's name."""
    found: dict[str, dict[str, str]] = {}
    for name in inside:
        folder, slash, file = name.rpartition("/")
        stem, dot, ending = file.partition(".")
        if stem and dot:
            found.setdefault(f"{folder}{slash}{stem}", {})[ending.lower()] = name
    return found


def _label(files: Mapping[str, str], read: Any, shard: str) -> Any:
    """Of one sample; None where it has none."""
    if "cls" in files:
        text = read(files["cls"]).decode("utf-8", "replace").strip()
        return int(text) if re.fullmatch(r"\d+", text) else text or None
    if "json" not in files:
        return None
    try:
        known = json.loads(read(files["json"]))
    except ValueError as error:
        raise UserError(
            f"webdataset: {files['json']!r} of {shard!r} is no JSON ({error})"
        ) from None
    known = known if isinstance(known, dict) else {}
    value = next((known[k] for k in ("label", "cls", "class") if k in known), None)
    return value if isinstance(value, int | str) and value != -1 else None


def shards_of(path: str | os.PathLike) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """The absolute place of all shards, and each by its name there.

    Raises:
      UserError: there are none, or one of those that are named is missing.
    """
    whole = local_path("webdataset: path", path).expanduser().absolute()
    expected = "expected a .tar, a folder of them, a glob or 'shard-{000..012}.tar'"
    if whole.is_dir():
        root, files = whole, sorted(whole.rglob("*.tar"))
    elif whole.exists():
        root, files = whole.parent, [whole]
    else:
        root = whole.parent
        files = [f for name in _braces(whole.name) for f in sorted(root.glob(name))]
        wanted = re.search(r"\{.*\}", whole.name)
        missing = [n for n in _braces(whole.name) if wanted and not (root / n).exists()]
        if files and missing:
            raise UserError(f"webdataset: no shard {str(root / missing[0])!r}")
    if not files:
        raise UserError(f"webdataset: no shard {str(whole)!r}; {expected}")
    return root, {file.relative_to(root).as_posix(): file for file in files}


def _braces(name: str) -> list[str]:
    """ "a-{08..10}.tar" as a-08.tar, a-09.tar and a-10.tar."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        return [name]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    before, behind = name[: match.start()], name[match.end() :]
    return [f"{before}{i:0{len(first)}}{behind}" for i in numbers]
