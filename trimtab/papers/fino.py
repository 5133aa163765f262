"""FINO (arXiv:2602.18117): what noise in flow matching widens, and what choosing by value gains.

1. Clusters: eight Gaussians of standard deviation 0.02, learnt with each kind of noise, and how far samples are from
   the nearest of them.
2. Bandit: narrow data beside a bump of reward. 3,000 updates on the data, then 2,000 actions, fifty at a time with as
   many updates: what the noise and the choice among candidates gain.
3. From data to online (small): FINO with each noise against FQL on made data of cube-single.

The paper's tables are of OGBench and D4RL with a million updates and 500,000 steps: their figures stand beside ours.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.agents import FINO, cal_ql, fino, fql, ifql, rebrac, rlpd
from trimtab.agents.fino import noisy_flow_matching_loss
from trimtab.batches import Transition
from trimtab.core import Spec
from trimtab.ops import descend
from trimtab.papers.comparison import AFTER_DATA, AT_END, CUBE, Budget, budget_of, configs, judge, measure
from trimtab.papers.recipe import (
    COLOURS,
    Job,
    Results,
    curve,
    flags,
    make_data,
    plot_curves,
    require_known,
    run_jobs,
    save_png,
    select,
)
from trimtab.papers.sac_flow import data_name
from trimtab.policies.flow import imitator

SOURCE = "arXiv:2602.18117"

NOISES = ("none", "code", "paper_impl", "paper")

ANCHORS = (
    ("humanoidmaze-medium, 5 tasks", "IFQL, FINO", "success after 500k steps", "70, 97"),
    ("antmaze-giant, 5 tasks", "IFQL, FQL, FINO", "success after 500k steps", "31, 26, 79"),
    ("antmaze-large, 5 tasks", "Cal-QL, FINO", "success after 500k steps", "68, 99"),
    ("puzzle-4x4, 5 tasks", "IFQL, FINO", "success after 500k steps", "60, 56"),
)
"""The paper's figures, of a million updates on its own data and 500,000 steps, from one summary of its first table."""


PARTS = ("clusters", "bandit", "cube")
"""Experiments; the last is not one of scale smoke."""


