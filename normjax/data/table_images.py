"""Images of Hugging Face data sets on disk."""

import functools
import os
from collections import Counter
from typing import Any

from normjax.data.folder import HELD_OUT, Folder
from normjax.data.labelled import Labels, labelled_folder
from normjax.data.tables import KIND, choose, read_images, scan_tables


def scan_hf(
    path: str | os.PathLike, held_out: float = HELD_OUT, label_field: str = ""
) -> Folder:
    """The images of a Hugging Face data set on disk, see `tables.scan_tables`.

    Their column is one of encoded images, {"bytes", "path"} or binary; labels are a
    ClassLabel, integers or strings. Where there is one split it is cut as an image
    folder is. Rows without a label, as of a test split, are left out.

    Args:
      label_field: column of the labels; "" where one alone may be it.

    Raises:
      UserError: as of `tables.scan_tables`; no such column, or several.
    """
    import pyarrow as pa

    found = scan_tables(path)
    images = [name for name, kind in found.columns.items() if _holds_image(kind)]
    image = choose(found, "images", "", images, ("image", "img"))
    of_classes = [
        name
        for name, feature in found.features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    ]
    usual = ("label", "labels", "class", "cls", "target")
    plain = [
        name
        for name, kind in found.columns.items()
        if name in usual and (pa.types.is_integer(kind) or pa.types.is_string(kind))
    ]
    label = choose(found, "labels", label_field, of_classes or plain, usual)
    names = found.features.get(label, {}).get("names") if of_classes else None
    labels: Labels = {}
    for split in found.splits:
        values = found.column(label, split).to_pylist()
        labels[split] = [None if v in (-1, "") else v for v in values]
    keys = {
        split: [f"{split}/{i}" for i in range(len(v))] for split, v in labels.items()
    }
    return labelled_folder(
        kind=KIND,
        path=found.path,
        keys=keys,
        labels=labels,
        names=names,
        held_out=held_out,
        fingerprint=f"{found.fingerprint}-{label}"
        if label_field
        else found.fingerprint,
        num_bytes=sum(f.stat().st_size for fs in found.splits.values() for f in fs),
        reader=functools.partial(read_images, found.splits, image),
        left_out=Counter(),
    )


def _holds_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
