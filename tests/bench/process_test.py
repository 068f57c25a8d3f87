"""A process that is asked to make calls, with a stand-in for a model's."""

import sys
import textwrap

import pytest

from normjax.bench import process

STAND_IN = """
    import sys, types
    from pathlib import Path

    def measured(name, images, counts, dtype):
        log = Path(sys.argv[-1])
        def call(kind):
            with log.open("a") as file:
                file.write(f"{name} {kind} {images.shape} {counts} {dtype}\\n")
            if kind == "fails":
                sys.exit(3)
        return 7, {k: (lambda k=k: call(k)) for k in ("first", "second", "fails")}

    import normjax.bench
    stand_in = types.ModuleType("normjax.bench.our_models")
    stand_in.measured = measured
    normjax.bench.our_models = sys.modules[stand_in.__name__] = stand_in
    from normjax.bench.process import main
    main(*sys.argv[3:-1])
"""


def test_calls_are_made_over_there(tmp_path, monkeypatch):
    log, python = tmp_path / "log", tmp_path / "python"
    code = tmp_path / "stand_in.py"
    code.write_text(textwrap.dedent(STAND_IN))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@" {log}\n')
    python.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(python))
    with process.model_process(process.OURS, "a", 8, (1, 2), "float32") as (
        size,
        calls,
    ):
        assert size == 7
        assert list(calls) == ["first", "second", "fails"]
        assert not log.exists()
        calls["second"]()
        calls["first"]()
        written = [
            f"a {kind} (2, 8, 8, 3) [1, 2] float32" for kind in ("second", "first")
        ]
        assert log.read_text().splitlines() == written
        with pytest.raises(RuntimeError, match="ended, code 3"):
            calls["fails"]()