def reproduce(
    scale: str,
    out: Path,
    offline_steps: int | None = None,
    online_steps: int | None = None,
    only: tuple[str, ...] = (),
) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there. The numbers of steps are those of the runs
    from data to online, at scale small; `only` names the experiments, at scale paper the tasks."""
    results = Results("fino", scale)
    for setting, method, metric, value in ANCHORS:
        results.anchor(setting, method, metric, value, f"{SOURCE}, from a summary of its table")
    if scale == "paper":
        paper(results, out, only)
        return results
    known = PARTS if scale == "small" else PARTS[:-1]
    require_known(only, known)
    parts, seeds = only or known, (0,) if scale == "smoke" else (0, 1, 2)
    if "clusters" in parts:
        clusters(results, out, seeds)
    if "bandit" in parts:
        bandits(results, out, seeds)
    if "cube" in parts:
        from_data_to_online(results, out, budget_of(scale, offline_steps, online_steps))
    return results


# Clusters

CLUSTERS, FAR, AWAY = "clusters", "distance from the nearest cluster", "share farther than 0.1"

PLANE = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))


def clusters(results: Results, out: Path, seeds: tuple[int, ...]) -> None:
    """Adds how far samples are from the data with each noise, and draws them."""
    samples = {}
    for noise in NOISES:
        for seed in seeds:
            points = samples[noise, seed] = np.asarray(cluster_samples(noise, jr.key(seed), 6_000))
            distance = np.linalg.norm(points[:, None] - np.asarray(_centres())[None], axis=2).min(1)
            results.add(CLUSTERS, noise, seed, FAR, float(np.sqrt(np.square(distance).mean())))
            results.add(CLUSTERS, noise, seed, AWAY, float((distance > 0.1).mean()))
    values = {noise: np.array(results.values(CLUSTERS, noise, FAR)) for noise in NOISES}
    wider = float((values["paper"] - values["none"]).min())
    results.check("clusters: the paper's noise minus none, least", wider >= 0.05, wider, 0.05)
    apart = float(np.abs(values["code"] - values["none"]).max())
    results.check("clusters: the code's noise apart from none, most", apart <= 0.03, apart, 0.03)
    _plot_clusters({noise: samples[noise, seeds[0]] for noise in NOISES}, out / "clusters.png")


def _centres() -> Float[Array, "8 2"]:
    angle = jnp.arange(8, dtype=jnp.float32) * (np.pi / 4.0)
    return 0.6 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


@partial(jax.jit, static_argnames=("noise", "updates"))
def cluster_samples(noise: str, key: PRNGKeyArray, updates: int) -> Float[Array, "n 2"]:
    """4,096 samples of a flow with 128 x 128 units after that many updates."""
    flow: Any = imitator(PLANE, (128, 128), 10, key)
    tx, obs = optax.adam(1e-3), jnp.zeros((256, 1))

    def step(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        flow, opt = carry
        k_which, k_noise, k_loss = jr.split(key, 3)
        action = _centres()[jr.randint(k_which, (256,), 0, 8)] + 0.02 * jr.normal(k_noise, (256, 2))
        loss = lambda f: (noisy_flow_matching_loss(f.velocity, obs, action, k_loss, noise, 0.1).mean(), {})
        flow, opt, _ = descend(tx, flow, opt, loss, "bc")
        return (flow, opt), None

    (flow, _), _ = jax.lax.scan(step, (flow, tx.init(flow)), jr.split(jr.fold_in(key, 1), updates))
    return flow(jnp.zeros((4096, 1)), jr.fold_in(key, 2))


def _plot_clusters(samples: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(samples), figsize=(2.6 * len(samples), 2.8), sharey=True)
    for panel, (noise, points), colour in zip(panels, samples.items(), COLOURS, strict=False):
        panel.plot(points[:1500, 0], points[:1500, 1], ".", ms=2, color=colour, alpha=0.4)
        panel.plot(*np.asarray(_centres()).T, "k+", ms=6)
        panel.set(title=noise, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


# The bandit

BANDIT, SPREAD, EARLY, LATE = "bandit", "spread of actions after the data", "reward of 500 actions", "of 2,000 actions"

VARIANTS = {
    "FQL": ("none", 1),
    "code's noise only": ("code", 1),
    "paper's noise only": ("paper", 1),
    "FINO, code's noise": ("code", 4),
    "FINO, paper's noise": ("paper", 4),
}
"""Name -> noise and number of candidates."""

ROUNDS, EACH, ROWS = 40, 50, 2_000


def bandits(results: Results, out: Path, seeds: tuple[int, ...]) -> None:
    """Adds the spread after the data and the reward gathered online for each variant."""
    curves: dict[str, list[np.ndarray]] = {}
    for name, (noise, candidates) in VARIANTS.items():
        for seed in seeds:
            spread, rewards = (np.asarray(x) for x in bandit(noise, candidates, jr.key(seed)))
            total = np.cumsum(rewards)
            results.add(BANDIT, name, seed, SPREAD, float(spread))
            results.add(BANDIT, name, seed, EARLY, float(total[500 // EACH - 1]))
            results.add(BANDIT, name, seed, LATE, float(total[-1]))
            curves.setdefault(name, []).append(total)
    ratio = lambda one, other, metric: float(
        np.divide(results.values(BANDIT, one, metric), results.values(BANDIT, other, metric)).min()
    )
    wide = ratio("paper's noise only", "FQL", SPREAD)
    results.check("bandit: spread with the paper's noise over FQL's, least", wide >= 2.0, wide, 2.0)
    narrow = 1.0 / ratio("FQL", "code's noise only", SPREAD)
    results.check("bandit: spread with the code's noise over FQL's, most", narrow < 1.3, narrow, 1.3)
    for name in ("FINO, code's noise", "FINO, paper's noise"):
        gain = ratio(name, "FQL", LATE)
        results.check(f"bandit: reward of {name} over FQL's, least", gain >= 2.0, gain, 2.0)
    wide, narrow = (results.values(BANDIT, f"FINO, {whose}'s noise", EARLY) for whose in ("paper", "code"))
    early = float(np.subtract(wide, narrow).min())
    results.check("bandit: reward of 500 actions, paper's noise minus code's, least", early >= 0.0, early, 0.0)
    _plot_bandit(curves, out / "bandit.png")


def bandit_reward(action: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """A bump of width 0.15 at (0.15, 0), eight standard deviations of the data away from them."""
    away = action - jnp.broadcast_to(jnp.array([0.15, 0.0]), action.shape)
    return jnp.exp(-jnp.square(away).sum(1) / (2.0 * 0.15**2))


@partial(jax.jit, static_argnames=("noise", "candidates"))
def bandit(noise: str, candidates: int, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, " rounds"]]:
    """The standard deviation of the actions after the data, and the reward of each round of fifty actions.

    gamma is 0, so that a critic is all there is to learn of rewards; xi stays at 10.
    """
    config = fino.Config(
        alpha=100.0,
        normalize_q=True,
        noise=noise,
        candidates=candidates,
        entropy_every=10**9,
        learning_rate=9e-4,
        gamma=0.0,
        hidden=(64, 64),
    )
    k_agent, k_data, k_learn, k_spread, k_online = jr.split(key, 5)
    agent = FINO.create(k_agent, PLANE, config)
    room, nothing = ROWS + ROUNDS * EACH, jnp.zeros((256, 1))
    first = jnp.array([-0.25, 0.0])[None, :] + 0.05 * jr.normal(k_data, (ROWS, 2))
    actions = jnp.zeros((room, 2)).at[:ROWS].set(first)

    def learn(carry: tuple[FINO, Array, Array], key: PRNGKeyArray) -> tuple[Any, None]:
        agent, actions, rows = carry
        k_rows, k_update = jr.split(key)
        action = actions[jr.randint(k_rows, (256,), 0, rows)]
        batch = Transition(nothing, action, bandit_reward(action), jnp.zeros(256), nothing)
        return (agent.update(batch, k_update)[0], actions, rows), None

    def act(carry: tuple[FINO, Array, Array], key: PRNGKeyArray) -> tuple[Any, Array]:
        agent, actions, rows = carry
        k_act, k_learn = jr.split(key)
        action = agent.explorer(jnp.zeros((EACH, 1)), k_act)
        actions = jax.lax.dynamic_update_slice(actions, action, (rows, jnp.int32(0)))
        carry, _ = jax.lax.scan(learn, (agent, actions, rows + EACH), jr.split(k_learn, EACH))
        return carry, bandit_reward(action).sum()

    carry, _ = jax.lax.scan(learn, (agent, actions, jnp.int32(ROWS)), jr.split(k_learn, 3_000))
    spread = carry[0].actor(jnp.zeros((2_000, 1)), k_spread).std(0).mean()
    _, rewards = jax.lax.scan(act, carry, jr.split(k_online, ROUNDS))
    return spread, rewards


def _plot_bandit(curves: dict[str, list[np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(5.2, 3.4))
    for (name, each), colour in zip(curves.items(), COLOURS, strict=False):
        for total in each:
            panel.plot(np.arange(1, len(total) + 1) * EACH, total, color=colour, lw=0.7, alpha=0.5)
        panel.plot(np.arange(1, len(each[0]) + 1) * EACH, np.mean(each, axis=0), color=colour, lw=2, label=name)
    panel.set(xlabel="actions", ylabel="sum of rewards")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


# From data to online


def noise_jobs(data: Path, budget: Budget) -> list[Job]:
    """FQL, and FINO with each noise, on cube-single."""
    found = []
    plain, guided = configs(CUBE)["FQL"], configs(CUBE)["FINO"]
    plans = {"FQL": plain} | {
        f"FINO, {noise}": (guided[0], fino.Config(**{**vars(guided[1]), "noise": noise})) for noise in NOISES
    }
    options: dict[str, Any] = dict(dataset=str(data / f"{data_name(CUBE)}.npz"), eval_freq=budget.often())
    options |= dict(offline_steps=budget.offline, online_steps=budget.online, eval_episodes=2 * budget.episodes)
    for seed in budget.seeds:
        for name, (agent, config) in plans.items():
            line = flags(agent, CUBE, config, checkpoint_freq=max(1, budget.offline // 2), **options)
            found.append(Job(CUBE, name, seed, line, "success"))
    return found


def from_data_to_online(results: Results, out: Path, budget: Budget) -> None:
    """Adds success rates after the data and at the end, and what was lost after the switch."""
    jobs = noise_jobs(out / "data", budget)
    make_data(data_name(CUBE), out / "data", budget.data[0])
    run_jobs(jobs, out)
    for job in jobs:
        measure(results, job, out)
    plot_curves(jobs, out, out / "curves.png", f"{budget.offline:,} updates on data, {budget.online:,} steps online")
    for noise in NOISES:
        judge(results, CUBE, f"FINO, {noise}")


# The paper's own runs

DOMAINS: dict[str, tuple[float, float, str, float, float]] = {
    "antmaze-large-navigate": (10.0, 0.99, "min", 0.003, 0.01),
    "antmaze-giant-navigate": (10.0, 0.995, "min", 0.003, 0.01),
    "cube-double-play": (300.0, 0.99, "mean", 0.1, 0.0),
    "puzzle-4x4-play": (1_000.0, 0.99, "mean", 0.3, 0.01),
}
"""Domain of OGBench whose data can be made here -> alpha, gamma and agg of FINO and FQL, whose gamma IFQL has, too;
ReBRAC's two alphas."""


