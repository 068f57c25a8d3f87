"""Rows of the mixers of token sequences, and of maps that are read row by row."""

from normjax.mixers.relative_bias import (
    Alibi,
    KerpleLog,
    KerplePower,
    KerplePowerBoth,
    KerplePowerGain,
)
from normjax.norms import RMSNorm
from tests.mixers.row import Row
from tests.mixers.sequence import (
    decoder_oracles,
    long_oracles,
    oracles,
    recurrent_oracles,
)

HEADS = {"num_heads": 2}
CAUSAL = {**HEADS, "causal": True}
NORMED = {**HEADS, "qk_norm": RMSNorm}
SEQUENCE = (3, 7, 8)
GRID = (2, 2, 3, 8)

RELATIVE_BIASES = {
    "alibi": Alibi,
    "kerple_log": KerpleLog,
    "kerple_power": KerplePower,
    "kerple_power_gain": KerplePowerGain,
    "kerple_power_both": KerplePowerBoth,
}
KERPLE = {f"{of}_{n}": (0.1, 1.5) for of in ("bias", "gain") for n in "ap"}
# Decays in the middle: neither everything nor nothing is forgotten.
UNIT = {"a_param": (-8.0, -1.0)}


def pairwise(name, oracle, **arguments):
    """Plain, causal, on a map, with norms of queries and keys."""
    return [
        Row(name, oracle, {**HEADS, **arguments}, SEQUENCE),
        Row(name, oracle, {**CAUSAL, **arguments}, SEQUENCE, causal=True),
        Row(name, oracle, {**HEADS, **arguments}, GRID),
        Row(name, oracle, {**NORMED, **arguments}, SEQUENCE),
    ]


def recurrent(name, oracle, *more, ranges=None, **arguments):
    """Plain, on a map, and with more arguments; always causal."""
    ranges = ranges or {}
    return [
        Row(name, oracle, {**HEADS, **arguments}, SEQUENCE, ranges, causal=True),
        Row(name, oracle, {**HEADS, **arguments}, GRID, ranges),
        *(
            Row(name, oracle, {**HEADS, **kwargs}, (3, 7, 12), ranges, causal=True)
            for kwargs in more
        ),
    ]


def maps(name, oracle, *more, **arguments):
    return [
        Row(name, oracle, {**HEADS, **arguments, **kwargs}, (3, 2, 3, 8))
        for kwargs in ({}, NORMED, *more)
    ]


NORM = {"qk_norm": RMSNorm}
FILTERS = {"max_length": 9, "position_features": 3, "filter_width": 4}

