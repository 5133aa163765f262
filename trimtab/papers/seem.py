"""SEEM (arXiv:2310.04411): will values feed on themselves, when do they leave all bounds, and does LayerNorm help?

1. Toy maze (all scales): 63 transitions of one walk in the plane, all rewards 0, Q-learning on the full batch without a
   target network. The true values are 0: any growth is spurious. In double precision.
2. Control (small and paper): TD3 with tau = 1 and nothing that ties it to the data, with and without LayerNorm.
3. Subsets (small and paper): TD3+BC, IQL and CQL on 10 % and 1 % of the transitions, with and without LayerNorm.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.agents import cql, iql, td3, td3_bc
from trimtab.diagnostics.seem import (
    SCALING,
    SELF_EXCITING,
    Seem,
    crash_step,
    fit_divergence,
    mlp_kernels,
    size_of,
    spectrum,
)
from trimtab.nets.mlp import MLP
from trimtab.ops import copy, descend
from trimtab.papers.recipe import COLOURS, Job, Results, curve, flags, make_data, metrics, run_jobs, save_png

SEEDS, TRIO = tuple(range(10)), (0, 1, 2)
"""Seeds in the toy maze, and of the training runs, which train together."""

TOY, CONTROL, SUBSET = "toy maze", "control,", "subset,"

NORMS: dict[str, str | None] = {"": None, ", LayerNorm": "layer"}

OFFLINE: dict[str, tuple[str, Any]] = {
    "td3-bc": ("TD3+BC", td3_bc.Config()),
    "iql": ("IQL", iql.Config()),
    "cql": ("CQL", cql.Config()),
}

ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}

LOOKS = {"normalised": "largest normalised SEEM", "q_max": "largest |Q|", "diverging": "alarm"}
"""Metrics of the probe, of which the largest is reported."""

STATES, STRIDE, NOISE = 64, 0.1, 0.02

ALARM = 6.0
"""Mean Q at which SEEM is asked for the fate of a run and its crash step."""

WINDOW = (1.5, 20.0)
"""Mean Q between which the law of growth under SGD is fitted."""

BEYOND = 1e8
"""Mean |Q| at which a run under SGD has crashed: the next steps overflow."""


@dataclass(frozen=True)
class Toy:
    """One kind of run in the toy maze."""

    method: str
    gamma: float = 0.99
    hidden: tuple[int, ...] = (64,)
    norm: str | None = None
    optimiser: str = "sgd"
    rate: float = 2e-2
    iterations: int = 1_500
    marks: tuple[int, ...] = ()
    """iterations at which SEEM is measured."""

    @property
    def layers(self) -> int:
        return len(self.hidden) + 1


FATES = (
    Toy("SGD, gamma 0.99"),
    Toy("SGD, gamma 0.95", gamma=0.95, iterations=2_001, marks=(500, 1_000, 2_000)),
    Toy("SGD, gamma 0.9", gamma=0.9, iterations=2_001, marks=(500, 1_000, 2_000)),
    Toy("SGD, gamma 0.99, LayerNorm", norm="layer", iterations=3_000, marks=(500, 1_000, 2_000)),
)
"""Who diverges and who does not."""

SLOW = (
    Toy("SGD 5e-3, 2 layers", rate=5e-3, iterations=6_000),
    Toy("SGD 5e-3, 3 layers", rate=5e-3, hidden=(64, 64), iterations=6_000),
)
"""Whose crash is predicted."""

ADAM = (
    Toy("Adam, 2 layers", optimiser="adam", rate=1e-3, iterations=20_000),
    Toy("Adam, 3 layers", optimiser="adam", rate=1e-3, hidden=(64, 64), iterations=20_000),
)


@dataclass(frozen=True)
class Trace:
    """One run of `Toy`: mean Q and |theta| before each iteration, SEEM at the marks and when mean Q first passed
    `ALARM` (None if it never did), and the iteration at which it crashed (None likewise)."""

    q: np.ndarray
    norm: np.ndarray
    marks: dict[int, Seem]
    alarm: tuple[int, Seem] | None
    crash: int | None
    size: int

    @property
    def diverged(self) -> bool:
        """Whether mean Q passed 1,000 within 1,500 iterations."""
        return bool((self.q[:1_500] > 1e3).any())


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results = Results("seem", scale)
    toy(results, out)
    if scale != "smoke":
        anchors(results)
    jobs = control(scale, out / "data") + subsets(scale, out / "data") + antmaze(scale, out / "data")
    if jobs:
        train(results, jobs, out)
        _plot_looks([job for job in jobs if job.setting.startswith(CONTROL)], out, out / "control.png")
    return results


def anchors(results: Results) -> None:
    """The paper's own figures, on D4RL's data: other data sets than those made here."""
    source = "arXiv:2310.04411, Table 1, D4RL"
    for name, plain, normed in (
        ("umaze", 95.6, 94.3),
        ("umaze-diverse", 69.5, 88.5),
        ("medium-play", 0.0, 85.6),
        ("medium-diverse", 6.4, 83.9),
        ("large-play", 1.6, 65.4),
        ("large-diverse", 4.4, 67.1),
    ):
        results.anchor(f"AntMaze {name}", "diffusion QL", "score, mean of the last 10", plain, source)
        results.anchor(f"AntMaze {name}", "diffusion QL, LayerNorm", "score, mean of the last 10", normed, source)
    source, what = "arXiv:2310.04411, Fig. 9, read off", "gain from LayerNorm, summed scores; 100, 50, 10, 1 %"
    for method, gains in (
        ("TD3+BC", "+23 +20 +139 +158"),
        ("IQL", "-2 +5 +126 +62"),
        ("diffusion QL", "-7 +1 +141 +194"),
        ("CQL", "+13 +48 +238 +247"),
    ):
        results.anchor("MuJoCo, D4RL", method, what, gains, source)


def train(results: Results, jobs: list[Job], out: Path) -> None:
    """Makes the data sets of `jobs` and trains them below `out`; adds what they reached, and their checks."""
    for name in dict.fromkeys(data_name(job) for job in jobs):
        make_data(name, out / "data", episodes=None)
    run_jobs(jobs, out)
    for job in jobs:
        _, values = curve(job, out)
        results.add(job.setting, job.method, job.seed, f"{job.measure} at the end", float(values[-1]))
        for metric, label in LOOKS.items():
            series = metrics(job, out).get(f"diagnostics/seem_{metric}")
            if series is not None:
                results.add(job.setting, job.method, job.seed, label, float(series[1].max()))
    _judge(results, jobs, out)


# The toy maze: what must hold


def toy(results: Results, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Adds fates, crashes and laws of growth in the toy maze to `results`, with their checks and a picture."""
    traces = {kind: walk(kind, seeds) for kind in (*FATES, *SLOW, *ADAM)}
    for kind, runs in traces.items():
        for seed, trace in zip(seeds, runs, strict=True):
            add = lambda metric, value, kind=kind, seed=seed: results.add(TOY, kind.method, seed, metric, value)
            if kind in FATES:
                add("largest mean Q", float(trace.q.max()))
                for mark, found in trace.marks.items():
                    add(f"normalised SEEM at iteration {mark}", found.normalised)
            if kind.gamma == FATES[0].gamma and kind.norm is None and trace.alarm is not None:
                add("normalised SEEM at mean Q > 6", trace.alarm[1].normalised)
            if kind in (FATES[0], *SLOW) and trace.crash is not None:
                add("iteration of the crash", trace.crash)
                add("relative error of the iterations left, at mean Q > 6", remaining_error(kind, trace))
                add("R^2 of Q^-p, mean Q 1.5 to 20", sgd_fit(kind, trace))
            if kind in ADAM:
                r2, slope = adam_fit(kind, trace)
                add("R^2 of Q^(1/L), second half", r2)
                add("slope of |theta| / (lr sqrt P), second half", slope)
    _judge_toy(results, traces)
    _plot_toy(traces, out / "toy.png")
    source = "arXiv:2310.04411"
    results.anchor(
        TOY, "SGD, authors' seed", "iteration of the crash", "about 303, 1/Q linear from 200", f"{source} plot"
    )
    results.anchor(TOY, "SGD", "law", "|Q|^-(2L-2)/L falls linearly to 0", f"{source}, theorem")
    results.anchor(TOY, "Adam", "law", "|theta| = lr sqrt(P) t + o(t), |Q| ~ t^L", f"{source}, theorem")


