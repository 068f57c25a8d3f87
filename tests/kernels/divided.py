"""Programs for TPUs that are not there, each with a part of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.core.spmd import batch_divided
from normjax.plan.topology import devices_of, prepare


def calls_of_gradients(chip, layer, shape, **call):
    """Lines that call kernels in the gradients of a layer, on four devices."""
    prepare([chip])
    mesh = Mesh(np.array(devices_of(chip)[:4]), ("data",))

    def loss(params, x):
        with batch_divided(mesh, ("data",)):
            return jnp.sum(jnp.square(layer.apply({"params": params}, x, **call)))

    def abstract(t, spec):
        return jax.ShapeDtypeStruct(
            t.shape, t.dtype, sharding=NamedSharding(mesh, spec)
        )

    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda t: abstract(t, PartitionSpec()), params)
    given = params, abstract(x, PartitionSpec("data"))
    text = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile().as_text()
    return [line for line in text.splitlines() if "tpu_custom_call" in line]
