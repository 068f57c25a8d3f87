"""LLaMA (Touvron et al., 2023) in small, and SLAB's with PRepBN (Guo et al., 2024)."""

from normjax.families.base import Arguments, Family
from normjax.families.layout import LINEAR, NORM, Row, joined

TOKENS = 32_000
_BLOCK = "blocks_{i}", "model.layers.{i}"

# The layer that replaces starts by giving 0; both count updates (Guo et al., 2024).
_PREPBN = {
    "name": "prepbn",
    "warmup_steps": 10_000,
    "decay_steps": 18_000,
    "layer_norm": {"name": "rms_norm", "epsilon": 1e-6},
    "batch_norm": {
        "name": "repbn",
        "epsilon": 1e-6,
        "alpha_init": 0.0,
        "scale_init": 0.0,
    },
}


def llama(dim: int, depth: int, num_heads: int, hidden: int, **other) -> Arguments:
    """A decoder in LLaMA's shape."""
    geometry = {"dim": dim, "depth": depth, "num_heads": num_heads}
    return {
        "name": "decoder",
        **geometry,
        "mlp_hidden": hidden,
        "norm": {"name": "rms_norm", "epsilon": 1e-6},
        **other,
    }


def _layout(*projections: Row) -> list[Row]:
    """Rows of a state dict; those of queries, keys and values differ."""
    return [
        ("", "model.embed_tokens", {"embed": ("weight", "same")}),
        (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.input_layernorm", NORM),
        (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.post_attention_layernorm", NORM),
        *projections,
        (f"{_BLOCK[0]}/mixer/proj", f"{_BLOCK[1]}.self_attn.o_proj", LINEAR),
        (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp", joined("gate_proj", "up_proj")),
        (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.down_proj", LINEAR),
        ("norm", "model.norm", NORM),
        ("head", "lm_head", LINEAR),
    ]


def grouped_layout() -> list[Row]:
    """Rows of a state dict in which heads share their keys and values."""
    ours, theirs = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.self_attn"
    return _layout(
        (f"{ours}/q", f"{theirs}.q_proj", LINEAR),
        (f"{ours}/kv", theirs, joined("k_proj", "v_proj")),
    )


LLAMA = Family(
    name="llama",
    kind="tokens",
    presets={
        "slab_llama_350m": llama(1024, 18, 8, 4096, vocab_size=TOKENS, norm=_PREPBN),
    },
    layouts={
        "llama": _layout(
            (
                f"{_BLOCK[0]}/mixer/qkv",
                f"{_BLOCK[1]}.self_attn",
                joined("q_proj", "k_proj", "v_proj"),
            )
        ),
        "llama_grouped": grouped_layout(),
    },
    anchors=("model.embed_tokens.weight",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    tokens=("model.embed_tokens.weight",),
    config="lm_llama.py:variant={size}",
)
