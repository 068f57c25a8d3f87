"""Pages of the published networks, from `normjax.families`."""

import html
import math
import re

from normjax.families import FAMILIES
from normjax.families.base import Family
from normjax.families.listing import rows
from tests.site import figures, tables


def pages() -> dict[str, str]:
    """Markdown by file."""
    found = {"catalogue/families/index.md": _index()}
    for family in FAMILIES.values():
        found[f"catalogue/families/{family.name}.md"] = _page(family)
    return found


def _index() -> str:
    cards = []
    for family in FAMILIES.values():
        sizes = [f.parameters / 1e6 for f in family.figures.values()]
        size = f", {min(sizes):,.1f} to {max(sizes):,.1f} M" if sizes else ""
        cards.append(
            f'<a class="card" href="{family.name}.html"><strong>{family.name}</strong>'
            f"<span>{len(family.presets)} presets{size}</span></a>"
        )
    picture = figures.figure(
        _scatter(""), "Published top-1 on ImageNet-1k by parameters, all presets."
    )
    return (
        "# Published networks\n\nPresets with the sizes of published networks. Their "
        "files of weights are read and written "
        "([checkpoints](../../convert.md)), and norms and mixers can be replaced. "
        "`python -m normjax.models` lists them; layers and sources are in "
        "[Published networks](../../models/published.md).\n\n"
        f"{picture}\n\n"
        '<div class="cards plain">\n' + "\n".join(cards) + "\n</div>\n"
    )


def _scatter(family: str) -> str:
    curves = []
    for one in FAMILIES.values():
        known = [f for f in one.figures.values() if f.top_1 is not None]
        if known:
            kind = "faint point" if family and one.name != family else "first point"
            x = [math.log10(f.parameters / 1e6) for f in known]
            curves.append((kind, x, [f.top_1 for f in known]))
    curves.sort(key=lambda curve: curve[0] == "first point")
    return figures.lines(curves, ("log₁₀ of parameters in millions", "top-1, %"))


def _page(family: Family) -> str:
    listed = rows(family.name)
    parts = [f"# {family.name}\n"]
    if any(f.top_1 is not None for f in family.figures.values()):
        caption = f"Published top-1 by parameters: {family.name} among all presets."
        parts.append(figures.figure(_scatter(family.name), caption) + "\n")
    columns = ("preset", "parameters", "multiply-adds, 10⁹", "pixels", "top-1, %", "of")
    head = " | ".join(columns)
    parts.append(f"| {head} |\n|{' --- |' * len(columns)}")
    for preset, _, count, *cells in listed:
        count = f"{count:,}" if count else ""
        text = " | ".join(html.escape(str(c)) for c in (f"`{preset}`", count, *cells))
        parts.append(f"| {text} |")
    parts.append("\nAs published; empty cells are not known here.\n")
    if family.kind == "images":
        parts.append(_use(family))
    if family.layouts:
        layouts = ", ".join(f"`{name}`" for name in family.layouts)
        parts.append(
            f"Layouts of files of weights that are read and written: {layouts}.\n"
        )
    for row in tables.rows():
        if row.page == "models/published.md" and f"`{family.name}" in row.cells[0]:
            pairs = zip(row.columns[1:], row.cells[1:], strict=False)
            cells = (
                (c, re.sub(r"\]\((\w+\.md)", r"](../../models/\1", t)) for c, t in pairs
            )
            parts += [f"{column}: {cell}\n" for column, cell in cells if cell]
            break
    return "\n".join(parts)


def _use(family: Family) -> str:
    preset = next(iter(family.figures or family.presets))
    train = f"configs/finetune.py:{preset},path=PHOTOS,weights=FILE"
    return f"""## Use it

```python
model = models.build("{preset}", num_classes=10)
```

```sh
python train.py --config={train} --workdir=runs/mine
python eval.py --model={preset} --weights=FILE --data=IMAGENET_VAL
```
"""
