"""Mixture of experts: of several MLPs each token goes through the few it chooses."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from normjax.core.collections import LOSSES
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.ranges import ABOVE_ZERO, COUNT, POSITIVE, Range
from normjax.models.layers import Factory
from normjax.models.mlps import MLPS

ORDERS = ("token", "choice")


class Routing(NamedTuple):
    """Where tokens go; k choices of each of T tokens.

    Attributes:
      gates: [T, k], the probabilities of the chosen experts.
      experts: int [T, k].
      slots: int [T, k], the place of a pair in the queue of its expert, from 0.
      balance: scalar, E sum_e f_e P_e; 1 where all experts have as much to do.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> routing = models.route(jnp.array([[2.0, 0.0], [1.0, 0.0]]), top_k=1)
      >>> isinstance(routing, models.Routing), routing._fields[:2]
      (True, ('gates', 'experts'))
    """

    gates: jax.Array
    experts: jax.Array
    slots: jax.Array
    balance: jax.Array


def route(
    logits: jax.Array,
    top_k: int,
    *,
    valid: jax.Array | None = None,
    order: str = "token",
) -> Routing:
    """The `top_k` most probable experts of each token, and its places in their queues.

    Gates are p = softmax(logits) as they are. f_e in the balance is the share of all
    pairs (token, choice) that expert e gets, before any is dropped and without
    gradient, P_e the mean of p_e (Shazeer et al., 2017; Fedus et al., 2022).

    Args:
      logits: [T, E].
      top_k: choices of a token.
      valid: bool [T], False at padding, which stands in no queue; None for none.
      order: "token": all choices of a token before those of the next (WideNet);
        "choice": the first choices of all tokens before the second ones.

    Raises:
      UserError: more choices than experts, or an unknown order.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> logits = jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> routing = models.route(logits, top_k=1)
      >>> print(routing.experts[:, 0], routing.slots[:, 0])
      [0 0 1] [0 1 0]
    """
    count = logits.shape[-1]
    if top_k > count:
        raise UserError(f"top_k={top_k} of {count} experts: there are not so many")
    if order not in ORDERS:
        raise UserError(one_of("order of the queues", order, ORDERS))
    p = jax.nn.softmax(at_least_float32(logits))
    gates, experts = jax.lax.top_k(p, top_k)
    chosen = jax.nn.one_hot(experts, count, dtype=jnp.int32)  # [T, k, E]
    tokens = jnp.ones(len(p), bool) if valid is None else valid
    chosen = chosen * tokens[:, None, None].astype(jnp.int32)
    queued = chosen if order == "token" else jnp.swapaxes(chosen, 0, 1)
    before = jnp.cumsum(queued.reshape(-1, count), 0).reshape(queued.shape) - queued
    before = before if order == "token" else jnp.swapaxes(before, 0, 1)
    slots = jnp.sum(before * chosen, -1)
    total = jnp.maximum(jnp.sum(tokens), 1).astype(p.dtype)
    share = jnp.sum(chosen, (0, 1)).astype(p.dtype) / (total * top_k)
    mean = jnp.sum(jnp.where(tokens[:, None], p, 0), 0) / total
    gates = jnp.where(tokens[:, None], gates, 0)
    return Routing(gates, experts, slots, count * jnp.sum(share * mean))


def dispatched(
    x: jax.Array, routing: Routing, num_experts: int, room: int, layer: Any
) -> jax.Array:
    """sum_c gate_c layer(x)_c over the choices c that found room: [T, C].

    Args:
      x: [T, C].
      num_experts: E.  room: tokens that an expert takes; later ones give 0.
      layer: function [E, room, C] -> same, of each expert for its tokens.
    """
    slots = max(room, 1)
    kept = (routing.slots < room) & (routing.gates > 0)
    places = routing.experts * slots + routing.slots
    places = jnp.where(kept, places, num_experts * slots)  # beyond all: dropped
    pairs = jnp.broadcast_to(x[:, None], (*places.shape, x.shape[-1]))
    queues = jnp.zeros((num_experts * slots, x.shape[-1]), x.dtype)
    queues = queues.at[places].set(pairs, mode="drop")
    y = layer(queues.reshape(num_experts, slots, -1))
    y = y.reshape(num_experts * slots, -1)
    y = y.at[places].get(mode="fill", fill_value=0)
    wide = at_least_float32(y)
    gates = jnp.where(kept, routing.gates, 0).astype(wide.dtype)
    return jnp.sum(wide * gates[..., None], 1).astype(y.dtype)


class ExpertDense(nn.Module):
    """y_e = x_e W_e + b_e for each expert e.

    Attributes:
      features: outputs.
      dtype: of the computation; parameters are float32.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [E, N, C] -> [E, N, features]."""
        shape = (len(x), x.shape[-1], self.features)
        kernel = self.param("kernel", trunc_normal, shape)
        zeros = nn.initializers.zeros
        bias = self.param("expert_bias", zeros, (len(x), self.features))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum("enc,ecf->enf", x, kernel) + bias[:, None]


class Experts(nn.Module):
    """fc2(activation(fc1(x))) of each expert.

    Attributes:
      hidden, activation, output_activation, dtype: as of `MixtureOfExperts`.
    """

    hidden: int
    activation: Factory
    output_activation: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [E, N, C] -> same."""
        h = ExpertDense(self.hidden, self.dtype, name="fc1")(x)
        h = self.activation(name="act")(h)
        y = ExpertDense(x.shape[-1], self.dtype, name="fc2")(h)
        return self.activation(name="act_out")(y) if self.output_activation else y


