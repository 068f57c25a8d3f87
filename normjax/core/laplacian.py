"""Positions of the nodes of a graph. No jax here: data are made of them, too."""

import numpy as np

from normjax.core.errors import UserError


def laplacian_positions(adjacency: np.ndarray, count: int) -> np.ndarray:
    """The eigenvectors 2 to count + 1 of I - D^(-1/2) A D^(-1/2), by their eigenvalues.

    D is the in-degree, at least 1; of a directed graph, the real parts (Dwivedi and
    Bresson, 2020). The sign of each is that of the library.

    Args:
      adjacency: [N, N]; [i, j] is not 0 for an edge from j to i.
      count: positions of a node.

    Returns:
      [N, count] in float64.

    Raises:
      UserError: fewer than `count` + 1 nodes.

    Example:
      >>> import numpy as np
      >>> from normjax import mixers
      >>> path = np.eye(3, k=1) + np.eye(3, k=-1)  # 0 - 1 - 2
      >>> print(np.abs(mixers.laplacian_positions(path, 1)).round(3).ravel())
      [0.707 0.    0.707]
    """
    adjacency = np.asarray(adjacency, np.float64)
    nodes = len(adjacency)
    if nodes < count + 1:
        raise UserError(
            f"a graph of {nodes} nodes has no {count} positions: it needs {count + 1}"
        )
    root = np.maximum((adjacency != 0).sum(1), 1) ** -0.5
    laplacian = np.eye(nodes) - root[:, None] * adjacency * root
    values, vectors = np.linalg.eig(laplacian)
    order = np.argsort(values.real, kind="stable")
    return vectors[:, order[1 : count + 1]].real
