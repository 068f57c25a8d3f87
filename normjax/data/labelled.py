"""Images whose labels stand beside them: their classes and splits."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from normjax.core.errors import UserError
from normjax.data.folder import Folder
from normjax.data.layout import Splits, hold_out, with_test

UNLABELLED = "without a label"

Labels = dict[str, list[Any]]
"""By split: a number or name for each example, None where there is none."""


def labelled_folder(
    *,
    keys: dict[str, list[str]],
    labels: Labels,
    names: Sequence[str] | None,
    held_out: float,
    left_out: Counter,
    **known: Any,
) -> Folder:
    """What is labelled, with its classes: `names`, or those that the labels are."""
    where = f"{known['kind']} {str(known['path'])!r}"
    every = {v for values in labels.values() for v in values if v is not None}
    kinds = {type(v) for v in every}
    if not every or len(kinds) > 1:
        reason = "labels are numbers and names" if every else "no image has a label"
        raise UserError(f"{where}: {reason}")
    if names is None:
        whole = kinds == {int}
        if whole and (least := min(every)) < 0:
            raise UserError(f"{where}: label {least} is negative")
        numbers = range(max(every) + 1) if whole else ()
        names = list(map(str, numbers)) if whole else sorted(every)
        places = {name: label for label, name in enumerate(names)}
        numbered = {v: v if whole else places[v] for v in every}
    else:
        numbered = {v: v for v in every}
        if max(every) >= len(names):
            raise UserError(f"{where}: label {max(every)} of {len(names)} classes")
    if len(names) < 2:
        raise UserError(f"{where}: one class only, {names[0]!r}")
    splits: Splits = {}
    for split, values in labels.items():
        pairs = zip(keys[split], values, strict=True)
        splits[split] = [(k, numbered[v]) for k, v in pairs if v is not None]
        if without := sum(v is None for v in values):
            left_out[UNLABELLED] += without
    splits = with_test({split: pairs for split, pairs in splits.items() if pairs})
    cut = set(splits) == {"train"}
    return Folder(
        class_names=tuple(names),
        splits=hold_out(splits["train"], held_out) if cut else splits,
        left_out=left_out,
        notes=(),
        held_out=held_out if cut else None,
        **known,
    )
