"""Velocity networks of flow policies: v(x, t, s), plain, gated, and as a transformer decoder.

A rollout of K Euler steps x + v/K is a residual recurrent network in x, and its gradient is a product of K Jacobians.
The gated form is a GRU's update (SAC Flow, arXiv:2509.25756, Flow-G), the decoder a transformer's (Flow-T).
"""

import abc
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import Spec, UsageError
from trimtab.nets.batch_norm import BatchRenorm
from trimtab.nets.linear import LayerNorm, Linear
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.standardise import Standardise, flatten
from trimtab.nets.time import MLPTime, SinusoidalTime, waves

GATE_BIAS = 5.0
"""The gate's last layer starts at weight 0 and this bias: sigmoid(5) = 0.9933 everywhere."""

NORMS = ("pre_ln", "post_ln", "post_brn")


class AbstractVelocity(eqx.Module):
    """The velocity of a flow over actions. Leading axes are free and shared by `x` and the observation."""

    action_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def encode(self, obs: PyTree[Float[Array, "..."]], times: Float[Array, " k"]) -> Any:
        """What does not depend on x: computed once a rollout of steps at `times`, given to each of them."""

    @abc.abstractmethod
    def forward(
        self, x: Float[Array, "*b act"], i: int, memory: Any, train: bool
    ) -> "tuple[Float[Array, '*b act'], Float[Array, '*b act'] | None, AbstractVelocity]":
        """The velocity at the i-th of the encoded times, the raw log std (None without a head for it), and the network
        with new batch statistics if `train`."""

    def __call__(
        self, x: Float[Array, "*b act"], t: Float[Array, ""], obs: PyTree[Float[Array, "..."]]
    ) -> Float[Array, "*b act"]:
        """v(x, t, s), outside of training; `t` in [0, 1]."""
        return self.forward(x, 0, self.encode(obs, t[None]), False)[0]


def _inputs(norm: BatchRenorm | None, x: Array, train: bool) -> tuple[Array, BatchRenorm | None]:
    if norm is None:
        return x, None
    return norm.train(x) if train else (norm(x), norm)


def _column(value: Float[Array, " n"], x: Float[Array, "*b act"]) -> Float[Array, "*b n"]:
    """A vector beside every row of x."""
    return jnp.broadcast_to(value, (*x.shape[:-1], value.shape[-1]))


def _heads(out: Float[Array, "*b n"], act: int) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"] | None]:
    """The velocity, and the raw log std where there is a head for it."""
    return out[..., :act], out[..., act:] if out.shape[-1] > act else None


class MLPVelocity(AbstractVelocity):
    """v = MLP([s, x, t]): the naive form."""

    net: MLP
    norm: BatchRenorm | None
    action_size: int = eqx.field(static=True)
    inputs: Standardise | None = None
    """what observations pass through first."""
    time_waves: int = eqx.field(static=True, default=0)
    """frequencies at which the network sees t beside t itself."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        key: PRNGKeyArray,
        *,
        hidden: tuple[int, ...] = (256, 256),
        action_size: int | None = None,
        std_head: bool = True,
        input_norm: bool = True,
        activation: str = "relu",
        init: str = "lecun",
        standardise: bool = False,
        time_waves: int = 0,
    ) -> "MLPVelocity":
        """`action_size` is the spec's unless given; `input_norm` puts a BatchRenorm on [s, x, t], `standardise` the
        data set's `Standardise` on s. With `time_waves` the place of t is taken by `waves` of it."""
        act = action_size or spec.action_size
        in_size = spec.obs_size + act + 1 + 2 * time_waves
        net = MLP.create(in_size, hidden, act * (2 if std_head else 1), key, activation=activation, init=init)
        norm = BatchRenorm.create(in_size) if input_norm else None
        inputs = Standardise.create(spec) if standardise else None
        return cls(net=net, norm=norm, action_size=act, inputs=inputs, time_waves=time_waves)

    def encode(self, obs: PyTree[Float[Array, "..."]], times: Array) -> tuple[Array, Array]:
        return flatten(obs, self.inputs), waves(times, self.time_waves)

    def forward(self, x: Array, i: int, memory: tuple[Array, Array], train: bool):
        obs, times = memory
        row, norm = _inputs(self.norm, concat(obs, x, _column(times[i], x)), train)
        v, raw = _heads(self.net(row), self.action_size)
        return v, raw, replace(self, norm=norm)


