"""Tasks: what a run learns and from what data.

A task opens the splits of a data set, says what a model of it is called with, and
scores what the model answers. `TASKS` holds them by name; a config names one.
"""

from normjax.tasks.base import TASKS, Column, Objective, Task
from normjax.tasks.classification import Classification, ImageClassification
from normjax.tasks.language import LanguageModeling, NextToken
from normjax.tasks.transduction import SourceToTarget, Transduction

__all__ = [
    "TASKS",
    "Classification",
    "Column",
    "ImageClassification",
    "LanguageModeling",
    "NextToken",
    "Objective",
    "SourceToTarget",
    "Task",
    "Transduction",
]