ROWS = [
    *pairwise("rela", oracles.rectified(False)),
    *pairwise("gated_rela", oracles.rectified(True)),
    *pairwise("differential", oracles.differential, layer=1),
    *pairwise("mixture_of_head", oracles.mixture_of_head, num_heads=4),
    *(
        Row("mixture_of_head", oracles.mixture_of_head, kwargs, SEQUENCE)
        for kwargs in (
            {"num_heads": 4, "shared_heads": 2, "active_heads": 1},
            {"num_heads": 4, "shared_heads": 1},
            {"num_heads": 2, "shared_heads": 2, "active_heads": 0},
        )
    ),
    *pairwise("pattention", oracles.pattention, num_tokens=5),
    *(
        Row("pattention", oracles.pattention, {**HEADS, "scores": scores}, SEQUENCE)
        for scores in ("gelu_l2_norm", "softmax")
    ),
    *(
        Row(
            "softmax",
            oracles.distant(kind),
            {"num_heads": 3, "causal": True, "relative_bias": bias},
            (3, 7, 6),
            KERPLE,
            causal=True,
        )
        for kind, bias in RELATIVE_BIASES.items()
    ),
    Row("softmax", oracles.distant("alibi"), {**HEADS, "relative_bias": Alibi}),
    Row(
        "grouped_query",
        oracles.grouped_query,
        {"num_heads": 4, "num_kv_heads": 2},
        SEQUENCE,
    ),
    Row(
        "grouped_query",
        oracles.grouped_query,
        {"num_heads": 4, "num_kv_heads": 1, "qk_norm": RMSNorm, "causal": True},
        SEQUENCE,
        causal=True,
    ),
    Row(
        "grouped_query",
        oracles.grouped_query,
        {"num_heads": 4, "num_kv_heads": 4, "qkv_bias": False},
        GRID,
    ),
    Row(
        "grouped_query",
        decoder_oracles.joint_projection,
        {"num_heads": 4, "num_kv_heads": 2, "joint": True, "causal": True},
        SEQUENCE,
        causal=True,
    ),
    Row(
        "softmax",
        decoder_oracles.values_apart,
        {**CAUSAL, "value_bias": False},
        SEQUENCE,
        causal=True,
    ),
    *(
        Row(
            "prefix_attention",
            decoder_oracles.prefixed,
            {"num_heads": 4, "num_kv_heads": 2, "prefix_length": 3, **kwargs},
            SEQUENCE,
            causal=kwargs.get("causal", False),
        )
        for kwargs in ({}, {"causal": True, "streams": 3, **NORM})
    ),
    *(
        Row("soft_causal", decoder_oracles.soft_causal, {**HEADS, **kwargs}, SEQUENCE)
        for kwargs in (
            {},
            {"soft_mask": 0.4, **NORM},
            {"soft_mask": 0.4, "renormalized": True},
        )
    ),
    *recurrent(
        "gated_linear",
        oracles.gated_linear,
        NORM,
        {"num_heads": 3, "expand_k": 1.0, "expand_v": 0.5, "gate_rank": 3},
    ),
    *recurrent(
        "lightning",
        oracles.lightning,
        NORM,
        {"num_heads": 3, "layer": 1, "num_layers": 3},
    ),
    *recurrent(
        "transnormer",
        oracles.transnormer,
        {**NORM, "lrpe": False},
        {"num_heads": 3, "layer": 1, "num_layers": 3},
        {"num_heads": 3, "layer": 2, "num_layers": 3, "lrpe": True},
    ),
    *recurrent(
        "rg_lru",
        oracles.rg_lru,
        {"num_heads": 3, "features": 6, "conv_width": 2},
        ranges=UNIT,
    ),
    *recurrent(
        "local_attention",
        oracles.local_attention,
        {"num_heads": 3, "window": 9},
        {"num_heads": 3, "window": 7},
        {"num_heads": 1, "window": 2, **NORM},
        window=3,
    ),
    *(
        Row("liger", recurrent_oracles.liger, {**HEADS, **kwargs}, shape, causal=causal)
        for kwargs, shape, causal in (
            ({"window": 2}, SEQUENCE, True),
            ({"recurrence": "hgrn2", "num_kv_heads": 1}, (3, 7, 8), True),
            ({"recurrence": "gsa", "window": 3, "num_slots": 3}, SEQUENCE, True),
            ({"recurrence": "gsa", "num_kv_heads": 1, **NORM}, GRID, False),
            ({"qkv_bias": True, "joint": True, **NORM}, SEQUENCE, True),
        )
    ),
    *recurrent(
        "pararnn",
        recurrent_oracles.pararnn,
        {"num_heads": 3, "cell": "lstm", "features": 6, "conv_width": 2},
        {"num_heads": 3, "solver": "sequential"},
        {"num_heads": 3, "cell": "lstm", "solver": "newton", "iterations": 7},
    ),
    Row("hard", recurrent_oracles.hard, {**HEADS, "keep": 3}, SEQUENCE),
    Row("hard", recurrent_oracles.hard, {**CAUSAL, "keep": 2}, SEQUENCE, causal=True),
    Row(
        "hard",
        recurrent_oracles.hard,
        {"num_heads": 4, "keep": 3, "pruned_heads": (0, 2), **NORM},
        GRID,
    ),
    *maps("rala", oracles.rala, {"qkv_features": 16, "qkv_bias": False}),
    *maps("rala_softmax", oracles.rala_softmax, {"qkv_features": 16}),
    *maps(
        "vig",
        oracles.vig,
        {"conv_bias": True, "gate_rank": 3, "expand_k": 1.0}
        | {"conv_activation": False, "output_activation": True},
    ),
    *(
        Row("monarch", long_oracles.monarch, {**FILTERS, **kwargs}, shape)
        for kwargs, shape in (
            ({"residual": False}, SEQUENCE),
            ({}, GRID),
            ({"bidirectional": False, "frequency": 1.0}, SEQUENCE),
        )
    ),
    *(
        Row("task_convolved", long_oracles.task_convolved, {**HEADS, **kwargs}, shape)
        for kwargs, shape in (
            ({"kernel_size": 3, "num_tasks": 3, "task": 2}, SEQUENCE),
            ({"kernel_size": 5, "num_tasks": 2, "task": 1, **NORM}, GRID),
            ({"kernel_size": 3, "num_tasks": 2}, SEQUENCE),
        )
    ),
    *(
        Row("graph_transformer", long_oracles.graph_transformer, kwargs, shape)
        for kwargs, shape in (
            (HEADS, SEQUENCE),
            ({"num_heads": 4, "epsilon": 1e-3, **NORM}, GRID),
        )
    ),
]
