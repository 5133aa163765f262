"""The abstractions everything else is written against. This file imports nothing of Trimtab but its errors.

An *agent* is an immutable Equinox Module whose every leaf is an array, so that `jax.jit`, `vmap`, `scan`, `grad`, optax
and serialisation work on it without filters. Observations are PyTrees: goals, masks and other agents' views ride in
them.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from trimtab.errors import RunError as RunError
from trimtab.errors import TrimtabError as TrimtabError
from trimtab.errors import UsageError as UsageError

Metrics = dict[str, Float[Array, "..."]]
"""Metric name -> scalar array. The same keys at every call; a value that was not computed this time is NaN."""


ACHIEVED, DESIRED, OBSERVATION = "achieved_goal", "desired_goal", "observation"
"""The parts of an observation with goals: what the state amounts to, what the episode wants, and all else."""


@dataclass(frozen=True)
class Spec:
    """What an agent must know of its world: the shapes that go in and out.

    `obs` is a PyTree of `jax.ShapeDtypeStruct` for one observation (no batch axis), all float32.
    `action_size` is the number of action dimensions, or the number of actions when `discrete`.
    `action_low`, `action_high` are the bounds in the environment's own units, empty when `discrete`; policies answer in
    [-1, 1] and the adapters scale.
    """

    obs: Any
    action_size: int
    discrete: bool = False
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    factors: tuple[int, ...] = ()
    """numbers of choices, where a discrete action is made of several (MultiDiscrete), `action_size` of them."""
    obs_mean: Any = field(default=None, compare=False)
    """mean of each observation entry over the data set that is learnt from, shaped like `obs`; None without one."""
    obs_std: Any = field(default=None, compare=False)
    """standard deviation likewise."""

    @property
    def obs_size(self) -> int:
        """Length of the observation once its leaves are flattened and concatenated."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.obs))

    def zero_obs(self) -> PyTree[Float[Array, "..."]]:
        """An all-zero observation: the template for buffers and traces."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), self.obs)

    def zero_action(self) -> Array:
        """An all-zero action: float32 of shape (action_size,), or an int32 index when `discrete`, one a factor."""
        if not self.discrete:
            return jnp.zeros((self.action_size,), jnp.float32)
        return jnp.zeros((self.action_size,) if self.factors else (), jnp.int32)

    @property
    def choices(self) -> tuple[int, ...]:
        """How many values each discrete choice has: one choice, or one a factor."""
        return self.factors or (self.action_size,)


class AbstractPolicy(eqx.Module):
    """Maps observations to actions in [-1, 1] (or to an index). Leading axes of `obs` are free and kept."""

    @abc.abstractmethod
    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        """The action for `obs`; `key` is used by stochastic policies only."""


class AbstractActor(AbstractPolicy):
    """A policy with a memory, whose draws may differ from what is carried out. On-policy agents act with one.

    They learn from what was drawn (a normal number, say), while the environment gets what `applied` makes of it (the
    number clipped to [-1, 1]). Leading axes are free, as everywhere, and those of the memory are those of `obs`.
    """

    @abc.abstractmethod
    def memory(self, lead: tuple[int, ...]) -> Any:
        """The memory when an episode begins, with leading axes `lead`; () where nothing is remembered."""

    @abc.abstractmethod
    def draw(self, obs: PyTree[Float[Array, "..."]], memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        """What is drawn for `obs`, and the memory after it."""

    @abc.abstractmethod
    def applied(self, drawn: Array) -> Array:
        """The action in [-1, 1], or the index, that is carried out."""


def forget(actor: AbstractActor, memory: Any, ended: Array) -> Any:
    """The memory, anew where an episode has `ended` (leading axes of `memory`)."""

    def choose(new: Any, old: Any) -> Array:
        return jnp.where(ended.reshape(ended.shape + (1,) * (old.ndim - ended.ndim)), new, old)

    return jax.tree.map(choose, actor.memory(ended.shape), memory)


class AbstractAgent(eqx.Module):
    """A learner. Each final class adds `create(cls, key, spec, config)` and a static, frozen, hashable `config`."""

    step: eqx.AbstractVar[Int[Array, ""]]
    config: eqx.AbstractVar[Any]

    @classmethod
    @abc.abstractmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Any) -> "AbstractAgent":
        """A fresh agent: sizes come from `spec`, choices from `config`. Raises `UsageError` if they do not fit."""

    @property
    @abc.abstractmethod
    def policy(self) -> AbstractPolicy:
        """What is evaluated and exported; a small subtree of the agent."""

    @property
    @abc.abstractmethod
    def explorer(self) -> AbstractPolicy:
        """What collects data; may be the policy itself."""

    @abc.abstractmethod
    def update(self, batch: Any, key: PRNGKeyArray) -> "tuple[AbstractAgent, Metrics]":
        """One gradient update on a batch with a leading batch axis."""


def has_goals(obs: Any) -> bool:
    """Whether an observation (or its spec) has the three parts of one with goals, and no other."""
    return isinstance(obs, dict) and set(obs) == {ACHIEVED, DESIRED, OBSERVATION}


def require_goals(spec: Spec, agent: str) -> None:
    """Raises `UsageError` if `spec` has no goals, which `agent` cannot do without."""
    if not has_goals(spec.obs):
        raise UsageError(
            f"{agent} needs observations with the parts achieved_goal, desired_goal and observation: "
            "choose an environment with goals, such as trimtab/ContinuousSeek10-v0"
        )


Memory = dict[str, np.ndarray]
"""What a monitor keeps between two looks: arrays, so that a checkpoint can hold them."""


@dataclass(frozen=True)
class Judgement:
    """What a monitor made of one look at a training agent."""

    metrics: dict[str, float]
    """what is logged; NaN for what could not be told this time."""
    memory: Memory
    """what the next look is compared with."""
    alarm: str | None
    """why training should not go on like this, or None."""


class AbstractMonitor(abc.ABC):
    """A diagnostic with a memory: it looks at the same rows of data again and again while an agent trains.

    `measure` is traced and compiled, `judge` runs on the host. A final class is a frozen dataclass without arrays.
    """

    rows: int
    """how many rows of data it looks at."""

    @abc.abstractmethod
    def measure(self, agent: AbstractAgent, batch: Any, key: PRNGKeyArray) -> dict[str, Array]:
        """Arrays for `judge`, from the agent and a batch of the chosen rows. Raises `UsageError` if it does not suit
        the agent or its batches."""

    @abc.abstractmethod
    def judge(self, config: Any, found: dict[str, np.ndarray], memory: Memory) -> Judgement:
        """What was found, against the `memory` of the last look (empty at the first); `config` is the agent's."""


