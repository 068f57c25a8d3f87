"""What kind of file a checkpoint is, by its first bytes, and why others are refused."""

import zipfile
from pathlib import Path

from normjax.core.errors import UserError, one_of

SAFETENSORS = ".safetensors"
TORCH = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".tar", ".pkl")
"""Endings of files that torch writes."""

_MAGIC = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file: run git lfs pull",
    b"GGUF": "a GGUF file of llama.cpp: take the .safetensors that it was made from",
    b"ggjt": "a GGML file of llama.cpp: take the .safetensors that it was made from",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow: take the PyTorch weights",
    b"\x1f\x8b": "packed by gzip: unpack it first",
    b"BZh": "packed by bzip2: unpack it first",
    b"\xfd7zXZ": "packed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x93NUMPY": "one array of NumPy, no state dict",
}
_ENDINGS = {
    ".msgpack": "weights of Flax: take the PyTorch weights",
    ".index": "a TensorFlow checkpoint: take the PyTorch weights",
    ".meta": "a TensorFlow checkpoint: take the PyTorch weights",
    ".pb": "a program of TensorFlow: take the PyTorch weights",
    ".h5": "a file of Keras or TensorFlow: take the PyTorch weights",
    ".onnx": "a program of ONNX: take the PyTorch weights",
    ".npz": "arrays of NumPy: take the PyTorch weights",
    ".gguf": "a GGUF file of llama.cpp: take the .safetensors that it was made from",
}


def kind_of(path: Path) -> str:
    """ "safetensors" or "torch", of a file that is there.

    Raises:
      UserError: an empty file, or one of another kind, which the line names.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not head:
        raise UserError(f"{path} is empty: did its download fail?")
    foreign = _foreign(path, head)
    if foreign:
        raise UserError(f"{path} is {foreign}")
    if head[8:9] == b"{" or path.suffix == SAFETENSORS:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")) or path.name.endswith(TORCH):
        return "torch"
    allowed = (SAFETENSORS, *TORCH)
    raise UserError(f"{path}: {one_of('kind of checkpoint', path.suffix, allowed)}")


def is_weights(path: Path) -> bool:
    """Whether the name is that of weights, and not of what else a training keeps."""
    others = (
        "optimizer",
        "scheduler",
        "scaler",
        "rng_state",
        "training_args",
        "events",
    )
    return path.name.endswith((SAFETENSORS, *TORCH)) and not path.name.startswith(
        others
    )


def foreign_in(folder: Path) -> str:
    """What a folder without weights of ours holds instead, or ""."""
    names = sorted(file.name for file in folder.iterdir())
    for name in names:
        kind = next((k for end, k in _ENDINGS.items() if name.endswith(end)), None)
        if kind or ".data-" in name:
            return f"; {name} is {kind or _ENDINGS['.index']}"
    return ""


def check_whole_zip(path: Path) -> None:
    """Raises UserError for a zip of torch that is cut off, or is a program."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off: its download is not complete")
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            hint = "save the state dict of what torch.jit.load makes of it"
            raise UserError(f"{path} is a program of TorchScript: {hint}")


def _foreign(path: Path, head: bytes) -> str | None:
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download failed"
    if start.startswith(
        (b'{"error', b"not found", b"access denied", b"repository not")
    ):
        return (
            f"an answer of a server, not weights: {head[:60].decode(errors='replace')}"
        )
    if head[:4] == b"PK\x03\x04":
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first.endswith(b".npy"):
            return _ENDINGS[".npz"]
        if first == b"metadata.json":
            return _ENDINGS[".h5"]
    return _ENDINGS.get(path.suffix)
