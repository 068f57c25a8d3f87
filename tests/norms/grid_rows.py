"""EvoNorm, region normalization and the Poincare ball."""

import numpy as np

from tests.norms.example_rows import GRID, group_parts, moments, valid_of
from tests.norms.row import Row


def variances(x, valid, parts):
    """The variance of every part, at its entries."""
    out = np.empty_like(x)
    for part in parts:
        out[part] = moments(x[part], valid[part])[1]
    return out


def evonorm_b0(x, params, stats, mask, train, kwargs):
    valid, epsilon = valid_of(mask, x), kwargs.get("epsilon", 1e-3)
    var, new = stats["var"], stats
    if train:
        rows = x[valid].reshape(-1, x.shape[-1])
        var = rows.var(0)
        kept = rows.var(0, ddof=1) if kwargs.get("unbiased_running_var") else var
        new = {"var": 0.9 * stats["var"] + 0.1 * kept}
    instance = variances(x, valid, group_parts(x, x.shape[-1]))
    other = params["v"] * x + np.sqrt(instance + epsilon)
    y = x / np.maximum(np.sqrt(var + epsilon), other)
    return y * params["scale"] + params["bias"], new


def evonorm_s0(x, params, stats, mask, train, kwargs):
    var = variances(x, valid_of(mask, x), group_parts(x, kwargs["num_groups"]))
    y = x / (1 + np.exp(-params["v"] * x)) / np.sqrt(var + kwargs.get("epsilon", 1e-5))
    return y * params["scale"] + params["bias"], stats


def by_region(x, region, epsilon):
    """Each region centred, divided by sqrt(var + epsilon / its share)."""
    y = np.zeros_like(x)
    for inside in (region, ~region):
        if inside.any():
            rows = x[inside]
            share = inside.mean()
            root = np.sqrt(rows.var(0) + epsilon / share)
            y[inside] = (rows - rows.mean(0)) / root
    return y


def region_norm(x, params, stats, mask, train, kwargs):
    region = valid_of(mask, x)[..., 0]
    y, inside = by_region(x, region, kwargs.get("epsilon", 1e-5)), region[..., None]
    fore, back = inside * 1.0, ~inside * 1.0
    gain = params["foreground_scale"] * fore + params["background_scale"] * back
    if not kwargs.get("masked_bias"):
        fore = back = 1.0
    bias = params["foreground_bias"] * fore + params["background_bias"] * back
    return y * (1 + gain) + bias, stats


def conv(maps, kernel):
    """Cross-correlation with zero padding to one output map."""
    k = kernel.shape[0] // 2
    padded = np.pad(maps, ((0, 0), (k, k), (k, k), (0, 0)))
    out = np.zeros((*maps.shape[:-1], 1))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            shifted = padded[:, i : i + maps.shape[1], j : j + maps.shape[2]]
            out += shifted @ kernel[i, j]
    return out


def region_norm_learnable(x, params, stats, mask, train, kwargs):
    both = [x.mean(-1, keepdims=True), x.max(-1, keepdims=True)]
    logits = conv(np.concatenate(both, -1), params["attention"]["kernel"])
    attention = 1 / (1 + np.exp(-logits))
    region = attention[..., 0] >= kwargs.get("threshold", 0.8)
    assert region.any() and not region.all()
    scale, bias = (
        conv(attention, params[k]["kernel"]) + params[k]["bias"]
        for k in ("scale", "bias")
    )
    return by_region(x, region, kwargs.get("epsilon", 1e-5)) * (1 + scale) + bias, stats


def length(v):
    return np.sqrt((v**2).sum(-1, keepdims=True))


class Ball:
    """The Poincare ball of curvature -c, by its textbook formulas."""

    def __init__(self, c, margin):
        self.c, self.root, self.limit = c, np.sqrt(c), (1 - margin) / np.sqrt(c)

    def inside(self, p):
        return np.where(length(p) > self.limit, p / length(p) * self.limit, p)

    def add(self, p, q):
        pq, pp, qq = (p * q).sum(-1, keepdims=True), length(p) ** 2, length(q) ** 2
        top = (1 + 2 * self.c * pq + self.c * qq) * p + (1 - self.c * pp) * q
        return top / (1 + 2 * self.c * pq + self.c**2 * pp * qq)

    def factor(self, p):
        return 2 / (1 - self.c * length(p) ** 2)

    def exp(self, p, v):
        z = self.root * self.factor(p) * length(v) / 2
        return self.inside(self.add(p, np.tanh(z) * v / (self.root * length(v))))

    def log(self, p, q):
        u = self.add(-p, q)
        size = np.arctanh(self.root * length(u)) * 2 / self.root / self.factor(p)
        return size * u / length(u)

    def transport(self, p, q, v):
        """gyr[q, -p] v = -(q - p) + (q + (-p + v)), linear in v: taken on a short v."""
        short = 1e-2 / self.root
        n = length(v)
        w = v / n * short
        moved = self.add(-self.add(q, -p), self.add(q, self.add(-p, w)))
        return moved * n / short * self.factor(p) / self.factor(q)


def poincare_batch_norm(x, params, stats, mask, train, kwargs):
    c = kwargs.get("curvature", 1.0)
    if kwargs.get("learn_curvature"):
        c = np.log1p(np.exp(params["raw_curvature"]))
    ball, origin = Ball(c, kwargs["margin"]), np.zeros(x.shape[-1])
    points, target = ball.exp(origin, x), ball.exp(origin, params["mean"])
    rows = points[valid_of(mask, x)[..., 0]]
    weight = 1 / (1 - c * length(rows) ** 2)
    middle = (weight * rows).sum(0) / (weight.sum() - len(rows) / 2)
    gamma = 1 / np.sqrt(1 - c * (middle**2).sum())
    middle = gamma / (1 + gamma) * middle
    distance = 2 / ball.root * np.arctanh(ball.root * length(ball.add(-middle, rows)))
    var = (distance**2).mean()
    tangent = ball.transport(middle, target, ball.log(middle, points))
    tangent = tangent * np.sqrt(params["variance"] / (var + 1e-6))
    return ball.log(origin, ball.exp(target, tangent)), stats


BALL = {"curvature": 0.02, "margin": 4e-3}

ROWS = [
    Row("evonorm_b0", evonorm_b0, large_mean=False),
    Row(
        "evonorm_b0",
        evonorm_b0,
        {"unbiased_running_var": True, "epsilon": 0.1},
        shape=GRID,
        large_mean=False,
    ),
    Row("evonorm_s0", evonorm_s0, {"num_groups": 2}, large_mean=False),
    Row("evonorm_s0", evonorm_s0, {"num_groups": 3}, shape=GRID, large_mean=False),
    Row("region_norm", region_norm, shape=GRID, large_mean=False),
    Row("region_norm", region_norm, {"masked_bias": True}, large_mean=False),
    Row(
        "region_norm_learnable",
        region_norm_learnable,
        {"kernel_size": 3, "threshold": 0.99992},
        shape=GRID,
        large_mean=False,
    ),
    Row("poincare_batch_norm", poincare_batch_norm, BALL, large_mean=False),
    Row(
        "poincare_batch_norm",
        poincare_batch_norm,
        {"learn_curvature": True, "margin": 0.1},
        large_mean=False,
    ),
]
