"""What the cells of a study are."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A cell that is measured; a cell that is only trained is a config.

    Attributes:
      name: key of `normjax.study.measures.MEASURES`.
      arguments: of that function, beside seed and folder.
      config: that is trained first, in the same folder; None: nothing is.
    """

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    config: Any = None
