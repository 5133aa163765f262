"""The verbs: train, resume, load, evaluate. The command line calls these and nothing else."""

import difflib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.agents import AGENTS, config_class
from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractEnv, Spec, UsageError
from trimtab.data.readers import read_dataset
from trimtab.data.sources import AbstractSource, OfflineSource, ReplaySource, WorldSource
from trimtab.envs.gym import Collector
from trimtab.envs.make import World, find
from trimtab.run.folder import Run, read_config, replace_text, write_json
from trimtab.run.logging import Progress, check_loggers, make_loggers
from trimtab.training import checkpoint
from trimtab.training.compile import Totals, configure, seed_axes
from trimtab.training.evaluate import EVALUATION_SEED, GymEvaluator, WorldEvaluator
from trimtab.training.fit import Schedule, Training, fit, take_seed
from trimtab.training.predict import Policy

FORMAT = 1
"""Version of `config.json`."""

EnvLike = str | Callable[..., Any] | AbstractEnv


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
    steps: int = 1_000_000,
    offline_steps: int = 0,
    online_steps: int = 0,
    seed: int = 0,
    seeds: Sequence[int] = (),
    num_envs: int = 1,
    updates_per_step: float = 1.0,
    eval_freq: int = 10_000,
    eval_episodes: int = 10,
    log_freq: int = 1_000,
    checkpoint_freq: int = 10_000,
    log: Sequence[str] = ("csv", "tensorboard"),
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    imports: Sequence[str] = (),
    config: Any = None,
    quiet: bool = False,
    command: str | None = None,
) -> Any:
    """Trains `agent` and returns a `Trained`, or a list of them when `seeds` are given.

    `env` is an id, a factory of Gymnasium environments or an own world. With `dataset` the agent first learns from data
    for `offline_steps` updates; `online_steps` > 0 then goes on in `env` with the same agent and the data in its
    buffer. `config` is the agent's `Config` (default: its defaults). Steps are environment steps online, updates
    offline. `seeds` trains one agent a seed, together by `vmap` where the source lives on the device, else one after
    the other. Raises `UsageError` for a request that cannot be carried out, `RunError` for a run that fails, and
    `trimtab.training.fit.Interrupted` after Ctrl-C, when a checkpoint has been written.
    """
    import_all(imports)
    kind = agent_class(agent)
    config = config_class(kind)() if config is None else config
    if dataset is not None and offline_steps == 0:
        raise UsageError("say how long to learn from the data set: add --offline-steps N")
    positive = dict(eval_episodes=eval_episodes, num_envs=num_envs, log_freq=log_freq)
    nonnegative = dict(eval_freq=eval_freq, checkpoint_freq=checkpoint_freq, online_steps=online_steps)
    positive |= {"updates_per_step": updates_per_step} | (
        {"offline_steps": offline_steps} if dataset else {"steps": steps}
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
    check_loggers(tuple(log))
    configure(device)
    record = dict(
        format=FORMAT,
        agent=agent,
        env=None,
        dataset=None if dataset is None else str(Path(dataset).resolve()),
        steps=int(steps),
        offline_steps=int(offline_steps),
        online_steps=int(online_steps),
        num_envs=int(num_envs),
        updates_per_step=float(updates_per_step),
        eval_freq=int(eval_freq),
        eval_episodes=int(eval_episodes),
        log_freq=int(log_freq),
        checkpoint_freq=int(checkpoint_freq),
        log=list(log),
        device=device,
        imports=list(imports),
        agent_config=asdict(config),
    )
    return _start(record, env, [int(s) for s in seeds] or [int(seed)], bool(seeds), Path(out), name, command, quiet)


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
    setup = _Setup.create(record, env)
    record |= {"env": setup.world.name if setup.world else None, "spec": spec_to_json(setup.spec)}
    record["env_label"] = setup.world.label if setup.world else None
    label = setup.world.label if setup.world else Path(record["dataset"]).stem
    # Try all shapes before anything is written: a request that does not fit must leave no folder behind.
    setup.skeleton()
    for phase in setup.phases():
        jax.eval_shape(setup.source(phase).init, jr.key(0))
    together = len(seeds) > 1 and setup.on_device
    groups = [seeds] if together else [[s] for s in seeds]
    if many and not quiet:
        how = "together, by vmap" if together else "one after the other: their environments step on the host"
        print(f"{len(seeds)} seeds run {how}" if len(seeds) > 1 else "1 seed")
    paths: list[Path] = []
    for group in groups:
        runs: list[Run] = []
        try:
            for s in group:
                run_name = name if name is None or not many else f"{name}_s{s}"
                runs.append(Run.create(out, label, record["agent"], s, run_name, record | {"seed": s}))
            for run, s in zip(runs, group, strict=True):
                if command is not None:
                    replace_text(run.path / "command.txt", command + "\n")
                if together:
                    siblings = [str(other.path.name) for other in runs]
                    write_json(run.path / "config.json", record | {"seed": s, "group": siblings})
            _execute(setup, runs, group, None, quiet)
        finally:
            for run in runs:
                run.close()
        paths += [run.path for run in runs]
    trained = [Trained(path) for path in paths]
    return trained if many else trained[0]


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
    if steps is not None:
        if steps < record[key]:
            raise UsageError(f"--steps {steps} is less than the {record[key]} of the run: give a larger number")
        record[key] = int(steps)
    if record["env"] is None and record["env_label"] is not None and env is None:
        raise UsageError(
            f"{path} was trained on the factory {record['env_label']!r}, which has no name: "
            "use trimtab.resume(path, env=...)"
        )
    setup = _Setup.create(record, env if env is not None else record["env"])
    runs: list[Run] = []
    try:
        for member in members:
            runs.append(Run.open(member))
        seeds = [read_config(member)["seed"] for member in members]
        folders = _common_checkpoints(members, say)
        if steps is not None:
            for member, s in zip(members, seeds, strict=True):
                write_json(member / "config.json", read_config(member) | {key: int(steps), "seed": s})
                (member / "DONE").unlink(missing_ok=True)
        _execute(setup, runs, seeds, folders, quiet)
    finally:
        for opened in runs:
            opened.close()
    return Trained(path)


def _common_checkpoints(members: list[Path], say: Callable[[str], Any]) -> list[Path] | None:
    """The newest undamaged checkpoint of each run; of the same step for all. None: start from the beginning."""
    found: list[Path | None] = []
    for member in members:
        newest, passed_over = checkpoint.newest(member)
        for line in passed_over:
            say(line)
        found.append(newest)
    if any(folder is None for folder in found):
        say("no checkpoint yet: starting from the beginning")
        return None
    folders = [folder for folder in found if folder is not None]
    step = min(int(folder.name.removeprefix("step_")) for folder in folders)
    folders = [member / "checkpoints" / f"step_{step}" for member in members]
    for folder in folders:
        reason = checkpoint.damage(folder)
        if reason is not None:
            raise UsageError(f"the runs trained together have no checkpoint in common: {folder}: {reason}")
    return folders


def _record(path: Path) -> dict[str, Any]:
    """The `config.json` of a run. Raises `UsageError` if the folder is no run, or one of another version."""
    record = read_config(path)
    if record["format"] != FORMAT:
        raise UsageError(f"{path} was written by another version of Trimtab (format {record['format']}, not {FORMAT})")
    return record


def load(run: str | Path, *, checkpoint_name: str = "final") -> Policy:
    """The policy of a run: `final` (default; the newest checkpoint if the run has not finished), `best` or `last`.

    Raises `UsageError` if the folder is no run or has nothing to load.
    """
    path = Path(run)
    record = _record(path)
    configure(record["device"])
    folder = path / checkpoint_name
    if checkpoint_name not in ("final", "best", "last"):
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
    agent = checkpoint.load_tree(folder, "agent", _skeleton(record, spec))
    return Policy(agent, spec, {"run": str(path), "checkpoint": folder.name, **record})


def reopen(run: str | Path) -> tuple[Any, AbstractSource, Any, int]:
    """Agent, source, source state and step of a run's newest checkpoint: what diagnostics look at.

    Raises `UsageError` if the folder is no run or has no usable checkpoint.
    """
    path = Path(run)
    record = _record(path)
    import_all(record["imports"])
    folder, _ = checkpoint.newest(path)
    if folder is None:
        raise UsageError(f"{path} has no checkpoint yet: train it further with `trimtab resume {path}`")
    setup, meta = _Setup.create(record, record["env"]), checkpoint.meta(folder)
    source = setup.source(meta["phase"])
    state = _stored_state(source, jax.eval_shape(source.init, jr.key(0)), [folder], None)
    return checkpoint.load_tree(folder, "agent", setup.skeleton()), source, state, meta["step"]


def evaluate(policy: Policy, env: EnvLike, *, episodes: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the returns of `episodes` deterministic episodes."""
    returns = [episode["return"] for episode in evaluate_episodes(policy, env, episodes=episodes, seed=seed)]
    return float(np.mean(returns)), float(np.std(returns))


def evaluate_episodes(policy: Policy, env: EnvLike, *, episodes: int = 10, seed: int = 0) -> list[dict[str, float]]:
    """One dict an episode: return, length, success (NaN where the environment reports none)."""
    if episodes < 1:
        raise UsageError(f"episodes must be positive, got {episodes}")
    world = find(env)
    check_fit(policy.spec, world)
    evaluator = _evaluator(world, seed)
    try:
        return evaluator(policy.agent.policy, episodes)
    finally:
        evaluator.close()


def check_fit(spec: Spec, world: World) -> None:
    """Raises `UsageError` if a policy made for `spec` cannot act in `world`."""
    ours, theirs = spec_to_json(spec), spec_to_json(world.spec)
    for part in ("obs", "action_size", "discrete"):
        if ours[part] != theirs[part]:
            raise UsageError(f"{world.label} has {part} {theirs[part]}, but the agent or data set has {ours[part]}")


def _evaluator(world: World, seed: int) -> GymEvaluator | WorldEvaluator:
    if world.own is not None:
        return WorldEvaluator(world.own, EVALUATION_SEED + seed)
    assert world.make is not None
    make = world.make
    return GymEvaluator(lambda: make(None), world.spec, EVALUATION_SEED + seed)


def agent_class(name: str) -> type[AbstractAgent]:
    """The agent class of that name. Raises `UsageError` naming the nearest one."""
    if name not in AGENTS:
        near = difflib.get_close_matches(name, AGENTS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(AGENTS))}"
        raise UsageError(f"unknown agent {name!r}: {hint}")
    return AGENTS[name]


def import_all(modules: Sequence[str]) -> None:
    """Imports the modules named by `--import`, which register environments. Raises `UsageError` if one is not found."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"--import {module}: {error}; is it installed, or its folder on PYTHONPATH?") from error


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A `Spec` as JSON: `obs` is the length of the vector, or a nested dict of lengths."""
    return dict(
        obs=jax.tree.map(lambda leaf: leaf.size, spec.obs),
        action_size=spec.action_size,
        discrete=spec.discrete,
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
    )


def spec_from_json(record: dict[str, Any]) -> Spec:
    """The inverse of `spec_to_json`."""
    obs = jax.tree.map(lambda size: jax.ShapeDtypeStruct((size,), jnp.float32), record["obs"])
    low, high = tuple(record["action_low"]), tuple(record["action_high"])
    return Spec(obs, record["action_size"], record["discrete"], low, high)


def _agent_config(record: dict[str, Any]) -> Any:
    """The agent's config from JSON. Raises `UsageError` naming a field that this version does not have."""
    kind = config_class(agent_class(record["agent"]))
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(record["agent_config"]) - known)
    if unknown:
        raise UsageError(f"config.json has {unknown[0]!r}, which {record['agent']} does not know in this version")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["agent_config"].items()}
    return kind(**values)


