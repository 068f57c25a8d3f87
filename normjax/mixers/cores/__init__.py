"""What mixes the positions of a map, of a window or of a stripe: cores.

A core is called `core(q, k, v, *, mask=None, regions=None) -> o` on maps: q
[B, H, W, D], k and v [B, H', W', D], o like q. `mask` is bool [B, H', W'], False gives
no key and no value. `regions` is described at `RelativeSoftmax`. Mixers bring the maps
(the whole grid, windows, stripes, a reduced grid) and share their scope with the core,
so that its parameters are theirs. A core with a method `takes_windows(q, windows,
train)` is given a whole map and `windows=ops.partition.Windows(size, shift)` in the
place of regions where that says True of the shape and dtype of its queries.
"""

from normjax.mixers.cores.absolute_offset_softmax import AbsoluteOffsetSoftmax
from normjax.mixers.cores.cosine import Cosine
from normjax.mixers.cores.focused_linear import FocusedLinear
from normjax.mixers.cores.query_relative_softmax import QueryRelativeSoftmax
from normjax.mixers.cores.relative_softmax import RelativeSoftmax
from normjax.mixers.cores.sla import SimplifiedLinear
from normjax.mixers.cores.softmax import Softmax

__all__ = [
    "AbsoluteOffsetSoftmax",
    "Cosine",
    "FocusedLinear",
    "QueryRelativeSoftmax",
    "RelativeSoftmax",
    "SimplifiedLinear",
    "Softmax",
]
