"""Published families of models, as data: a file holds what is known of one.

Its presets (a model of the registry and its arguments), its layout in published state
dicts, and how it was trained. `models`, `convert` and the recipes in `configs` read it
there; nothing here needs JAX. A new family is a file and a name below.
"""

from normjax.families.base import Family, Figures, Preprocessing, Recipe
from normjax.families.cct import CCT
from normjax.families.contracon import CONTRACON
from normjax.families.cswin import CSWIN
from normjax.families.davit import DAVIT
from normjax.families.deit import DEIT
from normjax.families.efficientmod import EFFICIENTMOD
from normjax.families.favit import FAVIT
from normjax.families.fcaformer import FCAFORMER
from normjax.families.gcvit import GCVIT
from normjax.families.graph_transformer import GRAPH_TRANSFORMER
from normjax.families.group_mamba import GROUP_MAMBA
from normjax.families.halonet import HALONET
from normjax.families.iformer import IFORMER
from normjax.families.illama import ILLAMA
from normjax.families.language import LANGUAGE
from normjax.families.llama import LLAMA
from normjax.families.m2_bert import M2_BERT
from normjax.families.mobilenet import MOBILENET
from normjax.families.ms_mlp import MS_MLP
from normjax.families.nfnet import NFNET
from normjax.families.norm_free_gpt import NORM_FREE_GPT
from normjax.families.openelm import OPENELM
from normjax.families.osnet import OSNET
from normjax.families.parscale import PARSCALE
from normjax.families.poolformer import POOLFORMER
from normjax.families.pvt import PVT
from normjax.families.raft_mlp import RAFT_MLP
from normjax.families.ravlt import RAVLT
from normjax.families.resnet import RESNET
from normjax.families.sg_former import SG_FORMER
from normjax.families.stvit import STVIT
from normjax.families.sviptr import SVIPTR
from normjax.families.swin import SWIN
from normjax.families.t2t_vit import T2T_VIT
from normjax.families.tiny_vit import TINY_VIT
from normjax.families.transnext import TRANSNEXT
from normjax.families.vig import VIG
from normjax.families.widenet import WIDENET

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Family",
    "Figures",
    "Preprocessing",
    "Recipe",
    "family_of",
]

_ALL = (
    *(DEIT, SWIN, PVT, CSWIN, RESNET, MOBILENET, LANGUAGE, LLAMA),
    *(POOLFORMER, DAVIT, EFFICIENTMOD, TRANSNEXT, GCVIT, TINY_VIT, NFNET),
    *(CCT, T2T_VIT, VIG, CONTRACON, HALONET, OSNET),
    *(STVIT, RAVLT, IFORMER, ILLAMA, WIDENET),
    *(FAVIT, SG_FORMER, RAFT_MLP, MS_MLP, FCAFORMER, GROUP_MAMBA, SVIPTR, M2_BERT),
    *(GRAPH_TRANSFORMER, OPENELM, NORM_FREE_GPT, PARSCALE),
)
FAMILIES = {family.name: family for family in _ALL}
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