LEAN: dict[str, Any] = dict(utd=1, critic_members=2, backup_entropy=False)
"""RLPD as the family of FQL's code runs it."""


def paper_jobs(data: Path) -> list[Job]:
    """Five tasks of each domain, ten seeds: a million updates on data, 500,000 steps online, and xi moved every 50,000
    of them."""
    found = []
    for domain, (alpha, gamma, agg, tie, pull) in DOMAINS.items():
        flow: dict[str, Any] = dict(alpha=alpha, gamma=gamma, q_agg=agg)
        # Its authors' tuned weight is for rewards times ten; of a step worth 1 it rises without end (see its page).
        maze = domain.startswith("antmaze")
        steady: dict[str, Any] = dict(cql_alpha=0.3, critic_hidden=(256,) * 4) if maze else {}
        agents: dict[str, tuple[str, Any]] = {
            "FINO": ("fino", fino.Config(entropy_every=50_000, **flow)),
            "FQL": ("fql", fql.Config(**flow)),
            "IFQL": ("ifql", ifql.Config(gamma=gamma)),
            "ReBRAC": ("rebrac", rebrac.Config(gamma=gamma, alpha_actor=tie, alpha_critic=pull)),
            "Cal-QL": ("cal-ql", cal_ql.Config(gamma=gamma, **steady)),
            "RLPD": ("rlpd", rlpd.Config(gamma=gamma, hidden=(512,) * 4, **LEAN)),
        }
        for task in range(1, 6):
            env = f"{domain}-singletask-task{task}-v0"
            path = str(data / f"{data_name(env)}.npz")
            options: dict[str, Any] = dict(dataset=path, eval_freq=50_000, eval_episodes=50, checkpoint_freq=50_000)
            for seed in range(10):
                for method, (agent, config) in agents.items():
                    mixed = dict(sampling="symmetric") if method in ("RLPD", "Cal-QL") else {}
                    before = {} if method == "RLPD" else dict(offline_steps=1_000_000)
                    line = flags(agent, env, config, online_steps=500_000, **before, **mixed, **options)
                    found.append(Job(env, method, seed, line, "success"))
    return found


def paper(results: Results, out: Path, only: tuple[str, ...] = ()) -> None:
    """The paper's settings, on data made here."""
    jobs = select(paper_jobs(out / "data"), only)
    for name in dict.fromkeys(data_name(job.setting) for job in jobs):
        make_data(name, out / "data", None)
    run_jobs(jobs, out)
    for job in jobs:
        steps, success = curve(job, out)
        if job.method != "RLPD":
            results.add(job.setting, job.method, job.seed, AFTER_DATA, float(success[steps <= 1_000_000][-1]))
        results.add(job.setting, job.method, job.seed, AT_END, float(success[-1]))
