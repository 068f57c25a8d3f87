"""A process that is asked to make calls, with a stand-in for the models of torch."""

import sys
import textwrap

import pytest

from normjax.bench import torch_process

STAND_IN = """
    import sys, types
    from pathlib import Path

    def calls(name, images, counts):
        log = Path(sys.argv[-1])
        def call(kind):
            with log.open("a") as file:
                file.write(f"{name} {kind} {images.shape}\\n")
            if kind == "fails":
                sys.exit(3)
        return {("torch", k): (lambda k=k: call(k)) for k in ("forward 1", "fails")}

    stand_in = types.ModuleType("normjax.bench.torch_models")
    stand_in.MODELS, stand_in.calls = {"a", "b"}, calls
    import normjax.bench
    normjax.bench.torch_models = stand_in
    sys.modules[stand_in.__name__] = stand_in
    from normjax.bench.torch_process import main
    main(*sys.argv[3:-1])
"""


def test_calls_are_made_over_there(tmp_path, monkeypatch):
    log, python = tmp_path / "log", tmp_path / "python"
    code = tmp_path / "stand_in.py"
    code.write_text(textwrap.dedent(STAND_IN))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@" {log}\n')
    python.chmod(0o755)
    monkeypatch.setattr(torch_process.sys, "executable", str(python))
    monkeypatch.setattr(torch_process.importlib.util, "find_spec", lambda name: True)
    with torch_process.torch_calls(["a", "unknown", "b"], 8, (1, 2)) as calls:
        kinds = "forward 1", "fails"
        assert list(calls) == [(n, "torch", k) for n in "ab" for k in kinds]
        assert not log.exists()
        calls["b", "torch", "forward 1"]()
        calls["a", "torch", "forward 1"]()
        written = [f"{n} forward 1 (2, 8, 8, 3)" for n in "ba"]
        assert log.read_text().splitlines() == written
        with pytest.raises(RuntimeError, match="ended, code 3"):
            calls["a", "torch", "fails"]()


def test_none_without_torch(monkeypatch):
    monkeypatch.setattr(torch_process.importlib.util, "find_spec", lambda name: None)
    with torch_process.torch_calls(["deit_tiny"], 8, (1,)) as calls:
        assert calls == {}
