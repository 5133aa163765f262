"""SEEM: whether a critic's values feed on themselves (Yue et al. 2023, arXiv:2310.04411).

    A    = gamma D G(X*, X) - G(X, X),   G(x, y) = <phi(x), phi(y)>,   phi(x) = grad_theta Q(x)
    SEEM = max Re eig(A),   normalised by ||A||_F
    x    = (s, a) of N fixed transitions,   x* = (s', pi(s')),   D their discounts: 0 where the episode terminated

A gradient step on 1/2 |u|^2 with the target held turns the TD errors u into (I + eta A) u, to first order and with X*
fixed. Above 0 they grow: raising Q at x raises its own target by more. All of it is of the online critic, one member.

What follows, once the direction of the kernel no longer changes (its cosine to the last look is near 1), for a network
of L weight layers that is homogeneous of degree L up to its biases:

    SGD:   |Q|^{-p} falls linearly, p = (2L - 2) / L, and reaches 0 at t + 1 / (p c SEEM)
           c = eta for the loss 1/2 sum u^2, 2 eta / N for its mean square
    Adam:  |theta| grows by at most about lr sqrt(P) a step and |Q| as t^L: without bound, and without a crash

Three ways to the same number: `dense_kernels` stacks the features; `mlp_kernels` needs no array of the size of theta,
since the gradient with respect to a weight matrix is an outer product; `arnoldi` needs no matrix. Features are divided
by sqrt(P) inside, for range; what is returned is not.
Differences from the official code: rows of terminal transitions are masked; N = 256 instead of 2,560; raw values are
not divided by P.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.batches import Chunk
from trimtab.core import AbstractAgent, AbstractMonitor, Judgement, Memory, UsageError
from trimtab.diagnostics.health import nets_of
from trimtab.nets.critic import Critic
from trimtab.nets.linear import LayerNorm, Linear
from trimtab.nets.mlp import ACTIVATIONS, MLP, concat
from trimtab.nets.standardise import flatten

SELF_EXCITING, FROZEN = 0.02, 0.99
"""Normalised SEEM above which values feed on themselves, and kernel cosine from which their direction is fixed."""

SCALING = (0.6, 1.2)
"""Growth of |theta| a step over lr sqrt(P) between which Adam only scales the network up."""

ROWS = 256
"""Transitions that are looked at."""

Value = Callable[[Any, Array], Array]
"""f(theta, x) -> a scalar, of one row x."""


class Kernels(eqx.Module):
    """The two kernel matrices, of features divided by sqrt(P)."""

    ntk: Float[Array, "n n"]
    """G(X, X) / P."""
    cross: Float[Array, "n n"]
    """D G(X*, X) / P: row i is that of x*_i, and zero where the episode terminated."""
    size: int = eqx.field(static=True)
    """P, the number of parameters."""


@dataclass(frozen=True)
class Seem:
    """What `spectrum` finds. The eigenvalues and the matrix are those of A, not of A / P."""

    value: float
    normalised: float
    eigenvalues: np.ndarray
    matrix: np.ndarray


# Kernels


def dense_kernels(
    f: Value, params: PyTree, x: Float[Array, "n i"], next_x: Float[Array, "n i"], discount: Float[Array, " n"]
) -> Kernels:
    """Of any f by its features, two N x P arrays."""
    size = size_of(params)

    def features(rows: Float[Array, "n i"]) -> Float[Array, "n p"]:
        grads = jax.vmap(jax.grad(f), (None, 0))(params, rows)
        return jnp.concatenate([g.reshape(len(rows), -1) for g in jax.tree.leaves(grads)], 1) / size**0.5

    here, there = features(x), features(next_x)
    return Kernels(_gram(here, here), _masked(_gram(there, here), discount), size)


def mlp_kernels(mlp: MLP, x: Float[Array, "n i"], next_x: Float[Array, "n i"], discount: Float[Array, " n"]) -> Kernels:
    """Of a single MLP with one output, from each part's inputs and the derivatives of the output behind it.

    W and b of a layer have the gradients h (x) delta and delta, so their share of G(x, y) is
    <delta(x), delta(y)> (<h(x), h(y)> + 1). A norm's scale and shift have n * delta and delta, with n the normalised
    input.
    """
    size, n = size_of(mlp), len(x)
    parts = _parts(mlp)
    # x and x* go through the network together.
    seen, deltas = _inputs_and_deltas(mlp, parts, jnp.concatenate([x, next_x]))
    both = jnp.zeros((2 * n, n), x.dtype)
    for part, h, delta in zip(parts, seen, deltas, strict=True):
        delta = delta / size**0.5
        if isinstance(part, Linear):
            both += _gram(delta, delta[:n]) * (_gram(h, h[:n]) + 1.0)
        else:
            both += _gram(h * delta, (h * delta)[:n]) + _gram(delta, delta[:n])
    return Kernels(both[:n], _masked(both[n:], discount), size)


def _parts(mlp: MLP) -> list[Linear | LayerNorm]:
    """Layers and norms in the order in which a row passes them."""
    parts: list[Linear | LayerNorm] = []
    for i, layer in enumerate(mlp.layers):
        norm = mlp.norms[i] if i < len(mlp.norms) else None
        parts += [layer] if norm is None else [layer, norm]
    return parts


def _inputs_and_deltas(
    mlp: MLP, parts: list[Linear | LayerNorm], x: Float[Array, "n i"]
) -> tuple[list[Array], list[Array]]:
    """What each part multiplies its weights with, and the derivative of the output with respect to the part's own."""
    act = ACTIVATIONS[mlp.activation]

    def forward(nudges: list[Array]) -> tuple[Array, list[Array]]:
        seen, left = [], iter(nudges)

        def through(part: Linear | LayerNorm, h: Array) -> Array:
            seen.append(h if isinstance(part, Linear) else _bare(part)(h))
            return part(h) + next(left)

        h = x
        for i, layer in enumerate(mlp.layers):
            h = through(layer, h)
            if i + 1 < len(mlp.layers):
                norm = mlp.norms[i] if mlp.norms else None
                h = through(norm, h) if norm is not None and not mlp.norm_after else h
                h = act(h)
                h = through(norm, h) if norm is not None and mlp.norm_after else h
        return h.sum(), seen

    nudges = [jnp.zeros((len(x), _width(part)), x.dtype) for part in parts]
    deltas, seen = jax.grad(forward, has_aux=True)(nudges)
    return seen, deltas


