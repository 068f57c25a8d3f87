"""Published families of models, as data: a file holds what is known of one.

Its presets (a model of the registry and its arguments), its layout in published state
dicts, and how it was trained. `models`, `convert` and the recipes in `configs` read it
there; nothing here needs JAX. A new family is a file and a name below.
"""

from normjax.families.base import Family, Preprocessing, Recipe
from normjax.families.cswin import CSWIN
from normjax.families.deit import DEIT
from normjax.families.language import LANGUAGE
from normjax.families.llama import LLAMA
from normjax.families.mobilenet import MOBILENET
from normjax.families.pvt import PVT
from normjax.families.resnet import RESNET
from normjax.families.swin import SWIN

__all__ = ["FAMILIES", "PRESETS", "Family", "Preprocessing", "Recipe", "family_of"]

FAMILIES = {
    family.name: family
    for family in (DEIT, SWIN, PVT, CSWIN, RESNET, MOBILENET, LANGUAGE, LLAMA)
}
"""What is known of each family, a `Family`, by its name.

Example:
  >>> from normjax.families import FAMILIES
  >>> FAMILIES["deit"].epsilon
  1e-06
  >>> "slab_deit_tiny" in FAMILIES["deit"].presets
  True
"""

PRESETS = {
    name: preset
    for family in FAMILIES.values()
    for name, preset in family.presets.items()
}
"""Named models: a model of the registry and its arguments, nothing else.

Example:
  >>> from normjax.families import PRESETS
  >>> PRESETS["deit_tiny"]["dim"], PRESETS["deit_tiny"]["depth"]
  (192, 12)
"""


def family_of(preset: str) -> Family | None:
    """The family with a preset of this name; None where none has it.

    Args:
      preset: a key of `PRESETS`.

    Example:
      >>> from normjax.families import family_of
      >>> family_of("slab_swin_tiny").name
      'swin'
      >>> print(family_of("my_own_model"))
      None
    """
    return next((f for f in FAMILIES.values() if preset in f.presets), None)
