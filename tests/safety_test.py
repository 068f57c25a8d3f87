"""No file that is read runs code: no pickle anywhere, torch's files as weights only."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from normjax.cli.main import run
from normjax.convert.__main__ import convert_command
from normjax.core.errors import UserError
from normjax.data import open_images

ROOT = Path(__file__).parent.parent
FILES = [
    *sorted((ROOT / "normjax").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.py")),
    ROOT / "train.py",
    ROOT / "eval.py",
]
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def faults(source):
    """What a file does that could run the code in another one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{name}" for name in names)]
            for name in names:
                if UNSAFE & set(name.split(".")):
                    yield f"line {node.lineno}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("eval", "exec", "compile", "__import__"):
            yield f"line {node.lineno}: {called}"
        if arguments.get("allow_pickle", "False") != "False":
            yield f"line {node.lineno}: allow_pickle"
        of_torch = called.startswith("torch.") and called.endswith(("load", "load_url"))
        if of_torch and arguments.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sources_unpickle_nothing(path):
    assert not list(faults(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from six.moves import cPickle",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.hub.load_state_dict_from_url.load(f)",
        "eval(f.read())",
    ],
)
def test_the_search_finds(source):
    assert list(faults(source))


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def malice(tmp_path):
    """Something malicious, which has not run at the end of the test."""
    yield Malicious(tmp_path / "ran")
    assert not (tmp_path / "ran").exists()


def convert(path, capsys):
    """The one line that normjax.convert says of a checkpoint that it refuses."""
    argv = ["convert", "--model=slab_deit_tiny", str(path), str(path.parent / "run")]
    assert run(convert_command, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not (path.parent / "run").exists()
    return line


def test_the_malice_is_real(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_malicious_torch_files(malice, tmp_path, capsys, suffix, wrapped):
    torch = pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    if wrapped:
        torch.save({"model": {"head.weight": torch.zeros(2)}, "args": malice}, path)
    else:
        path.write_bytes(pickle.dumps(malice, protocol=2))
    assert "holds more than tensors or is damaged" in convert(path, capsys)


def test_malicious_files_of_other_kinds(malice, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(malice))
    assert "is damaged" in convert(path, capsys)
    path = tmp_path / "weights.npz"
    np.savez(path, weights=np.array([malice], object))
    assert "is arrays of NumPy: take the PyTorch weights" in convert(path, capsys)


def test_malicious_prepared_data(malice, tmp_path):
    open_images("digits", "test", data_dir=tmp_path)
    for name in ("images", "labels"):
        (path,) = tmp_path.rglob(f"{name}.npy")
        np.save(path, np.array([malice] * 360, object))
        with pytest.raises(UserError, match=r"prepared data in .* is damaged"):
            open_images("digits", "test", data_dir=tmp_path)
