"""Assembles a run from its record (`config.json`): the agent, the sources, the environments, and where it stands.

The verbs of `trimtab.api` say what is to be done; here it is put together and handed to `fit`.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.agents import AGENTS, batch_class, config_class
from trimtab.batches import Chunk, Recorded, Rollout, Sarsa, Scored, ToGo, Transition, Weighted
from trimtab.core import AbstractActor, AbstractAgent, AbstractEnv, AbstractMonitor, Spec, UsageError, has_goals
from trimtab.data import stream, windows
from trimtab.data.her import Hindsight, HostReward, WorldReward
from trimtab.data.readers import blocks, read_recorded
from trimtab.data.rollouts import RolloutSource, WorldRollouts
from trimtab.data.sources import (
    AbstractSource,
    OfflineSource,
    Replay,
    ReplaySource,
    Returns,
    ScoredSource,
    WorldSource,
)
from trimtab.diagnostics import TRAINING_PROBES
from trimtab.envs.goals import AbstractGoalEnv
from trimtab.envs.gym import Collector, goal_reward, time_limit
from trimtab.envs.hosted import Hosted
from trimtab.envs.make import World, find
from trimtab.run.folder import Run
from trimtab.run.logging import Progress, make_loggers
from trimtab.training import checkpoint
from trimtab.training.compile import Totals, scores, seed_axes
from trimtab.training.evaluate import EVALUATION_SEED, GymEvaluator, WorldEvaluator
from trimtab.training.fit import REMEDY, Diverged, Schedule, Signals, Training, Watch, fit, kept, take_seed

EnvLike = str | Callable[..., Any] | AbstractEnv
"""An environment's id, a factory of Gymnasium environments, or an own world."""


def import_all(modules: Sequence[str]) -> None:
    """Imports the modules named by `--import`, which register environments. Raises `UsageError` if one is not found."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"--import {module}: {error}; is it installed, or its folder on PYTHONPATH?") from error


def agent_class(name: str) -> type[AbstractAgent]:
    """The agent class of that name. Raises `UsageError` naming the nearest one."""
    if name not in AGENTS:
        near = difflib.get_close_matches(name, AGENTS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(AGENTS))}"
        raise UsageError(f"unknown agent {name!r}: {hint}")
    return AGENTS[name]


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A `Spec` as JSON: `obs` is the length of the vector, or a nested dict of lengths."""
    return dict(
        obs=jax.tree.map(lambda leaf: leaf.size, spec.obs),
        action_size=spec.action_size,
        discrete=spec.discrete,
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
        factors=list(spec.factors),
    )


def spec_from_json(record: dict[str, Any]) -> Spec:
    """The inverse of `spec_to_json`."""
    obs = jax.tree.map(lambda size: jax.ShapeDtypeStruct((size,), jnp.float32), record["obs"])
    low, high = tuple(record["action_low"]), tuple(record["action_high"])
    return Spec(obs, record["action_size"], record["discrete"], low, high, tuple(record.get("factors", ())))


def _agent_config(record: dict[str, Any]) -> Any:
    """The agent's config from JSON. Raises `UsageError` naming a field that this version does not have."""
    kind = config_class(agent_class(record["agent"]))
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(record["agent_config"]) - known)
    if unknown:
        raise UsageError(f"config.json has {unknown[0]!r}, which {record['agent']} does not know in this version")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["agent_config"].items()}
    return kind(**values)


