"""The notebooks run, and what is kept of them is what they print."""

import os
import re

import nbclient
import nbformat
import pytest

from tests.api.names import ROOT
from tests.site import notebooks

FILES = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"\d[\d.,]*")


def printed(cells):
    """Text of each cell of code, without the numbers, which processors round."""
    return [
        NUMBER.sub("#", "".join(output.get("text", "") for output in cell.outputs))
        for cell in cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client and of sockets that it leaves
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs(file, monkeypatch):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    kept, made = (nbformat.read(file, as_version=4) for _ in range(2))
    nbclient.NotebookClient(made, timeout=600, kernel_name="python3").execute()
    assert printed(made.cells) == printed(kept.cells)


def test_pages_have_code_and_output():
    pages = notebooks.pages()
    assert len(pages) == len(FILES) == 2
    for page in pages.values():
        assert page.startswith("# Notebook") and "```python" in page
        assert "```text" in page
