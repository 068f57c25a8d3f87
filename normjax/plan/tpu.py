"""Compile programs for a TPU that need not be there, and keep what libtpu says of it.

python -m normjax.plan.tpu FOLDER TOPOLOGY

For every FOLDER/NAME.exported (`jax.export`) with its FOLDER/NAME.mesh (sizes by axis)
it writes FOLDER/NAME.hlo, the optimized program, FOLDER/NAME.bytes, what its temporary
arrays take of a device's memory, and FOLDER/NAME/, the bundles of its kernels, and
prints NAME. libtpu reads where to write when
it is loaded, therefore a process of its own.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

STAGES = ("final_bundles", "final_hlo-static-per-bundle-utilization")
MAP = "deduplication-map"
EXPORTED, MESH, HLO, BYTES = ".exported", ".mesh", ".hlo", ".bytes"


def main(folder: str, topology: str) -> None:
    """See the head of the file."""
    dump = Path(folder, "dump")
    dump.mkdir()
    stages = "|".join((*STAGES, MAP))
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(
        (
            os.environ.get("LIBTPU_INIT_ARGS", ""),
            f"--xla_jf_dump_to={dump}",
            "--xla_jf_dump_llo_text=true",
            f"--xla_jf_dump_llo_pass_label_regex=^({stages})$",
        )
    )
    from normjax.plan.topology import devices_of, prepare

    prepare([topology])
    devices = devices_of(topology)
    for path in sorted(Path(folder).glob(f"*{EXPORTED}")):
        axes = json.loads(path.with_suffix(MESH).read_text())
        compiled = _compiled(path.read_bytes(), axes, devices)
        dump.rename(path.with_suffix(""))
        dump.mkdir()
        path.with_suffix(HLO).write_text(compiled.as_text() or "")
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        path.with_suffix(BYTES).write_text(str(temporaries))
        print(path.stem, flush=True)


def _compiled(exported: bytes, axes: dict[str, int], devices: list[Any]) -> Any:
    import jax
    import jax.export
    import numpy as np

    program = jax.export.deserialize(bytearray(exported))
    sizes = list(axes.values())
    used = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    mesh = jax.sharding.Mesh(used, tuple(axes))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding or whole)
        for aval, sharding in zip(
            program.in_avals, program.in_shardings_jax(mesh), strict=True
        )
    ]
    args, kwargs = jax.tree.unflatten(program.in_tree, arguments)
    return jax.jit(program.call).lower(*args, **kwargs).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