@dataclass(frozen=True)
class Reading:
    """How an agent's batches are drawn, by the annotation of its `update`: see `trimtab.batches`."""

    chunk: int | None
    """steps of a `Chunk`, its config's field of that name; None for other batches."""
    next_action: bool
    """whether the batch is a `Sarsa`."""
    scored: bool
    """whether batches of a data set are `Scored`."""
    on_policy: bool
    """whether the batch is a `Rollout`."""
    replay: Replay = field(default_factory=Replay)
    """what is made of the rows of replay: its config's fields `n_step` and `prioritised`."""
    to_go: bool = False
    """whether the batch is a `ToGo`."""

    @classmethod
    def of(cls, agent: str, config: Any) -> "Reading":
        """What the agent of that name learns from."""
        kind = batch_class(agent_class(agent))
        replay = Replay()
        if Weighted in get_args(kind):
            n_step = config.n_step if _has(config, "n_step") else 1
            replay = Replay(n_step, config.gamma if n_step > 1 else 1.0, config.prioritised)
        chunk = config.chunk if kind is Chunk else None
        return cls(chunk, kind is Sarsa, Scored in get_args(kind), kind is Rollout, replay, kind is ToGo)

    @property
    def recorded(self) -> bool:
        """Whether rows must say where their episodes ended."""
        several = self.chunk is not None or self.next_action or self.replay.n_step > 1
        return several or self.on_policy or self.to_go


