"""Checkpoint files: .safetensors and torch's in, one or a folder; .safetensors out."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normjax.convert.kinds import (
    SAFETENSORS,
    check_whole_zip,
    foreign_in,
    is_weights,
    kind_of,
)
from normjax.convert.wrappers import Found, found
from normjax.core.errors import UserError, one_of

INDEX = ".index.json"
"""Ending of files that say which shard holds which array."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>\.\w+)")


def read(path: Path, *, averaged: bool = False) -> dict[str, np.ndarray]:
    """The state dict of `load`: arrays by name, without wrapper and prefixes.

    Args:
      path: a file, an index of shards, or a folder with one model, as of `load`.
      averaged: the exponential average of the weights, which lies beside them.

    Raises:
      UserError: as `load`.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from normjax import convert
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "model.safetensors"
      ...     convert.write(path, {"fc.weight": np.ones((2, 3))})
      ...     convert.read(path)["fc.weight"].shape
      (2, 3)
    """
    return load(path, averaged=averaged).state


def load(path: Path, *, averaged: bool = False) -> Found:
    """The weights of a file or folder, without wrapper and prefixes.

    Args:
      path: .safetensors, or a file of torch, which needs torch; an index of shards; or
        a folder with one model: an index, model.safetensors, all shards, or one file.
      averaged: the exponential average of the weights, which lies beside them.

    Raises:
      UserError: no such file, another kind of file, a damaged one, shards that are
        missing or share an array, several models, or no weights in it.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from normjax import convert
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "model.safetensors"
      ...     convert.write(path, {"fc.weight": np.ones((2, 3))})
      ...     weights = convert.load(Path(folder))  # a folder with one model
      >>> sorted(weights.state), weights.left
      (['fc.weight'], {})
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing: the download is not complete")
    if path.is_dir():
        files, others = _files_of(_snapshot(path))
    elif path.name.endswith(INDEX):
        files, others = _indexed(path), []
    elif not path.exists():
        raise UserError(f"no checkpoint {path}")
    else:
        files, others = [path], []
    contents = [_content(file) for file in files]
    content = contents[0] if len(files) == 1 else _joined(files, contents)
    weights = found(content, averaged=averaged)
    left = {name: "another file of the folder" for name in others}
    return weights._replace(left=weights.left | left)


def unwrapped(content: Mapping[str, Any], *, averaged: bool = False) -> dict[str, Any]:
    """The arrays by name of what a file holds, without wrapper and prefixes.

    Args:
      content: of the file: arrays, or a dict around them as training scripts save it.
      averaged: the exponential average of the weights, which lies beside them.

    Raises:
      UserError: no weights in it.

    Example:
      >>> import numpy as np
      >>> from normjax import convert
      >>> saved = {"epoch": 3, "state_dict": {"module.fc.weight": np.ones((2, 3))}}
      >>> sorted(convert.unwrapped(saved))
      ['fc.weight']
    """
    return found(content, averaged=averaged).state


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write `state` as .safetensors.

    Args:
      path: ends in .safetensors.  state: arrays by name.

    Raises:
      UserError: another kind of file, or one that cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from normjax import convert
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "model.safetensors"
      ...     convert.write(path, {"fc.weight": np.ones((2, 3))})
      ...     [file.name for file in Path(folder).iterdir()]
      ['model.safetensors']
    """
    from safetensors.numpy import save_file

    if path.suffix != SAFETENSORS:
        raise UserError(one_of("kind of file to write", path.suffix, [SAFETENSORS]))
    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except OSError as error:
        raise UserError(f"{path}: {error}") from error


def _snapshot(folder: Path) -> Path:
    """The folder of the files where `folder` is one of Hugging Face's cache."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    kept = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    main = folder / "refs/main"
    if len(kept) > 1 and main.is_file():
        kept = [entry for entry in kept if entry.name == main.read_text().strip()]
    if len(kept) != 1:
        raise UserError(f"{snapshots} holds {len(kept)} versions: name one of them")
    return kept[0]


def _files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The files with the weights of a folder, and names of other weights in it."""
    every = sorted(file for file in folder.iterdir() if not file.is_dir())
    weights = [file for file in every if is_weights(file)]
    for ending in (SAFETENSORS, ".bin"):
        of_kind = [file for file in weights if file.name.endswith(ending)]
        indices = [file for file in every if file.name.endswith(f"{ending}{INDEX}")]
        shards = [file for file in of_kind if _SHARD.fullmatch(file.name)]
        named = ("model.safetensors", "pytorch_model.bin")
        whole = [file for file in of_kind if file.name in named]
        if len(indices) > 1 or (whole and (indices or shards)):
            both = ", ".join(file.name for file in (*indices, *whole, *shards)[:3])
            raise UserError(f"folder {folder} holds more than one model: {both}")
        files = _indexed(indices[0]) if indices else whole or _all_shards(shards)
        if files:
            return files, [f.name for f in weights if f not in files]
    if len(weights) == 1:
        return weights, []
    if weights:
        names = ", ".join(file.name for file in weights[:4])
        raise UserError(
            f"folder {folder} holds several checkpoints ({names}): name one"
        )
    hint = foreign_in(folder)
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        hint = "; it is a run already: eval.py --workdir reads it"
    wanted = f"model{SAFETENSORS}, pytorch_model.bin, shards of them or a .pth"
    raise UserError(f"folder {folder} holds none of {wanted}{hint}")


