"""Optimizers by their equations, in NumPy: parameters after some gradients.

Kernels are [in, out]; `matrix` says whether one belongs to a hidden layer. Two steps
are few: the schedules of resets and of subspaces are held elsewhere.
"""

import numpy as np


def adamw(start, gradients, rate, decay, beta1=0.9, beta2=0.99, epsilon=1e-8):
    w, m, v = start.copy(), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        u = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        w = w - rate * (u + decay * w)
    return w


def sgd(start, gradients, rate, decay, beta1=0.9):
    w, m = start.copy(), 0.0
    for g in gradients:
        g = g + decay * w
        m = beta1 * m + g
        w = w - rate * (g + beta1 * m)
    return w


def lion(start, gradients, rate, decay, beta1=0.9, beta2=0.99):
    w, m = start.copy(), 0.0
    for g in gradients:
        u = np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        w = w - rate * (u + decay * w)
    return w


def along_removed(w, g, u, delta=0.1, epsilon=1e-8):
    """(u, factor of decay) of AdamP."""
    if w.ndim < 2:
        return u, 1.0
    for axis in (0, None):
        size = w.shape[0] if axis == 0 else w.size
        norm = np.sqrt(np.sum(w**2, axis=axis, keepdims=True))
        below = np.sqrt(np.sum(g**2, axis=axis, keepdims=True)) * norm
        cosine = np.abs(np.sum(w * g, axis=axis, keepdims=True)) / below
        if cosine.max() < delta / np.sqrt(size):
            n = w / (norm + epsilon)
            return u - n * np.sum(n * u, axis=axis, keepdims=True), 0.1
    return u, 1.0


def adamp(start, gradients, rate, decay, beta1=0.9, beta2=0.99):
    w, m, v = start.copy(), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        u, ratio = along_removed(w, g, m / (np.sqrt(v / (1 - beta2**t)) + 1e-8))
        w = w * (1 - rate * decay * ratio) - rate / (1 - beta1**t) * u
    return w


def sgdp(start, gradients, rate, decay, beta1=0.9):
    w, m = start.copy(), 0.0
    for g in gradients:
        m = beta1 * m + g
        u, ratio = along_removed(w, g, m)
        w = w * (1 - rate * decay * ratio / (1 - beta1)) - rate * u
    return w


def newton_schulz(x):
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if turned else x


def normuon(start, gradients, rate, decay, matrix):
    if not matrix:
        return adamw(start, gradients, 0.015 * rate, decay, epsilon=1e-10)
    w, m, v = start.T.copy(), 0.0, 0.0
    for g in gradients:
        m = 0.95 * m + 0.05 * g.T
        o = newton_schulz(0.05 * g.T + 0.95 * m)
        v = 0.95 * v + 0.05 * np.mean(o**2, axis=1, keepdims=True)
        u = o / (np.sqrt(v) + 1e-10)
        u = u * np.linalg.norm(o) / np.linalg.norm(u)
        u = u * np.sqrt(max(1, w.shape[0] / w.shape[1]))
        w = w * (1 - rate * decay) - rate * u
    return w.T


def stable_spam(start, gradients, rate, decay, beta1=0.9, beta2=0.99):
    w, m, v, a, n, s = start.copy(), 0.0, 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        w = w * (1 - rate * decay)
        most = np.abs(g).max()
        a = 0.999 * a + 0.001 * most
        limit = a / (1 - 0.999**t)
        g = np.where(np.abs(g) > limit, g * limit / most, g)
        size = np.linalg.norm(g)
        n, s = 0.7 * n + 0.3 * size, 0.9 * s + 0.1 * size**2
        g = g / size * (n / (1 - 0.7**t)) / (np.sqrt(s / (1 - 0.9**t)) + 1e-8)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        u = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
        w = w - rate * u
    return w


def corrected(t, beta1=0.9, beta2=0.99):
    return np.sqrt(1 - beta2**t) / (1 - beta1**t)


def of_subset(g, matrix):
    """Sums of squares over an output unit, or an input if there are fewer outputs."""
    if not matrix:
        return g**2
    return np.sum(g**2, axis=0 if g.shape[1] >= g.shape[0] else 1, keepdims=True)


