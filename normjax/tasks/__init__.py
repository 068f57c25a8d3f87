"""Tasks: what a run learns and from what data.

A task opens the splits of a data set, says what a model of it is called with, and
scores what the model answers. `TASKS` holds them by name; a config names one. Beside
them: targets of distillation, adversarial examples, contrastive losses, as functions.
"""

from normjax.tasks.adversarial import Attacked, adversarial_examples
from normjax.tasks.attention_transfer import (
    FeaturesDistilled,
    attention_map,
    attention_transfer_loss,
)
from normjax.tasks.base import TASKS, Around, Column, Objective, Task
from normjax.tasks.classification import Classification, ImageClassification
from normjax.tasks.contrastive import cached_gradients, contrastive_loss
from normjax.tasks.distillation import (
    Distilled,
    Recorded,
    SelfDistilled,
    dense_targets,
    distillation_loss,
    largest_probabilities,
    pack_records,
    progressive_targets,
    progressive_weight,
    unpack_records,
)
from normjax.tasks.language import LanguageModeling, NextToken
from normjax.tasks.lines import (
    LineRecognition,
    Transcription,
    best_path,
    edit_distance,
)
from normjax.tasks.masked import MaskedLanguageModeling, MaskedToken
from normjax.tasks.nodes import NodeClass, NodeClassification
from normjax.tasks.pairs import ContrastivePairs, PairContrast, dual_bank, ranks
from normjax.tasks.transduction import SourceToTarget, Transduction

__all__ = [
    "TASKS",
    "Around",
    "Attacked",
    "Classification",
    "Column",
    "ContrastivePairs",
    "Distilled",
    "FeaturesDistilled",
    "ImageClassification",
    "LanguageModeling",
    "LineRecognition",
    "MaskedLanguageModeling",
    "MaskedToken",
    "NextToken",
    "NodeClass",
    "NodeClassification",
    "Objective",
    "PairContrast",
    "Recorded",
    "SelfDistilled",
    "SourceToTarget",
    "Task",
    "Transcription",
    "Transduction",
    "adversarial_examples",
    "attention_map",
    "attention_transfer_loss",
    "best_path",
    "cached_gradients",
    "contrastive_loss",
    "dense_targets",
    "distillation_loss",
    "dual_bank",
    "edit_distance",
    "largest_probabilities",
    "pack_records",
    "progressive_targets",
    "progressive_weight",
    "ranks",
    "unpack_records",
]
