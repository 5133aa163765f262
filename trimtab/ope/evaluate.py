"""Puts off-policy evaluation together: which policy, the critic, the behaviour, the estimates and what speaks against
them.
"""

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.batches import Recorded
from trimtab.core import AbstractAgent, AbstractPolicy, RunError, Spec, UsageError
from trimtab.data.sources import OfflineSource
from trimtab.envs.plans import plan_length
from trimtab.ope import behaviour, density, estimators, fqe
from trimtab.policies.compose import Noisy
from trimtab.policies.gaussian import TanhGaussian
from trimtab.run.logging import Progress
from trimtab.training.compile import all_finite, chunk, no_totals

ESTIMATORS = ("fqe", "wdr")
"""Names for `--ope`."""

REPS = 300
"""Draws of the bootstrap intervals."""

LEAST_EFFECTIVE = 10.0
"""Effective number of trajectories below which the weights say next to nothing."""

MOVED = 0.05
"""Share of the value, or of the spread of returns, by which it may still change while the step size falls."""

RATIOS = (0.5, 2.0)
"""Range in which the mean ratio, which is 1 for true probabilities, speaks for the behaviour model."""

_BLOCK = 4096
"""Rows in one call of the critic."""


@dataclass(frozen=True)
class Settings:
    """What off-policy evaluation may be told; None: a default that depends on the run."""

    gamma: float | None = None
    """discount factor; default: the run's."""
    steps: int = 20_000
    """updates of the critic."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the critic's and of the behaviour model's hidden layers."""
    learning_rate: float = 3e-4
    """Adam's step size for the critic and the behaviour model."""
    tau: float = 0.02
    """share of the new critic mixed into its target."""
    members: int = 3
    """critics."""
    batch_size: int = 256
    """transitions in one update."""
    behaviour_steps: int = 10_000
    """updates of the behaviour model (wdr)."""
    smoothing: float = 0.0
    """standard deviation of a normal number added to the actions of a deterministic policy, which is what is evaluated
    then; 0: none."""
    action_samples: int = 8
    """actions that V(s) is the mean over."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, whose meaning is the estimator's; `details` are what it may be judged by."""

    value: float
    low: float
    high: float
    details: dict[str, Any]


