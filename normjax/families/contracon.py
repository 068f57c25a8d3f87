"""ConTraCon's CCT (Roy et al., 2023): later tasks convolve the weights of the first."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing, Recipe
from normjax.families.cct import cct, rows
from normjax.families.layout import LINEAR, Kind, Row

_HEADS = 4  # as many as the published code has gates for
_CONVOLVED: Kind = {
    "kernel": ("fc.weight", "linear"),
    "task_gate": ("Mtx_fc.sk_wt", "task_gate"),
    "task_shift": (
        tuple(f"Mtx_fc.conv_list.{i}.bias" for i in range(_HEADS)),
        "task_shift",
    ),
    "task_convolution": (
        tuple(f"Mtx_fc.conv_list.{i}.weight" for i in range(_HEADS)),
        "task_convolution",
    ),
}


def _contracon(depth: int, kernel_size: int, layers: int, **other: Any) -> Arguments:
    given = {"mixer": "task_convolved", "positions": "stored_sine", **other}
    return cct(depth, kernel_size, layers, placement="carried_open", **given)


_PRESETS = {
    "contracon_cct6": _contracon(6, 3, 1),
    "contracon_cct6_tiny_imagenet": _contracon(6, 5, 2),
    "contracon_cct6_imagenet100": _contracon(6, 3, 3),
    "contracon_cct7_five_datasets": _contracon(7, 3, 2),
}
"""By the data; the first is for CIFAR-100. `mixer.num_tasks` and `mixer.task` say which
of how many tasks it is."""

_PROJECTIONS: list[Row] = [
    (f"mixer/{name[0]}", f"self_attn.{name}", _CONVOLVED)
    for name in ("query", "key", "value")
]
_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_TINY_IMAGENET = (0.480, 0.448, 0.397), (0.277, 0.270, 0.282)

CONTRACON = Family(
    name="contracon",
    presets=_PRESETS,
    layouts={
        "contracon": rows(
            "tokenizer.conv_layers.{i}.conv",
            [*_PROJECTIONS, ("mixer/proj", "self_attn.proj", LINEAR)],
            "classifier.attention_pool_SVD.fc",
            "classifier.fc_SVD.fc",
        )
    },
    anchors=("tokenizer.conv_layers.0.conv.weight",),
    classes=("classifier.fc_SVD.fc.weight",),
    epsilon=1e-5,
    # Of the first task, without the table of positions, which is not trained.
    figures={
        "contracon_cct6": Figures(
            3_231_755 - 256 * 256, 1.014, image_size=32, num_classes=10
        ),
        "contracon_cct6_tiny_imagenet": Figures(
            3_641_813 - 256 * 256, 1.446, image_size=64, num_classes=20
        ),
        "contracon_cct6_imagenet100": Figures(
            3_546_059 - 784 * 256, 5.366, num_classes=10
        ),
    },
    preprocessing={
        "": Preprocessing(32, 1.0, mean=_CIFAR100[0], std=_CIFAR100[1]),
        "contracon_cct6_tiny_imagenet": Preprocessing(
            64, 1.0, mean=_TINY_IMAGENET[0], std=_TINY_IMAGENET[1]
        ),
        "contracon_cct6_imagenet100": Preprocessing(),
    },
    recipes={k.removeprefix("contracon_"): Recipe(drop_path=0.1) for k in _PRESETS},
    config="finetune.py:{preset}",
)
