"""Eleven agents on the same data, and online after it: the table that the recipes of FAC and FINO share.

Two tasks with data made here: cube-single, of scripted manipulation, and a maze of medium size for a point mass. All
networks have two hidden layers of 256, all batches 128 rows, all runs the same numbers of updates and of steps, so the
figures are of a small budget and not the papers'. Hyper-parameters of a method are those that its authors give for the
family of the task, with the maze taken for one of ant mazes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.agents import bc, cal_ql, fino, flow_ac, fql, ifql, iql, qc_fql, rebrac, rlpd, sac_flow_chunked
from trimtab.papers.recipe import Job, Results, curve, flags, make_data, plot_curves, run_jobs
from trimtab.papers.sac_flow import data_name

CUBE, MAZE = "cube-single-play-singletask-task2-v0", "pointmaze-medium-navigate-singletask-task1-v0"

EPISODES = {CUBE: 100, MAZE: 200}
"""Episodes of the data made for a task, of 1,000 steps."""


@dataclass(frozen=True)
class Budget:
    """How long the runs of a comparison are."""

    offline: int = 20_000
    """updates on the data."""
    online: int = 10_000
    """environment steps after them, of agents that go online."""
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 25
    """episodes of an evaluation; there is one at each quarter of either phase."""


OFFLINE = ("BC", "IQL", "ReBRAC", "IFQL", "FAC")
"""Methods that stop where the data end."""

BOTH = ("FQL", "FINO", "Cal-QL", "QC-FQL", "SAC Flow")
"""Methods that go on online."""

AFTER_DATA, AT_END, DROP = "success after the data", "success at the end", "drop of the return at the switch"


def configs(env: str) -> dict[str, tuple[str, Any]]:
    """Method -> agent and config for a task."""
    cube = env == CUBE
    nets: dict[str, Any] = dict(hidden=(256, 256), batch_size=128)
    shared: dict[str, Any] = dict(buffer_size=300_000, **nets)
    alpha, agg = (300.0, "mean") if cube else (10.0, "min")
    flow: dict[str, Any] = dict(alpha=alpha, q_agg=agg, **shared)
    guided: dict[str, Any] = dict(entropy_every=1_000)
    fac: dict[str, Any] = dict(alpha=0.5, lam=10.0) if cube else dict(alpha=0.5, lam=0.1, threshold="dataset")
    tie, pull = (1.0, 0.0) if cube else (0.003, 0.01)
    return {
        "BC": ("bc", bc.Config(**nets)),
        "IQL": ("iql", iql.Config(expectile=0.9, beta=1.0 if cube else 10.0, **shared)),
        "ReBRAC": ("rebrac", rebrac.Config(alpha_actor=tie, alpha_critic=pull, **shared)),
        "IFQL": ("ifql", ifql.Config(**shared)),
        "FAC": ("fac", flow_ac.Config(q_agg=agg, gamma=0.99, proxy_steps=10_000, **fac, **shared)),
        "FQL": ("fql", fql.Config(**flow)),
        "FINO": ("fino", fino.Config(**guided, **flow)),
        "Cal-QL": ("cal-ql", cal_ql.Config(**shared)),
        "QC-FQL": ("qc-fql", qc_fql.Config(**flow)),
        "SAC Flow": ("sac-flow-chunked", sac_flow_chunked.Config(d_model=64, learning_starts=1, **shared)),
        "RLPD": ("rlpd", rlpd.Config(utd=4, learning_starts=1_000, **shared)),
    }


def jobs(data: Path, budget: Budget, methods: tuple[str, ...] = (), tasks: tuple[str, ...] = (CUBE, MAZE)) -> list[Job]:
    """The runs of `methods` (default: all) on the data sets in `data`, the slowest ones first."""
    wanted = methods or ("RLPD", *BOTH, *OFFLINE)
    return [_job(env, method, seed, data, budget) for seed in budget.seeds for env in tasks for method in wanted]


def _job(env: str, method: str, seed: int, data: Path, budget: Budget) -> Job:
    agent, config = configs(env)[method]
    often = max(1, min(budget.offline, budget.online) // 4)
    options: dict[str, Any] = dict(dataset=str(data / f"{data_name(env)}.npz"), eval_freq=often)
    options |= dict(eval_episodes=budget.episodes, checkpoint_freq=max(1, budget.offline // 2))
    if method != "RLPD":
        options["offline_steps"] = budget.offline
    if method not in OFFLINE:
        options["online_steps"] = budget.online
    if method in ("RLPD", "Cal-QL"):
        options["sampling"] = "symmetric"
    return Job(env, method, seed, flags(agent, env, config, **options), "success")


def compare(results: Results, out: Path, budget: Budget) -> None:
    """Makes the data, trains all, and adds success rates, the drop at the switch, and their checks to `results`."""
    plan = jobs(out / "data", budget)
    for env in (CUBE, MAZE):
        make_data(data_name(env), out / "data", EPISODES[env])
    run_jobs(plan, out)
    for job in plan:
        measure(results, job, out)
    plot_curves(
        plan, out, out / "comparison.png", f"{budget.offline:,} updates on data, {budget.online:,} steps online"
    )
    for env in (CUBE, MAZE):
        for method in ("FINO", "Cal-QL"):
            worst = max(results.values(env, method, DROP))
            results.check(f"{env}: {method}, largest drop at the switch", worst <= 0.2, worst, 0.2)


def measure(results: Results, job: Job, out: Path) -> None:
    """Adds what a run reached: at its last evaluation on data, and at its end."""
    agent, config = configs(job.setting)[job.method]
    steps, success = curve(job, out)
    _, returns = curve(job, out, "return")
    switch = _option(job, "offline-steps") + (config.proxy_steps if agent == "fac" else 0)
    before, after = steps <= switch, steps > switch
    if before.any():
        results.add(job.setting, job.method, job.seed, AFTER_DATA, float(success[before][-1]))
    if after.any():
        results.add(job.setting, job.method, job.seed, AT_END, float(success[-1]))
    if before.any() and after.any():
        had, has = float(returns[before][-1]), float(returns[after][0])
        results.add(job.setting, job.method, job.seed, DROP, (had - has) / max(abs(had), 1e-6))


def _option(job: Job, name: str) -> int:
    words = job.flags
    return int(words[words.index(f"--{name}") + 1]) if f"--{name}" in words else 0


def budget_of(offline: int | None, online: int | None, seeds: tuple[int, ...] = (0, 1, 2)) -> Budget:
    """The budget asked for; None leaves the default."""
    default = Budget(seeds=seeds)
    return Budget(offline or default.offline, online or default.online, seeds)
