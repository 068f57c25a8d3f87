"""Notebooks of docs/notebooks as pages."""

import json
from collections.abc import Iterator

from tests.site.tables import DOCS


def pages() -> dict[str, str]:
    """Markdown by file."""
    found = {}
    for file in sorted((DOCS / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        parts = [part for cell in cells for part in _cell(cell)]
        where = f"This page is the notebook `docs/notebooks/{file.name}`, run.\n"
        found[f"notebooks/{file.stem}.md"] = "\n".join([parts[0], where, *parts[1:]])
    return found


def _cell(cell: dict) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield f"{source}\n"
        return
    yield f"```python\n{source}\n```\n"
    text = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    if text:
        yield f"```text\n{text.rstrip()}\n```\n"
