"""The weights inside what a training saved: out of wrappers, without prefixes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from normjax.convert.layouts import ANCHORS
from normjax.core.errors import UserError

RAW = (
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "weights"),
    *("params", "student", "backbone", "encoder"),
)
AVERAGED = (
    "model_ema",
    "state_dict_ema",
    "ema",
    "ema_state_dict",
    "averaged",
    "teacher",
)
"""Keys under which files keep their weights, and the average of those; also with
"state" and "dict" in them, and with one another: "net_state_dict", "ema_model"."""

_TAKES = "--averaged, in training config.init.ema=averaged, takes them"

_PLAIN = {word for key in RAW for word in key.split("_")} - {"state", "dict"}
_AVERAGE = {"ema", "averaged", "avg", "teacher", "shadow"}

_WRAPPED = re.compile(
    r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"
)
"""Modules that torch.compile and FSDP put around others, wherever they are."""

_TRANSFORMERS = re.compile(
    r"(.*\.)?(patch_embeddings(\.\d+)?\.projection|embedder\.embedder\.convolution)"
    r"\.weight"
)
"""First layers of the vision models of Hugging Face's transformers."""


class Found(NamedTuple):
    """The weights of one model.

    Attributes:
      state: arrays by name.
      taken: the wrapper and prefix that they had, such as "state_dict, module."; or "".
      averaged: whether they are an average over updates.
      left: what else there was -> why it is left out.
    """

    state: dict[str, Any]
    taken: str
    averaged: bool
    left: dict[str, str]


def found(content: Mapping[str, Any], *, averaged: bool = False) -> Found:
    """The weights in what a file holds.

    Args:
      averaged: the exponential average of the weights, which lies beside them.

    Raises:
      UserError: there are none, no average of them, or those of several models.
    """
    keys, left = [], {}
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"the file holds no state dict: it is a {kind}")
    while key := _chosen(content, averaged and not any(map(_is_average, keys)), left):
        keys.append(key)
        content = content[key]
    got_average = any(map(_is_average, keys))
    state = _names(_checked(content, keys), left)
    state, prefix = _unprefixed(state, averaged, got_average, left)
    got_average = got_average or _is_average(prefix)
    if averaged and not got_average:
        raise UserError(f"the file holds no averaged weights ({', '.join(AVERAGED)})")
    taken = ", ".join(filter(None, (".".join(keys), prefix)))
    return Found(state, taken, got_average, left)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _words(key: str) -> set[str]:
    return set(re.split(r"[._]", key.lower())) - {"state", "dict", ""}


def _is_average(key: str) -> bool:
    return bool(_words(key) & _AVERAGE)


def _chosen(content: Mapping, averaged: bool, left: dict[str, str]) -> str | None:
    """The key of `content` that holds the weights asked for, or None."""
    inner = {str(k): v for k, v in content.items() if isinstance(v, Mapping) and v}
    known = [k for k in inner if _words(k) <= _PLAIN | _AVERAGE]
    raw, average = _parted(known)
    if not known:
        return None
    key = _one_of_two(raw, average, averaged)
    for other in known:
        if other != key:
            left[other] = _why_left(other)
    return key


def _parted(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    keys = list(keys)
    return (
        [k for k in keys if not _is_average(k)],
        [k for k in keys if _is_average(k)],
    )


def _why_left(key: str) -> str:
    return f"averaged weights: {_TAKES}" if _is_average(key) else "not asked"


def _one_of_two(raw: list[str], average: list[str], averaged: bool) -> str:
    pool = average if averaged and average else raw
    if len(pool) == 1:
        return pool[0]
    if not pool:
        only = ", ".join(average)
        raise UserError(f"the file holds averaged weights only ({only}): {_TAKES}")
    raise UserError(f"the file holds several models ({', '.join(pool)}): save one")


def _checked(content: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """The state dict that `content` is.

    Raises:
      UserError: it is none.
    """
    if "param_groups" in content:
        raise UserError("the file holds the state of an optimizer, no weights")
    other = [name for name, array in content.items() if not _is_array(array)]
    if content and not other:
        adapter = next((name for name in content if "lora_" in name), None)
        if adapter:
            hint = "merge it into the weights that it is for, and convert these"
            raise UserError(f"the file holds a LoRA adapter ({adapter}): {hint}")
        if foreign := next(filter(_TRANSFORMERS.fullmatch, content), None):
            raise UserError(
                f"the file has the names of Hugging Face's transformers ({foreign}): "
                "take the file with timm's, or the authors', of the same weights"
            )
        return dict(content)
    wrong = f"{other[0]!r} is no tensor" if other else "it is empty"
    inside = f" in {'.'.join(keys)!r}" if keys else ""
    known = ", ".join((*RAW, *AVERAGED))
    raise UserError(
        f"the file holds no state dict{inside}: {wrong} (weights are sought in {known})"
    )


def _names(state: dict[str, Any], left: dict[str, str]) -> dict[str, Any]:
    """`state` without the names of modules that torch puts around others."""
    if "n_averaged" in state:
        left["n_averaged"] = "counts updates"
        state = {k: v for k, v in state.items() if k != "n_averaged"}
    state = _renamed(state, lambda name: _WRAPPED.sub("", name).removeprefix("."))
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _renamed(state: dict[str, Any], rename: Any) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, array in state.items():
        if (new := rename(name)) in renamed:
            raise UserError(f"the file holds {new} twice, once as {name}")
        renamed[new] = array
    return renamed


def _unprefixed(
    state: dict[str, Any], averaged: bool, got_average: bool, left: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """`state` without what stands before the names of a published layout, and that."""
    prefixes = {
        name[: -len(anchor)]
        for name in state
        for anchor in ANCHORS
        if f".{name}".endswith(f".{anchor}")
    }
    if not prefixes:
        return state, ""
    raw, average = map(sorted, _parted(prefixes))
    if got_average:
        raw, average = raw + average, []
    prefix = _one_of_two(raw, average, averaged)
    for other in prefixes - {prefix}:
        left[f"{other}*"] = _why_left(other)
        beside = {name for name in state if name.startswith(other)}
        if not other:
            beside = {name for name in state if not name.startswith(prefix)}
        state = {name: array for name, array in state.items() if name not in beside}
    return _renamed(state, lambda name: name.removeprefix(prefix)), prefix
