"""What studies measure beside training: functions of a seed and a folder.

Each gives numbers by name. The folder is that of the run, where the cell trained one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from normjax.study.measures.attention_maps import attention_rank
from normjax.study.measures.conversion import pre_norm_conversion
from normjax.study.measures.forgetting import task_switch
from normjax.study.measures.layers import last_layers
from normjax.study.measures.outliers import outliers
from normjax.study.measures.rates import best_rate
from normjax.study.measures.repeats import one_bit
from normjax.study.measures.speed import (
    conv_bn_tune,
    decay_form,
    fold_cycles,
    fold_time,
    mixer_time,
)
from normjax.study.measures.streams import adapted, longer_rows

_FUNCTIONS = (
    adapted,
    attention_rank,
    best_rate,
    conv_bn_tune,
    decay_form,
    fold_cycles,
    fold_time,
    last_layers,
    longer_rows,
    mixer_time,
    one_bit,
    outliers,
    pre_norm_conversion,
    task_switch,
)
MEASURES: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    function.__name__: function for function in _FUNCTIONS
}
"""By name."""
