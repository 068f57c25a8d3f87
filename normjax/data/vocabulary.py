"""Text to token numbers: its bytes, or the pieces of a trained tokenizer's file."""

import hashlib
import importlib
import pathlib
from typing import Any

import numpy as np

from normjax.core.errors import UserError

ALLOWED = (
    "'bytes', a .json file of Hugging Face tokenizers, a .model file of sentencepiece"
)


class Bytes:
    """Every byte is a token.

    Attributes:
      size: tokens that text becomes, 0..size - 1.
      key: changes with what text becomes; fit for a file's name.
    """

    size = 256
    key = "bytes"

    def encode(self, data: bytes) -> np.ndarray:
        """The tokens of a document, int [n].

        Raises:
          ValueError: `data` is no text of this vocabulary.
        """
        return np.frombuffer(data, np.uint8)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens below `size`; bytes that are no UTF-8 become U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")


class Json:
    """Tokens of a file of Hugging Face's `tokenizers`, without its special frame.

    A document is encoded as one string. Attributes as those of `Bytes`.
    """

    def __init__(self, path: pathlib.Path):
        content, package = _open(path, "tokenizers")
        try:
            self._tokenizer = package.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises nothing narrower
            raise UserError(_damaged(path, error)) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.key = _key("json", content)

    def encode(self, data: bytes) -> np.ndarray:
        text = data.decode("utf-8")
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, int)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


class SentencePiece:
    """Pieces of a sentencepiece model, without its begin and end.

    A document is encoded as one string. Attributes as those of `Bytes`.
    """

    def __init__(self, path: pathlib.Path):
        content, package = _open(path, "sentencepiece")
        try:
            self._model = package.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # RuntimeError or one of protobuf's
            raise UserError(_damaged(path, error)) from None
        self.size = int(self._model.get_piece_size())
        self.key = _key("model", content)

    def encode(self, data: bytes) -> np.ndarray:
        return np.array(self._model.encode(data.decode("utf-8")), int)

    def decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens)


Tokenizer = Bytes | Json | SentencePiece


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called "bytes", or that of a file.

    Raises:
      UserError: neither, no such file, a damaged one, or its package is missing.
    """
    if name == "bytes":
        return Bytes()
    path = pathlib.Path(name).expanduser()
    kinds = {".json": Json, ".model": SentencePiece}
    if path.suffix not in kinds:
        raise UserError(f"unknown tokenizer {name!r} (allowed: {ALLOWED})")
    return kinds[path.suffix](path)


def _open(path: pathlib.Path, package: str) -> tuple[bytes, Any]:
    """The file's content and the package that understands it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror} (allowed: {ALLOWED})"
        raise UserError(f"cannot read tokenizer {str(path)!r}: {reason}") from None
    try:
        return content, importlib.import_module(package)
    except ImportError:
        need = f"needs the package {package}: pip install {package}"
        raise UserError(f"tokenizer {str(path)!r} {need}") from None


def _damaged(path: pathlib.Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"tokenizer {str(path)!r} is damaged or of another kind: {reason}"


def _key(kind: str, content: bytes) -> str:
    return f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}"
