"""Devices by name: "v5e:4x4" without a TPU, "cpu:8" and "gpu" of this machine."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from normjax.cli.host import answer_libtpu
from normjax.core.errors import UserError, one_of

MEGACORE = {"v4": "megacore", "v5p": "megachip_tccontrol"}
"""Chips whose two cores are one device, and how libtpu calls that."""

GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""TPUs, and the number of dims that their slices have."""

HOST = (2, 2, 1)
"""Chips of a host at most, by dim: what libtpu takes for granted."""

FORM = "such as v5e:4x4, v4:2x2x4, cpu:8 or gpu"


def prepare(names: Sequence[str]) -> None:
    """Set what JAX and libtpu read when they start; to be called before they do.

    A plan for a TPU takes no accelerator of this machine, which a run may be using.

    Raises:
      UserError: a name that is none.
    """
    parsed = [parse(name) for name in names]
    answer_libtpu()
    # It does not then claim the TPUs of this machine, one process at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    cores = [size[0] for kind, size in parsed if kind == "cpu" and size]
    if all(kind != "gpu" for kind, _ in parsed):
        jax.config.update("jax_platforms", "cpu")
    if cores and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", max(cores))
        except RuntimeError:
            return  # it has started already: what it has is what there is


def devices_of(name: str) -> list[Any]:
    """The devices called `name`; those of a TPU cannot run anything.

    Raises:
      UserError: no such devices, or libtpu is missing.
    """
    kind, size = parse(name)
    if kind in GENERATIONS:
        return _tpu(name, kind, size)
    try:
        devices = jax.devices(kind)
    except RuntimeError:
        raise UserError(f"--topology={name}: JAX finds no {kind} here") from None
    count = size[0] if size else len(devices)
    if count > len(devices):
        raise UserError(f"--topology={name}: {len(devices)} devices are there")
    return devices[:count]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """(kind, sizes) of the name of a topology.

    Raises:
      UserError: it is none.
    """
    kind, _, text = name.partition(":")
    if kind not in (*GENERATIONS, "cpu", "gpu"):
        known = (*GENERATIONS, "cpu", "gpu")
        raise UserError(f"{one_of('--topology', kind, known)}, {FORM}")
    if not text and kind not in GENERATIONS:
        return kind, ()
    size = tuple(int(n) for n in text.split("x")) if re.fullmatch(_SIZE, text) else ()
    if len(size) != GENERATIONS.get(kind, 1):
        dims = GENERATIONS.get(kind, 1)
        raise UserError(f"--topology={name}: {kind} takes {dims} size(s), {FORM}")
    return kind, size


_SIZE = r"[1-9]\d*(x[1-9]\d*)*"


def _tpu(name: str, kind: str, size: tuple[int, ...]) -> list[Any]:
    from jax.experimental import topologies

    dims = (*size, 1)[:3]
    host = tuple(min(most, dim) for most, dim in zip(HOST, dims, strict=True))
    options: dict[str, Any] = {"chips_per_host_bounds": host}
    if kind in MEGACORE:
        options["chip_config_name"] = MEGACORE[kind]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except Exception as error:  # jaxlib raises what it happens to
        raise UserError(f"--topology={name}: {_reason(error)}") from None
    if len(found.devices) != math.prod(size):
        raise UserError(f"--topology={name}: libtpu makes {len(found.devices)} of it")
    return list(found.devices)


def _reason(error: Exception) -> str:
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "planning for TPUs needs libtpu: pip install 'jax[tpu]'"
    return str(error).splitlines()[0]
