"""Whether two models have the same arrays."""

from collections.abc import Iterator, Mapping
from typing import Any

from normjax.core.errors import UserError


def check_same_arrays(saved: Any, expected: Any, what: str) -> None:
    """Both trees of mappings name the same arrays of the same shapes.

    Args:
      what: begins the message, such as "the run in ... is of another model".

    Raises:
      UserError: they do not; the message names the first that differs.
    """
    there, here = dict(_shapes(saved, "")), dict(_shapes(expected, ""))
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            old, new = (shapes.get(path, "absent") for shapes in (there, here))
            raise UserError(f"{what}: {path} is {old} there and {new} here")


def another_model(where: Any) -> str:
    """What to say of saved arrays that are not those of the config and the data."""
    return (
        f"{where} holds another model than its config and its data, with their number "
        "of classes, describe now"
    )


def _shapes(tree: Any, path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, child in tree.items():
        below = f"{path}/{name}".lstrip("/")
        if isinstance(child, Mapping):
            yield from _shapes(child, below)
        else:
            yield below, tuple(child.shape)