@MLPS.register("mixture_of_experts", "seq", "grid")
class MixtureOfExperts(nn.Module):
    """y = sum over the chosen experts e of p_e MLP_e(x), p = softmax(x W_r).

    A token chooses the `top_k` most probable of E experts; the p are not scaled to sum
    to 1 (WideNet; Xue et al., 2022; one choice: Switch Transformer; Fedus et al.,
    2022). The tokens of the whole batch are one list, example by example: an expert
    takes the first floor(T factor k / E) that choose it, less `spare`, and gives 0 to
    the others, in evaluation as well, so that examples of a batch depend on those
    before. Split over devices the list is still that of all: its order is a sum over
    devices. Padding is in no queue. In training the balance of `route` is sown into the
    collection `losses` (weight in the paper: 0.01; see `auxiliary_loss_weight` of the
    train config).

    Without `capacity_factor` no token is left out and a row depends on no other, so
    that decoders take it; every expert then computes as many rows as there are tokens.
    Router, gates and sums in at least float32.

    Attributes:
      hidden: width inside an expert.  activation: factory.
      num_experts: E.  top_k: choices of a token.
      capacity_factor: room of the experts over what they get on average; None: for all.
      spare: slots of that room which stay empty; 1 in the released code of WideNet.
      order: of the queues, see `route`: "token" or "choice".
      noise: standard deviation of what is added to the logits in training (stream
        "dropout"); 1 / E in WideNet.
      output_activation: the activation also behind the second layer (WideNet).
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> from normjax import activations, models
      >>> gelu = activations.build("gelu")
      >>> mlp = models.MixtureOfExperts(hidden=32, activation=gelu, top_k=1)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["experts"]["fc1"]["kernel"].shape
      ((2, 6, 8), (4, 8, 32))
    """

    hidden: int
    activation: Factory
    num_experts: int = 4
    top_k: int = 2
    capacity_factor: float | None = 1.2
    spare: int = 0
    order: str = "token"
    noise: float = 0.0
    output_activation: bool = False
    dtype: Dtype | None = None

    # No Dense alone is next to the norms.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    told: ClassVar[tuple[str, ...]] = ("train", "mask")
    ranges: ClassVar[Mapping[str, Range]] = {
        "num_experts": POSITIVE,
        "top_k": POSITIVE,
        "capacity_factor": ABOVE_ZERO,
        "spare": COUNT,
        "noise": COUNT,
    }

    @staticmethod
    def tags_with(tags: frozenset[str], arguments: Mapping[str, Any]) -> frozenset[str]:
        """Rows that do not compete for room do not depend on each other."""
        if arguments["capacity_factor"] is None:
            return tags | {"causal", "decode"}
        return tags

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """x: [..., C] -> same.  mask: bool [...], False at padding.

        Raises:
          UserError: more choices than experts, or an unknown order.
        """
        tokens = x.reshape(-1, x.shape[-1])
        valid = None if mask is None else mask.reshape(-1)
        router = Dense(
            self.num_experts, use_bias=False, name="router", dtype=self.dtype
        )
        logits = at_least_float32(router(tokens))
        if train and self.noise:
            key = self.make_rng("dropout")
            logits += self.noise * jax.random.normal(key, logits.shape, logits.dtype)
        routing = route(logits, self.top_k, valid=valid, order=self.order)
        if train:
            self.sow(LOSSES, "balance", routing.balance)
        inside = self.hidden, self.activation, self.output_activation, self.dtype
        experts = Experts(*inside, name="experts")
        room = self.room(len(tokens))
        y = dispatched(tokens, routing, self.num_experts, room, experts)
        return y.reshape(x.shape)

    @nn.nowrap
    def room(self, count: int) -> int:
        """Tokens that an expert takes of `count`."""
        if self.capacity_factor is None:
            return count
        room = int(count * self.capacity_factor * self.top_k / self.num_experts)
        return max(room - self.spare, 0)