def moments(obs: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each observation entry over the rows of a data set, block by block."""

    def mean(x: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.sum([fn(rows.astype(np.float64)).sum(0) for rows in blocks(x)], axis=0) / len(x)

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = mean(x, lambda rows: rows)
        return first.astype(np.float32), np.sqrt(mean(x, lambda rows: np.square(rows - first))).astype(np.float32)

    leaves, structure = jax.tree.flatten(obs)
    means, stds = zip(*(both(np.asanyarray(leaf)) for leaf in leaves), strict=True)
    return jax.tree.unflatten(structure, means), jax.tree.unflatten(structure, stds)


def in_phase(agent: AbstractAgent, phase: str) -> AbstractAgent:
    """The agent told by its config's field `phase`, if it has one, whether it learns "offline" or "online"."""
    if not _has(agent.config, "phase"):
        return agent
    return replace(agent, config=replace(agent.config, phase=phase))


def _has(config: Any, name: str) -> bool:
    return name in {f.name for f in fields(config)}


def skeleton(record: dict[str, Any], spec: Spec) -> Any:
    """The shapes of a run's agent, without computing anything."""
    kind, config = agent_class(record["agent"]), _agent_config(record)
    return jax.eval_shape(lambda: kind.create(jr.key(0), spec, config))


def find_probes(names: Sequence[str]) -> dict[str, Any]:
    """The training probes of those names, by the names of their metrics. Raises `UsageError` naming what there is."""
    for name in names:
        if name not in TRAINING_PROBES:
            raise UsageError(f"unknown probe {name!r}: choose from {', '.join(TRAINING_PROBES)}")
    return {name.replace("-", "_"): TRAINING_PROBES[name] for name in names}


def check_probes(probes: Mapping[str, Any], setup: "Setup", source: AbstractSource) -> None:
    """Traces each probe without running it, so that one that does not suit the agent is refused before training."""

    def everything(agent: Any, key: Any) -> Any:
        batch = source.batch(source.init(key), key)
        measures = [p.measure if isinstance(p, AbstractMonitor) else p for p in probes.values()]
        return [measure(agent, batch, key) for measure in measures]

    jax.eval_shape(everything, setup.skeleton(), jr.key(0))


def check_fit(spec: Spec, world: World) -> None:
    """Raises `UsageError` if a policy made for `spec` cannot act in `world`."""
    ours, theirs = spec_to_json(spec), spec_to_json(world.spec)
    for part in ("obs", "action_size", "discrete", "factors"):
        if ours[part] != theirs[part]:
            raise UsageError(f"{world.label} has {part} {theirs[part]}, but the agent or data set has {ours[part]}")


def make_evaluator(
    world: World, seed: int, gamma: float = 1.0, envs: list[gymnasium.Env] | None = None
) -> GymEvaluator | WorldEvaluator:
    """Episodes of `world`, on copies and a random stream of their own; `gamma` is for their discounted return. `envs`
    holds the copies, for evaluators that share them."""
    if world.own is not None:
        return WorldEvaluator(world.own, EVALUATION_SEED + seed, gamma)
    assert world.make is not None
    make = world.make
    return GymEvaluator(lambda: make(None), world.spec, EVALUATION_SEED + seed, gamma, envs)


@dataclass(frozen=True)
class Setup:
    """All that a run is made of, before anything is trained."""

    record: dict[str, Any]
    world: World | None
    dataset: Any
    spec: Spec
    config: Any

    @classmethod
    def create(cls, record: dict[str, Any], env: EnvLike | None) -> "Setup":
        """Reads the data set, finds the environment, and checks that they and the config fit together."""
        world = None if env is None else find(env)
        dataset = None
        config = _agent_config(record)
        drawn = Reading.of(record["agent"], config)
        if drawn.on_policy:
            if record["dataset"] is not None:
                raise UsageError(f"{record['agent']} learns from its own steps only: give --env, without --dataset")
            if record["updates_per_step"] != 1.0:
                raise UsageError(f"{record['agent']} makes one update a rollout: leave --updates-per-step at 1")
            if record.get("her") is not None:
                raise UsageError(f"{record['agent']} does not replay its steps, so no goals are relabelled: no --her")
        if record["dataset"] is not None and drawn.replay != Replay():
            raise UsageError("n_step and prioritised are for replay of the agent's own steps: leave --dataset out")
        acts = record["dataset"] is None or record["online_steps"]
        if acts and not (_has(config, "buffer_size") or drawn.on_policy):
            raise UsageError(f"{record['agent']} learns from a data set only: give --dataset, without --online-steps")
        if record["dataset"] is not None:
            task, fraction = None if world is None else world.name, record.get("dataset_fraction", 1.0)
            reading = Reading.of(record["agent"], config)
            if stream.wanted(Path(record["dataset"]), record.get("stream", "auto")):
                dataset = _on_disk(record, reading)
                obs, spec = dataset.obs, dataset.spec
            else:
                if fraction != 1.0 and (reading.chunk is not None or reading.to_go):
                    raise UsageError(
                        f"{record['agent']} learns from successive steps, and --dataset-fraction draws single ones: "
                        "leave it out, or cut the data set by whole episodes"
                    )
                recorded, spec = read_recorded(record["dataset"], task, fraction)
                obs, dataset = recorded.transition.obs, recorded if reading.recorded else recorded.transition
                if reading.chunk is not None and windows.longest(np.asarray(recorded.last)) < reading.chunk:
                    least = f"{record['dataset']} has no {reading.chunk} steps of one episode"
                    raise UsageError(f"{least}: use a smaller chunk")
            if world is not None:
                check_fit(spec, world)
                spec = world.spec
            mean, std = moments(obs)
            spec = replace(spec, obs_mean=mean, obs_std=std)
        else:
            spec = world.spec if world is not None else spec_from_json(record["spec"])
        return cls(record, world, dataset, spec, config)

    @property
    def on_device(self) -> bool:
        """Whether batches never need the host: then seeds train together by `vmap`."""
        acts = self.dataset is None or bool(self.record["online_steps"])
        on_disk = isinstance(self.dataset, stream.Stream)
        return not on_disk and (not acts or (self.world is not None and self.world.own is not None))

    @cached_property
    def hindsight(self) -> Hindsight | None:
        """How goals are relabelled. Raises `UsageError` if that is asked for where there is nothing to relabel."""
        strategy, k = self.record.get("her"), self.record.get("her_k", 4)
        if strategy is None:
            return None
        if Reading.of(self.record["agent"], self.config).replay != Replay():
            raise UsageError("--her relabels single steps, drawn uniformly: leave n_step and prioritised out")
        if self.dataset is not None or self.world is None:
            raise UsageError("--her relabels what is collected online: leave --dataset out")
        if Reading.of(self.record["agent"], self.config).recorded:
            raise UsageError(f"--her relabels single steps, but {self.record['agent']} looks at those that follow, too")
        make = lambda reward, horizon: Hindsight.create(self.spec, reward, strategy, k, horizon)
        world, own = self.world, self.world.own
        if world.make is not None:
            env = world.make(None)
            if isinstance(env.unwrapped, Hosted):
                own = env.unwrapped.world
            elif has_goals(self.spec.obs):
                return make(HostReward(goal_reward(env, world.label)), time_limit(env, world.label))
        if isinstance(own, AbstractGoalEnv):
            return make(WorldReward(own), own.max_steps)
        if not has_goals(self.spec.obs):
            raise UsageError(f"{world.label} has no goals to relabel: leave --her out")
        raise UsageError(f"{world.label} does not say its reward for another goal: make it an AbstractGoalEnv")

    def skeleton(self) -> Any:
        """The shapes of the agent."""
        return skeleton(self.record, self.spec)

    def agent(self, seed: int) -> Any:
        """A fresh agent."""
        kind = agent_class(self.record["agent"])
        return jax.jit(lambda key: kind.create(key, self.spec, self.config))(jr.fold_in(jr.key(seed), 2**31 - 9))

    def phases(self) -> list[str]:
        """The phases in their order: "offline", "online", or both; "proxy" first for an agent that scores its data."""
        if self.dataset is None:
            return ["online"]
        names = {"proxy": self.proxy_steps, "offline": self.record["offline_steps"]}
        return [name for name, steps in (names | {"online": self.record["online_steps"]}).items() if steps]

    def check_waiting(self, phase: str) -> None:
        """Raises `UsageError` if nothing would be learnt online after a data set."""
        s = self.schedule(phase)
        waits = self.dataset is not None and phase == "online" and s.learning_starts > 1
        if waits and s.learning_starts >= s.steps - s.start:
            raise UsageError(
                f"learning_starts {s.learning_starts:,} leaves no update in {s.steps - s.start:,} online steps: "
                "lower --agent.learning-starts"
            )

    @property
    def rows_of_data(self) -> int:
        """Rows of the data set in memory; 0 without one."""
        if self.dataset is None or isinstance(self.dataset, stream.Stream):
            return 0
        return len(jax.tree.leaves(self.dataset)[0])

    @property
    def symmetric(self) -> bool:
        """Whether online batches come from the data set and from replay in turn; otherwise replay starts with it."""
        return self.dataset is not None and self.record.get("sampling", "merged") == "symmetric"

    @property
    def returns(self) -> Returns | None:
        """How returns are counted for an agent whose batches hold them. After a cut comes the config's `cut_value`, or
        the least reward of the data for ever, or 0 if that is more, as an episode may end: no value can be below, while
        rewards online are not lower than the data's. Without data that is not known."""
        if not Reading.of(self.record["agent"], self.config).to_go:
            return None
        gamma, value = self.config.gamma, self.config.cut_value
        if value is None:
            value = -np.inf
            if isinstance(self.dataset, Recorded):
                if gamma >= 1.0:
                    raise UsageError("gamma 1 bounds no value after a cut: give --agent.cut-value, or a smaller gamma")
                value = min(float(np.asarray(self.dataset.transition.reward).min()), 0.0) / (1.0 - gamma)
        return Returns(jnp.float32(value), gamma)

    def rows(self, phase: str) -> int:
        """Rows of a batch: the config's `batch_size`, times its `utd` where each batch is cut into so many slices; its
        `proxy_batch_size`, if it has one, in phase "proxy"."""
        if phase == "proxy" and _has(self.config, "proxy_batch_size") and self.config.proxy_batch_size is not None:
            return self.config.proxy_batch_size
        return self.config.batch_size * (self.config.utd if _has(self.config, "utd") else 1)

    @property
    def proxy_steps(self) -> int:
        """Updates before the data are scored: the config's field of that name, 0 without it or without data."""
        return self.config.proxy_steps if self.dataset is not None and _has(self.config, "proxy_steps") else 0

    def source(self, phase: str) -> AbstractSource:
        """Where the batches of a phase come from. Raises `UsageError` if the sizes asked for do not fit."""
        config, world = self.config, self.world
        if config.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {config.batch_size}")
        reading, num_envs = Reading.of(self.record["agent"], config), self.record["num_envs"]
        if reading.on_policy:
            return self._rollouts()
        chunk, rows = reading.chunk, self.rows(phase)
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunk must be at least 1, got {chunk}")
        if isinstance(self.dataset, stream.Stream):
            return stream.StreamSource(self.dataset, rows)
        if phase == "offline" and reading.scored:
            return ScoredSource(self.dataset, rows)
        if phase in ("proxy", "offline"):
            return OfflineSource(self.dataset, rows, chunk, self.returns)
        if self.symmetric and reading.replay != Replay():
            raise UsageError("symmetric sampling draws single steps uniformly: leave priorities and n_step off")
        if self.symmetric and rows < 2:
            raise UsageError(f"symmetric sampling needs a batch_size of at least 2, got {config.batch_size}")
        if config.buffer_size < num_envs * (chunk or 1):
            least = f"{num_envs} (num_envs)" if chunk is None else f"{num_envs * chunk} (num_envs times chunk)"
            raise UsageError(f"buffer_size must be at least {least}, got {config.buffer_size}")
        hindsight = self.hindsight
        if hindsight is not None and config.buffer_size < num_envs * hindsight.horizon:
            least = f"{num_envs * hindsight.horizon} (num_envs times the longest episode)"
            raise UsageError(f"buffer_size must be at least {least}, got {config.buffer_size}")
        if world is not None and world.own is not None:
            if self.record["updates_per_step"] != 1.0:
                raise UsageError("own worlds make one update a vector step: leave --updates-per-step at 1")
            sizes = (num_envs, config.buffer_size, rows)
            return WorldSource.create(
                world.own,
                *sizes,
                self.dataset,
                chunk=chunk,
                next_action=reading.next_action,
                hindsight=hindsight,
                symmetric=self.symmetric,
                replay=reading.replay,
                returns=self.returns,
            )
        sizes = (config.buffer_size, rows)
        return ReplaySource.create(
            self.spec,
            *sizes,
            self.dataset,
            chunk=chunk,
            next_action=reading.next_action,
            hindsight=hindsight,
            num_envs=num_envs,
            symmetric=self.symmetric,
            replay=reading.replay,
            returns=self.returns,
        )

    def _rollouts(self) -> AbstractSource:
        """Where an on-policy agent's rollouts come from."""
        config, num_envs = self.config, self.record["num_envs"]
        rows = config.n_steps * num_envs
        if rows % config.batch_size:
            raise UsageError(
                f"a rollout of {rows} steps (n_steps times num_envs) cannot be cut into batches of {config.batch_size}"
                ": choose a batch_size that divides it"
            )
        explorer = self.skeleton().explorer
        assert isinstance(explorer, AbstractActor)
        memory = explorer.memory(())
        if self.world is not None and self.world.own is not None:
            return WorldRollouts.create(self.world.own, memory, config.gamma, num_envs, config.n_steps)
        return RolloutSource.create(self.spec, memory, config.gamma, num_envs, config.n_steps)

    def schedule(self, phase: str) -> Schedule:
        """When things happen in a phase."""
        r, proxy = self.record, self.proxy_steps
        offline = proxy + r["offline_steps"] if self.dataset is not None else 0
        shared: dict[str, Any] = dict(
            log_every=r["log_freq"],
            eval_every=r["eval_freq"],
            checkpoint_every=r["checkpoint_freq"],
            eval_episodes=r["eval_episodes"],
            probe_every=r.get("probe_freq") or r["eval_freq"],
            stop_on_alarm=r.get("on_diverge") == "stop",
            updates_per_step=r["updates_per_step"],
            keep_evaluated=r.get("keep_evaluated", False),
            references=tuple(r["references"]) if r.get("references") else None,
        )
        if phase == "proxy":
            return replace(Schedule(steps=proxy, **shared), eval_every=0)  # there is no policy yet
        if phase == "offline":
            return Schedule(steps=offline, start=proxy, **shared)
        if Reading.of(r["agent"], self.config).on_policy:
            return Schedule(steps=r["steps"], **shared)
        if self.dataset is None:
            return Schedule(steps=r["steps"], learning_starts=max(1, self.config.learning_starts), **shared)
        # After offline training the agent knows how to act: no random steps. If its buffer is full it may learn at
        # once, but an agent that knows its phases means by learning_starts the steps of its own before it learns.
        waits = _has(self.config, "phase") or self.symmetric or not r["offline_steps"]
        return Schedule(
            steps=offline + r["online_steps"],
            start=offline,
            learning_starts=max(1, self.config.learning_starts) if waits else 1,
            random=not r["offline_steps"],
            **shared,
        )


def _on_disk(record: dict[str, Any], reading: Reading) -> stream.Stream:
    """The data set of a run, left on disk. Raises `UsageError` for what needs it in memory."""
    path = record["dataset"]
    if reading.recorded:
        what = f"{record['agent']} learns from successive rows, for which"
    elif reading.scored:
        what = f"{record['agent']} scores every row, for which"
    elif record["online_steps"]:
        what = "online training fills a buffer, for which"
    elif record.get("dataset_fraction", 1.0) != 1.0:
        what = "to draw a share of the rows"
    else:
        return stream.Stream(Path(path))
    raise UsageError(f"{what} the data set {path} must be in memory: choose a smaller one, or --stream never")


@contextmanager
def _evaluators(setup: Setup, seeds: list[int]) -> Iterator[list[Any]]:
    envs: list[gymnasium.Env] = []
    made = [make_evaluator(setup.world, s, envs=envs) for s in seeds] if setup.world is not None else []
    try:
        yield made
    finally:
        for evaluator in made:
            evaluator.close()


def execute(
    setup: Setup, runs: list[Run], seeds: list[int], folders: list[Path] | None, quiet: bool, signals: Signals
) -> None:
    """Trains through all phases, from the beginning or from one checkpoint a run, and writes `final/` and `DONE`.

    Runs that diverged beside others get neither; `Diverged` then names them, after the others have ended.
    """
    record, phases, probes = setup.record, setup.phases(), find_probes(setup.record.get("probes", []))
    together = len(seeds) if len(seeds) > 1 else None
    meta = checkpoint.meta(folders[0]) if folders else None
    total = setup.schedule(phases[-1]).steps
    begin = meta["step"] if meta else 0
    progress = Progress(total, begin, "step" if phases[-1] == "online" else "update", quiet)
    failed = {i: run.failure for i, run in enumerate(runs) if run.failure is not None}
    for i, run in enumerate(runs):
        if i in failed:
            continue
        run.rewind(begin)
        run.attach(make_loggers(tuple(record["log"]), run.path, record, begin if meta else None))
    agents = [
        checkpoint.load_tree(folders[i], "agent", setup.skeleton()) if folders else setup.agent(s)
        for i, s in enumerate(seeds)
    ]
    training = Training(
        _stack_agents(agents) if together else agents[0], None, step=begin, seeds=together, failed=failed
    )
    if meta:
        training.best = [checkpoint.meta(folder)["best"] for folder in folders or []]
        training.best = [-np.inf if best is None else best for best in training.best]
        training.watches = _stored_watches(folders or [])
    keys = [jr.key(s) for s in seeds]
    run_key = jnp.stack(keys) if together else keys[0]
    try:
        with _evaluators(setup, seeds) as evaluators:
            for phase in phases:
                if training.lost or (meta and phases.index(phase) < phases.index(meta["phase"])):
                    continue
                source = setup.source(phase)
                check_probes(probes, setup, source)
                training.agent = in_phase(training.agent, phase)
                here = meta if meta and meta["phase"] == phase else None
                state = _initial_state(source, seeds, together)
                if here:
                    state = stored_state(source, state, folders or [], together)
                elif isinstance(source, ScoredSource):
                    state = scores(source, training.agent, run_key, together)
                training.state, training.updates, training.pending, training.totals = state, 0, None, None
                collector = None
                if phase == "online" and setup.world is not None and setup.world.make is not None:
                    # Where the state of the environments cannot be restored, the first episodes must not come again.
                    seed = seeds[0] + (here["step"] if here else 0)
                    collector = _collector(setup, seed)
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
                        probes=probes,
                        phase=phase,
                        signals=signals,
                    )
                finally:
                    if collector is not None:
                        collector.close()
    finally:
        progress.close()
    with signals.waiting():
        for i, run in enumerate(runs):
            if i in training.failed:
                continue
            agent = training.agent if together is None else take_seed(training.agent, i)
            checkpoint.save(run.path / "final", {"agent": agent}, {}, {"step": training.step})
            run.finish()
    if training.failed:
        raise Diverged(_failures(training.failed, runs, seeds))


