"""Which part of a network an instruction belongs to, by the path that Flax gives it."""

import re

MOVES = "residuals and moves"

PARTS = (
    "norms",
    "mixer cores",
    "mixer convolutions",
    "projections",
    "MLP",
    "stem",
    "head and loss",
    MOVES,
    "optimizer",
    "collectives",
)
"""What `part_of` answers, in the order of tables."""

OPTIMIZER_SCOPE = "optimizer"
"""`jax.named_scope` of the update."""

_ADDED = re.compile(
    r"[\w<>.\-]*\(.*|cond|while|body|scan|checkpoint|branch_\d+_fun|.*_call|.*(->|\._).*"
)
_NORM = re.compile(r"norm\d*($|_)")
_UNNAMED = re.compile(r"[A-Z]\w*_\d+")  # a module inside that shares the scope
_KERNEL = "pallas_call"
_STEMS = ("stem", "embed", "token_embed", "patch_embed", "position")
_HEADS = ("head", "loss", "fc_norm", "pool")


def scopes_of(path: str) -> list[str]:
    """The modules and named scopes of an `op_name`, and the primitive at its end.

    Without what transformations, loops, methods and einsum add.
    """
    return [name for name in path.split("/") if not _ADDED.fullmatch(name)]


def part_of(path: str) -> str:
    """One of `PARTS`.

    Args:
      path: `op_name` of an instruction.
    """
    *scopes, primitive = scopes_of(path) or [""]
    if OPTIMIZER_SCOPE in scopes:
        return "optimizer"
    if "mixer" in scopes:
        return _of_mixer(scopes[scopes.index("mixer") + 1 :], primitive)
    if any(_NORM.search(name) for name in scopes):
        return "norms"
    if "mlp" in scopes:
        return "MLP"
    if any(name in _STEMS for name in scopes) or "._embed" in path:
        return "stem"
    if any(name in _HEADS for name in scopes):
        return "head and loss"
    return MOVES


def _of_mixer(inside: list[str], primitive: str) -> str:
    inside = [name for name in inside if not _UNNAMED.fullmatch(name)]
    if primitive == _KERNEL:
        return "mixer cores"
    if any(_NORM.search(name) for name in inside):
        return "norms"
    if any("conv" in name or name.startswith("dw") for name in inside):
        return "mixer convolutions"
    if primitive == "conv_general_dilated" and not inside:
        return "mixer convolutions"
    return "projections" if inside else "mixer cores"
