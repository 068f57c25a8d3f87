"""What mkdocs calls while it builds the site (`hooks` of mkdocs.yml)."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from mkdocs.structure.files import File, Files

from tests.api.names import ROOT
from tests.site import catalogue, commands, figures, notebooks, published, tables
from tests.site.tables import DOCS

ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written now, and give all of them a place."""
    made = catalogue.pages() | published.pages() | {"commands.md": commands.page()}
    made |= notebooks.pages()
    for file, page in ROOT_PAGES.items():
        text = (ROOT / file).read_text()
        made[page] = re.sub(r"\]\(docs/", "](", text)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    pages = sorted(f.src_uri for f in files.documentation_pages())
    config.nav = list(_expanded(config.nav, pages))
    return files


def _expanded(nav: list[Any], pages: list[str]) -> Iterator[Any]:
    """`nav` with patterns as the pages that they match; empty parts are left out."""
    listed = set(re.findall(r"[\w/.-]+\.(?:md|ipynb)", str(nav)))
    for item in nav:
        if isinstance(item, str) and "*" in item:
            deep = item.count("/")
            found = [p for p in pages if fnmatch(p, item) and p.count("/") == deep]
            index = [p for p in found if p.endswith("index.md")]
            yield from [*index, *(p for p in found if p not in (*index, *listed))]
        elif isinstance(item, dict):
            ((title, inside),) = item.items()
            if isinstance(inside, list):
                inside = list(_expanded(inside, pages))
            if inside:
                yield {title: inside}
        else:
            yield item


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pictures that follow the colours of the page; links as this site has them."""
    if page.file.src_uri.startswith("api/"):
        # Of headings that a page has twice, which GitHub counts in another way.
        return re.sub(r"(\]\((?:\w+\.md)?#[\w-]+)-(\d)\)", r"\1_\2)", markdown)
    markdown = re.sub(
        r"^!\[[^]]*\]\((assets/\w+\.svg)\)$",
        lambda match: figures.figure(
            (DOCS / match[1]).read_text().replace("\n", ""), ""
        ),
        markdown,
        flags=re.MULTILINE,
    )
    return re.sub(r"<!-- chart: (\S+) (.+) -->", _chart, markdown)


def _chart(match: re.Match) -> str:
    """A picture of a column of a measured table."""
    page, column = match.groups()
    found = []
    for row in tables.rows():
        if row.page == page and column in row.columns:
            value, _, deviation = row.cells[row.columns.index(column)].partition(" ± ")
            address = f"catalogue/{page.partition('/')[0]}/{row.key}.html"
            if value != "-":
                found.append((row.key, float(value), float(deviation or 0), address))
    caption = (
        f"The column {column} of docs/{page}, with its standard deviation if known."
    )
    return figures.figure(figures.dots(found, column), caption)
