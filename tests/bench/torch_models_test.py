"""The models in torch load what we export strictly and compute what ours compute."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import convert, models
from normjax.convert.names import abstract_variables

torch = pytest.importorskip("torch")

DEIT = {"depth": 2, "dim": 48, "num_heads": 3}
SWIN = {"dims": (32, 32, 64, 64), "num_heads": (2, 2, 4, 4), "depths": (2, 2, 3, 1)}
SIZES = {"deit_tiny": DEIT, "slab_deit_tiny": DEIT, "swin_tiny": SWIN}
SIZES["slab_swin_tiny"] = SWIN
STEP, DECAY = 12_000, 60_000
SIDE = 224
# Running variances as torch's, so that those after a step can be compared.
NORM = {
    "name": "prepbn",
    "decay_steps": DECAY,
    "batch_norm": {"name": "repbn", "unbiased_running_var": True},
}
NORMS = {
    "slab_deit_tiny": {**NORM, "layer_norm": {"name": "layer_norm", "epsilon": 1e-6}},
    "slab_swin_tiny": {**NORM, "layer_norm": {"name": "layer_norm", "epsilon": 1e-5}},
}


@functools.cache
def pair(name):
    """(our model, its random variables, the same in torch)."""
    from normjax.bench import torch_models

    norm = {"norm": NORMS[name]} if name in NORMS else {}
    model = models.build(name, num_classes=5, **SIZES[name], **norm)
    rng = np.random.default_rng(3)

    def value(path, leaf):
        if leaf.dtype == np.int32:
            return np.asarray(STEP, np.int32)
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "var":
            values = 0.5 + np.abs(values)
        elif path[-1].key not in ("relative_position_bias", "positional_encoding"):
            values = 0.5 * values / np.prod(leaf.shape[:-1]) ** 0.5
        return values.astype(np.float32)

    abstract = abstract_variables(model, (SIDE, SIDE, 3))
    variables = jax.tree_util.tree_map_with_path(value, abstract)
    state = convert.to_torch(model, variables, (SIDE, SIDE))
    theirs = torch_models.MODELS[name](num_classes=5, **SIZES[name])
    theirs.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in state.items()})
    return model, variables, theirs


@pytest.fixture
def images():
    """Noise on patterns on a colour: of noise alone, the mean token hardly differs."""
    rng = np.random.default_rng(4)
    coarse = rng.standard_normal((3, 7, 7, 3)).repeat(32, 1).repeat(32, 2)
    images = coarse + rng.standard_normal(coarse.shape)
    images += 4 * rng.standard_normal((3, 1, 1, 3))
    return jnp.asarray(images, jnp.float32)


def torch_images(images):
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))


def assert_near(actual, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", SIZES)
def test_same_logits(name, images):
    model, variables, theirs = pair(name)
    with torch.inference_mode():
        expected = theirs.eval()(torch_images(images)).numpy()
        wide = copy.deepcopy(theirs).double()(torch_images(images).double()).numpy()
    assert_near(jax.jit(model.apply)(variables, images), expected)
    with jax.enable_x64(True):
        doubled = jax.tree.map(
            lambda x: x.astype(float) if x.dtype == np.float32 else x, variables
        )
        actual = np.asarray(jax.jit(model.apply)(doubled, np.asarray(images, float)))
    assert actual.dtype == wide.dtype == np.float64
    # What the images have in common says nothing about them.
    assert_near(actual - actual.mean(0), wide - wide.mean(0), 1e-9)


def gradients_of(module):
    """Of all parameters, but the class token that SLAB-DeiT does not read."""
    named = module.named_parameters()
    return {key: p.grad.numpy() for key, p in named if p.grad is not None}


@pytest.mark.parametrize("name", ["deit_tiny", "slab_deit_tiny"])
def test_same_training_step(name, images):
    """Logits, every gradient, and what the step leaves in the buffers."""
    model, variables, theirs = pair(name)
    state = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def step(params, images):
        def loss(params):
            given = {**state, "params": params}
            logits, new = model.apply(given, images, train=True, mutable=list(state))
            return jnp.mean(jnp.square(logits)), (logits, new)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (logits, new) = step(variables["params"], images)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    expected = theirs.train()(torch_images(images))
    theirs.zero_grad()
    expected.square().mean().backward()
    assert_near(logits, expected.detach().numpy())
    ours = convert.to_torch(model, {**new, "params": gradients}, (SIDE, SIDE))
    wanted = gradients_of(theirs)
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for key, gradient in wanted.items():
        # Some are 0 but for rounding, such as that of a bias of keys.
        scale = max(np.abs(gradient).max(), 1e-2 * largest)
        assert np.abs(ours[key] - gradient).max() < 1e-4 * scale, key
    for key, buffer in theirs.named_buffers():
        if not key.endswith("num_batches_tracked"):
            assert_near(ours[key], buffer.numpy())
    theirs.load_state_dict(before)


def test_what_is_timed_computes_the_model(monkeypatch):
    """The eager calls: logits for each number of images, and every gradient, twice."""
    from normjax.bench import torch_models

    theirs = pair("slab_deit_tiny")[2]
    monkeypatch.setitem(torch_models.MODELS, "small", lambda: copy.deepcopy(theirs))
    rng = np.random.default_rng(5)
    images = rng.standard_normal((3, SIDE, SIDE, 3)).astype(np.float32)
    calls = torch_models.calls("torch", "small", images, (1, 3))
    assert list(calls) == ["forward 1", "forward 3", "train 3"]
    with torch.inference_mode():
        expected = theirs.eval()(torch_images(images)).numpy()
    assert_near(calls["forward 3"]().numpy(), expected)
    assert_near(calls["forward 1"]().numpy(), expected[:1])
    module = copy.deepcopy(theirs).train()
    module(torch_images(images)).square().mean().backward()
    expected = gradients_of(module)
    assert dict(theirs.named_parameters()).keys() - expected.keys() == {"cls_token"}
    for _ in range(2):
        actual = calls["train 3"]()
    # The second step finds other running statistics, which training does not read.
    for key, gradient in expected.items():
        assert_near(actual[key].numpy(), gradient, 1e-2)