class GatedVelocity(AbstractVelocity):
    """v = g * (c - x), g = sigmoid(gate([s, x, t])), c = candidate([s, x, t]): Flow-G.

    A step is then (1 - g/K) x + (g/K) c: a convex mixture, whose Jacobian starts at 1 - g/K on the diagonal.
    With a `bound`, the candidate is bound * tanh(.) as in the paper's table; without, linear as in the official code.
    """

    gate: MLP
    candidate: MLP
    time: SinusoidalTime | None
    norm: BatchRenorm | None
    std: MLP | None
    action_size: int = eqx.field(static=True)
    bound: float | None = eqx.field(static=True)
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        key: PRNGKeyArray,
        *,
        hidden: tuple[int, ...] = (128,),
        gate_hidden: tuple[int, ...] | None = None,
        action_size: int | None = None,
        std_head: bool = True,
        std_hidden: tuple[int, ...] = (128, 128),
        input_norm: bool = True,
        time_embedding: bool = True,
        bound: float | None = None,
        activation: str = "silu",
        init: str = "lecun",
        standardise: bool = False,
    ) -> "GatedVelocity":
        """`hidden` is the candidate's, and the gate's unless given; the gate is always silu. `std_head` adds a network
        of s alone for the log std (relu), `input_norm` a BatchRenorm on [s, x], `time_embedding` 32 numbers for t,
        `standardise` the data set's `Standardise` on s."""
        act = action_size or spec.action_size
        k_time, k_gate, k_candidate, k_std = jr.split(key, 4)
        in_size = spec.obs_size + act + (32 if time_embedding else 1)
        gate = MLP.create(in_size, gate_hidden or hidden, act, k_gate, activation="silu", init=init)
        last = Linear(jnp.zeros_like(gate.layers[-1].weight), jnp.full((act,), jnp.float32(GATE_BIAS)))
        return cls(
            gate=replace(gate, layers=(*gate.layers[:-1], last)),
            candidate=MLP.create(in_size, hidden, act, k_candidate, activation=activation, init=init),
            time=SinusoidalTime.create(k_time) if time_embedding else None,
            norm=BatchRenorm.create(spec.obs_size + act) if input_norm else None,
            std=MLP.create(spec.obs_size, std_hidden, act, k_std, init=init) if std_head else None,
            action_size=act,
            bound=bound,
            inputs=Standardise.create(spec) if standardise else None,
        )

    def encode(self, obs: PyTree[Float[Array, "..."]], times: Array) -> tuple[Array, Array | None, Array, Array]:
        flat, columns = flatten(obs, self.inputs), times[:, None] if self.time is None else self.time(times)
        # The first layers of gate and candidate as one product, and their share of t as a bias for each step.
        gate, candidate = self.gate.layers[0], self.candidate.layers[0]
        weight = jnp.concatenate([gate.weight, candidate.weight], axis=1)
        bias = jnp.concatenate([gate.bias, candidate.bias])
        rows = flat.shape[-1] + self.action_size
        return flat, None if self.std is None else self.std(flat), weight[:rows], Linear(weight[rows:], bias)(columns)

    def forward(self, x: Array, i: int, memory: tuple[Array, Array | None, Array, Array], train: bool):
        obs, raw, weight, biases = memory
        row, norm = _inputs(self.norm, concat(obs, x), train)
        both = Linear(weight, biases[i])(row)
        width = self.gate.layers[0].bias.shape[-1]
        gate, candidate = self.gate.after_first(both[..., :width]), self.candidate.after_first(both[..., width:])
        if self.bound is not None:
            candidate = self.bound * jnp.tanh(candidate)
        return jax.nn.sigmoid(gate) * (candidate - x), raw, replace(self, norm=norm)