@dataclass(frozen=True)
class OfflineEvaluation:
    """What the data say a policy is worth: its expected discounted return from the data's first states."""

    estimates: dict[str, Estimate]
    policy: AbstractPolicy
    """what was evaluated."""
    kind: str
    """how it came from the agent: "deployed", "stochastic" or "smoothed"."""
    gamma: float
    trajectories: int
    rows: int
    behaviour_return: float
    """mean discounted return of the data's trajectories, as far as they go."""
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All but the policy."""
        names = [f.name for f in fields(self) if f.name not in ("policy", "estimates")]
        return {name: getattr(self, name) for name in names} | {
            name: {"value": e.value, "low": e.low, "high": e.high, **e.details} for name, e in self.estimates.items()
        }


def check_estimators(names: Sequence[str]) -> None:
    """Raises `UsageError` for an unknown estimator, naming the nearest."""
    for name in names:
        if name not in ESTIMATORS:
            near = difflib.get_close_matches(name.lower(), ESTIMATORS, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(ESTIMATORS)}"
            raise UsageError(f"unknown estimator {name!r}: {hint}")


def check_settings(settings: Settings) -> None:
    """Raises `UsageError` for a number out of its range."""
    whole = ("steps", "members", "batch_size", "behaviour_steps", "action_samples")
    for name in (*whole, "learning_rate"):
        if not getattr(settings, name) > 0:
            raise UsageError(f"ope-{name.replace('_', '-')} must be positive, got {getattr(settings, name)}")
    if not settings.smoothing >= 0:
        raise UsageError(f"ope-smoothing must not be negative, got {settings.smoothing}")
    if not 0 < settings.tau <= 1:
        raise UsageError(f"ope-tau must be in (0, 1], got {settings.tau}")
    if settings.gamma is not None and not 0 <= settings.gamma <= 1:
        raise UsageError(f"ope-gamma must be in [0, 1], got {settings.gamma}")


def choose_policy(agent: AbstractAgent, names: Sequence[str], smoothing: float) -> tuple[AbstractPolicy, str]:
    """The policy that is evaluated, and how it came from the agent.

    fqe alone takes the one that is deployed. wdr needs a density: where the deployed policy has none, it is the
    stochastic one behind it, for both estimators. Raises `UsageError` if there is none.
    """
    if smoothing:
        if not density.is_deterministic(agent.policy):
            raise UsageError("ope-smoothing is for deterministic policies, and this one draws actions: leave it out")
        return Noisy.create(agent.policy, smoothing), "smoothed"
    if "wdr" not in names or density.has_density(agent.policy):
        return agent.policy, "deployed"
    if density.has_density(agent.explorer) and not isinstance(agent.explorer, Noisy):
        return agent.explorer, "stochastic"
    mend = "smooth it with --ope-smoothing 0.1, or " if density.is_deterministic(agent.policy) else ""
    raise UsageError(
        f"wdr needs a stochastic policy whose density is known, and this run's has none: {mend}use --ope fqe"
    )


def evaluate_recorded(
    agent: AbstractAgent,
    spec: Spec,
    recorded: Recorded,
    names: Sequence[str],
    settings: Settings,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> OfflineEvaluation:
    """Estimates the value of the agent's policy from recorded transitions that fit `spec`, which carries their moments.

    Raises `UsageError` for a request that cannot be carried out, `RunError` if the critic diverges.
    """
    check_estimators(names)
    check_settings(settings)
    gamma = _gamma(agent, settings)
    policy, kind = choose_policy(agent, names, settings.smoothing)
    answer = jax.eval_shape(policy, spec.zero_obs(), jr.key(0))
    if spec.discrete or plan_length(answer.shape, spec) != 1:
        raise UsageError("off-policy evaluation is for policies that answer with one continuous action")
    length = estimators.lengths(np.asarray(recorded.ended))
    k_fqe, k_behaviour, k_values = jr.split(jr.key(seed), 3)
    critic, curve = _fitted(spec, recorded, policy, gamma, settings, k_fqe, quiet)
    samples = 1 if density.is_deterministic(policy) else settings.action_samples
    found: dict[str, Estimate] = {}
    warnings: list[str] = []
    if "fqe" in names:
        starts = jax.tree.map(lambda x: np.asarray(x)[_first(length)], recorded.transition.obs)
        found["fqe"] = _fqe_estimate(_values(critic, starts, k_values, samples), curve, seed)
    drift = abs(curve[-1][1] - curve[5][1])
    if drift > MOVED * max(abs(curve[-1][1]), float(critic.scale)):
        warnings.append(
            f"fqe has not settled: it moved by {drift:.3g} in the last two fifths of its {settings.steps:,} updates; "
            "raise --ope-steps"
        )
    if "wdr" in names:
        model = _cloned(spec, recorded, policy, settings, k_behaviour, quiet)
        data, ratio = _trajectories(critic, model, recorded, length, k_values, samples)
        found["wdr"] = _wdr_estimate(data, ratio, gamma, seed)
        warnings += _doubts(found["wdr"], len(length))
    returns = estimators.side_by_side(np.asarray(recorded.transition.reward, np.float64), length)
    return OfflineEvaluation(
        estimates=found,
        policy=policy,
        kind=kind,
        gamma=gamma,
        trajectories=len(length),
        rows=int(length.sum()),
        behaviour_return=float((returns @ gamma ** np.arange(returns.shape[1])).mean()),
        warnings=warnings,
    )


def _gamma(agent: AbstractAgent, settings: Settings) -> float:
    if settings.gamma is not None:
        return settings.gamma
    if "gamma" not in {f.name for f in fields(agent.config)}:
        raise UsageError("this agent has no discount factor of its own: give one with --ope-gamma 0.99")
    return float(agent.config.gamma)


def _first(length: np.ndarray) -> np.ndarray:
    """The row at which each trajectory begins."""
    return np.cumsum(length) - length


def _fitted(
    spec: Spec,
    recorded: Recorded,
    policy: AbstractPolicy,
    gamma: float,
    settings: Settings,
    key: PRNGKeyArray,
    quiet: bool,
) -> tuple[fqe.FQE, list[tuple[int, float]]]:
    """The trained critic, and the value of the first states after each tenth of the training."""
    config = fqe.Config(
        gamma=gamma,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        tau=settings.tau,
        hidden=settings.hidden,
        members=settings.members,
        batch_size=settings.batch_size,
    )
    agent = fqe.FQE.create(key, spec, config, policy=policy, data=recorded)
    first = _first(estimators.lengths(np.asarray(recorded.ended)))[:_BLOCK]
    starts = jax.tree.map(lambda x: np.asarray(x)[first], recorded.transition.obs)
    curve: list[tuple[int, float]] = []

    def tell(agent: Any, step: int) -> str:
        members = np.asarray(_v(agent, starts, key, 1)).mean(1)
        curve.append((step, float(members.mean())))
        return f"value {members.mean():10.3f} (members {members.min():.3f} to {members.max():.3f})"

    trained = _trained(agent, recorded, settings.batch_size, settings.steps, key, "fqe", tell, quiet)
    assert isinstance(trained, fqe.FQE)
    return trained, curve


def _cloned(
    spec: Spec, recorded: Recorded, policy: AbstractPolicy, settings: Settings, key: PRNGKeyArray, quiet: bool
) -> behaviour.Behaviour:
    """The trained behaviour model, whose actions are squashed where the policy's are."""
    config = behaviour.Config(
        squashed=isinstance(policy, TanhGaussian),
        learning_rate=settings.learning_rate,
        hidden=settings.hidden,
        batch_size=settings.batch_size,
    )
    agent = behaviour.Behaviour.create(key, spec, config)
    rows = np.linspace(0, len(recorded.last) - 1, min(len(recorded.last), _BLOCK)).astype(int)
    obs, action = jax.tree.map(lambda x: np.asarray(x)[rows], (recorded.transition.obs, recorded.transition.action))

    def tell(agent: Any, step: int) -> str:
        return f"log likelihood {float(_likelihood(agent.mixture, obs, action).mean()):.3f}"

    steps = settings.behaviour_steps
    trained = _trained(agent, recorded, settings.batch_size, steps, key, "behaviour", tell, quiet)
    assert isinstance(trained, behaviour.Behaviour)
    return trained


