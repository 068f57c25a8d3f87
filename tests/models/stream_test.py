"""The type of the residual stream: that of the computation, in every host."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from normjax import models

IMAGES = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 4), jnp.int32)
SMALL = {"dim": 8, "depth": 1, "num_heads": 2}
HOSTS = {
    "vit": ({"num_classes": 3, **SMALL}, (IMAGES,), {}),
    "pyramid": (
        {"num_classes": 3, "depths": (1,), "dims": (8,), "num_heads": (2,)},
        (IMAGES,),
        {},
    ),
    "resnet": ({"num_classes": 3, "depths": (1,), "widths": (8,)}, (IMAGES,), {}),
    "encoder": ({"vocab_size": 9, **SMALL}, (TOKENS,), {}),
    "decoder": ({"vocab_size": 9, **SMALL}, (TOKENS,), {}),
    "encoder_decoder": ({"vocab_size": 9, **SMALL}, (TOKENS,), {"source": TOKENS}),
}


@pytest.mark.parametrize("host", HOSTS)
def test_blocks_read_and_give_the_type_of_the_computation(host):
    sizes, inputs, named = HOSTS[host]
    model = models.build(host, dtype=jnp.bfloat16, **sizes)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs, **named)
    seen = []

    def look(call, arguments, more, context):
        result = call(*arguments, **more)
        block = type(context.module).__name__.endswith("Block")
        if block and context.method_name == "__call__":
            leaves = jax.tree.leaves((arguments[0], result))
            seen.extend(x.dtype for x in leaves)
        return result

    def run(variables, inputs, named):
        with nn.intercept_methods(look):
            return model.apply(variables, *inputs, **named)

    logits = jax.eval_shape(run, variables, inputs, named)
    assert seen and set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32