def _bare(norm: LayerNorm) -> LayerNorm:
    """The norm without its scale and shift."""
    return LayerNorm(jnp.ones_like(norm.scale), jnp.zeros_like(norm.shift))


def _width(part: Linear | LayerNorm) -> int:
    return (part.bias if isinstance(part, Linear) else part.shift).shape[-1]


def _gram(a: Float[Array, "n p"], b: Float[Array, "m p"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b.T, precision="highest")


def _masked(cross: Float[Array, "n n"], discount: Float[Array, " n"]) -> Float[Array, "n n"]:
    return cross * jnp.broadcast_to(discount[:, None], cross.shape)


def size_of(params: PyTree) -> int:
    """P: how many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# Eigenvalues


def spectrum(kernels: Kernels, gamma: float) -> Seem:
    """SEEM of two kernels, on the host in double precision: A is not symmetric, and few devices have its eigenvalues.

    NaN where the kernels are no longer finite.
    """
    ntk, cross = (np.asarray(kernel, np.float64) for kernel in (kernels.ntk, kernels.cross))
    matrix = gamma * cross - ntk
    norm = float(np.linalg.norm(matrix))
    if not np.isfinite(norm):
        return Seem(np.nan, np.nan, np.full(len(ntk), np.nan), matrix)
    eigenvalues = np.linalg.eigvals(matrix / norm) if norm > 0 else np.zeros(len(ntk))
    top = float(eigenvalues.real.max())
    scale = kernels.size * norm
    return Seem(scale * top, top, scale * eigenvalues, kernels.size * matrix)


def arnoldi(
    f: Value,
    params: PyTree,
    x: Float[Array, "n i"],
    next_x: Float[Array, "n i"],
    discount: Float[Array, " n"],
    gamma: float,
) -> tuple[float, float]:
    """SEEM and its normalised value without features or matrix: A v is one pass backward and one forward.

    The eigenvalue of the largest real part is that of largest size once the spectrum is shifted by ||A||_F, which takes
    N such products. Of many parameters and rows.
    """
    from scipy.sparse.linalg import LinearOperator, eigs

    n, size, data = len(x), size_of(params), (params, x, next_x, discount, gamma)
    norm = float(np.sqrt(np.asarray(_squares(f, *data, jnp.eye(n, dtype=x.dtype)), np.float64).sum()))
    if not np.isfinite(norm) or norm == 0.0:
        return norm * 0.0, norm * 0.0

    def shifted(v: np.ndarray) -> np.ndarray:
        v = v.reshape(-1)
        return np.asarray(_times(f, *data, jnp.asarray(v, x.dtype)), np.float64) / norm + v

    operator = LinearOperator((n, n), matvec=shifted, dtype=np.dtype(np.float64))  # type: ignore[call-arg]
    start = np.random.default_rng(0).normal(size=n)
    found: Any = eigs(operator, k=1, which="LR", v0=start, ncv=min(n, 64), return_eigenvectors=False)
    top = float(found.real.max()) - 1.0
    return size * norm * top, top


@partial(jax.jit, static_argnums=0)
def _times(
    f: Value, params: PyTree, x: Array, next_x: Array, discount: Array, gamma: Any, v: Float[Array, " n"]
) -> Float[Array, " n"]:
    """A v / P."""
    values = lambda rows: lambda theta: jax.vmap(f, (None, 0))(theta, rows)
    (back,) = jax.vjp(values(x), params)[1](v / size_of(params))
    there, here = jnp.split(jax.jvp(values(jnp.concatenate([next_x, x])), (params,), (back,))[1], 2)
    return gamma * discount * there - here


@partial(jax.jit, static_argnums=0)
def _squares(f: Value, params: PyTree, x: Array, next_x: Array, discount: Array, gamma: Any, rows: Array) -> Array:
    """|A v / P|^2 of each row v."""
    return jax.lax.map(lambda v: jnp.square(_times(f, params, x, next_x, discount, gamma, v)).sum(), rows)


# A critic


def member(critic: Critic, index: int) -> MLP:
    """One network of an ensemble."""
    return jax.tree.map(lambda x: x[index], critic.mlp)


def q_value(mlp: MLP, x: Float[Array, " i"]) -> Float[Array, ""]:
    """Q of one row, as `dense_kernels` and `arnoldi` take it."""
    return mlp(x)[0]


def rows_of(critic: Critic, obs: PyTree, action: Array) -> Float[Array, "n i"]:
    """What the networks of a critic see of observations and actions."""
    return concat(flatten(obs, critic.inputs), action)


METHODS = ("structured", "dense", "arnoldi")

_structured, _dense = jax.jit(mlp_kernels), jax.jit(partial(dense_kernels, q_value))


def seem(
    critic: Critic,
    obs: PyTree[Float[Array, "n ..."]],
    action: Float[Array, "n act"],
    next_obs: PyTree[Float[Array, "n ..."]],
    next_action: Float[Array, "n act"],
    discount: Float[Array, " n"],
    gamma: float,
    *,
    index: int = 0,
    method: str = "structured",
) -> tuple[float, float]:
    """SEEM and its normalised value of one member of a critic. `discount` is 0 where the episode terminated.

    Raises `UsageError` for an unknown method.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    mlp = member(critic, index)
    x, next_x = rows_of(critic, obs, action), rows_of(critic, next_obs, next_action)
    if method == "arnoldi":
        return arnoldi(q_value, mlp, x, next_x, discount, gamma)
    kernels = _dense if method == "dense" else _structured
    found = spectrum(kernels(mlp, x, next_x, discount), gamma)
    return found.value, found.normalised


# What follows from it


def power(layers: int) -> float:
    """p = (2L - 2) / L: under SGD |Q|^{-p} falls linearly."""
    return (2 * layers - 2) / layers


def crash_step(step: float, value: float, layers: int, rate: float) -> float:
    """The step at which SGD diverges to infinity, from one SEEM; `rate` is c. Infinite unless SEEM is positive."""
    return step + 1.0 / (power(layers) * rate * value) if value > 0 else float("inf")


@dataclass(frozen=True)
class Law:
    """How values grow: what is linear in the step, how well it is (R^2), and where it ends (infinite under Adam)."""

    text: str
    r2: float
    crash_step: float


def fit_divergence(steps: np.ndarray, q: np.ndarray, optimiser: str, layers: int) -> Law:
    """The law of a stretch of growing |Q|: |Q|^{-p} against the step for "sgd", |Q|^{1/L} for "adam".

    Raises `UsageError` for another optimiser.
    """
    if optimiser not in ("sgd", "adam"):
        raise UsageError(f"unknown optimiser {optimiser!r}: choose sgd or adam")
    t, size = np.asarray(steps, np.float64), np.abs(np.asarray(q, np.float64))
    exponent = -power(layers) if optimiser == "sgd" else 1.0 / layers
    y = size**exponent
    slope, start = np.polyfit(t, y, 1)
    r2 = 1.0 - np.square(y - slope * t - start).sum() / np.square(y - y.mean()).sum()
    if optimiser == "adam":
        return Law(f"|Q| ~ t^{layers}", float(r2), float("inf"))
    end = float(-start / slope) if slope < 0 else float("inf")
    return Law(f"|Q|^-{power(layers):.3g} falls linearly", float(r2), end)


# The probe


@dataclass(frozen=True)
class SeemMonitor(AbstractMonitor):
    """SEEM of an agent's first critic as it trains, on the same transitions at each look.

    value, normalised      SEEM, SEEM / ||A||_F
    ntk_cosine, params_cosine, gradient_cosine     to the last look: of G(X, X), of theta, of the TD loss's gradient
    q_mean, q_max          mean Q(x) and largest |Q(x)| over the rows
    params_norm            |theta|
    growth                 growth of |theta| an update since the last look, over lr sqrt(P): near 1, Adam only scales up
    crash_step             update at which Q leaves every bound; under SGD only, and only where SEEM > 0.02 ||A||_F
    diverging              1 if SEEM > 0.02 ||A||_F in two looks in a row and the kernel's cosine is above 0.99
    """

    rows: int = ROWS
    index: int = 0
    """which member of the critic."""
    optimiser: str = "adam"
    """what trains the critic: adam or sgd."""

    def measure(self, agent: AbstractAgent, batch: Any, key: PRNGKeyArray) -> dict[str, Array]:
        """The kernels and what else a look needs; `agent.policy` acts in s'. Raises `UsageError` where there is no
        critic to look at."""
        if not suits(agent, batch):
            raise UsageError(
                "the probe seem needs a critic of plain networks that learns from single transitions, such as that of "
                "sac, td3 or iql"
            )
        critic, gamma = nets_of(agent, Critic)[0][1], agent.config.gamma
        mlp = member(critic, self.index)
        next_action = agent.policy(batch.next_obs, key)
        x, next_x = rows_of(critic, batch.obs, batch.action), rows_of(critic, batch.next_obs, next_action)
        values = lambda theta: theta(x)[:, 0]
        q, back = jax.vjp(values, mlp)
        (gradient,) = back(q - batch.reward - gamma * batch.discount * mlp(next_x)[:, 0])
        kernels = mlp_kernels(mlp, x, next_x, batch.discount)
        return {
            "ntk": kernels.ntk,
            "cross": kernels.cross,
            "params": _flat(mlp),
            "gradient": _flat(gradient),
            "q_mean": q.mean(),
            "q_max": jnp.abs(q).max(),
            "updates": agent.step,
            "layers": jnp.int32(len(mlp.layers)),
            "members": jnp.int32(critic.mlp.layers[0].weight.shape[0]),
        }

    def judge(self, config: Any, found: dict[str, np.ndarray], memory: Memory) -> Judgement:
        """The look's metrics, what the next one compares itself with, and the alarm."""
        params = found["params"].astype(np.float64)
        kernels = Kernels(jnp.asarray(found["ntk"]), jnp.asarray(found["cross"]), params.size)
        now = spectrum(kernels, config.gamma)
        updates, norm, nan = int(found["updates"]), float(np.linalg.norm(params)), float("nan")
        metrics = dict(
            value=now.value,
            normalised=now.normalised,
            q_mean=float(found["q_mean"]),
            q_max=float(found["q_max"]),
            params_norm=norm,
            diverging=0.0,
        )
        cosines = dict.fromkeys(("ntk", "params", "gradient"), nan)
        growth, before = nan, nan
        if memory:
            cosines = {name: _cosine(found[name], memory[name]) for name in cosines}
            before, passed = float(memory["normalised"]), updates - int(memory["updates"])
            rate = _learning_rate(config)
            if passed > 0 and rate is not None:
                growth = (norm - float(memory["norm"])) / passed / (rate * params.size**0.5)
        metrics |= {f"{name}_cosine": value for name, value in cosines.items()} | {"growth": growth}
        exciting = now.normalised > SELF_EXCITING
        metrics["diverging"] = float(exciting and before > SELF_EXCITING and cosines["ntk"] > FROZEN)
        metrics["crash_step"] = self._crash(config, found, now.value) if exciting else nan
        kept = {name: found[name] for name in cosines} | {
            "normalised": np.float64(now.normalised),
            "norm": np.float64(norm),
            "updates": np.int64(updates),
        }
        alarm = None
        if metrics["diverging"]:
            alarm = (
                f"values feed on themselves: normalised SEEM {now.normalised:.2f} after {before:.2f}, kernel cosine "
                f"{cosines['ntk']:.4f}, mean Q {metrics['q_mean']:.3g} and {self._law(found, metrics['crash_step'])}"
            )
        return Judgement(metrics, {name: np.asarray(value) for name, value in kept.items()}, alarm)

    def _crash(self, config: Any, found: dict[str, np.ndarray], value: float) -> float:
        rate = _learning_rate(config)
        if self.optimiser != "sgd" or rate is None:
            return float("nan")
        # The loss is a mean over rows and members.
        clock = 2.0 * rate / (len(found["ntk"]) * int(found["members"]))
        return crash_step(float(found["updates"]), value, int(found["layers"]), clock)

    def _law(self, found: dict[str, np.ndarray], crash: float) -> str:
        if self.optimiser == "sgd":
            return f"without bound at update {crash:,.0f}"
        return f"growing as updates^{int(found['layers'])}"


def suits(agent: AbstractAgent, batch: Any) -> bool:
    """Whether an agent has a critic of plain networks and learns from single transitions."""
    return bool(nets_of(agent, Critic)) and not isinstance(batch, Chunk)


def seem_verdicts(found: dict[str, float], before: Sequence[float] = ()) -> list[dict[str, str]]:
    """What seem/* means, lines as in `health.verdicts`; none if it was not measured. `found` is of one look, against an
    earlier one where the cosines and `growth` are there, with seem/bound the largest return, 0 if no reward is known;
    `before` are the normalised values of earlier looks, oldest first.
    """
    if "seem/normalised" not in found:
        return []
    now, cosine, growth = (found.get(f"seem/{name}", float("nan")) for name in ("normalised", "ntk_cosine", "growth"))
    text = f"seem/normalised {now:.3g}"
    if before:
        text += f", {before[-1]:.3g} a look before, at most {max(before):.3g}"
    text += f", kernel cosine {cosine:.3f}" if cosine == cosine else ""
    bound = found["seem/bound"]
    remedy = "stop; use critic_norm layer, a lower gamma, or a policy that stays closer to the data"
    if now != now:
        level, text = "bad", f"{text}: the kernel is not finite; the critic has diverged: {remedy}"
    elif now > SELF_EXCITING and before and before[-1] > SELF_EXCITING and cosine > FROZEN:
        level, text = "bad", f"{text}: values feed on themselves and will leave any bound: {remedy}"
    elif now > SELF_EXCITING:
        level = "warn"
        text = f"{text}: values feed on themselves at present; it may pass while the policy moves: look again soon"
    elif before and max(before) > SELF_EXCITING and 0.0 < 2.0 * bound < found["seem/q_max"]:
        level = "bad"
        text = f"{text}: values fed on themselves until |Q| was {found['seem/q_max']:.3g}, beyond any return: {remedy}"
    elif before and max(before) > SELF_EXCITING:
        level, text = "ok", f"{text}: values fed on themselves and no longer do"
    else:
        level, text = "ok", f"{text}: on this data the update contracts"
    lines = [{"name": "seem/normalised", "level": level, "text": text}]
    if growth == growth and growth >= SCALING[0]:
        told = f"seem/growth {growth:.2f}: |theta| grows by about lr sqrt(P) an update, Adam only scales the network up"
        lines.append({"name": "seem/growth", "level": "bad", "text": f"{told}: {remedy}"})
    return lines


def _flat(tree: PyTree) -> Array:
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays as vectors; each is scaled first, so that squares of large numbers stay finite."""
    unit = lambda v: v / max(float(np.abs(v).max()), 1e-300)
    a, b = unit(a.astype(np.float64).reshape(-1)), unit(b.astype(np.float64).reshape(-1))
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300))


def _learning_rate(config: Any) -> float | None:
    """The critic's: the config's `critic_lr`, else its `learning_rate`, else None."""
    names = {f.name for f in fields(config)}
    found = [name for name in ("critic_lr", "learning_rate") if name in names]
    return getattr(config, found[0]) if found else None
