"""Twenty steps of small models on any mesh; run in processes of their own.

    python -m tests.train.many_devices FOLDER CASE...

A case is "MODEL/DEVICES/AXIS=SIZE,..." or "MODEL/DEVICES/pmap"; its losses and the
state that it reaches are written to FOLDER. The environment decides how many devices
and processes there are.
"""

import os
import sys
from pathlib import Path

STEPS, ROWS = 20, 16


def vit(folder):
    from tests.train.tiny import tiny_config

    config = tiny_config("norm=prepbn,mixer=softmax")
    config.model.mlp_ratio = 2.0
    return config


def resnet(folder):
    from configs import digits

    config = digits.get_config("model=resnet,norm=batch_norm,runlocal")
    config.model.update(depths=(1, 1), widths=(8, 16))
    return config


def decoder(folder, norm="power_norm"):
    from configs import lm_bytes

    config = lm_bytes.get_config(f"norm={norm},runlocal")
    config.model.update(dim=16, depth=2, num_heads=2, mlp_hidden=32)
    path, data_dir = str(folder / "text.txt"), str(folder / "sets")
    config.data.update(name="text_file", path=path, data_dir=data_dir)
    config.data.text.length = 16
    return config


def deep_vit(folder):
    config = vit(folder)
    config.model.update(depth=4, scan_layers=True)
    config.microbatches = 2
    return config


def deep_decoder(folder):
    config = decoder(folder, "rms_norm")
    config.model.update(depth=4, scan_layers=True)
    config.microbatches = 2
    return config


def config_of(case, folder):
    """The config of a case, and its number of devices."""
    model, devices, layout = case.split("/")
    config = globals()[model](folder)
    config.batch_size, config.total_steps = ROWS, STEPS
    if layout.startswith("pmap"):
        config.parallelism = "pmap"
        config.sync_batch_stats = layout == "pmap"
    else:
        sizes = (part.split("=") for part in layout.split(",") if part)
        config.mesh.update({axis: int(size) for axis, size in sizes})
    return config, int(devices)


def run(case, folder):
    """Losses [STEPS], and the state as {path: array}."""
    import jax
    import numpy as np

    from normjax.devices.mesh import replicated
    from normjax.devices.signals import Interrupt
    from normjax.devices.votes import Votes
    from normjax.train.experiment import build_experiment
    from normjax.train.programs import lower_train_step

    config, count = config_of(case, folder)
    experiment = build_experiment(config, jax.devices()[:count])
    step = lower_train_step(experiment).compile()
    state, losses = experiment.create_state(), []
    batches = experiment.train_batches()
    votes, interrupt = Votes(experiment.mesh), Interrupt()
    for _ in range(STEPS):
        state, metrics = step(state, votes.cast(next(batches), interrupt))
        losses.append(float(metrics["loss"]))
    batches.close()
    whole = replicated(experiment.mesh)
    state = jax.jit(lambda state: state, out_shardings=whole)(state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}
    return np.asarray(losses), arrays


def main(folder, cases):
    import jax
    import numpy as np

    from normjax.devices.processes import initialize

    initialize()
    for case in cases:
        losses, arrays = run(case, folder)
        if jax.process_index() == 0:
            np.savez(folder / f"{case.replace('/', '_')}.npz", losses=losses, **arrays)


if __name__ == "__main__":
    os.environ.setdefault("NORMJAX_DATA_DIR", sys.argv[1])
    main(Path(sys.argv[1]), sys.argv[2:])
