"""What studies measure beside training: functions of a seed and a folder.

Each gives numbers by name. The folder is that of the run, where the cell trained one.
"""

from normjax.study.measures import (
    attention_maps,
    conversion,
    layers,
    outliers,
    repeats,
    speed,
    streams,
)
from normjax.study.measures.base import MEASURES

__all__ = [
    "MEASURES",
    "attention_maps",
    "conversion",
    "layers",
    "outliers",
    "repeats",
    "speed",
    "streams",
]