def _trained(
    agent: AbstractAgent,
    recorded: Recorded,
    batch_size: int,
    steps: int,
    key: PRNGKeyArray,
    name: str,
    tell: Callable[[Any, int], str],
    quiet: bool,
) -> AbstractAgent:
    """`steps` updates from the rows of the data, with a line after each tenth. Raises `RunError` if it diverges."""
    source = OfflineSource(recorded.transition, batch_size)
    totals, began, done = no_totals(source, agent, (), None), time.monotonic(), 0
    progress = Progress(steps, 0, name, quiet)
    try:
        for part in range(1, 11):
            until = steps * part // 10
            agent, _, totals = chunk(source, agent, (), totals, key, None, np.int32(until - done))
            if not all_finite(agent):
                raise RunError(f"{name} diverged before update {until:,}: lower --ope-learning-rate")
            done = until
            progress.say(f"{name} {until:>9,}/{steps:,}  {tell(agent, until)}")
            progress.show(until, None, until / max(time.monotonic() - began, 1e-9))
    finally:
        progress.close()
    return agent


@partial(jax.jit, static_argnums=3)
def _v(critic: fqe.FQE, obs: Any, key: PRNGKeyArray, samples: int) -> Array:
    return critic.v(obs, key, samples)


@jax.jit
def _q(critic: fqe.FQE, obs: Any, action: Array) -> Array:
    return critic.q(obs, action)


@jax.jit
def _likelihood(policy: AbstractPolicy, obs: Any, action: Array) -> Array:
    if isinstance(policy, behaviour.Mixture):
        return policy.log_prob(obs, action)
    return density.log_prob(policy, obs, action)