def _skeleton(record: dict[str, Any], spec: Spec) -> Any:
    """The shapes of a run's agent, without computing anything."""
    kind, config = agent_class(record["agent"]), _agent_config(record)
    return jax.eval_shape(lambda: kind.create(jr.key(0), spec, config))


@dataclass(frozen=True)
class _Setup:
    """All that a run is made of, before anything is trained."""

    record: dict[str, Any]
    world: World | None
    dataset: Any
    spec: Spec
    config: Any

    @classmethod
    def create(cls, record: dict[str, Any], env: EnvLike | None) -> "_Setup":
        world = None if env is None else find(env)
        dataset = None
        if record["dataset"] is not None:
            dataset, spec = read_dataset(record["dataset"])
            if world is not None:
                check_fit(spec, world)
                spec = world.spec
        else:
            spec = world.spec if world is not None else spec_from_json(record["spec"])
        return cls(record, world, dataset, spec, _agent_config(record))

    @property
    def on_device(self) -> bool:
        """Whether batches never need the host: then seeds train together by `vmap`."""
        return (self.dataset is not None and not self.record["online_steps"]) or (
            self.dataset is None and self.world is not None and self.world.own is not None
        )

    def skeleton(self) -> Any:
        return _skeleton(self.record, self.spec)

    def agent(self, seed: int) -> Any:
        kind = agent_class(self.record["agent"])
        return jax.jit(lambda key: kind.create(key, self.spec, self.config))(jr.fold_in(jr.key(seed), 2**31 - 9))

    def phases(self) -> list[str]:
        return (["offline"] if self.dataset is not None else []) + (
            ["online"] if self.dataset is None or self.record["online_steps"] else []
        )

    def source(self, phase: str) -> AbstractSource:
        config, world = self.config, self.world
        if config.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {config.batch_size}")
        if phase == "offline":
            return OfflineSource(self.dataset, config.batch_size)
        if config.buffer_size < self.record["num_envs"]:
            least = f"{self.record['num_envs']} (num_envs)"
            raise UsageError(f"buffer_size must be at least {least}, got {config.buffer_size}")
        if world is not None and world.own is not None:
            if self.record["updates_per_step"] != 1.0:
                raise UsageError("own worlds make one update a vector step: leave --updates-per-step at 1")
            if self.dataset is not None:
                raise UsageError("offline-to-online needs a Gymnasium environment, not an own world")
            return WorldSource.create(world.own, self.record["num_envs"], config.buffer_size, config.batch_size)
        return ReplaySource.create(self.spec, config.buffer_size, config.batch_size, self.dataset)

    def schedule(self, phase: str) -> Schedule:
        r, offline = self.record, self.record["offline_steps"] if self.dataset is not None else 0
        shared = dict(
            log_every=r["log_freq"],
            eval_every=r["eval_freq"],
            checkpoint_every=r["checkpoint_freq"],
            eval_episodes=r["eval_episodes"],
            updates_per_step=r["updates_per_step"],
        )
        if phase == "offline":
            return Schedule(steps=offline, **shared)
        if self.dataset is None:
            return Schedule(steps=r["steps"], learning_starts=max(1, self.config.learning_starts), **shared)
        # The agent knows how to act and its buffer is full: no random steps after offline training.
        return Schedule(steps=offline + r["online_steps"], start=offline, learning_starts=1, **shared)


