"""Options of XLA: known ones are kept, others left out."""

import jax
import pytest

from normjax.core import compiler


def test_options_compile():
    options = compiler.compiler_options("cpu")
    assert set(options) <= set(compiler.OPTIONS["cpu"])
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_unknown_options_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_cpu_no_such_option": "1"})
    assert compiler.compiler_options.__wrapped__("cpu") == {}


def test_a_platform_without_options():
    assert compiler.compiler_options("some_other") == {}
