"""Which data a run began with: kept in its workdir, compared when it goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normjax.core.errors import UserError
from normjax.core.files import exists
from normjax.core.paths import workdir_path
from normjax.records.json_files import read_json, with_tuples, write_json
from normjax.tasks import TASKS, Task

DATA_FILE = "data.json"
DESCRIPTION_FILE = "inputs.json"


def keep_data(task: Task, workdir: Path) -> None:
    """Write what the data sets of `task` are, or compare it with what is there.

    Splits that the run did not have when it began are not compared.

    Raises:
      UserError: a data set that has changed, or a file that cannot be written.
    """
    check_classes(task, workdir)
    path, mine = workdir_path(workdir) / DATA_FILE, task.digests()
    if exists(path):
        for split, then in read_json(path).items():
            changed = _change(then, mine.get(split) or then)
            if changed:
                raise UserError(
                    f"the data have changed since the run in {workdir} began: split "
                    f"{split!r} ({changed}): bring them back, choose another "
                    f"--workdir, or remove {path} to go on with them"
                )
    else:
        write_json(path, mine)


def _change(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What is different of a split; empty if nothing is."""
    if then["examples"] != now["examples"]:
        return f"{then['examples']} examples then, {now['examples']} now"
    if then["digest"] != now["digest"]:
        return "as many examples, other names, labels or content"
    # Runs that name no order began when all were permutations.
    if then.get("order", "permutation") != now.get("order", "permutation"):
        return f"this version reads {now['examples']} examples in another order"
    return ""


def check_classes(task: Task, workdir: Path) -> None:
    """Compare the classes of the data with those that a run began with.

    Runs of earlier versions, and those that have not begun, have none to compare.

    Raises:
      UserError: others, or in another order: logits would get other names.
    """
    path = workdir_path(workdir) / DESCRIPTION_FILE
    then = read_json(path).get("class_names") if exists(path) else ()
    now = task.class_names()
    if then and tuple(then) != tuple(now):
        raise UserError(
            f"the classes of the data are not those that the run in {workdir} was "
            f"trained on ({_difference(then, now)}): bring them back, or train in "
            "another --workdir"
        )


def _difference(then: Sequence[str], now: Sequence[str]) -> str:
    old, current = set(then), set(now)
    gone = [name for name in then if name not in current]
    new = [name for name in now if name not in old]
    groups = (("gone", gone), ("new", new))
    parts = [f"{word}: {_listed(names)}" for word, names in groups if names]
    if not parts:
        pairs = enumerate(zip(then, now, strict=True))
        number, (one, other) = next(p for p in pairs if p[1][0] != p[1][1])
        parts = [f"another order: class {number} was {one!r} and is {other!r}"]
    sizes = f"{len(then)} then, {len(now)} now"
    return "; ".join([*parts, sizes] if len(then) != len(now) else parts)


def _listed(names: Sequence[str], most: int = 5) -> str:
    text = ", ".join(map(repr, names[:most]))
    rest = len(names) - most
    return f"{text} and {rest} more" if rest > 0 else text


def keep_description(description: Any, workdir: Path) -> None:
    """Write what has to be known of the data to use the model without them.

    Args:
      description: of `Task.description`.

    Raises:
      UserError: the file cannot be written.
    """
    path = workdir_path(workdir) / DESCRIPTION_FILE
    if description is not None and not exists(path):
        write_json(path, description._asdict())


def kept_description(task: str, workdir: Path) -> Any:
    """What `keep_description` wrote for a task of this name; None if nothing."""
    path = workdir_path(workdir) / DESCRIPTION_FILE
    make: Any = TASKS[task].make
    return make.described_as(**with_tuples(read_json(path))) if exists(path) else None
