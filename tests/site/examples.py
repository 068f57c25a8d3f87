"""`python -m tests.site.examples` runs what the pages of docs say can be run.

Blocks marked `python` run, all of a page as one program; fragments are marked `py`.
Commands with a config are parsed, as far as their files are there.
"""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from normjax.cli import flags
from normjax.cli.commands import COMMANDS
from tests.api.names import ROOT

COMMAND = re.compile(
    r"^ *(?:\w+=\S+ )*"
    r"(python (?:train|eval)\.py|python -m normjax\.\w+|normjax \w+)\b(.*)$",
    re.MULTILINE,
)
NOT_AS_IT_STANDS = re.compile(r"path=|weights=|FILE|PRESET|\.\.\.|\||\$")


def pages() -> list[Path]:
    """Those that are written by hand."""
    docs = ROOT / "docs"
    return [f for f in sorted(docs.rglob("*.md")) if f.parent != docs / "api"]


def program(page: Path) -> tuple[str, int]:
    """The blocks of a page as one, and how many there are."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return "\n".join(blocks), len(blocks)


def run(page: Path) -> int:
    """Run its blocks; how many there were."""
    code, count = program(page)
    try:
        exec(compile(code, str(page), "exec"), {})
    except Exception as error:
        error.add_note(f"in {page}; a block that cannot run alone is marked py")
        raise
    return count


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(command, its arguments) of each line that calls one."""
    text = page.read_text().replace("\\\n", " ")
    for command, rest in COMMAND.findall(text):
        words = re.split(r"\s{2,}#| #", rest)[0].replace("'", "").split()
        yield command, words


def parse(command: str, arguments: list[str]) -> bool:
    """Whether there was a config to parse; what is wrong with it raises."""
    name = command.split()[-1].removeprefix("normjax.").removesuffix(".py")
    if name.partition(".")[0] not in COMMANDS:
        raise LookupError(f"there is no command {command}")
    argv = [word for word in arguments if word.startswith("--config")]
    if name != "train" or not argv or any(map(NOT_AS_IT_STANDS.search, argv)):
        return False
    if not argv[0].startswith("--config="):
        return False
    flags.parse_flags(["-", *argv], flags.define_config, "", overrides=True).config()
    return True


def main() -> int:
    blocks = parsed = named = 0
    for page in pages():
        start = time.perf_counter()
        count = run(page)
        blocks += count
        for command, arguments in commands(page):
            named += 1
            parsed += parse(command, arguments)
        if count:
            took = time.perf_counter() - start
            print(f"{page.relative_to(ROOT)}: {count} blocks, {took:.1f} s")
    print(f"{blocks} blocks run, {named} commands are there, {parsed} configs parsed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
