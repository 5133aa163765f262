"""The verbs: train, resume, load, evaluate, evaluate_offline, reopen. The command line calls these and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np

from trimtab import presets
from trimtab.agents import batch_class, config_class
from trimtab.assemble import (
    EnvLike,
    Setup,
    agent_class,
    check_fit,
    check_probes,
    execute,
    find_probes,
    import_all,
    in_phase,
    make_evaluator,
    moments,
    skeleton,
    spec_from_json,
    spec_to_json,
    stored_state,
)
from trimtab.batches import Rollout
from trimtab.core import AbstractPolicy, RunError, UsageError
from trimtab.data.collect import locate
from trimtab.data.readers import read_recorded
from trimtab.data.sources import AbstractSource
from trimtab.data.write import read_record, references
from trimtab.envs import ogbench
from trimtab.envs.make import find
from trimtab.ope.evaluate import OfflineEvaluation, Settings, check_estimators, evaluate_recorded
from trimtab.ranges import check_ranges
from trimtab.run.folder import Run, read_config, read_control, replace_text, write_json
from trimtab.run.logging import check_loggers
from trimtab.training import checkpoint
from trimtab.training.compile import configure
from trimtab.training.fit import REMEDY, Interrupted, Signals, kept
from trimtab.training.predict import Policy

FORMAT = 1
"""Version of `config.json`."""

STEPS = 1_000_000
"""Environment steps of online training, unless others are asked for."""

SAMPLING = ("merged", "symmetric")
"""What becomes of a data set once an agent acts: its replay buffer starts with it, or batches are half of each."""


@dataclass(frozen=True)
class Trained:
    """A run and where it stands. `policy` reads its final agent."""

    path: Path

    @property
    def policy(self) -> Policy:
        """The trained policy."""
        return load(self.path)


def train(
    agent: str,
    env: EnvLike | None = None,
    *,
    dataset: str | Path | None = None,
    dataset_fraction: float = 1.0,
    stream: str = "auto",
    steps: int | None = None,
    offline_steps: int = 0,
    online_steps: int = 0,
    sampling: str = "merged",
    seed: int = 0,
    seeds: Sequence[int] = (),
    num_envs: int | None = None,
    updates_per_step: float = 1.0,
    her: str | None = None,
    her_k: int = 4,
    eval_freq: int = 10_000,
    eval_episodes: int = 10,
    log_freq: int = 1_000,
    checkpoint_freq: int = 10_000,
    keep_evaluated: bool = False,
    log: Sequence[str] = ("csv", "tensorboard"),
    probes: Sequence[str] = (),
    probe_freq: int = 0,
    on_diverge: str = "warn",
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    imports: Sequence[str] = (),
    config: Any = None,
    quiet: bool = False,
    command: str | None = None,
) -> Any:
    """Trains `agent` and returns a `Trained`, or a list of them when `seeds` are given.

    `env` is an id, a factory of Gymnasium environments or an own world. With `dataset` (a path, a name in `data/` or an
    id in Minari's store) the agent first learns from data for `offline_steps` updates (0: not at all); `online_steps` >
    0 then goes on in `env` with the same agent. By `sampling` its buffer starts with the data ("merged"), or half of
    each batch is data and half from a buffer of its own ("symmetric"). `dataset_fraction` below 1 keeps only that
    share of the rows; `stream` says whether a folder of `.npy` files stays on disk ("auto": if it is large for this
    machine).
    `config` is the agent's `Config`; without one its defaults hold, or what `trimtab.presets` has for the environment,
    `num_envs` included. `probes` are diagnostics logged every `probe_freq` steps (0: at evaluations); with
    `on_diverge="stop"` the alarm of one of them ends the run as diverged.
    `keep_evaluated` keeps the agent of each evaluation in `evaluated/`. With `her`, `her_k` of `her_k + 1` steps that
    are learnt from get another goal, reached in the "future", at the end ("final") or anywhere in their "episode".
    Steps are environment steps online, updates offline. `seeds` trains one agent a seed, together by `vmap` where the
    source lives on the device, else one after the other. Raises `UsageError` for a request that cannot be carried out,
    `RunError` for a run that fails, and `trimtab.training.fit.Interrupted` after Ctrl-C or SIGTERM, with a checkpoint
    if there was anything to save.
    """
    import_all(imports)
    kind = agent_class(agent)
    preset = presets.find(agent, env) if config is None else None
    if preset is not None and not quiet:
        print(f"preset  {preset}")
    config = config_class(kind)(**(preset.fields if preset else {})) if config is None else config
    num_envs = (preset.num_envs if preset else 1) if num_envs is None else num_envs
    if env is None and dataset is not None and ogbench.is_task(str(dataset)):
        env = str(dataset)
    if dataset is not None and offline_steps == 0 and online_steps <= 0:
        raise UsageError("say how long to learn from the data set: add --offline-steps N")
    positive = dict(eval_episodes=eval_episodes, num_envs=num_envs, log_freq=log_freq)
    nonnegative = dict(eval_freq=eval_freq, checkpoint_freq=checkpoint_freq, online_steps=online_steps)
    nonnegative |= dict(probe_freq=probe_freq)
    if dataset is not None and steps is not None:
        raise UsageError("--steps is for online training alone: with a data set give --offline-steps, --online-steps")
    steps = STEPS if steps is None else steps
    positive |= {"updates_per_step": updates_per_step} | (
        {"offline_steps": offline_steps or online_steps} if dataset else {"steps": steps}
    )
    for label, value in positive.items():
        if not value > 0:
            raise UsageError(f"{label.replace('_', '-')} must be positive, got {value}")
    for label, value in nonnegative.items():
        if value < 0:
            raise UsageError(f"{label.replace('_', '-')} must not be negative, got {value}")
    if env is None and dataset is None:
        raise UsageError("name an environment with --env ID, or a data set with --dataset PATH")
    if dataset is None and (offline_steps or online_steps):
        raise UsageError("--offline-steps and --online-steps need a --dataset; online training alone takes --steps")
    if dataset is not None and online_steps and env is None:
        raise UsageError("--online-steps needs an environment to act in: add --env ID")
    if sampling not in SAMPLING:
        raise UsageError(f"unknown sampling {sampling!r}: choose {' or '.join(SAMPLING)}")
    if sampling == "symmetric" and not (dataset is not None and online_steps):
        raise UsageError("--sampling symmetric shares online batches with a data set: add --dataset and --online-steps")
    if not 0.0 < dataset_fraction <= 1.0:
        raise UsageError(f"dataset-fraction must be above 0 and at most 1, got {dataset_fraction}")
    check_ranges(config)
    if getattr(config, "phase", None) != getattr(config_class(kind)(), "phase", None):
        raise UsageError("an agent's phase follows from --offline-steps and --online-steps: leave --agent.phase out")
    check_loggers(tuple(log))
    if find_probes(probes) and not (probe_freq or eval_freq):
        raise UsageError("say when to measure the probes: leave --eval-freq above 0, or add --probe-freq N")
    if on_diverge not in ("warn", "stop"):
        raise UsageError(f"unknown on-diverge {on_diverge!r}: choose warn or stop")
    if on_diverge == "stop" and "seem" not in probes:
        raise UsageError("--on-diverge stop needs a probe that gives alarms: add --probes seem")
    if not quiet:
        _say_annealed(config, online_steps if dataset else steps, updates_per_step, num_envs)
    configure(device)
    record = dict(
        format=FORMAT,
        agent=agent,
        env=None,
        dataset=None if dataset is None else str(locate(dataset)),
        dataset_fraction=float(dataset_fraction),
        stream=stream,
        steps=int(steps),
        offline_steps=int(offline_steps),
        online_steps=int(online_steps),
        sampling=sampling,
        num_envs=int(num_envs),
        updates_per_step=float(updates_per_step),
        her=her,
        her_k=int(her_k),
        eval_freq=int(eval_freq),
        eval_episodes=int(eval_episodes),
        log_freq=int(log_freq),
        checkpoint_freq=int(checkpoint_freq),
        keep_evaluated=bool(keep_evaluated),
        log=list(log),
        probes=list(probes),
        probe_freq=int(probe_freq),
        on_diverge=on_diverge,
        device=device,
        imports=list(imports),
        agent_config=asdict(config),
    )
    return _start(record, env, [int(s) for s in seeds] or [int(seed)], bool(seeds), Path(out), name, command, quiet)


def _say_dropped(setup: Setup) -> None:
    """Says so if the replay buffer is smaller than the data it starts with, or RLPD does without what it is about."""
    rows, size = setup.rows_of_data, getattr(setup.config, "buffer_size", 0)
    if setup.record["online_steps"] and not setup.symmetric and rows > size:
        print(f"note    --agent.buffer-size {size:,} keeps only the newest of the {rows:,} rows of the data set online")
    if setup.record["agent"] == "rlpd" and rows and not setup.symmetric:
        print("note    half of rlpd is to draw half of each batch from the data set: add --sampling symmetric")


def _say_annealed(config: Any, steps: int, updates_per_step: float, num_envs: int) -> None:
    """Says so if the step size will be 0 before the run ends: a preset's may have been meant for a shorter one."""
    for name, planned in (("anneal_steps", steps), ("anneal_updates", steps * updates_per_step / num_envs)):
        end = getattr(config, name, 0)
        if 0 < end < planned:
            flag = f"--agent.{name.replace('_', '-')}"
            print(f"note    nothing is learnt after {flag} {end:,}; this run has {planned:,.0f}: raise it, or 0")


def _start(
    record: dict[str, Any],
    env: EnvLike | None,
    seeds: list[int],
    many: bool,
    out: Path,
    name: str | None,
    command: str | None,
    quiet: bool,
) -> Any:
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds must differ from each other, got {seeds}")
    setup = Setup.create(record, env)
    record |= {"env": setup.world.name if setup.world else None, "spec": spec_to_json(setup.spec)}
    record["env_label"] = setup.world.label if setup.world else None
    record["references"] = _references(record["dataset"], record["env"])
    label = setup.world.label if setup.world else Path(record["dataset"]).stem
    # Try all shapes before anything is written: a request that does not fit must leave no folder behind.
    setup.skeleton()
    if not quiet:
        _say_dropped(setup)
    for phase in setup.phases():
        setup.check_waiting(phase)
        source = setup.source(phase)
        jax.eval_shape(source.init, jr.key(0))
        check_probes(find_probes(record["probes"]), setup, source)
    together = len(seeds) > 1 and setup.on_device
    groups = [seeds] if together else [[s] for s in seeds]
    if many and not quiet:
        how = "together, by vmap" if together else "one after the other: their batches come from the host"
        print(f"{len(seeds)} seeds run {how}" if len(seeds) > 1 else "1 seed")
    paths: list[Path] = []
    for group in groups:
        runs: list[Run] = []
        with Signals(runs) as signals:
            try:
                with signals.waiting():  # a folder that can be resumed, or none
                    for s in group:
                        run_name = name if name is None or not many else f"{name}_s{s}"
                        runs.append(Run.create(out, label, record["agent"], s, run_name, record | {"seed": s}))
                    for run, s in zip(runs, group, strict=True):
                        if command is not None:
                            replace_text(run.path / "command.txt", command + "\n")
                        if together:
                            siblings = [str(other.path.name) for other in runs]
                            write_json(run.path / "config.json", record | {"seed": s, "group": siblings})
                signals.check()
                execute(setup, runs, group, None, quiet, signals)
            finally:
                for run in runs:
                    run.close()
        paths += [run.path for run in runs]
        if signals.received is not None and group is not groups[-1]:
            status = 128 + signals.received
            raise Interrupted(f"interrupted: {paths[-1]} is finished, the seeds after it have not begun", status)
    trained = [Trained(path) for path in paths]
    return trained if many else trained[0]


def _references(dataset: str | None, env: str | None) -> tuple[float, float] | None:
    """The returns for normalised scores that are stored with a data set, if they were found in `env`."""
    if dataset is None or env is None or read_record(Path(dataset)).get("env") != env:
        return None
    return references(Path(dataset))


def resume(run: str | Path, *, env: EnvLike | None = None, steps: int | None = None, quiet: bool = False) -> Any:
    """Goes on from the last checkpoint to the end; a finished run is left alone and says so.

    `env` is needed only when the run was started with a factory that cannot be imported by name. `steps` prolongs a run
    (a finished one too) to a new total. Raises `UsageError` if the folder is no run, `RunError` if there is no usable
    checkpoint or another process holds the run.
    """
    path = Path(run)
    record = _record(path)
    say = (lambda text: None) if quiet else print
    if (path / "DONE").exists() and steps is None:
        say(f"{path} is finished: nothing to resume (prolong it with --steps N)")
        return Trained(path)
    members = [path.with_name(sibling) for sibling in record["group"]] if "group" in record else [path]
    configure(record["device"])
    import_all(record["imports"])
    key = "online_steps" if record["online_steps"] else "offline_steps" if record["dataset"] else "steps"
    if record["env"] is None and record["env_label"] is not None and env is None:
        raise UsageError(
            f"{path} was trained on the factory {record['env_label']!r}, which has no name: "
            "use trimtab.resume(path, env=...)"
        )
    setup = Setup.create(record, env if env is not None else record["env"])
    if steps is not None:
        planned = setup.schedule(setup.phases()[-1]).steps
        if steps < planned:
            raise UsageError(f"--steps {steps} is less than the {planned} of the run: give a larger number")
        record[key] += int(steps) - planned
    runs: list[Run] = []
    with Signals(runs) as signals:
        try:
            for member in members:
                runs.append(Run.open(member))
            seeds = [read_config(member)["seed"] for member in members]
            _say_failed(runs, steps is not None, say)
            folders = _common_checkpoints([None if run.failure else run.path for run in runs], say)
            if steps is not None:
                for member, s in zip(members, seeds, strict=True):
                    write_json(member / "config.json", read_config(member) | {key: record[key], "seed": s})
                    (member / "DONE").unlink(missing_ok=True)
            execute(setup, runs, seeds, folders, quiet, signals)
        finally:
            for opened in runs:
                opened.close()
    return Trained(path)


def _say_failed(runs: list[Run], prolong: bool, say: Callable[[str], Any]) -> None:
    """Says which of the runs trained together have diverged. Raises `RunError` if nothing else is left to do."""
    failed = [run for run in runs if run.failure is not None]
    going = [run for run in runs if run.failure is None]
    each = ", ".join(f"{run.path} diverged ({run.failure}; {kept(run)})" for run in failed)
    if failed and (not going or (all(run.done for run in going) and not prolong)):
        others = "the other seeds are finished; " if going else ""
        raise RunError(f"{each}: resumed, it would diverge again; {others}train anew: {REMEDY}")
    if failed:
        say(f"{each} and is left alone; the other seeds go on")


def _common_checkpoints(members: list[Path | None], say: Callable[[str], Any]) -> list[Path] | None:
    """The newest undamaged checkpoint of each run; of the same step for all. None: start from the beginning.

    The place of a run that diverged (None in `members`) is filled with another's checkpoint: what trains there is not
    kept, but the others compute the same bits as if nothing had stopped them.
    """
    found: list[Path | None] = []
    for member in members:
        if member is None:
            continue
        newest, passed_over = checkpoint.newest(member)
        for line in passed_over:
            say(line)
        found.append(newest)
    if any(folder is None for folder in found):
        say("no checkpoint yet: starting from the beginning")
        return None
    folders = [folder for folder in found if folder is not None]
    step = min(int(folder.name.removeprefix("step_")) for folder in folders)
    filler = folders[0].parents[1]
    folders = [(member or filler) / "checkpoints" / f"step_{step}" for member in members]
    for folder in folders:
        reason = checkpoint.damage(folder)
        if reason is not None:
            raise UsageError(f"the runs trained together have no checkpoint in common: {folder}: {reason}")
    return folders


def _record(path: Path) -> dict[str, Any]:
    """The `config.json` of a run. Raises `UsageError` if the folder is no run, or one of another version."""
    record = read_control(path)
    if record["format"] != FORMAT:
        raise UsageError(f"{path} was written by another version of Trimtab (format {record['format']}, not {FORMAT})")
    return record


def load(run: str | Path, *, checkpoint_name: str = "final") -> Policy:
    """The policy of a run: `final` (default; the newest checkpoint if the run has not finished), `best`, `last`, or
    `evaluated/step_N` where each evaluation's agent was kept.

    Raises `UsageError` if the folder is no run or has nothing to load.
    """
    path = Path(run)
    record = _record(path)
    configure(record["device"])
    folder = path / checkpoint_name
    if checkpoint_name not in ("final", "best", "last") and not checkpoint_name.startswith("evaluated/step_"):
        raise UsageError(f"unknown checkpoint {checkpoint_name!r}: choose final, best or last")
    if checkpoint_name == "last" or (checkpoint_name == "final" and not folder.exists()):
        newest, _ = checkpoint.newest(path)
        if newest is None:
            raise UsageError(f"{path} has no checkpoint yet: train it further with `trimtab resume {path}`")
        folder = newest
    reason = checkpoint.damage(folder)
    if reason is not None:
        raise UsageError(f"cannot load {folder}: {reason}; `trimtab eval --checkpoint last` uses the newest checkpoint")
    spec = spec_from_json(record["spec"])
    agent = checkpoint.load_tree(folder, "agent", skeleton(record, spec))
    return Policy(agent, spec, {"run": str(path), "checkpoint": folder.name, **record})


def reopen(run: str | Path) -> tuple[Any, AbstractSource, Any, int]:
    """Agent, source, source state and step of a run's newest checkpoint: what diagnostics look at.

    Raises `UsageError` if the folder is no run or has no usable checkpoint.
    """
    path = Path(run)
    record = _record(path)
    import_all(record["imports"])
    if batch_class(agent_class(record["agent"])) is Rollout:
        raise UsageError(
            f"{path}: {record['agent']} keeps no steps that it has learnt from, so there is nothing to look at but how "
            "it acts: `trimtab diagnose RUN --probes smoothness`"
        )
    folder, _ = checkpoint.newest(path)
    if folder is None:
        raise UsageError(f"{path} has no checkpoint yet: train it further with `trimtab resume {path}`")
    setup, meta = Setup.create(record, record["env"]), checkpoint.meta(folder)
    source = setup.source(meta["phase"])
    state = stored_state(source, jax.eval_shape(source.init, jr.key(0)), [folder], None)
    agent = checkpoint.load_tree(folder, "agent", setup.skeleton())
    return in_phase(agent, meta["phase"]), source, state, meta["step"]


def earlier_agent(run: str | Path) -> Any | None:
    """The agent of the checkpoint before a run's newest, if there is one that can be read."""
    path = Path(run)
    record, (newest, _) = _record(path), checkpoint.newest(path)
    older = [folder for folder in checkpoint.checkpoints(path) if newest is not None and folder != newest]
    older = [folder for folder in older if checkpoint.damage(folder) is None]
    if not older:
        return None
    agent = checkpoint.load_tree(older[-1], "agent", skeleton(record, Setup.create(record, record["env"]).spec))
    return in_phase(agent, checkpoint.meta(older[-1])["phase"])


def evaluate(policy: Policy, env: EnvLike, *, episodes: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the returns of `episodes` deterministic episodes."""
    returns = [episode["return"] for episode in evaluate_episodes(policy, env, episodes=episodes, seed=seed)]
    return float(np.mean(returns)), float(np.std(returns))


def evaluate_episodes(
    policy: Policy,
    env: EnvLike,
    *,
    episodes: int = 10,
    seed: int = 0,
    gamma: float = 1.0,
    acting: AbstractPolicy | None = None,
) -> list[dict[str, float]]:
    """One dict an episode: return, length, success (NaN where the environment reports none), discounted (the return
    with `gamma`) and cut (1 if a time limit ended it). `acting` is another policy to act with than the deployed one.
    """
    if episodes < 1:
        raise UsageError(f"episodes must be positive, got {episodes}")
    world = find(env)
    check_fit(policy.spec, world)
    evaluator = make_evaluator(world, seed, gamma)
    try:
        return evaluator(policy.agent.policy if acting is None else acting, episodes)
    finally:
        evaluator.close()


def evaluate_offline(
    policy: Policy,
    dataset: str | Path | None = None,
    *,
    estimators: Sequence[str] = ("fqe",),
    settings: Settings | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> OfflineEvaluation:
    """What a data set says the policy is worth, without acting: see `trimtab.ope`.

    `dataset` is a path or a name in `data/`; by default what the run was trained on. `estimators` are "fqe" and "wdr".
    Raises `UsageError` for a request that cannot be carried out, `RunError` if the critic diverges.
    """
    check_estimators(estimators)
    dataset = policy.info["dataset"] if dataset is None else dataset
    if dataset is None:
        raise UsageError(f"{policy.info['run']} was not trained on a data set: give one with --dataset PATH")
    path = locate(dataset)
    recorded, spec = read_recorded(path, policy.info["env"])
    ours, theirs = spec_to_json(policy.spec), spec_to_json(spec)
    for part in ("obs", "action_size", "discrete"):
        if ours[part] != theirs[part]:
            raise UsageError(f"{path} has {part} {theirs[part]}, but the agent has {ours[part]}")
    mean, std = moments(recorded.transition.obs)
    spec = replace(policy.spec, obs_mean=mean, obs_std=std)
    return evaluate_recorded(policy.agent, spec, recorded, estimators, settings or Settings(), seed=seed, quiet=quiet)
