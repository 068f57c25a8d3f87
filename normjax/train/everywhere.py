"""Losses that compare rows, where each device has rows of its own."""

from typing import Any, NamedTuple

import jax

from normjax.devices.mesh import DATA
from normjax.tasks import Objective
from normjax.tasks.base import compares_rows


class Everywhere(NamedTuple):
    """An objective inside of `shard_map` whose loss is of the rows of all devices.

    Every device computes it from all outputs, so that the gradient of its own outputs,
    which all of them send, is that of the loss times the number of devices: that of its
    share, and the sum over the devices is the gradient (BASIC; Pham et al., 2021).

    Attributes:
      own: the objective.
    """

    own: Objective
    compares_rows = True

    def loss(self, outputs: Any, targets: Any):
        """Of all devices."""
        gather = jax.tree.map(
            lambda x: jax.lax.all_gather(x, DATA, tiled=True), (outputs, targets)
        )
        return self.own.loss(*gather)


def everywhere(objective: Objective) -> Any:
    """`objective`, over all devices where it has to be."""
    return Everywhere(objective) if compares_rows(objective) else objective