def _failures(failed: dict[int, str], runs: list[Run], seeds: list[int]) -> str:
    """The seeds that diverged, what to do about them, and what became of the others."""
    each = ", ".join(f"seed {seeds[i]} ({why}; {kept(runs[i])})" for i, why in sorted(failed.items()))
    others = ", ".join(f"seed {s}" for i, s in enumerate(seeds) if i not in failed)
    return f"training diverged: {each}; {REMEDY}; finished: {others or 'none'}"


def _collector(setup: Setup, seed: int) -> Collector:
    assert setup.world is not None and setup.world.make is not None
    make, reading = setup.world.make, Reading.of(setup.record["agent"], setup.config)
    recorded = reading.recorded or setup.hindsight is not None
    return Collector(lambda: make(None), setup.record["num_envs"], setup.world.spec, seed, recorded=recorded)


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


def stored_state(source: AbstractSource, state: Any, folders: list[Path], together: int | None) -> Any:
    """The source's state in one checkpoint a seed; `state` gives the structure."""
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
    return Totals.of({name.removeprefix("totals/"): pair for name, pair in pairs.items()})


def _stored_watches(folders: list[Path]) -> list[dict[str, Watch]]:
    """What the monitors kept of each run; empty if they had not looked yet."""
    watches: list[dict[str, Watch]] = []
    for folder in folders:
        found: dict[str, dict[str, np.ndarray]] = {}
        for key, value in checkpoint.load_arrays(folder).items():
            if key.startswith("watch/"):
                _, name, rest = key.split("/", 2)
                found.setdefault(name, {})[rest] = value
        watches.append({name: Watch.restored(arrays) for name, arrays in found.items()})
    return watches if any(watches) else []


def _restore_collector(
    collector: Collector, source: AbstractSource, training: Training, folder: Path, progress: Progress
) -> None:
    arrays = checkpoint.load_arrays(folder)
    saved = {k.removeprefix("collector/"): v for k, v in arrays.items() if k.startswith("collector/")}
    exact = collector.restore(saved)
    if not exact:
        progress.say("this environment's state cannot be restored: going on with a new episode")
    if isinstance(source, RolloutSource):
        training.state = training.state if exact else source.cut(training.state)
        return
    assert isinstance(source, ReplaySource)
    treedef = jax.tree.structure(source.template)
    leaves = [arrays[f"pending/{j}"] for j in range(treedef.num_leaves) if f"pending/{j}" in arrays]
    if leaves:
        pending = jax.tree.unflatten(treedef, leaves)
        assert isinstance(pending, Transition | Recorded)
        if not exact and isinstance(pending, Recorded):
            pending = replace(pending, last=np.ones_like(pending.last))
        training.pending = pending
    elif not exact:
        training.state = source.cut(training.state)
