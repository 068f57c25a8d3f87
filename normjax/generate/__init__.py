"""Text from language models: sampling, and decoding with a cache.

    cache = init_cache(model, variables, batch_size=2, length=1024)
    logits, cache = extend(model, variables, cache, prompts)  # one call for all of it
    logits, cache = extend(model, variables, cache, sample(logits[:, -1], key)[:, None])

`generate` is all of this as one program; `python -m normjax.generate` runs it on a run.
"""

from normjax.generate.decoding import cache_bytes, extend, generate, init_cache
from normjax.generate.sampling import sample

__all__ = ["cache_bytes", "extend", "generate", "init_cache", "sample"]
