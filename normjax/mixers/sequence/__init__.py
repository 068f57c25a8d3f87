"""Mixers of token sequences [B, L, D], and of maps [B, H, W, D], read row by row.

All are called `mixer(x, *, mask, positions, train, decode) -> y`, like x:

    mask       bool [B, L] or [B, H, W]; False is padding, which leaves no trace
    positions  int [B, L], the position of each token in its document; 0 starts a
               document, and documents do not see each other. None: one document a row
    train      passed to `qk_norm`
    decode     the tokens continue those of the calls before, see `mixers.cache`; not
               together with positions, which are counted then

Those in which every token weighs every other take the tokens of cross-attention, too:

    memory      [B, M, E], what keys and values are made of; None: x. Queries then have
                a projection of their own beside that of the others
    mask        bool over the keys, then [B, M]
    query_mask  bool [B, L], the same of x beside a memory, for statistics

Nothing that speaks of the order of one sequence goes together with a memory: `causal`,
`rotary_base`, `relative_bias`, positions. Such mixers decode with `causal=True` only.
"""
