"""How XLA compiles for us: options per platform, and what is kept on disk."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from normjax.core.paths import is_local

OPTIONS = {
    # By default XLA's CPU backend gives matrix products to YNNPACK together with
    # reductions. Eigen multiplies faster, YNNPACK reduces faster: a forward pass of
    # DeiT-tiny takes 0.84 of the time, a training step 0.89, with this division.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
    # Collectives run beside computation; off by default. Only documented (NVIDIA's
    # JAX images set it), not measured here.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": "True"},
    # TPU: the compiler overlaps collectives and computation by default.
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """Arguments `compiler_options` of `jax.jit` for a platform ("cpu", "gpu", "tpu").

    Options that this version of XLA does not know are left out.
    """
    options = {}
    for name, value in OPTIONS.get(platform, {}).items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            continue
        options[name] = value
    return options


def jit(function: Callable, **arguments: Any) -> Any:
    """`jax.jit` with the options of the platform that JAX runs on by default."""
    options = compiler_options(jax.default_backend())
    return jax.jit(function, compiler_options=options, **arguments)


@contextlib.contextmanager
def compiled_code_in(folder: Path) -> Iterator[None]:
    """What is compiled meanwhile is kept in `folder`, and read from there if it is.

    A cache that the user has chosen, as by JAX_COMPILATION_CACHE_DIR, stays.
    """
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    local = is_local(folder)
    settings = {
        "jax_compilation_cache_dir": str(folder.absolute() if local else folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _set(settings)
        yield
    finally:
        _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it would go on with the folder of before
