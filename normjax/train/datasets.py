"""Which data a run began with: kept in its workdir, compared when it goes on."""

from pathlib import Path
from typing import Any

from normjax.core.errors import UserError
from normjax.tasks import TASKS, Task
from normjax.train.config import read_json, with_tuples, write_json

DATA_FILE = "data.json"
DESCRIPTION_FILE = "inputs.json"


def keep_data(task: Task, workdir: Path, *, write: bool = True) -> None:
    """Write what the data sets of `task` are, or compare it with what is there.

    Splits that the run did not have when it began are not compared.

    Args:
      write: of several processes one writes.

    Raises:
      UserError: a data set that has changed, or the file cannot be written.
    """
    path, mine = Path(workdir) / DATA_FILE, task.digests()
    if path.exists():
        for split, kept in read_json(path).items():
            if mine.get(split, kept) != kept:
                now, then = mine[split]["examples"], kept["examples"]
                sizes = f"{then} examples then, {now} now"
                same = "as many examples, other names, labels or content"
                raise UserError(
                    f"the data have changed since the run in {workdir} began: split "
                    f"{split!r} ({same if now == then else sizes}): bring them back, "
                    f"choose another --workdir, or remove {path} to go on with them"
                )
    elif write:
        write_json(path, mine)


def keep_description(description: Any, workdir: Path) -> None:
    """Write what has to be known of the data to use the model without them.

    Args:
      description: of `Task.description`.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(workdir) / DESCRIPTION_FILE
    if description is not None and not path.exists():
        write_json(path, description._asdict())


def kept_description(task: str, workdir: Path) -> Any:
    """What `keep_description` wrote for a task of this name; None if nothing."""
    path = Path(workdir) / DESCRIPTION_FILE
    make: Any = TASKS[task].make
    return make.described_as(**with_tuples(read_json(path))) if path.exists() else None