def _all_shards(shards: list[Path]) -> list[Path]:
    """`shards` of one model, none of which is missing."""
    parts = [_SHARD.fullmatch(shard.name) for shard in shards]
    groups = {(p["stem"], p["count"], p["ending"]) for p in parts if p}
    if not groups:
        return []
    if len(groups) > 1:
        both = ", ".join(sorted(f"{stem} in {count}" for stem, count, _ in groups))
        raise UserError(f"{shards[0].parent} holds shards of several models: {both}")
    ((stem, count, ending),) = groups
    width = len(count)
    names = [
        f"{stem}-{i:0{width}}-of-{count}{ending}" for i in range(1, int(count) + 1)
    ]
    return _present(shards[0].parent, names, f"{count} shards")


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards ({error!r})") from None
    return _present(index.parent, names, index.name)


def _present(folder: Path, names: Iterable[str], what: str) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        linked = (folder / missing[0]).is_symlink()
        why = " (a link to nothing)" if linked else ""
        raise UserError(
            f"{folder} lacks {len(missing)} of {what}: {missing[0]}{why}; "
            "the download is not complete"
        )
    return [folder / name for name in names]


def _joined(files: list[Path], contents: list[Mapping]) -> dict[str, Any]:
    """The arrays of all shards, each in one of them, and where the index says."""
    places: dict[str, str] = {}
    joined: dict[str, Any] = {}
    for file, content in zip(files, contents, strict=True):
        for name, array in content.items():
            if name in places:
                both = f"{places[name]} and {file.name}"
                raise UserError(f"{name} is in two shards, {both}")
            places[name], joined[name] = file.name, array
    for index in files[0].parent.glob(f"*{INDEX}"):
        wanted = json.loads(index.read_text()).get("weight_map", {})
        for name, shard in wanted.items():
            if shard in places.values() and places.get(name) != shard:
                where = f"is in {places[name]}" if name in places else "is not there"
                raise UserError(f"{index.name} has {name} in {shard}: it {where}")
    return joined


def _content(path: Path) -> Any:
    if kind_of(path) == "torch":
        return _read_torch(path)
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _check_safetensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _check_safetensors(path: Path) -> None:
    """Raises UserError where bytes are missing, or NumPy has no such numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, 10**8)))
            header.pop("__metadata__", None)
            last = max((e["data_offsets"][1] for e in header.values()), default=0)
            types = {name: entry["dtype"] for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # the library says what is wrong
    there, whole = path.stat().st_size, 8 + size + last
    if there < whole:
        raise UserError(
            f"{path} is cut off: {there:,} of {whole:,} bytes; "
            "its download is not complete"
        )
    for name, kind in types.items():
        if kind not in _NUMBERS:
            raise UserError(f"{name} is quantized ({kind}): {UNQUANTIZED}")


_NUMBERS = ("F64", "F32", "F16", "BF16", "BOOL", "C64")
_NUMBERS += tuple(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64))
UNQUANTIZED = "take the weights in float32, float16 or bfloat16"


def _read_torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{path} needs torch: pip install 'normjax[torch]', or a .safetensors file"
        ) from error
    import argparse

    check_whole_zip(path)
    # What trainings put beside weights, and what holds nothing but values.
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    harmless: list[Any] = [argparse.Namespace, np.dtype, scalar]
    harmless += [(scalar, "numpy.core.multiarray.scalar")]  # as NumPy 1 wrote it
    harmless += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error).strip()
        inside = re.search(r"GLOBAL ([\w.]+)", text)
        if inside:
            raise UserError(
                f"{path} holds more than tensors ({inside[1]}): if you trust it, save "
                "its weights alone"
            ) from error
        raise UserError(f"{path} is damaged: {text.splitlines()[0]}") from error
    return _as_arrays(content)


def _as_arrays(content: Any, name: str = "") -> Any:
    if isinstance(content, Mapping):
        return {key: _as_arrays(value, str(key)) for key, value in content.items()}
    if not hasattr(content, "detach"):
        return content
    tensor, kind = content.detach(), str(content.dtype).removeprefix("torch.")
    narrow = tensor.is_floating_point() and tensor.element_size() == 1
    if narrow or tensor.is_quantized or str(tensor.layout) != "torch.strided":
        raise UserError(f"{name} is quantized or sparse ({kind}): {UNQUANTIZED}")
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
