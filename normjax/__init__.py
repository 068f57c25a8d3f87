"""normjax: normalization and attention variants in JAX/Flax, and the tools around them.

Sub-packages are imported by name (`from normjax import norms, models`), so that
`import normjax` itself costs nothing.
"""

__version__ = "0.1.0"
