"""`python -m tests.api` writes docs/api."""

from tests.api.names import ROOT
from tests.api.pages import pages

FOLDER = ROOT / "docs/api"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in set(FOLDER.iterdir()) - {FOLDER / name for name in pages()}:
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
