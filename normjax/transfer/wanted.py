"""What a model that begins with other weights has, and what is asked for."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from normjax.core.errors import UserError


class Wanted(NamedTuple):
    """Attributes:
    shapes: of its arrays by "params/blocks_0/mlp/fc1/kernel", scanned layers apart.
    end: updates after which its progressive norms have ended; 0: it has none.
    class_names: in the order of the logits; () if there are none.
    aspect: height / width of its images.
    include, exclude, head, schedule: of `config.init`.
    chooses: whether messages may name these.
    """

    shapes: Mapping[str, tuple[int, ...]]
    end: int = 0
    class_names: Sequence[str] = ()
    aspect: float = 1.0
    include: str = ".*"
    exclude: str = ""
    head: str = "auto"
    schedule: str = "continue"
    chooses: bool = True


class Chosen(NamedTuple):
    """Names that are asked for, by two patterns."""

    include: re.Pattern
    exclude: re.Pattern | None

    def why_not(self, name: str) -> str:
        """Why the array at "blocks_0/mlp/fc1/kernel" is not taken, or ""."""
        if self.exclude and self.exclude.search(name):
            return "excluded"
        return "" if self.include.search(name) else "not included"


def chosen(wanted: Wanted) -> Chosen:
    """The patterns of `config.init`.

    Raises:
      UserError: what is no regular expression.
    """
    exclude = _compiled("exclude", wanted.exclude) if wanted.exclude else None
    return Chosen(_compiled("include", wanted.include), exclude)


def _compiled(field: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.init.{field} {pattern!r}: {error}") from None


def name_of(path: str) -> str:
    """ "blocks_0/mlp/fc1/kernel" of "params/blocks_0/mlp/fc1/kernel"."""
    return path.partition("/")[2]
