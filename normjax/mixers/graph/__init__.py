"""Mixers of the nodes of graphs, called `mixer(x, *, adjacency, edges, mask, train)`.

    x          [B, N, D], the nodes, or a map [B, H, W, D], whose positions are nodes
    adjacency  bool, broadcastable to [B, N, N]: [b, i, j] is an edge from j to i. None:
               all pairs, but no node with itself
    edges      [B, N, N, E], features of the edges; None: there are none
    mask       bool [B, N] or [B, H, W]; False is no node
    train      passed to norms inside

They return the nodes, like x, and, beside `edges`, a pair of nodes and edges.
"""
