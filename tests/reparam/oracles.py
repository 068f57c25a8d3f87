"""Float64 NumPy from the equations, unit by unit on the matrix [out, n]."""

import numpy as np


def rows_of(kernel):
    """One row of weights per output unit."""
    return np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)


def kernel_of(rows, like):
    return np.moveaxis(rows.reshape(like.shape[-1], *like.shape[:-1]), 0, -1)


def by_unit(layer, function):
    """The layer with `function(weights of a unit, its number)` for every unit."""
    kernel = layer["kernel"]
    rows = np.stack([function(w, i) for i, w in enumerate(rows_of(kernel))])
    return {**layer, "kernel": kernel_of(rows, kernel)}


def weight_standardization(layer, own, vectors, kwargs):
    epsilon, ddof = kwargs.get("epsilon", 1e-5), int(kwargs.get("unbiased", True))

    def unit(w, i):
        if kwargs.get("epsilon_inside"):
            return (w - w.mean()) / np.sqrt(w.var(ddof=ddof) + epsilon)
        return (w - w.mean()) / (w.std(ddof=ddof) + epsilon)

    return by_unit(layer, unit)


def scaled_weight_standardization(layer, own, vectors, kwargs):
    epsilon = kwargs.get("epsilon", 1e-4)

    def unit(w, i):
        return (w - w.mean()) * own["gain"][i] / np.sqrt(max(w.size * w.var(), epsilon))

    return by_unit(layer, unit)


def ones(layer, kwargs):
    return {"gain": np.ones(layer["kernel"].shape[-1])}


def weight_normalization(layer, own, vectors, kwargs):
    return by_unit(layer, lambda v, i: own["gain"][i] * v / np.linalg.norm(v))


def lengths(layer, kwargs):
    return {"gain": np.array([np.linalg.norm(v) for v in rows_of(layer["kernel"])])}


def weight_compander(layer, own, vectors, kwargs):
    kernel = own["amplitude"] * np.arctan(layer["kernel"] / own["width"])
    return {**layer, "kernel": kernel}


def sizes(layer, kwargs):
    root = np.sqrt((layer["kernel"] ** 2).mean())
    return {k: kwargs.get(k, 1.0) * root for k in ("amplitude", "width")}


def scale_and_shift(layer, own, vectors, kwargs):
    scale, shift = own["ssf_scale"], own["ssf_shift"]
    name = "kernel" if "kernel" in layer else "scale"
    bias = layer.get("bias", np.zeros(len(scale)))
    return {name: layer[name] * scale, "bias": bias * scale + shift}


def unit_vector(v):
    return v / np.linalg.norm(v)


def sigma_vectors(layer, own, state, kwargs, train):
    """One power iteration; stored in training only."""
    matrix = rows_of(layer["kernel"])
    left = unit_vector(matrix @ state["right"])
    right = unit_vector(matrix.T @ left)
    new = {"right": right, "sigma": left @ matrix @ right}
    return {"left": left, "right": right}, new if train else state


def sigma_reparam(layer, own, vectors, kwargs):
    matrix = rows_of(layer["kernel"])
    sigma = vectors["left"] @ matrix @ vectors["right"]
    return {**layer, "kernel": own["gamma"] * layer["kernel"] / sigma}


def gamma(layer, kwargs):
    largest = np.linalg.norm(rows_of(layer["kernel"]), 2)
    spectral = kwargs.get("gamma_init") == "spectral"
    return {"gamma": np.asarray(largest if spectral else 1.0)}


def stable_rank_vectors(layer, own, state, kwargs, train):
    left, right = state["left"], state["right"]
    for _ in range(kwargs.get("iterations", 1) if train else 0):
        right = unit_vector(rows_of(layer["kernel"]).T @ left)
        left = unit_vector(rows_of(layer["kernel"]) @ right)
    vectors = {"left": left, "right": right}
    return vectors, vectors


def stable_rank_normalization(layer, own, vectors, kwargs):
    matrix, ratio = rows_of(layer["kernel"]), kwargs.get("rank_ratio", 0.7)
    sigma = vectors["left"] @ matrix @ vectors["right"]
    scaled = matrix / sigma
    first = np.outer(vectors["left"], vectors["right"])
    size = np.linalg.norm(scaled - first)
    most = np.sqrt(max(1.0, ratio * min(matrix.shape)) - 1)
    if ratio <= 0.9999 and size > most:
        scaled = first + (scaled - first) * most / size
    scaled = scaled * (sigma if kwargs.get("keep_scale") else 1)
    return {**layer, "kernel": kernel_of(scaled, layer["kernel"])}


def direction(layer, own, kwargs):
    low = own["lora_a"] @ own["lora_b"]
    scale = kwargs.get("alpha", 16.0) / kwargs.get("rank", 8)
    return rows_of(layer["kernel"]) + scale * low.T


def direction_lengths(layer, own, state, kwargs, train):
    return np.linalg.norm(direction(layer, own, kwargs), axis=1), state


def dora(layer, own, lengths, kwargs):
    rows = direction(layer, own, kwargs) * (own["magnitude"] / lengths)[:, None]
    return {**layer, "kernel": rows.T.reshape(layer["kernel"].shape)}


def adapter(layer, own, kwargs, like):
    """(alpha / rank) A B by units, with alpha of its default."""
    rank = kwargs["rank"]
    rows = (own["lora_a"] @ own["lora_b"]) * (kwargs.get("alpha", rank) / rank)
    return rows.reshape(like.shape)


def lora(layer, own, vectors, kwargs):
    kernel = layer["kernel"]
    return {**layer, "kernel": kernel + adapter(layer, own, kwargs, kernel)}


def mask_lora(layer, own, vectors, kwargs):
    kernel = layer["kernel"]
    mask = (np.abs(kernel) > 0).astype(float)
    return {**layer, "kernel": kernel + mask * adapter(layer, own, kwargs, kernel)}


def scale_lora(layer, own, vectors, kwargs):
    kernel = layer["kernel"]
    return {**layer, "kernel": kernel * adapter(layer, own, kwargs, kernel)}


def roots_of_rank(layer, kwargs):
    kernel, rank = layer["kernel"], kwargs["rank"]
    units = kernel.shape[-1]
    shapes = {"lora_a": (kernel.size // units, rank), "lora_b": (rank, units)}
    return {k: np.ones(s) / np.sqrt(rank) for k, s in shapes.items()}


def singular_values(layer, own, vectors, kwargs):
    """The given vectors are none of the kernel: W + U diag(e) V^T, of the last part."""
    rows = rows_of(layer["kernel"]).copy()
    first = len(rows) - len(rows) // kwargs.get("splits", 1)
    for e, u, v in zip(own["shift"], vectors["left"].T, vectors["right"], strict=True):
        rows[first:] += e * np.outer(u, v)
    return {**layer, "kernel": kernel_of(rows, layer["kernel"])}


def kept_vectors(layer, own, state, kwargs, train):
    return state, state


def no_shift(layer, kwargs):
    kernel, parts = layer["kernel"], kwargs.get("splits", 1)
    units = kernel.shape[-1]
    return {"shift": np.zeros(min(units // parts, kernel.size // units))}
