"""Checkpoint files: .safetensors and .pth in, one or a folder; .safetensors out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of

WEIGHTS = ("model", "state_dict")
AVERAGED = ("state_dict_ema", "model_ema")
"""Keys under which published files keep their weights, and the average of those."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

SHARDS = ("model*.safetensors", "pytorch_model*.bin")
"""Weights in the folder of one model; the first pattern that is there counts."""


def read(path: Path, *, averaged: bool = False) -> dict[str, np.ndarray]:
    """The state dict of a file, without wrapper and without a prefix `module.`.

    Args:
      path: .safetensors, or .pth, .pt and .bin, which need torch; or a folder of such
        files that share the arrays of one model (see SHARDS).
      averaged: the exponential average of the weights, which lies beside them.

    Raises:
      UserError: no such file, another kind of file, a damaged one, or no weights in it.
    """
    if path.is_dir():
        shards = next(filter(None, (sorted(path.glob(p)) for p in SHARDS)), [])
        if not shards:
            raise UserError(f"folder {path} holds none of {', '.join(SHARDS)}")
        states = [read(shard, averaged=averaged) for shard in shards]
        return {name: array for state in states for name, array in state.items()}
    if path.suffix not in SUFFIXES:
        raise UserError(one_of("kind of checkpoint", path.suffix, SUFFIXES))
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    reader = _read_safetensors if path.suffix == SUFFIXES[0] else _read_torch
    return unwrapped(reader(path), averaged=averaged)


def unwrapped(content: Mapping[str, Any], *, averaged: bool = False) -> dict[str, Any]:
    """The arrays by name inside what a file holds.

    Raises:
      UserError: there are none, or no average of them.
    """
    keys = AVERAGED if averaged else WEIGHTS
    found = next(
        (content[k] for k in keys if isinstance(content.get(k), Mapping)), None
    )
    if found is None and averaged:
        raise UserError(f"the file holds no averaged weights ({', '.join(AVERAGED)})")
    state = dict(content if found is None else found)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    other = [name for name, array in state.items() if not hasattr(array, "shape")]
    if not state or other:
        wrong = f"{other[0]!r} is no tensor" if other else "it is empty"
        raise UserError(f"the file holds no state dict: {wrong}")
    return state


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write `state` as .safetensors.

    Raises:
      UserError: another kind of file, or one that cannot be written.
    """
    from safetensors.numpy import save_file

    if path.suffix != SUFFIXES[0]:
        raise UserError(one_of("kind of file to write", path.suffix, SUFFIXES[:1]))
    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except OSError as error:
        raise UserError(f"{path}: {error}") from error


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{path} needs torch: pip install 'normjax[torch]', or a .safetensors file"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} holds more than tensors or is damaged ({first}): if you trust it, "
            "save its weights alone"
        ) from error
    return _as_arrays(content)


def _as_arrays(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _as_arrays(value) for name, value in content.items()}
    if not hasattr(content, "detach"):
        return content
    tensor = content.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
