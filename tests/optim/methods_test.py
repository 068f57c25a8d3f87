"""What optimizers of several parameters together do, on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax import optim

PARAMS = {
    "fc": {"kernel": jnp.sin(jnp.arange(32.0).reshape(8, 4))},
    "head": {"kernel": jnp.cos(jnp.arange(8.0).reshape(4, 2))},
    "norm": {"scale": jnp.ones(4)},
}


def test_all_gradients_are_clipped_together():
    """b^2 grows by the squared norm after clipping, 1; delayed, b is that before."""
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for delay, b in ((False, 2.0), (True, 3**0.5)):
        optimizer = optim.optimizers.clipped_adagrad_norm(
            1.0, initial=3**0.5, delay=delay, weight_decay=0.0
        )
        updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
        np.testing.assert_allclose(updates["a"], -0.6 / b, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], -0.8 / b, rtol=1e-6)


def test_on_four_devices_as_on_one(x64):
    """Two updates of every optimizer, in one program; parameters split by fsdp."""
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    made = {e.name: optim.build({"name": e.name}, 10) for e in optim.OPTIMIZERS}

    @jax.jit
    def run(params):
        found = {}
        for name, optimizer in made.items():
            now, state = params, optimizer.init(params)
            for _ in range(2):
                gradients = jax.tree.map(lambda x: jnp.cos(3 * x), now)
                updates, state = optimizer.update(gradients, state, now)
                now = optax.apply_updates(now, updates)
            found[name] = now
        return found

    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    specs = jax.tree.map(lambda x: PartitionSpec(*["fsdp"][: x.ndim - 1]), PARAMS)
    lie = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    split, whole = run(jax.device_put(params, lie)), run(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
        jax.device_get(split),
        jax.device_get(whole),
    )