def _judge_toy(results: Results, traces: dict[Toy, list[Trace]]) -> None:
    fast, _, low, normed = (traces[kind] for kind in FATES)
    fates = {kind.method: sum(trace.diverged for trace in traces[kind]) for kind in FATES}
    least = 0.9 * len(fast)
    results.check("gamma 0.99: seeds with mean Q > 1e3", fates[FATES[0].method] >= least, fates[FATES[0].method], least)
    for kind in (FATES[2], FATES[3]):
        results.check(f"{kind.method}: seeds with mean Q > 1e3", fates[kind.method] == 0, fates[kind.method], 0)
    largest = max(float(trace.q.max()) for trace in normed)
    results.check("LayerNorm: largest mean Q", largest < 100, largest, 100)
    runs = [trace for kind in (FATES[0], *SLOW) for trace in traces[kind]]
    alarms = [trace.alarm[1].normalised for trace in runs if trace.crash is not None and trace.alarm is not None]
    results.check(
        "SGD, gamma 0.99: least normalised SEEM at mean Q > 6", min(alarms) > SELF_EXCITING, min(alarms), SELF_EXCITING
    )
    for name, runs in (("gamma 0.9", low), ("LayerNorm", normed)):
        most = max(found.normalised for trace in runs for found in trace.marks.values())
        results.check(
            f"{name}: largest normalised SEEM at 500, 1,000, 2,000", most < SELF_EXCITING, most, SELF_EXCITING
        )
    for kind, threshold in zip(SLOW, (0.30, 0.35), strict=True):
        errors = [remaining_error(kind, trace) for trace in traces[kind]]
        error = float(np.nanmedian(errors))
        results.check(f"{kind.method}: median error of the iterations left", error <= threshold, error, threshold)
        crashed = float(np.isfinite(errors).mean())
        results.check(f"{kind.method}: share of seeds that crash", crashed >= 0.9, crashed, 0.9)
    for kind in (FATES[0], *SLOW):
        r2 = float(np.nanmedian([sgd_fit(kind, trace) for trace in traces[kind]]))
        results.check(f"{kind.method}: median R^2 of the law", r2 > 0.95, r2, 0.95)
    for kind in ADAM:
        fits = [adam_fit(kind, trace) for trace in traces[kind]]
        worst = min(r2 for r2, _ in fits)
        results.check(f"{kind.method}: least R^2 of Q^(1/L)", worst > 0.999, worst, 0.999)
        slopes = [slope for _, slope in fits]
        results.check(f"{kind.method}: least slope of |theta|", min(slopes) >= SCALING[0], min(slopes), SCALING[0])
        results.check(f"{kind.method}: largest slope of |theta|", max(slopes) <= SCALING[1], max(slopes), SCALING[1])


