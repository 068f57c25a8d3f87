"""Arguments that nothing takes, or of another type, are refused at once."""

import jax
import jax.numpy as jnp
import pytest

from normjax import activations, mixers, models, norms, reparam
from normjax.core.errors import UserError

VIT = {"name": "vit", "num_classes": 3, "dim": 8, "depth": 1, "num_heads": 2}
EPSILOM = "norm 'rms_norm': 'epsilom'; did you mean 'epsilon'"

CASES = [
    (norms.build, "rms_norm", {"epsilom": 1}, EPSILOM),
    (norms.build, norms.RMSNorm, {"epsilom": 1}, EPSILOM),
    (norms.build, "rms_norm", {"epsilon": "x"}, "epsilon takes a number, got 'x'"),
    (norms.build, "rms_norm", {"use_scale": 2}, "use_scale takes True or False"),
    (norms.build, "rms_norm", {"scale_init": "ones"}, "scale_init takes a function"),
    (norms.build, "rms_norm", {"dtype": "float33"}, "dtype takes a type of numbers"),
    (norms.build, ["rms_norm"], {}, "a norm is given by its name"),
    (mixers.build, "softmax", {"num_headz": 1}, "did you mean 'num_heads'"),
    (mixers.build, "softmax", {"num_heads": 2.5}, "num_heads takes an integer"),
    (mixers.build, "softmax", {"qk_norm": "rms_nrm"}, "did you mean 'rms_norm'"),
    (mixers.build, "softmax", {"qk_norm": "prepbn"}, "'prepbn' needs decay_steps"),
    (
        mixers.build,
        "softmax",
        {"relative_bias": {"name": "alibi", "slopes": 1}},
        "unknown argument of relative bias 'alibi': 'slopes'",
    ),
    (activations.build, "gelu", {"aproximate": True}, "did you mean 'approximate'"),
    (reparam.rules_of, {"pattern": "x", "name": "sigma_reparam", "a": 1}, {}, "'a'"),
    (models.build, "vit", {}, "model 'vit' needs num_classes"),
    (models.build, VIT, {"depht": 3}, "did you mean 'depth'"),
    (models.build, VIT, {"dim": "x"}, "model 'vit': dim takes an integer"),
    (models.build, VIT, {"norm": norms.LayerNorm()}, "a norm is given by its name"),
    (models.build, VIT, {"mlp": {"name": "mlp", "hiden": 1}}, "did you mean 'hidden'"),
    (
        models.build,
        VIT,
        {"mixer": {"name": "softmax", "qk_norm": {"name": "rms_norm", "epsilom": 1}}},
        EPSILOM,
    ),
    (
        models.build,
        {"name": "pyramid", "num_classes": 3},
        {"embed_norm": "prepbn"},
        "embed_norm 'prepbn' needs decay_steps",
    ),
    (
        models.build,
        {"name": "resnet", "num_classes": 3},
        {"depths": "x"},
        "depths takes a tuple, each an integer",
    ),
]


@pytest.mark.parametrize(("build", "spec", "arguments", "message"), CASES)
def test_refused_in_one_line(build, spec, arguments, message):
    with pytest.raises(UserError) as caught:
        build(spec, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_may_be_arrays_and_integers_stand_for_fractions():
    assert norms.build("rms_norm", epsilon=jnp.float32(1e-3))().epsilon > 0
    assert norms.build("rms_norm", epsilon=1, dtype="bfloat16")().epsilon == 1


def test_heads_that_cannot_turn():
    model = models.build("decoder", vocab_size=5, dim=6, num_heads=2, depth=1)
    with pytest.raises(UserError, match="heads of 3 channels: rotation needs an even"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
