"""Which images of a folder are of which split and class, from their paths alone."""

import collections
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from normjax.core.errors import UserError, printable
from normjax.data.listing import EXPECTED, SUFFIXES, Listing

SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("holdout", "heldout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
}
"""Names of top folders that hold a split, see `split_of`, and the split they hold."""

ALSO_CLASSES = ("train", "valid")
"""Names of splits that a class may have, too: of vehicles, or beside "invalid"."""

Splits = dict[str, list[tuple[str, int]]]
Paths = dict[str, list[str]]
"""For each image, the parts of its path below the folders around everything."""


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds, if it is called as one.

    Case, digits and what is no letter do not count, nor does "set", "data" or "images"
    at the end: "Test", "val2017", "training_set", "hold-out".
    """
    plain = re.sub(r"[\W\d_]+", "", name.lower())
    return SPLITS.get(re.sub(r"(?<=.)(set|data|images)$", "", plain))


def arrange(
    listing: Listing, held_out: float
) -> tuple[tuple[str, ...], Splits, list[str], bool]:
    """Class names, the sorted (name, label) pairs of each split, notes for people, and
    whether some were held out.

    Images that have no class, in the folder of a split, are counted in the listing.

    Args:
      held_out: the part of each class that is `test` where no folder is a split.

    Raises:
      UserError: a layout that can be read in more than one way, or in none.
    """
    names = sorted(listing.images)
    wrapper = _wrapper(names, listing.folders)
    paths = {name: name.removeprefix(wrapper).split("/") for name in names}
    inner = {f.removeprefix(wrapper) for f in listing.folders if f.startswith(wrapper)}
    found = _split_folders(paths)
    paths, inner = _undoubled(paths, inner, found)
    if found:
        paths = _with_class(paths, found, inner, listing)
    depth = 1 if found else 0
    for name, parts in paths.items():
        if len(parts) < depth + 2:
            raise UserError(f"image {name!r} lies outside a class folder; {EXPECTED}")
    _check_filled(paths, inner, depth)
    _check_nested(paths, depth)
    classes = {name: _class_of(parts, depth) for name, parts in paths.items()}
    class_names = tuple(sorted(set(classes.values())))
    if len(class_names) == 1:
        raise UserError(f"one class only, {class_names[0]!r}; {EXPECTED}")
    labels = {name: label for label, name in enumerate(class_names)}
    splits: Splits = {}
    for name, parts in paths.items():
        split = found[parts[0]] if found else "train"
        splits.setdefault(split, []).append((name, labels[classes[name]]))
    if "train" in splits:
        _check_classes(class_names, splits)
    notes = _notes(paths, depth, class_names)
    if not found:
        inside = {name: "/".join(parts) for name, parts in paths.items()}
        splits = hold_out(splits["train"], held_out, inside.__getitem__)
    return class_names, splits, notes, not found


def _class_of(parts: list[str], depth: int) -> str:
    # One name may be written in two ways: macOS takes letters and accents apart.
    return unicodedata.normalize("NFC", parts[depth])


def _wrapper(images: list[str], folders: set[str]) -> str:
    """Prefix of the single folders around everything, such as "pets/" or "".

    Folders without images may lie beside one that has folders of splits inside.
    """
    wrapper = ""
    while True:
        paths = [name.removeprefix(wrapper).split("/") for name in images]
        beside = {f.removeprefix(wrapper) for f in folders if f.startswith(wrapper)}
        filled = {parts[0] for parts in paths}
        shallow = any(len(parts) < 3 for parts in paths)
        if len(filled) != 1 or shallow or split_of(top := filled.pop()):
            return wrapper
        alone = {folder.split("/")[0] for folder in beside} == {top}
        if not alone and not any(split_of(parts[1]) for parts in paths):
            return wrapper
        wrapper += top + "/"


def _split_folders(paths: Paths) -> dict[str, str]:
    """Top folders that hold splits, or {} where the top folders are the classes."""
    filled = {parts[0] for parts in paths.values() if len(parts) > 1}
    named = {top for top in filled if split_of(top)}
    deep = {parts[0] for parts in paths.values() if len(parts) > 2} & named
    if named and not deep:
        if filled == named or len(named) > 1 or not named <= set(ALSO_CLASSES):
            raise UserError(
                f"images right inside {_listed(named)}, as splits are called: there "
                "each class needs a folder of its own, such as train/cat/1.jpg"
            )
        return {}
    if not named:
        _check_alike(filled)
        return {}
    for top in sorted(filled - named):
        raise UserError(
            f"folder {top!r} is no split (allowed: {', '.join(sorted(SPLITS))}), as "
            f"{sorted(deep)[0]!r} is"
        )
    by_split: dict[str, str] = {}
    for top in sorted(named):
        split = split_of(top) or ""
        if split in by_split:
            both = _listed((by_split[split], top))
            raise UserError(f"folders {both} both are split {split!r}: join them")
        by_split[split] = top
    return {top: split for split, top in with_test(by_split).items()}


def with_test(by_split: dict[str, Any]) -> dict[str, Any]:
    """Where nothing else is to be tested on, what is called validation is test."""
    if "test" in by_split or "validation" not in by_split:
        return by_split
    return {{"validation": "test"}.get(s, s): held for s, held in by_split.items()}


def _undoubled(
    paths: Paths, folders: set[str], found: dict[str, str]
) -> tuple[Paths, set[str]]:
    """Without the inner of two folders that hold the same split: train/train/cat."""
    twice = set()
    for top in found:
        inside = {parts[1] for parts in paths.values() if parts[0] == top}
        if len(inside) == 1 and split_of(name := inside.pop()) == split_of(top):
            twice.add(f"{top}/{name}")

    def once(parts: list[str]) -> list[str]:
        return parts[:1] + parts[2:] if "/".join(parts[:2]) in twice else parts

    shorter = {"/".join(once(folder.split("/"))) for folder in folders}
    return {name: once(parts) for name, parts in paths.items()}, shorter


def _check_alike(tops: set[str]) -> None:
    """Names that differ by those of splits alone are splits: seg_train, seg_test."""
    words = "|".join(sorted(SPLITS, key=len, reverse=True))
    around: dict[str, dict[str, str]] = {}
    for top in sorted(tops):
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", top).lower()
        match = re.search(rf"(?<![a-z])({words})(?![a-z])", plain)
        if match:
            rest = plain[: match.start()] + "*" + plain[match.end() :]
            around.setdefault(rest, {})[SPLITS[match.group()]] = top
    for splits in around.values():
        if len(splits) > 1 and "train" in splits:
            names = _listed(splits.values())
            raise UserError(
                f"folders {names} look like splits: call them train and test"
            )


def _with_class(
    paths: Paths, found: dict[str, str], folders: set[str], listing: Listing
) -> Paths:
    """Without images right inside the folder of a split that has no class folders."""
    for top in sorted({folder.split("/")[0] for folder in folders}):
        if split_of(top) and top not in found:
            raise UserError(f"split folder {top!r} has no image")
    deep = {parts[0] for parts in paths.values() if len(parts) > 2}
    for top, split in list(found.items()):
        if top in deep:
            continue
        if split == "train":
            raise UserError(f"images right inside {top!r}, in no class folder")
        flat = [name for name, parts in paths.items() if parts[0] == top]
        listing.left_out[f"without a class folder in {printable(top)}/"] += len(flat)
        paths = {name: parts for name, parts in paths.items() if parts[0] != top}
        del found[top]
    return paths


def _check_nested(paths: Paths, depth: int) -> None:
    """Folders inside class folders hold more images of the class, or are the classes.

    The first, where some images lie right inside a class folder, or a class folder has
    one such folder. Else other tools read it in either way.
    """
    below: dict[str, set[str]] = collections.defaultdict(set)
    for parts in paths.values():
        if len(parts) == depth + 2:
            return
        below["/".join(parts[: depth + 1])].add(parts[depth + 1])
    for folder, inside in sorted(below.items()):
        if len(inside) > 1:
            first = f"{folder}/{min(inside)}"
            raise UserError(
                f"is {folder!r} the class of the images in {first!r}, or {first!r}? "
                "put the images of a class right into its folder"
            )


def _check_filled(paths: Paths, folders: set[str], depth: int) -> None:
    filled = {"/".join(parts[: depth + 1]) for parts in paths.values()}
    tops = {parts[0] for parts in paths.values()}
    for folder in sorted(f for f in folders if f.count("/") == depth):
        if folder not in filled and (not depth or folder.split("/")[0] in tops):
            endings = ", ".join(SUFFIXES)
            raise UserError(f"class folder {folder!r} has no image ({endings})")
    below: dict[str, dict[str, str]] = {}
    for parts in paths.values():
        if len(parts) > depth + 2 and (split := split_of(parts[depth + 1])):
            below.setdefault(parts[depth], {})[split] = parts[depth + 1]
    for name, splits in below.items():
        if len(splits) > 1:
            raise UserError(
                f"class folder {name!r} holds folders of splits "
                f"({_listed(splits.values())}): put those around the classes, as "
                "train/cat/1.jpg"
            )


def _check_classes(class_names: tuple[str, ...], splits: Splits) -> None:
    trained = {class_names[label] for _, label in splits["train"]}
    alike = {name.strip().casefold(): name for name in trained}
    for name in class_names:
        if name not in trained:
            near = alike.get(name.strip().casefold())
            hint = f" (there is {near!r})" if near else ""
            raise UserError(f"class {name!r} has no folder under train/{hint}")


def _notes(paths: Paths, depth: int, class_names: tuple[str, ...]) -> list[str]:
    """What people might not expect."""
    nested = [name for name, parts in paths.items() if len(parts) > depth + 2]
    by_case: dict[str, list[str]] = {}
    for name in class_names:
        by_case.setdefault(name.strip().casefold(), []).append(name)
    notes = [
        f"classes {_listed(alike)} are told apart by case or spaces alone"
        for alike in by_case.values()
        if len(alike) > 1
    ]
    if nested:
        notes.append(
            f"{len(nested)} images in folders inside class folders, such as "
            f"{nested[0]!r}, count to the class folder"
        )
    return notes


def hold_out(
    pairs: list[tuple[str, int]],
    fraction: float,
    key: Callable[[str], str] = str,
) -> Splits:
    """Move a part of each class, those with the smallest hash of their key, to test.

    So a split is the same on every machine; a file that is added or renamed moves at
    most one other of its class. At least one of each class stays in train, and one goes
    to test where there are two.

    Args:
      pairs: names and labels.  fraction: of each class; 0 leaves all in train.
      key: of a name, which is the same wherever the data lie.

    Raises:
      UserError: one image a class.
    """
    if not fraction:
        return {"train": pairs}
    by_label: dict[int, list[str]] = collections.defaultdict(list)
    for name, label in pairs:
        by_label[label].append(name)
    test = set()
    for names in by_label.values():
        count = max(round(len(names) * fraction), 1)
        hashes = {n: _hash(key(n)) for n in names}
        ordered = sorted(names, key=hashes.__getitem__)
        test.update(ordered[: min(count, len(names) - 1)])
    if not test:
        raise UserError(
            "one image a class is too few to hold any out for a test split: add "
            "images, put the classes under train/ and test/, or hold none out by "
            "config.data.held_out=0"
        )
    return {
        "train": [pair for pair in pairs if pair[0] not in test],
        "test": [pair for pair in pairs if pair[0] in test],
    }


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _listed(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))
