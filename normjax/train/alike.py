"""All processes of a run have one config and read the same data."""

from typing import Any

from normjax.core.errors import UserError
from normjax.devices.processes import from_first, gather
from normjax.train.config import differences, plain

PLACES = ("path", "data_dir", "workers")
"""Fields of `config.data` that may differ: the same data may lie elsewhere."""


def check_alike(config: Any, digests: dict[str, Any]) -> None:
    """Compare this process's config and data with those of the first process.

    Waits for all processes, however long one of them prepares its data.

    Args:
      digests: of the data, `Task.digests`.

    Raises:
      UserError: they differ in one of them; in all processes.
    """
    mine = {"config": plain(config), "data": digests}
    for place in PLACES:
        mine["config"]["data"].pop(place, None)
    theirs = from_first(mine)
    found = gather(
        [
            line
            for part, value in mine.items()
            for line in differences(theirs[part], value, part)
        ]
    )
    for process, lines in enumerate(found):
        if lines:
            raise UserError(
                f"process {process} is not like the first one ({'; '.join(lines)}): "
                "start all with the same command, on the same data"
            )