def _blocks(obs: Any, key: PRNGKeyArray) -> Iterator[tuple[slice, Any, PRNGKeyArray]]:
    """Rows of a data set, some thousands at a time, with a key each."""
    rows = len(jax.tree.leaves(obs)[0])
    for i, start in enumerate(range(0, rows, _BLOCK)):
        part = slice(start, min(start + _BLOCK, rows))
        yield part, jax.tree.map(lambda x: np.asarray(x[part]), obs), jr.fold_in(key, i)  # noqa: B023  called at once


def _values(critic: fqe.FQE, obs: Any, key: PRNGKeyArray, samples: int) -> np.ndarray:
    """V of each member, (e, b)."""
    return np.concatenate([np.asarray(_v(critic, o, k, samples), np.float64) for _, o, k in _blocks(obs, key)], axis=1)


def _trajectories(
    critic: fqe.FQE,
    model: behaviour.Behaviour,
    recorded: Recorded,
    length: np.ndarray,
    key: PRNGKeyArray,
    samples: int,
) -> tuple[estimators.Trajectories, float]:
    """What WDR needs of each step, and the mean ratio of probabilities."""
    rows, k_next = recorded.transition, jr.fold_in(key, 1)
    action, q, ratio = np.asarray(rows.action), [], []
    for part, obs, _ in _blocks(rows.obs, key):
        q.append(np.asarray(_q(critic, obs, action[part]), np.float64).mean(0))
        ours, theirs = (_likelihood(policy, obs, action[part]) for policy in (critic.given, model.mixture))
        ratio.append(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    flat = np.concatenate(ratio)
    final = np.cumsum(length) - 1
    beyond = _values(critic, jax.tree.map(lambda x: np.asarray(x)[final], rows.next_obs), k_next, samples).mean(0)
    matrix = lambda x: estimators.side_by_side(np.asarray(x, np.float64), length)
    data = estimators.Trajectories(
        reward=matrix(rows.reward),
        log_ratio=matrix(flat),
        q=matrix(np.concatenate(q)),
        v=matrix(_values(critic, rows.obs, key, samples).mean(0)),
        length=length,
        tail=np.asarray(rows.discount, np.float64)[final] * beyond,
    )
    return data, float(np.exp(flat).mean())


def _fqe_estimate(at_start: Float[np.ndarray, "e n"], curve: list[tuple[int, float]], seed: int) -> Estimate:
    """The mean over members and first states; the interval draws a member and as many first states."""
    rng, (members, n) = np.random.default_rng(seed), at_start.shape
    draws = [at_start[rng.integers(members), rng.integers(n, size=n)].mean() for _ in range(REPS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    details = {"members": at_start.mean(1).tolist(), "curve": [list(point) for point in curve]}
    return Estimate(float(at_start.mean()), float(low), float(high), details)


def _wdr_estimate(data: estimators.Trajectories, ratio: float, gamma: float, seed: int) -> Estimate:
    """WDR; the interval draws as many trajectories, with the critic and the behaviour model as they are."""
    weighted = lambda data: estimators.doubly_robust(data, gamma)
    low, high = np.percentile(estimators.bootstrap(weighted, data, REPS, seed), [2.5, 97.5])
    sizes = estimators.effective_sizes(estimators.log_products(data.log_ratio))
    weight = gamma ** np.arange(len(sizes))
    details = {
        "effective": float((weight * sizes).sum() / weight.sum()),
        "effective_last": float(sizes[-1]),
        "mean_ratio": ratio,
    }
    return Estimate(weighted(data), float(low), float(high), details)


def _doubts(estimate: Estimate, trajectories: int) -> list[str]:
    """What speaks against a WDR estimate, a line each."""
    effective, ratio, found = estimate.details["effective"], estimate.details["mean_ratio"], []
    if effective < LEAST_EFFECTIVE:
        found.append(
            f"do not believe wdr: of {trajectories} trajectories its weights leave {effective:.1f}; "
            "the policy is too far from the data's, or episodes are too long"
        )
    if not RATIOS[0] <= ratio <= RATIOS[1]:
        found.append(
            f"do not believe wdr: the mean ratio of probabilities is {ratio:.3g} and should be 1; "
            "the behaviour model does not describe the data, or the data lack the policy's actions"
        )
    return found