class DecoderLayer(eqx.Module):
    """Self-attention, cross-attention to the state, and a feed-forward network, on one token.

    A softmax over one key is 1 whatever the query: attention on one token is its value and output maps alone, and the
    number of heads drops out. What is left is exactly what a decoder of any number of heads computes.
    """

    self_value: Linear
    self_out: Linear
    cross_value: Linear
    cross_out: Linear
    wide: Linear
    narrow: Linear
    norms: tuple[LayerNorm | BatchRenorm, ...]

    @classmethod
    def create(cls, d_model: int, memory_size: int, norm: str, key: PRNGKeyArray, init: str) -> "DecoderLayer":
        """`d_model` is the token's width; the feed-forward network is four times as wide."""
        d, keys = d_model, jr.split(key, 6)
        sizes = [(d, d), (d, d), (memory_size, d), (d, d), (d, 4 * d), (4 * d, d)]
        names = ("self_value", "self_out", "cross_value", "cross_out", "wide", "narrow")
        maps = {name: Linear.create(i, o, k, init=init) for name, (i, o), k in zip(names, sizes, keys, strict=True)}
        # Before the parts, two norms do: cross-attention does not look at its query.
        count = 2 if norm == "pre_ln" else 3
        make = BatchRenorm.create if norm == "post_brn" else LayerNorm.create
        return cls(**maps, norms=tuple(make(d) for _ in range(count)))

    def cross(self, memory: Float[Array, "*b m"]) -> Float[Array, "*b d"]:
        """What cross-attention adds to the token: a function of the state alone."""
        return self.cross_out(self.cross_value(memory))

    def attention(self) -> Linear:
        """Self-attention of the one token: its two maps as one, so that a row takes one product instead of two."""
        value, out = self.self_value, self.self_out
        return Linear(value.weight @ out.weight, value.bias @ out.weight + out.bias)

    def feed(self, token: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Linear, gelu, Linear."""
        return self.narrow(jax.nn.gelu(self.wide(token)))

    def pre(self, token: Array, attend: Linear, cross: Array) -> Array:
        """Normalise before each part: token + part(norm(token))."""
        token = token + attend(self.norms[0](token)) + cross
        return token + self.feed(self.norms[1](token))

    def post(self, token: Array, attend: Linear, cross: Array, train: bool) -> "tuple[Array, DecoderLayer]":
        """Normalise after each part: norm(token + part(token))."""
        norms = []
        for norm, part in zip(self.norms, (attend, lambda _: cross, self.feed), strict=True):
            token = token + part(token)
            if isinstance(norm, BatchRenorm) and train:
                token, norm = norm.train(token)
            else:
                token = norm(token)
            norms.append(norm)
        return token, replace(self, norms=tuple(norms))


class DecoderVelocity(AbstractVelocity):
    """Flow-T: the token Linear(x) + e(t) through decoder layers whose memory is one token of the state; a linear head.

    `norm` is "pre_ln" (the paper), "post_ln" or "post_brn" (the official code offline, and from scratch).
    """

    token: Linear
    time: MLPTime
    memory: MLP
    layers: tuple[DecoderLayer, ...]
    last: LayerNorm | None
    head: Linear
    action_size: int = eqx.field(static=True)
    norm: str = eqx.field(static=True)
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        key: PRNGKeyArray,
        *,
        d_model: int = 64,
        layers: int = 2,
        norm: str = "pre_ln",
        action_size: int | None = None,
        std_head: bool = True,
        init: str = "lecun",
        standardise: bool = False,
    ) -> "DecoderVelocity":
        """`standardise` puts the data set's `Standardise` on s. Raises `UsageError` for an unknown norm, `d_model`
        below 4 or no layers."""
        if norm not in NORMS:
            raise UsageError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)}")
        if d_model < 4 or layers < 1:
            raise UsageError(f"the decoder needs d_model >= 4 and layers >= 1, got {d_model} and {layers}")
        act = action_size or spec.action_size
        k_token, k_time, k_memory, k_head, *k_layers = jr.split(key, 4 + layers)
        return cls(
            token=Linear.create(act, d_model, k_token, init=init),
            time=MLPTime.create(d_model, k_time),
            memory=MLP.create(spec.obs_size, (d_model,), d_model // 2, k_memory, activation="silu", init=init),
            layers=tuple(DecoderLayer.create(d_model, d_model // 2, norm, k, init) for k in k_layers),
            last=LayerNorm.create(d_model) if norm == "pre_ln" else None,
            head=Linear.create(d_model, act * (2 if std_head else 1), k_head, init=init),
            action_size=act,
            norm=norm,
            inputs=Standardise.create(spec) if standardise else None,
        )

    def encode(self, obs: PyTree[Float[Array, "..."]], times: Array) -> tuple[Array, tuple[tuple[Linear, Array], ...]]:
        memory = self.memory(flatten(obs, self.inputs))
        return self.time(times), tuple((layer.attention(), layer.cross(memory)) for layer in self.layers)

    def forward(self, x: Array, i: int, memory: tuple[Array, tuple[tuple[Linear, Array], ...]], train: bool):
        times, crosses = memory
        token = self.token(x)
        token, layers = token + _column(times[i], token), []
        for layer, (attend, cross) in zip(self.layers, crosses, strict=True):
            if self.norm == "pre_ln":
                token = layer.pre(token, attend, cross)
            else:
                token, layer = layer.post(token, attend, cross, train)
            layers.append(layer)
        v, raw = _heads(self.head(token if self.last is None else self.last(token)), self.action_size)
        return v, raw, replace(self, layers=tuple(layers))