def subset_norm(start, gradients, rate, decay, matrix):
    w, m, v = start.copy(), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * of_subset(g, matrix)
        w = w - rate * corrected(t) * m / (np.sqrt(v) + 1e-6)
        w = w * (1 - rate * decay)
    return w


def first_direction(g):
    """A projector [out, out] or [in, in] of the shorter side, and how it acts."""
    left, _, right = np.linalg.svd(g)
    if g.shape[1] >= g.shape[0]:
        return lambda x, q=left[:, :1]: q @ (q.T @ x)
    return lambda x, q=right[:1]: (x @ q.T) @ q


def subspace_momentum(start, gradients, rate, decay, matrix):
    if not matrix:
        return subset_norm(start, gradients, rate, decay, False)
    w, m, v, inside = start.copy(), 0.0, 0.0, first_direction(gradients[0])
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * inside(g), 0.99 * v + 0.01 * of_subset(g, True)
        u = m + g - inside(g)
        w = w - rate * corrected(t) * u / (np.sqrt(v) + 1e-6)
        w = w * (1 - rate * decay)
    return w


def low_rank_adam(gradients):
    """Adam's direction in the first singular vector of the first gradient."""
    left, _, right = np.linalg.svd(gradients[0])
    m, v, short = 0.0, 0.0, gradients[0].shape[1] < gradients[0].shape[0]
    for t, g in enumerate(gradients, 1):
        low = g @ right[:1].T if short else left[:, :1].T @ g
        m, v = 0.9 * m + 0.1 * low, 0.99 * v + 0.01 * low**2
        u = corrected(t) * m / (np.sqrt(v) + 1e-6)
        yield u @ right[:1] if short else left[:, :1] @ u


def plain_adam(gradients):
    m, v = 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        yield corrected(t) * m / (np.sqrt(v) + 1e-6)


def galore(start, gradients, rate, decay, matrix):
    w = start.copy()
    steps = low_rank_adam(gradients) if matrix else plain_adam(gradients)
    for u in steps:
        w = (w - rate * (0.25 if matrix else 1.0) * u) * (1 - rate * decay)
    return w


def gradnormlorp(start, gradients, rate, decay, matrix):
    v, axis = start.copy(), 0 if matrix else None
    steps = low_rank_adam(gradients) if matrix else plain_adam(gradients)
    m, s, w = 0.0, 0.0, start
    for t, (u, g) in enumerate(zip(steps, gradients, strict=True), 1):
        n = np.sqrt(np.sum(v**2, axis=axis, keepdims=True))
        slope = np.sum(g * v, axis=axis, keepdims=True) / n
        m, s = 0.9 * m + 0.1 * slope, 0.99 * s + 0.01 * slope**2
        size = n - rate * corrected(t) * m / (np.sqrt(s) + 1e-6)
        v = (v - rate * (4.0 if matrix else 1.0) * u) * (1 - rate * decay)
        size = size * (1 - rate * decay)
        w = size * v / np.sqrt(np.sum(v**2, axis=axis, keepdims=True))
    return w


def locally(g):
    return g * min(1.0, 1.0 / (np.linalg.norm(g) + 1e-6))


def clipped_adagrad(start, gradients, rate, decay):
    w, v = start.copy(), 0.0
    for g in map(locally, gradients):
        v = v + g**2
        w = (w - rate * g / (np.sqrt(v) + 1e-10)) * (1 - rate * decay)
    return w


def clipped_adam(start, gradients, rate, decay):
    w = start.copy()
    for u in plain_adam([locally(g) for g in gradients]):
        w = (w - rate * u) * (1 - rate * decay)
    return w


def adagrad_unit_norm(start, gradients, rate, decay):
    w, s = start.copy(), 0.01
    for g in gradients:
        s = s + np.sum(np.atleast_2d(g) ** 2, axis=0)
        w = w * (1 - rate * decay) - rate * g / (np.sqrt(s) + 1e-10)
    return w


ALIKE = (adamw, sgd, lion, adamp, sgdp, stable_spam)
ALIKE = (*ALIKE, clipped_adagrad, clipped_adam, adagrad_unit_norm)
OF_MATRICES = (normuon, subset_norm, subspace_momentum, galore, gradnormlorp)
LOW_RANK = ("subspace_momentum", "galore", "gradnormlorp")
ARGUMENTS = {name: {"rank": 1} for name in LOW_RANK}
"""Arguments that the oracles have for defaults."""
