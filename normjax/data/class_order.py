"""Classes in an order that people give: that of the logits of a model."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from normjax.core.errors import UserError, printable
from normjax.data.folder import Folder

NUMERIC = "numeric"
"""Instead of a file: the names of the classes are their numbers."""

WNID = re.compile(r"n\d{8}")
"""Names of ImageNet's classes; its order is that of the sorted ones."""


def in_order(folder: Folder, classes: str) -> Folder:
    """The folder with its classes in a given order.

    Args:
      classes: `NUMERIC`, or a file: a line a class (a name; a wnid; a wnid and names,
        with commas between), or JSON: a list of them, {"0": ["n01440764", "tench"]} or
        {"tench": 0}. A class of the folder is the one of which it has one of the names;
        case and "_" for a space do not count. The file may name more.

    Raises:
      UserError: a file that cannot be read; a class that it does not name, or twice.
    """
    if classes == NUMERIC:
        wrong = [name for name in folder.class_names if not name.isdecimal()]
        if wrong:
            raise UserError(f"classes=numeric: class {wrong[0]!r} is no number")
        numbers = [int(name) for name in folder.class_names]
        names = tuple(map(str, range(max(numbers) + 1)))
    else:
        known = read_classes(classes)
        names = tuple(aliases[0] for aliases in known)
        numbers = _matched(folder, known, classes)
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        both = [
            name
            for name, n in zip(folder.class_names, numbers, strict=True)
            if n == twice
        ]
        raise UserError(
            f"classes {both[0]!r} and {both[1]!r} are both {names[twice]!r}"
        )
    splits = {
        split: [(name, numbers[label]) for name, label in pairs]
        for split, pairs in folder.splits.items()
    }
    return dataclasses.replace(
        folder,
        class_names=names,
        splits=splits,
        fingerprint=f"{folder.fingerprint}-{_hash(names)}",
    )


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()[:8]


def read_classes(path: str | os.PathLike) -> list[tuple[str, ...]]:
    """The names of every class, in order; see `in_order`.

    Raises:
      UserError: a file that cannot be read, or names nothing.
    """
    try:
        text = pathlib.Path(path).expanduser().read_text("utf-8-sig")
        content = json.loads(text) if text.lstrip().startswith(("[", "{")) else None
    except (OSError, ValueError) as error:
        raise UserError(f"classes={str(path)!r} cannot be read ({error})") from None
    if content is None:
        found = [_names(line) for line in text.splitlines() if line.strip()]
    else:
        found = [_names(entry) for entry in _entries(content, path)]
    if not found or not all(found):
        raise UserError(f"classes={str(path)!r} names no class, or one without a name")
    return found


def _entries(content: list | dict, path: object) -> list:
    """Of JSON, in the order of the classes."""
    if isinstance(content, list):
        return content
    numbered = dict(content)
    if all(isinstance(number, int) for number in numbered.values()):
        numbered = {str(number): name for name, number in content.items()}
    if sorted(numbered) != sorted(map(str, range(len(content)))):
        raise UserError(f"classes={str(path)!r} does not number its classes from 0 on")
    return [numbered[str(i)] for i in range(len(content))]


def _names(entry: object) -> tuple[str, ...]:
    """All that one class may be called, the whole first."""
    if isinstance(entry, list | tuple):
        return tuple(str(name).strip() for name in entry)
    whole = str(entry).strip()
    wnid, _, rest = whole.partition(" ")
    found = [whole]
    if WNID.fullmatch(wnid) and rest:
        found, whole = [wnid, rest.strip()], rest
    found += [part.strip() for part in whole.split(",")]
    return tuple(dict.fromkeys(name for name in found if name))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _matched(folder: Folder, known: Sequence[Sequence[str]], path: str) -> list[int]:
    """The number of each class of the folder."""
    if folder.kind != "image_folder" and _are_numbers(folder.class_names):
        if len(folder.class_names) > len(known):
            raise UserError(
                f"classes={path!r} names {len(known)} classes, the labels go to "
                f"{len(folder.class_names) - 1}"
            )
        return list(range(len(folder.class_names)))
    places: dict[str, set[int]] = {}
    for number, names in enumerate(known):
        for name in names:
            places.setdefault(_plain(name), set()).add(number)
    numbers = []
    for name in folder.class_names:
        found = places.get(_plain(name), set())
        if len(found) != 1:
            how = f"is {_listed(found)} of it" if found else "is none of it"
            raise UserError(f"classes={path!r}: class {printable(name)!r} {how}")
        numbers.append(min(found))
    return numbers


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(f"number {n}" for n in sorted(numbers))


def _are_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(i) for i in range(len(names))]
