"""Several studies one after the other, and one table of what is claimed."""

import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from normjax.core.console import console
from normjax.records import report
from normjax.study.claims import SEEN
from normjax.study.pages import Heading, Paragraph, Table, write_pages
from normjax.study.processes import run_shares
from normjax.study.runs import WHOLE, Share
from normjax.study.study import (
    CLAIMS_HEAD,
    Outcome,
    Study,
    finding_row,
    prepare,
    run_cells,
    summarize,
    wanted_cells,
)

ALONE = ""
"""The name of the one study that has the workdir to itself."""


def run_together(
    studies: Mapping[str, Study],
    workdir: Path,
    only: re.Pattern[str] = re.compile(""),
    minutes: float = math.inf,
    share: Share = WHOLE,
) -> None:
    """Run a share of what is not done yet of every study.

    Args:
      studies: by name; each has the folder of its name in `workdir`.
      only: cells whose "row/column" it finds.
      minutes: of all; what one study leaves goes to those that follow.

    Raises:
      UserError: a config of a study is wrong.
    """
    end = time.monotonic() + 60 * minutes

    def own_minutes(index: int) -> float:
        return max(0.0, end - time.monotonic()) / 60 / (len(studies) - index)

    for i, (name, study) in enumerate(studies.items()):
        if name:
            console.print(f"{name} ({i + 1} of {len(studies)})")
        cells, folder = wanted_cells(study, only), workdir / name
        if share.of == 1:
            prepare(study, folder, len(cells), own_minutes(i))
        run_cells(study, folder, cells, share, own_minutes(i))


def run_in_processes(
    name: str,
    studies: Mapping[str, Study],
    workdir: Path,
    processes: int,
    only: re.Pattern[str] = re.compile(""),
    minutes: float = math.inf,
) -> None:
    """`run_together`, in processes that share the runs.

    Args:
      name: of the studies on the command line.

    Raises:
      UserError: one of them failed, or there is not a device for each.
    """
    began = time.monotonic()
    for key, study in studies.items():
        runs = math.ceil(len(wanted_cells(study, only)) / processes)
        prepare(study, workdir / key, runs, minutes / len(studies))
    left = max(1.0, minutes - (time.monotonic() - began) / 60)
    command = [sys.executable, "-m", "normjax.study", name, f"--workdir={workdir}"]
    run_shares([*command, f"--only={only.pattern}", f"--budget={left}"], processes)


def report_together(studies: Mapping[str, Study], workdir: Path) -> list[Outcome]:
    """The report of every study, and of several one table of claims, `claims.md`."""
    outcomes = {
        name: summarize(study, workdir / name) for name, study in studies.items()
    }
    if ALONE in outcomes:
        return list(outcomes.values())
    rows = [
        (name, *finding_row(studies[name], finding), f"{outcome.minutes:.1f}")
        for name, outcome in outcomes.items()
        for finding in outcome.findings
    ]
    head = ("study", *CLAIMS_HEAD, "minutes")
    report.table("what papers claim", head, rows)
    seen = sum(row[len(CLAIMS_HEAD)] == SEEN for row in rows)
    total = sum(outcome.minutes for outcome in outcomes.values())
    count = f"{len(rows)} claims, {seen} of them seen, {total:.0f} minutes of runs."
    page = workdir / "claims.md"
    write_pages(
        [Heading("What papers claim"), Paragraph(count), Table(head, rows)], page
    )
    console.print(f"{count} Table in {page} and {page.with_suffix('.html')}")
    return list(outcomes.values())