def _plot_toy(traces: dict[Toy, list[Trace]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (fate, sgd, adam) = pyplot.subplots(1, 3, figsize=(13, 3.6))
    for kind, colour in zip((FATES[0], FATES[2], FATES[3]), COLOURS, strict=False):
        for i, trace in enumerate(traces[kind]):
            q = np.abs(trace.q[: trace.crash])
            fate.semilogy(q, color=colour, lw=0.8, label=kind.method if i == 0 else None)
    fate.set(title="who diverges", xlabel="iteration", ylabel="|mean Q|", ylim=(1e-3, 1e8))
    fate.legend(fontsize=7)
    for i, trace in enumerate(traces[FATES[0]]):
        seen = trace.q[: trace.crash]
        sgd.plot(np.where(seen > 1, 1 / np.maximum(seen, 1), np.nan), color=COLOURS[i % len(COLOURS)], lw=1)
        if trace.alarm is not None:
            clock = 2 * FATES[0].rate / (STATES - 1)
            end = crash_step(float(trace.alarm[0]), trace.alarm[1].value, FATES[0].layers, clock)
            sgd.plot([trace.alarm[0], end], [1 / ALARM, 0], color=COLOURS[i % len(COLOURS)], lw=0.8, ls=":")
    sgd.set(title="SGD: 1/Q, and the crash predicted at Q > 6 (dotted)", xlabel="iteration", ylim=(0, 1))
    for kind, colour in zip(ADAM, COLOURS, strict=False):
        for i, trace in enumerate(traces[kind]):
            root = np.maximum(trace.q, 0) ** (1 / kind.layers)
            adam.plot(root / root[-1], color=colour, lw=0.8, label=f"L = {kind.layers}" if i == 0 else None)
    adam.set(title="Adam: Q^(1/L), over its last value", xlabel="iteration")
    adam.legend(fontsize=7)
    for panel in (fate, sgd, adam):
        panel.grid(alpha=0.3)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


# Control and subsets: the runs


def control(scale: str, data: Path) -> list[Job]:
    """TD3 with targets that are the networks (copied with each policy update) and no tie to the data, with SEEM. Small:
    Pendulum, 10,000 updates. Paper: nine data sets of MuJoCo, 1,000,000 updates."""
    if scale == "smoke":
        return []
    names = {"Pendulum-v1": "mujoco/pendulum/medium-v0"}
    steps, every = 10_000, 500
    if scale == "paper":
        tasks, kinds = ("hopper", "halfcheetah", "walker2d"), ("medium", "medium-replay", "expert")
        names = {f"{ENVS[task]} {kind}": f"mujoco/{task}/{kind}-v0" for task in tasks for kind in kinds}
        steps, every = 1_000_000, 10_000
    jobs = []
    for label, name in names.items():
        options = dict(offline_steps=steps, eval_freq=steps // 2, probes="seem", probe_freq=every)
        for method, norm in NORMS.items():
            words = flags(
                "td3", label.split()[0], td3.Config(tau=1.0, critic_norm=norm), **options, **_place(data, name)
            )
            jobs += _together(f"{CONTROL} {label}", f"TD3, tau 1{method}", words)
    return jobs


def subsets(scale: str, data: Path) -> list[Job]:
    """TD3+BC, IQL and CQL on shares of the transitions. Small: Pendulum, 5,000 updates, 10 % and 1 %, CQL with 4 of
    each kind of actions instead of 10. Paper: three tasks, 100, 50, 10 and 1 %, 1,000,000 updates."""
    if scale == "smoke":
        return []
    names = {"Pendulum-v1": "mujoco/pendulum/medium-v0"}
    steps, shares, configs = 5_000, (0.1, 0.01), OFFLINE | {"cql": ("CQL", cql.Config(cql_actions=4))}
    if scale == "paper":
        names = {ENVS[task]: f"mujoco/{task}/medium-v0" for task in ("hopper", "halfcheetah", "walker2d")}
        steps, shares, configs = 1_000_000, (1.0, 0.5, 0.1, 0.01), OFFLINE
    jobs = []
    for env, name in names.items():
        for share in shares:
            for agent, (label, config) in configs.items():
                for method, norm in NORMS.items():
                    options = dict(offline_steps=steps, eval_freq=steps // 2, dataset_fraction=share)
                    options |= dict(probes="seem", probe_freq=steps // 20)
                    words = flags(agent, env, replace(config, critic_norm=norm), **options, **_place(data, name))
                    jobs += _together(f"{SUBSET} {share:.0%} of {env}", f"{label}{method}", words)
    return jobs


def antmaze(scale: str, data: Path) -> list[Job]:
    """Paper: diffusion Q-learning on AntMaze, with and without LayerNorm, with the paper's sizes (its eta, backup over
    ten actions and clipped gradients). Not the paper's: OGBench's data and mazes, of which none is as small as D4RL's
    umaze, and its rewards (-1 until the goal, where D4RL's 0 and 1 are taken ten times); no resampling of trajectories.
    """
    if scale != "paper":
        return []
    jobs = []
    for size, clip in (("medium", 2), ("large", 10)):
        env, name = f"antmaze-{size}-navigate-singletask-v0", f"antmaze-{size}-navigate-v0"
        for method, norm in NORMS.items():
            words = ("diffusion-ql", "--env", env, "--agent.eta", "0.5", "--agent.max-q-backup")
            words += ("--agent.max-grad-norm", str(clip), "--agent.critic-norm", norm or "None")
            words += ("--offline-steps", "1000000", "--eval-freq", "100000", "--eval-episodes", "50")
            place = ("--dataset", str(data / f"{name}.npz"), "--probes", "seem", "--probe-freq", "10000")
            jobs += _together(f"AntMaze {size}", f"diffusion QL{method}", (*words, *place), "success")
    return jobs


def _place(data: Path, name: str) -> dict[str, Any]:
    return dict(dataset=str(data / f"{name}.npz"), log="csv")


def _together(setting: str, method: str, words: tuple[str, ...], measure: str = "return") -> list[Job]:
    return [Job(setting, method, seed, words, measure, TRIO) for seed in TRIO]


def data_name(job: Job) -> str:
    """The data set of a job, as `trimtab data make` names it."""
    parts = Path(job.flags[job.flags.index("--dataset") + 1]).parts
    below = len(parts) - parts[::-1].index("data")  # a folder above may be called the same
    return str(Path(*parts[below:]).with_suffix(""))


def _judge(results: Results, jobs: list[Job], out: Path) -> None:
    """Thresholds of ours, from what was measured; see the page."""
    for setting in dict.fromkeys(job.setting for job in jobs):
        found = lambda method, label, at=setting: results.values(at, method, label)
        if setting.startswith(CONTROL):
            plain, normed = ("TD3, tau 1" + method for method in NORMS)
            bound = _largest_return(next(job for job in jobs if job.setting == setting), out)
            ratios = [value / bound for value in found(plain, LOOKS["q_max"])]
            value = min(ratios)
            results.check(f"{setting}: least |Q| without LayerNorm over the largest return", value > 2, value, 2)
            value = float(np.median(ratios))
            results.check(f"{setting}: median of the same", value > 10, value, 10)
            value = min(found(plain, LOOKS["normalised"]))
            results.check(f"{setting}: least of the largest SEEM without LayerNorm", value > 0.05, value, 0.05)
            value = max(found(normed, LOOKS["q_max"])) / bound
            results.check(f"{setting}: largest |Q| with LayerNorm over the largest return", value <= 2, value, 2)
        if setting.startswith(f"{SUBSET} 1%"):
            mean = lambda method, at=setting: float(np.mean(results.values(at, method, "return at the end")))
            gain = mean("TD3+BC, LayerNorm") - mean("TD3+BC")
            results.check(f"{setting}: TD3+BC with LayerNorm minus without", gain >= 0, gain, 0)


def _largest_return(job: Job, out: Path) -> float:
    """max |r| / (1 - gamma) of a job's data set."""
    rewards = np.load(job.flags[job.flags.index("--dataset") + 1])["rewards"]
    return float(np.abs(rewards).max() / (1 - td3.Config().gamma))


def _plot_looks(jobs: list[Job], out: Path, path: Path) -> None:
    """Normalised SEEM above |Q|, of all seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings, methods = (
        list(dict.fromkeys(values)) for values in zip(*((j.setting, j.method) for j in jobs), strict=True)
    )
    figure, panels = pyplot.subplots(2, len(settings), figsize=(5.5 * len(settings), 4.6), squeeze=False, sharex=True)
    for i, setting in enumerate(settings):
        above, below = panels[0][i], panels[1][i]
        for job in jobs:
            if job.setting == setting:
                looks, colour = metrics(job, out), COLOURS[methods.index(job.method)]
                label = job.method if job.seed == TRIO[0] else None
                above.plot(*looks["diagnostics/seem_normalised"], color=colour, lw=1, label=label)
                below.semilogy(*looks["diagnostics/seem_q_max"], color=colour, lw=1)
        above.axhline(SELF_EXCITING, color="black", lw=0.7, ls=":")
        above.set(title=setting, ylabel="SEEM / ||A||")
        below.set(xlabel="update", ylabel="largest |Q|")
        above.legend(fontsize=7)
        for panel in (above, below):
            panel.grid(alpha=0.3)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


# The toy maze


def maze(key: PRNGKeyArray) -> tuple[Float[Array, "n 4"], Float[Array, "n 2"]]:
    """The pairs (s, a) of one walk, a one of eight compass directions, and the states after them."""
    k_start, k_action, k_noise = jr.split(key, 3)
    action = _compass()[jr.randint(k_action, (STATES - 1,), 0, 8)]
    moves = STRIDE * action + jr.uniform(k_noise, action.shape, maxval=NOISE)
    states = jr.uniform(k_start, (1, 2)) + jnp.concatenate([jnp.zeros((1, 2)), jnp.cumsum(moves, 0)])
    return jnp.concatenate([states[:-1], action], 1), states[1:]


def _compass() -> Float[Array, "8 2"]:
    angle = jnp.arange(8.0) * (jnp.pi / 4)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)


def _all_actions(next_obs: Float[Array, "n 2"]) -> Float[Array, "n 8 4"]:
    shape = (len(next_obs), 8, 2)
    return jnp.concatenate([jnp.broadcast_to(next_obs[:, None], shape), jnp.broadcast_to(_compass(), shape)], -1)


def _greedy(net: MLP, choices: Float[Array, "n 8 4"]) -> Float[Array, "n 4"]:
    best = net(choices)[..., 0].argmax(1)
    return jnp.take_along_axis(choices, best[:, None, None], 1)[:, 0]


def _optimiser(toy: Toy) -> optax.GradientTransformation:
    return optax.sgd(toy.rate) if toy.optimiser == "sgd" else optax.adam(toy.rate)


def walk(toy: Toy, seeds: tuple[int, ...]) -> list[Trace]:
    """Runs of all seeds side by side, in double precision."""
    with jax.enable_x64(True):
        keys = jnp.stack([jr.key(seed) for seed in seeds])
        first, data = _begin(toy, keys)
        carry = (first, _opt_states(toy, first), copy(first), jnp.full((len(seeds),), -1), jnp.full((len(seeds),), -1))
        qs, norms, marked, begin = [], [], {}, 0
        for end in (*toy.marks, toy.iterations):
            carry, (q, norm) = _train(toy, carry, data, jnp.arange(begin, end))
            qs.append(np.asarray(q))
            norms.append(np.asarray(norm))
            if end in toy.marks:
                marked[end] = _kernels(carry[0], data)
            begin = end
        alarms, (_, _, _, alarm_at, crashed_at) = _kernels(carry[2], data), carry
        q, norm = np.concatenate(qs, 1), np.concatenate(norms, 1)
        each = lambda kernels, i: spectrum(jax.tree.map(lambda x: x[i], kernels), toy.gamma)
        size = size_of(first) // len(seeds)
        at = lambda steps, i: int(steps[i]) if int(steps[i]) >= 0 else None
        traces = []
        for i in range(len(seeds)):
            marks = {mark: each(kernels, i) for mark, kernels in marked.items()}
            step, crash = at(alarm_at, i), at(crashed_at, i)
            traces.append(Trace(q[i], norm[i], marks, None if step is None else (step, each(alarms, i)), crash, size))
        return traces


@partial(jax.jit, static_argnums=0)
def _begin(toy: Toy, keys: Array) -> Any:
    def one(key: PRNGKeyArray) -> Any:
        k_net, k_data = jr.split(key)
        x, next_obs = maze(k_data)
        return MLP.create(4, toy.hidden, 1, k_net, norm=toy.norm), (x, _all_actions(next_obs))

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnums=0)
def _opt_states(toy: Toy, nets: MLP) -> Any:
    return jax.vmap(lambda net: _optimiser(toy).init(net))(nets)


@jax.jit
def _kernels(nets: MLP, data: Any) -> Any:
    one = lambda net, data: mlp_kernels(net, data[0], _greedy(net, data[1]), jnp.ones(STATES - 1))
    return jax.vmap(one)(nets, data)


@partial(jax.jit, static_argnums=0)
def _train(toy: Toy, carry: Any, data: Any, steps: Array) -> Any:
    """The iterations `steps` of all seeds; mean Q and |theta| before each."""
    tx = _optimiser(toy)

    def one(carry: Any, data: Any) -> Any:
        x, choices = data

        def iteration(carry: Any, t: Array) -> Any:
            net, opt, snapshot, alarm_at, crashed_at = carry
            y = toy.gamma * net(choices)[..., 0].max(1)
            loss = lambda net: (jnp.square(net(x)[:, 0] - y).mean(), {})
            q, norm = net(x)[:, 0], optax.tree.norm(net)
            rings = (alarm_at < 0) & (q.mean() > ALARM)
            snapshot = jax.tree.map(lambda old, new: jnp.where(rings, new, old), snapshot, net)
            # A run under SGD is over when it has crashed: nothing moves any more.
            gone = (crashed_at >= 0) | ~(jnp.abs(q).mean() < (BEYOND if toy.optimiser == "sgd" else jnp.inf))
            crashed_at = jnp.where(gone & (crashed_at < 0), t, crashed_at)
            new = descend(tx, net, opt, loss, "critic")[:2]
            net, opt = jax.tree.map(lambda old, new: jnp.where(gone, old, new), (net, opt), new)
            return (net, opt, snapshot, jnp.where(rings, t, alarm_at), crashed_at), (q.mean(), norm)

        return jax.lax.scan(iteration, carry, steps)

    return jax.vmap(one)(carry, data)


def remaining_error(toy: Toy, trace: Trace) -> float:
    """|predicted - real| / real, of the iterations from the alarm to the crash; NaN for a run that did not crash."""
    if trace.alarm is None or trace.crash is None or trace.crash <= trace.alarm[0]:
        return float("nan")
    step, found = trace.alarm
    predicted = crash_step(float(step), found.value, toy.layers, 2 * toy.rate / (STATES - 1))
    return abs(predicted - trace.crash) / (trace.crash - step)


def sgd_fit(toy: Toy, trace: Trace) -> float:
    """R^2 of the law of growth while mean Q rises from 1.5 to 20; NaN where it does not, or within 5 iterations."""
    above = np.flatnonzero(trace.q > WINDOW[1])
    if not len(above):
        return float("nan")
    begin = np.flatnonzero(trace.q[: above[0]] <= WINDOW[0])
    steps = np.arange(begin[-1] + 1 if len(begin) else 0, above[0])
    return fit_divergence(steps, trace.q[steps], "sgd", toy.layers).r2 if len(steps) >= 5 else float("nan")


def adam_fit(toy: Toy, trace: Trace) -> tuple[float, float]:
    """R^2 of Q^(1/L) against the step over the second half, and the slope of |theta| there over lr sqrt(P)."""
    steps = np.arange(len(trace.q) // 2, len(trace.q))
    slope = np.polyfit(steps, trace.norm[steps], 1)[0]
    return fit_divergence(steps, trace.q[steps], "adam", toy.layers).r2, float(slope / (toy.rate * trace.size**0.5))
