"""Graph Transformer (Dwivedi and Bresson, 2020)."""

from typing import Any

from normjax.families.base import Arguments, Family
from normjax.families.layout import BATCH_NORM, LAYER_NORM, LINEAR, Kind, Row

_SETS: dict[str, tuple[Any, ...]] = {
    # types of nodes and of edges, positions, width, readout
    "zinc": (28, 4, 8, 64, "mean"),
    "cluster": (7, 0, 10, 80, "nodes"),
    "pattern": (3, 0, 2, 80, "nodes"),
}
CLASSES = {"zinc": 1, "cluster": 6, "pattern": 2}
"""What they say of a graph or of a node: a number, or so many classes."""
_BLOCK = "blocks_{i}", "layers.{i}"
_QKV: Kind = {
    "kernel": (("Q.weight", "K.weight", "V.weight"), ("joined_weight", 3)),
}


def _graph(name: str) -> Arguments:
    nodes, edges, positions, dim, readout = _SETS[name]
    epsilon = {"epsilon": 1e-6} if edges else {}
    return {
        "name": "graph",
        "vocab_size": nodes,
        "edge_types": edges,
        "positions": positions,
        "readout": readout,
        "dim": dim,
        "depth": 10,
        "num_heads": 8,
        "norm": {"name": "batch_norm", "epsilon": 1e-5},
        "mixer": {"name": "graph_transformer", **epsilon},
    }


def _stream(norm: str, kind: Kind, ours: str, theirs: str) -> list[Row]:
    """The rows of nodes or of edges around the attention."""
    block, there = _BLOCK
    middle = f"{theirs}_" if theirs else ""
    end = f"_{theirs}" if theirs else ""
    return [
        (f"{block}/{ours}norm1", f"{there}.{norm}1{end}", kind),
        (f"{block}/{ours}norm2", f"{there}.{norm}2{end}", kind),
        (f"{block}/{ours}mlp/fc1", f"{there}.FFN_{middle}layer1", LINEAR),
        (f"{block}/{ours}mlp/fc2", f"{there}.FFN_{middle}layer2", LINEAR),
    ]


def _layout(norm: str, kind: Kind, edges: bool) -> list[Row]:
    block, there = _BLOCK
    attention, tables = f"{there}.attention", {"embed": ("embedding_h.weight", "same")}
    nodes = "h" if edges else ""
    rows: list[Row] = [
        ("places", "embedding_lap_pos_enc", LINEAR),
        (f"{block}/mixer/qkv", attention, _QKV),
        (f"{block}/mixer/proj", f"{there}.O{'_h' if edges else ''}", LINEAR),
        *_stream(norm, kind, "", nodes),
        ("head_1", "MLP_layer.FC_layers.0", LINEAR),
        ("head_2", "MLP_layer.FC_layers.1", LINEAR),
        ("head", "MLP_layer.FC_layers.2", LINEAR),
    ]
    if edges:
        tables["edge_embed"] = ("embedding_e.weight", "same")
        rows += [
            (f"{block}/mixer/edges", f"{attention}.proj_e", LINEAR),
            (f"{block}/mixer/edge_proj", f"{there}.O_e", LINEAR),
            *_stream(norm, kind, "edge_", "e"),
        ]
    return [("", "", tables), *rows]


_NORMS = {"_layer_norm": ("layer_norm", LAYER_NORM), "": ("batch_norm", BATCH_NORM)}
# A layout of more arrays fits a model of fewer, too: those of fewer stand first.
GRAPH_TRANSFORMER = Family(
    name="graph_transformer",
    presets={f"graph_transformer_{name}": _graph(name) for name in _SETS},
    kind="graphs",
    layouts={
        f"graph_transformer{stream}{suffix}": _layout(*norm, edges)
        for edges, stream in ((False, "_nodes"), (True, ""))
        for suffix, norm in _NORMS.items()
    },
    anchors=("embedding_h.weight",),
    tokens=("embedding_h.weight",),
    classes=("MLP_layer.FC_layers.2.weight",),
    epsilon=1e-5,
)