@contextmanager
def _evaluators(setup: _Setup, seeds: list[int]) -> Iterator[list[Any]]:
    made = [_evaluator(setup.world, s) for s in seeds] if setup.world is not None else []
    try:
        yield made
    finally:
        for evaluator in made:
            evaluator.close()


def _execute(setup: _Setup, runs: list[Run], seeds: list[int], folders: list[Path] | None, quiet: bool) -> None:
    """Trains through all phases, from the beginning or from one checkpoint a run, and writes `final/` and `DONE`."""
    record, phases = setup.record, setup.phases()
    together = len(seeds) if len(seeds) > 1 else None
    meta = checkpoint.meta(folders[0]) if folders else None
    total = setup.schedule(phases[-1]).steps
    begin = meta["step"] if meta else 0
    progress = Progress(total, begin, "step" if phases[-1] == "online" else "update", quiet)
    for run in runs:
        run.rewind(begin)
        run.attach(make_loggers(tuple(record["log"]), run.path, record, begin if meta else None))
    agents = [
        checkpoint.load_tree(folders[i], "agent", setup.skeleton()) if folders else setup.agent(s)
        for i, s in enumerate(seeds)
    ]
    training = Training(_stack_agents(agents) if together else agents[0], None, step=begin, seeds=together)
    if meta:
        training.best = [checkpoint.meta(folder)["best"] for folder in folders or []]
        training.best = [-np.inf if best is None else best for best in training.best]
    keys = [jr.key(s) for s in seeds]
    run_key = jnp.stack(keys) if together else keys[0]
    try:
        with _evaluators(setup, seeds) as evaluators:
            for phase in phases:
                if meta and phases.index(phase) < phases.index(meta["phase"]):
                    continue
                source = setup.source(phase)
                here = meta if meta and meta["phase"] == phase else None
                state = _initial_state(source, seeds, together)
                if here:
                    state = _stored_state(source, state, folders or [], together)
                training.state, training.updates, training.pending, training.totals = state, 0, None, None
                collector = None
                if phase == "online" and setup.world is not None and setup.world.make is not None:
                    # Where the state of the environments cannot be restored, the first episodes must not come again.
                    seed = seeds[0] + (here["step"] if here else 0)
                    collector = _collector(setup.world, record["num_envs"], seed)
                if here and folders:
                    training.updates, training.totals = here["updates"], _stored_totals(folders, together)
                    if collector is not None:
                        _restore_collector(collector, source, training, folders[0], progress)
                    progress.say(f"resumed at step {begin:,}")
                try:
                    fit(
                        training,
                        source,
                        runs,
                        setup.schedule(phase),
                        run_key,
                        progress,
                        collector=collector,
                        evaluate=evaluators,
                        phase=phase,
                    )
                finally:
                    if collector is not None:
                        collector.close()
    finally:
        progress.close()
    for i, run in enumerate(runs):
        agent = training.agent if together is None else take_seed(training.agent, i)
        checkpoint.save(run.path / "final", {"agent": agent}, {}, {"step": training.step})
        run.finish()


