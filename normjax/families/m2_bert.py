"""Monarch Mixer BERT (Fu et al., 2023)."""

from normjax.families.base import Arguments, Family, layer_norm
from normjax.families.layout import LINEAR, NORM, Kind, Row

_SIZES = {
    # width, whether the mixers have norms of their own
    "80m": (768, True),
    "110m": (960, False),
    "260m": (1536, False),
    "341m": (1792, False),
}
_LENGTH = 128
VOCABULARY = 30528
"""Of the released models: 30522 tokens, padded."""
_BLOCK = "blocks_{i}", "bert.encoder.layer.{i}"
_EPSILON = 1e-12


def _m2_bert(size: str) -> Arguments:
    dim, normed = _SIZES[size]
    mixer = {"name": "monarch", "max_length": _LENGTH, "filter_width": 128}
    replacing = {"name": "replacing", "mixer_norm": normed}
    if normed:
        replacing["norm"] = layer_norm(1e-5)
    return {
        "name": "encoder",
        "dim": dim,
        "depth": 12,
        "num_heads": 12,
        "mlp_hidden": 4 * dim,
        "norm": layer_norm(_EPSILON),
        "mixer": mixer,
        "mlp": "monarch_mlp",
        "branches": replacing,
        "max_length": _LENGTH,
    }


def _filters(number: str) -> Kind:
    """A long convolution, whose sines have one frequency under six names."""
    start, kinds = f"filter_fn{number}", {"forward": "", "reverse": "_rev"}
    sines = [
        f"{start}.implicit_filter{suffix}.{i}.freq"
        for suffix in kinds.values()
        for i in (1, 3, 5)
    ]
    kind: Kind = {
        "skip": (f"{start}.bias", "same"),
        "positions": (f"{start}.pos_emb.z", "batched"),
        "frequency": (tuple(sines), ("repeated", 6, 1)),
    }
    for ours, suffix in kinds.items():
        for i in range(4):
            layer = f"{start}.implicit_filter{suffix}.{2 * i}"
            kind[f"{ours}_{i}/kernel"] = (f"{layer}.weight", "linear")
            kind[f"{ours}_{i}/bias"] = (f"{layer}.bias", "same")
    return kind


def _rows() -> list[Row]:
    block, theirs = _BLOCK
    mixer, attention = f"{block}/mixer", f"{theirs}.attention"
    embeddings, head = "bert.embeddings", "cls.predictions"
    table = f"{embeddings}.word_embeddings.weight", f"{head}.decoder.weight"
    tables: Kind = {
        "embed": (table, ("repeated", 2)),
        "pos_embed": (f"{embeddings}.position_embeddings.weight", "same"),
        "type_embed": (f"{embeddings}.token_type_embeddings.weight", "same"),
        "head_bias": (f"{head}.decoder.bias", "same"),
    }
    short: Kind = {
        "short_kernel": ("short_filter.weight", "steps"),
        "short_bias": ("short_filter.bias", "same"),
    }
    blocks: Kind = {"kernel": ("gated_layers.weight", "blocks")}
    out: Kind = {"kernel": ("wo.weight", "blocks"), "bias": ("wo.bias", "same")}
    return [
        ("", "", tables),
        ("embed_norm", f"{embeddings}.LayerNorm", NORM),
        (f"{block}/norm1", f"{attention}.layernorm", NORM),
        (f"{mixer}/in_proj", f"{attention}.in_linear", LINEAR),
        (f"{mixer}/proj", f"{attention}.out_linear", LINEAR),
        (f"{mixer}/conv", attention, _filters("")),
        (f"{mixer}/residual_conv", attention, _filters("2")),
        (mixer, attention, short),
        (f"{block}/mlp/fc1", f"{theirs}.mlp", blocks),
        (f"{block}/mlp/fc2", f"{theirs}.mlp", out),
        (f"{block}/norm2", f"{theirs}.mlp.layernorm", NORM),
        ("neck", f"{head}.transform.dense", LINEAR),
        ("head_norm", f"{head}.transform.LayerNorm", NORM),
    ]


M2_BERT = Family(
    name="m2_bert",
    presets={f"m2_bert_{size}": _m2_bert(size) for size in _SIZES},
    kind="tokens",
    layouts={"m2_bert": _rows()},
    anchors=("bert.embeddings.word_embeddings.weight",),
    tokens=("bert.embeddings.word_embeddings.weight",),
    epsilon=_EPSILON,
    config="masked_text.py:variant={preset}",
)
