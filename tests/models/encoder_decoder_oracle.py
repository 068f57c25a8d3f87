"""An encoder-decoder in LLaMA's shape, in float64 NumPy from its equations.

Weights are (in, out); source and target are the tokens of one row, without padding.
"""

import numpy as np

from tests.models.decoder_oracle import swiglu, turned


def attention(x, memory, weights, heads, base=None, causal=False):
    """[N, D]: queries of x look at memory [M, E] one by one.

    Args:
      weights: of q, k, v and the output.  base: of rotary positions; None: none.
      causal: query n sees the keys up to n.
    """
    w_q, w_k, w_v, w_o = weights
    q, k, v = x @ w_q, memory @ w_k, memory @ w_v
    width = q.shape[-1] // heads
    result = np.zeros_like(q)
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        qh, kh = q[:, own], k[:, own]
        if base is not None:
            qh, kh = turned(qh, base), turned(kh, base)
        for n in range(len(x)):
            seen = n + 1 if causal else len(memory)
            scores = np.exp(kh[:seen] @ qh[n] / np.sqrt(width))
            result[n, own] = scores / scores.sum() @ v[:seen, own]
    return result @ w_o


def branch(x, layer, name, function):
    """x after a residual branch, with norms of what it reads, gives and leaves."""
    y = layer[f"{name}_out"](function(layer[f"{name}_in"](x)))
    return layer[f"{name}_stream"](x + y)


def encoder_decoder(source, target, table, encoder, decoder, norms, head, heads, base):
    """Logits [N, vocabulary].

    Args:
      table: [vocabulary, D].
      encoder, decoder: layers, dicts of "self", "cross" (weights of attention), "mlp"
        (gate, up, down) and the norms of each branch: functions norm1_in, norm1_out,
        norm1_stream, and so on.
      norms: functions of the embeddings and of the last streams: encoder_embed_norm,
        encoder_norm, embed_norm, norm.
      head: [D, vocabulary].  base: of rotary positions, or None.
    """
    memory = norms["encoder_embed_norm"](table[np.asarray(source)])
    for layer in encoder:

        def see(h, layer=layer):
            return attention(h, h, layer["self"], heads, base)

        memory = branch(memory, layer, "norm1", see)
        memory = branch(memory, layer, "norm2", lambda h, w=layer: swiglu(h, *w["mlp"]))
    memory = norms["encoder_norm"](memory)
    x = norms["embed_norm"](table[np.asarray(target)])
    for layer in decoder:

        def mix(h, layer=layer):
            return attention(h, h, layer["self"], heads, base, causal=True)

        def look(h, layer=layer):
            return attention(h, memory, layer["cross"], heads)

        x = branch(x, layer, "norm1", mix)
        x = branch(x, layer, "norm_cross", look)
        x = branch(x, layer, "norm2", lambda h, w=layer: swiglu(h, *w["mlp"]))
    return norms["norm"](x) @ head