class AbstractScorer(AbstractAgent):
    """An agent that first learns what it needs to score a data set: phase "proxy" of its config's field `phase`, for
    `proxy_steps` updates. Each row is then scored once, and in phase "offline" its batches are `Scored`.
    """

    @abc.abstractmethod
    def score(self, batch: Any, key: PRNGKeyArray) -> Float[Array, " b"]:
        """A number for each row of a batch of `Transition`s."""

    def least(self, scores: Float[Array, " n"]) -> Float[Array, ""]:
        """What `Scored.least` is, from the scores of a whole data set."""
        return scores.min()


ACTION_MASK = "action_mask"
"""The part of an observation that says which discrete actions are allowed: 1 where one is, else 0."""


def mask_size(spec: Spec) -> int:
    """Numbers of the observation's action mask, 0 without one. Raises `UsageError` if they do not fit the actions."""
    if not isinstance(spec.obs, dict) or ACTION_MASK not in spec.obs:
        return 0
    size, wanted = spec.obs[ACTION_MASK].size, sum(spec.choices) if spec.discrete else 0
    if size != wanted:
        raise UsageError(f"the observation's action_mask has {size} numbers, but there are {wanted} discrete actions")
    return size


def stuck(obs: Any, spec: Spec) -> Any:
    """Which rows of observations have an action mask that allows nothing, in some factor; None without a mask."""
    if not mask_size(spec):
        return None
    mask, first, found = obs[ACTION_MASK] > 0.5, 0, False
    for size in spec.choices:
        found = found | ~mask[..., first : first + size].any(-1)
        first += size
    return found


class AbstractSurprised(AbstractAgent):
    """An agent that says how much it has to learn from rows, so that replay can draw them accordingly (`Weighted`)."""

    @abc.abstractmethod
    def surprise(self, batch: Any) -> Float[Array, " b"]:
        """The priorities of a batch's rows, positive; asked after the update that learnt from them."""


def require_counts(config: Any, *names: str) -> None:
    """Raises `UsageError` if one of the config's fields of those names is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} must be at least 1, got {getattr(config, name)}")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Raises `UsageError` if the config's field of that name is none of `choices`."""
    value = getattr(config, name)
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def require_share(config: Any, name: str) -> None:
    """Raises `UsageError` unless the config's field of that name is in [0, 1]."""
    value = getattr(config, name)
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{name} must be between 0 and 1, got {value}")


def require_goal(spec: Spec, agent: str) -> None:
    """`require_goals`; raises `UsageError` as well where the goal is a set of those that can be achieved."""
    require_goals(spec, agent)
    if spec.obs[DESIRED].size != spec.obs[ACHIEVED].size:
        raise UsageError(f"{agent} needs one goal, but here goals are sets: choose reengage-sets")


def require_continuous(spec: Spec, agent: str) -> None:
    """Raises `UsageError` if `spec` has discrete actions, which `agent` cannot take."""
    if spec.discrete:
        raise UsageError(
            f"{agent} needs continuous actions, but this environment has {spec.action_size} discrete ones: "
            "choose an environment with a Box action space, such as Pendulum-v1 or Hopper-v5"
        )


def require_discrete(spec: Spec, agent: str) -> None:
    """Raises `UsageError` unless an action of `spec` is one discrete choice, as `agent` needs it."""
    if not spec.discrete or spec.factors:
        kind = "several choices at once" if spec.factors else f"{spec.action_size} continuous dimensions"
        raise UsageError(
            f"{agent} needs one discrete choice, but actions have {kind}: choose an environment with a Discrete action "
            "space, such as CartPole-v1, or ppo"
        )


class Step(eqx.Module):
    """The outcome of one step of an own world. `truncated` is set by the `TimeLimit` wrapper, never by a world."""

    obs: PyTree[Float[Array, "..."]]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    info: dict[str, Array]


class AbstractEnv(eqx.Module):
    """An own world in pure JAX. Physical parameters are array fields, so `vmap` over the Module is domain
    randomisation.

    `max_steps` is the time limit of one episode in steps; the `TimeLimit` wrapper applies it. It and `spec` are class
    variables, or properties where they are a choice.
    """

    spec: eqx.AbstractVar[Spec]
    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, PyTree[Float[Array, "..."]]]:
        """The first state and observation of an episode."""

    @abc.abstractmethod
    def step(self, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, Step]:
        """The next state and what the agent sees of it; `action` in [-1, 1] or an index."""
