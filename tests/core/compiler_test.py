"""Options of XLA: known ones are kept, others left out. Compiled code on disk."""

import jax
import jax.numpy as jnp
import pytest

from normjax.core import compiler


@pytest.mark.parametrize("platform", compiler.OPTIONS)
def test_options_compile(platform):
    """Names and values of all platforms are checked by every compiler."""
    options = compiler.compiler_options(platform)
    assert set(options) <= set(compiler.OPTIONS[platform])
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_unknown_options_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_cpu_no_such_option": "1"})
    assert compiler.compiler_options.__wrapped__("cpu") == {}


def test_values_that_are_wrong_are_not(monkeypatch: pytest.MonkeyPatch):
    known = "xla_gpu_enable_latency_hiding_scheduler"
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {known: "perhaps"})
    with pytest.raises(jax.errors.JaxRuntimeError, match=known):
        compiler.compiler_options.__wrapped__("cpu")


def test_a_platform_without_options():
    assert compiler.compiler_options("some_other") == {}


def test_compiled_code_is_kept_in_the_folder_of_the_moment(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    for name, function in (("first", jnp.sinh), ("second", jnp.cosh)):
        with compiler.compiled_code_in(tmp_path / name):
            jax.jit(lambda x, f=function: f(x))(jnp.ones(3))
        assert list((tmp_path / name).iterdir()), name
    assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_of_the_user_stays(tmp_path):
    theirs, ours = (compiler.compiled_code_in(tmp_path / n) for n in ("theirs", "ours"))
    with theirs, ours:
        jax.jit(lambda x: jnp.tanh(x))(jnp.ones(3))
    assert not (tmp_path / "ours").exists()