def _collector(world: World, num_envs: int, seed: int) -> Collector:
    assert world.make is not None
    make = world.make
    return Collector(lambda: make(None), num_envs, world.spec, seed)


def _stack_agents(agents: list[Any]) -> Any:
    """Agents side by side on a leading seed axis; `step` stays one number."""
    axes = seed_axes(agents[0])
    return jax.tree.map(
        lambda axis, *leaves: leaves[0] if axis is None else jnp.stack(leaves),
        axes,
        *agents,
        is_leaf=lambda x: x is None,
    )


def _initial_state(source: AbstractSource, seeds: list[int], together: int | None) -> Any:
    keys = [jr.fold_in(jr.key(s), 2**31 - 8) for s in seeds]
    if together is None:
        return jax.jit(lambda source, key: source.init(key))(source, keys[0])
    return jax.jit(jax.vmap(lambda source, key: source.init(key), in_axes=(None, 0)))(source, jnp.stack(keys))


def _stored_state(source: AbstractSource, state: Any, folders: list[Path], together: int | None) -> Any:
    single = state if together is None else jax.tree.map(lambda x: x[0], state)
    restored = [
        source.restored(checkpoint.load_tree(f, "source", checkpoint.saved_shapes(f, "source", single)))
        for f in folders
    ]
    return restored[0] if together is None else jax.tree.map(lambda *xs: jnp.stack(xs), *restored)


def _stored_totals(folders: list[Path], together: int | None) -> Totals:
    """The sums of metrics between the last log line and the checkpoint."""
    each = [checkpoint.load_arrays(folder) for folder in folders]
    names = [name for name in each[0] if name.startswith("totals/")]
    pairs = {name: each[0][name] if together is None else np.stack([a[name] for a in each], axis=1) for name in names}
    return {name.removeprefix("totals/"): (jnp.asarray(p[0]), jnp.asarray(p[1])) for name, p in pairs.items()}


def _restore_collector(
    collector: Collector, source: AbstractSource, training: Training, folder: Path, progress: Progress
) -> None:
    arrays = checkpoint.load_arrays(folder)
    saved = {k.removeprefix("collector/"): v for k, v in arrays.items() if k.startswith("collector/")}
    exact = collector.restore(saved)
    if not exact:
        progress.say("this environment's state cannot be restored: going on with a new episode")
    treedef = jax.tree.structure(source.template)  # type: ignore[attr-defined]
    leaves = [arrays[f"pending/{j}"] for j in range(treedef.num_leaves) if f"pending/{j}" in arrays]
    if leaves:
        pending = jax.tree.unflatten(treedef, leaves)
        assert isinstance(pending, Transition)
        training.pending = pending
