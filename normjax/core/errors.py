"""Errors that are the user's to mend: one line of what, where and what is allowed."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong input. The message is one line; commands print it and exit with 2."""


class RunFailed(RuntimeError):
    """A run that cannot go on; its checkpoints stay. One line; commands exit with 1."""


class LoadingFailed(RuntimeError):
    """Data cannot be read any more: a worker process died, or files are damaged.

    The message is one line; commands print it and exit with 1.
    """


def one_of(what: str, name: object, allowed: Iterable[str]) -> str:
    """`unknown {what} 'name'`, its near matches, and everything that is allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}{hint} (allowed: {', '.join(allowed)})"


def one_line(value: object) -> str:
    """How a value looks, in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:77]}..."


def utf8_path(what: str, path: str) -> str:
    """`path`, if libraries can write to it that take names for UTF-8.

    Raises:
      UserError: its bytes are no UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} {path!r} is no UTF-8: choose another name") from None
    return path


def printable(text: str) -> str:
    r"""`text` with escapes for what no line can hold: "a\nb" with a line end in it, and
    bytes of a file's name that are no UTF-8."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
