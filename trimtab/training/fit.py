"""The only loop: act, update, log, evaluate, checkpoint; the same for host environments, own worlds and data sets."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.batches import Recorded, Rollout, Transition
from trimtab.core import (
    AbstractActor,
    AbstractAgent,
    AbstractMonitor,
    AbstractPolicy,
    Memory,
    Metrics,
    RunError,
    TrimtabError,
    forget,
)
from trimtab.data.rollouts import Acting, RolloutSource, WorldRollouts
from trimtab.data.sources import AbstractSource, WorldSource
from trimtab.data.stream import StreamSource
from trimtab.envs.gym import Collector, Stepped
from trimtab.errors import Interrupted as Interrupted
from trimtab.policies.compose import Uniform
from trimtab.run.folder import Run
from trimtab.run.logging import Progress
from trimtab.training import checkpoint
from trimtab.training.compile import (
    Held,
    Totals,
    act,
    all_finite,
    batch_rows,
    chunk,
    chunk_seeds,
    cleared,
    no_totals,
    prefill,
    prefill_seeds,
)
from trimtab.training.evaluate import normalized_score

Evaluate = Callable[[AbstractPolicy, int], list[dict[str, float]]]
"""(policy, episodes) -> one dict an episode with return, length, success."""

Probe = Callable[[Any, Any, Any], Metrics] | AbstractMonitor
"""(agent, batch, key) -> metrics, logged as `diagnostics/NAME_KEY`; a monitor looks at the same rows each time."""

SETTLED = 100
"""Updates in a log line after which a loss that is still missing is NaN rather than delayed."""

REMEDY = "lower the learning rate or try --agent.critic-norm layer"
"""What to do about a run that diverged."""

ACT_STREAM, SOURCE_STREAM, PROBE_STREAM = 1, 2, 3
"""Random streams beside the updates' own, folded into the run key."""


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps: environment steps online, gradient steps offline."""

    steps: int
    """where this phase ends."""
    start: int = 0
    """where this phase begins: 0, or the offline steps before an online phase."""
    learning_starts: int = 0
    """environment steps before the first update."""
    random: bool = True
    """whether those steps take uniform random actions, one at a time; otherwise the agent's explorer acts."""
    updates_per_step: float = 1.0
    """updates for each environment step (host environments)."""
    log_every: int = 1_000
    eval_every: int = 10_000
    checkpoint_every: int = 10_000
    eval_episodes: int = 10
    keep_evaluated: bool = False
    """whether the agent of each evaluation is kept, in `evaluated/step_N/`."""
    references: tuple[float, float] | None = None
    """returns of a random and of an expert policy: evaluations are also logged as normalised scores."""
    probe_every: int = 10_000
    stop_on_alarm: bool = False
    """whether a monitor's alarm ends the run; otherwise it is said once."""


@dataclass
class Watch:
    """What a monitor keeps of one run: the rows that it looks at, chosen once, and its memory."""

    rows: list[np.ndarray] = field(default_factory=list)
    """the leaves of a batch; empty before the first look."""
    memory: Memory = field(default_factory=dict)
    alarmed: bool = False
    """whether the last look gave an alarm."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of it."""
        rows = {f"rows/{j}": leaf for j, leaf in enumerate(self.rows)}
        memory = {f"memory/{name}": value for name, value in self.memory.items()}
        return rows | memory | {"alarmed": np.array(self.alarmed)}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "Watch":
        """The inverse of `arrays`."""
        part = lambda start: {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        rows = part("rows/")
        return cls([rows[str(j)] for j in range(len(rows))], part("memory/"), bool(arrays["alarmed"]))


@dataclass
class Training:
    """Where a run stands. `seeds` is None for one run, else the length of the leading axis of agent and state."""

    agent: Any
    state: Any
    step: int = 0
    updates: int = 0
    """updates in this phase, host environments only."""
    pending: Transition | Recorded | Stepped | None = None
    """host rows not yet received by the source."""
    best: list[float] = field(default_factory=list)
    totals: Totals | None = None
    """sums of the updates' metrics since the last log line; None: no update in this phase yet."""
    seeds: int | None = None
    failed: dict[int, str] = field(default_factory=dict)
    """runs that diverged beside others that went on: index -> why. Nothing more is written for them."""
    watches: list[dict[str, Watch]] = field(default_factory=list)
    """of each run, by the name of its monitor; empty before the first look."""

    @property
    def lost(self) -> bool:
        """Whether all of several runs have diverged."""
        return self.seeds is not None and len(self.failed) == self.seeds


class Diverged(RunError):
    """A loss or a parameter became NaN or infinite, or a monitor's alarm ended the run. No checkpoint is written of a
    state that is not finite."""


class Signals:
    """Ctrl-C and SIGTERM while the folders of `runs` are open; `runs` may still grow.

    While there is nothing to save, the first one ends the command at once, as `Interrupted` with the way to go on.
    Under `waiting` it is only noted in `received`, so that the loop can stop between two chunks. The second one acts as
    it would without this class.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.received: int | None = None
        self._runs, self._waiting = runs, False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread (a notebook's worker, say): the caller handles signals
                return self
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self._runs:
            path = self._runs[0].path
            begun = checkpoint.checkpoints(path)
            when, how = ("", "go on") if begun else (" before the first checkpoint", "start from the beginning")
            status = 128 + (self.received or signal.SIGINT)
            raise Interrupted(f"interrupted{when}: {how} with `trimtab resume {path}`", status) from None

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(number, self._old[number])
        if not self._waiting:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Until its end a first signal is only noted."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def check(self) -> None:
        """Acts on a signal that was noted."""
        if self.received is not None:
            raise KeyboardInterrupt


def fit(
    training: Training,
    source: AbstractSource,
    runs: Sequence[Run],
    schedule: Schedule,
    run_key: Any,
    progress: Progress,
    *,
    collector: Collector | None = None,
    evaluate: Sequence[Evaluate] = (),
    probes: Mapping[str, Probe] | None = None,
    phase: str = "online",
    signals: Signals | None = None,
) -> Training:
    """Trains from `training.step` to `schedule.steps`; returns where it ended.

    `runs` has one folder a seed; with several, `training` and `run_key` carry a leading seed axis. `evaluate` has one
    evaluator a run, or is empty; `signals` come from a caller that handles them too. A checkpoint is written at each
    `checkpoint_every`, at the end, when interrupted (raises `Interrupted`), and when the environment fails (raises
    `RunError`). A run whose numbers are no longer finite raises `Diverged`; one of several is noted in
    `training.failed` while the others go on.
    """
    loop = _Loop(training, source, runs, schedule, run_key, progress, collector, evaluate, probes or {}, phase)
    with Signals(runs) if signals is None else nullcontext(signals) as signals, signals.waiting():
        try:
            loop.start()
            while training.step < schedule.steps and not training.lost:
                if signals.received is not None:
                    loop.checkpoint()
                    raise Interrupted(
                        f"interrupted at step {training.step:,}: go on with `trimtab resume {runs[0].path}`",
                        128 + signals.received,
                    )
                loop.advance()
            loop.finish()
        except Diverged:
            raise
        except RunError as error:
            raise loop.rescue(error) from error
        finally:
            loop.release()
    return training


class _Loop:
    """The state of one call of `fit` that is not worth a checkpoint: timers and keys."""

    def __init__(
        self,
        training: Training,
        source: AbstractSource,
        runs: Sequence[Run],
        schedule: Schedule,
        run_key: Any,
        progress: Progress,
        collector: Collector | None,
        evaluate: Sequence[Evaluate],
        probes: Mapping[str, Probe],
        phase: str,
    ) -> None:
        self.t, self.source, self.runs, self.schedule = training, source, runs, schedule
        self.run_key, self.progress, self.collector, self.phase = run_key, progress, collector, phase
        self.evaluate, self.probes = evaluate, probes
        self.held: Held | None = None
        plain = lambda probe: probe.measure if isinstance(probe, AbstractMonitor) else probe
        self.measures = {name: jax.jit(plain(probe)) for name, probe in probes.items()}
        self.chunk = chunk if training.seeds is None else chunk_seeds
        self.act_key = self._stream(ACT_STREAM)
        if training.totals is None:
            training.totals = no_totals(source, training.agent, training.state, training.seeds)
        self.logged_at, self.logged_time = (training.step, int(training.agent.step)), time.perf_counter()

    def _stream(self, number: int) -> Any:
        fold = lambda key: jr.fold_in(key, 2**31 - number)
        return fold(self.run_key) if self.t.seeds is None else jax.vmap(fold)(self.run_key)

    @property
    def waits_until(self) -> int:
        return self.schedule.start + self.schedule.learning_starts

    def start(self) -> None:
        """Fills the replay buffer of an own world before the first update."""
        t, s = self.t, self.schedule
        if not isinstance(self.source, WorldSource) or t.step > s.start or s.learning_starts == 0:
            return
        num_envs = self.source.num_envs
        rounds = -(-s.learning_starts // num_envs)
        policy = Uniform.create(self.source.env.spec) if s.random else t.agent.explorer
        fill = prefill if t.seeds is None else prefill_seeds
        t.state = fill(self.source, policy, t.state, self.act_key, np.int32(rounds))
        t.step = min(s.start + rounds * num_envs, s.steps)
        self._events(s.start)

    def advance(self) -> None:
        """One chunk: one vector step of host environments, or a rollout of them for an on-policy agent, or all updates
        up to the next event on the device."""
        before = self.t.step
        if self.collector is not None and isinstance(self.source, RolloutSource):
            self._host_rollout(self.collector, self.source)
        elif self.collector is not None:
            self._host_step(self.collector)
        else:
            self._device_steps()
        self._events(before)

    def _hold(self) -> Held:
        """Agent, state and totals, out of `Training` until `release`: between two calls nobody needs the trees."""
        if self.held is None:
            t = self.t
            assert t.totals is not None
            self.held = Held(self.source, t.agent, t.state, t.totals)
        return self.held

    def release(self) -> None:
        """Puts back what is held."""
        if self.held is not None:
            self.t.agent, self.t.state, self.t.totals = self.held.tree()
            self.held = None

    def _host_step(self, collector: Collector) -> None:
        t, held = self.t, self._hold()
        if self.schedule.random and t.step < self.waits_until:
            uniform = Uniform.create(collector.spec)
            ask = lambda obs: act(uniform, obs, self.act_key, np.int32(t.step))
        else:
            ask = lambda obs: held.act(obs, self.act_key, np.int32(t.step))
        action = collector.choose(ask)
        # The update runs on the device while the environments step on the host: the rows of this step wait for the
        # next.
        self._receive()
        t.pending = collector.advance(action, t.step)
        t.step += len(collector.envs)

    def _receive(self) -> None:
        t = self.t
        if t.pending is None:
            return
        due = int(max(0, t.step - self.waits_until) * self.schedule.updates_per_step) - t.updates
        self._hold().update(self.run_key, t.pending, np.int32(due))
        t.updates, t.pending = t.updates + due, None

    def _host_rollout(self, collector: Collector, source: RolloutSource) -> None:
        """A rollout, and the update that learns from it: the environments wait, since the next action needs it."""
        t, actor = self.t, self.t.agent.explorer
        assert isinstance(actor, AbstractActor)
        memory, discounted = jax.device_get((t.state.memory, t.state.discounted))
        forgets, held = bool(jax.tree.leaves(memory)), self._hold()
        rows: list[tuple[Any, ...]] = []
        for _ in range(source.n_steps):
            drawn, action, after = held.act_on(collector.obs, memory, self.act_key, np.int32(t.step))
            step = collector.advance(action, t.step)
            last = step.last
            assert last is not None
            discounted = np.float32(source.gamma) * discounted + step.reward
            rows.append((step.obs, drawn, step.reward, step.discount, step.next_obs, last, discounted, memory))
            memory = after
            if last.any():
                if forgets:
                    memory = jax.device_get(forget(actor, memory, jnp.asarray(last)))
                discounted = np.where(last, np.float32(0.0), discounted)
            t.step += len(collector.envs)
        rollout = Rollout(*jax.tree.map(lambda *xs: np.stack(xs), *rows))
        held.update(self.run_key, _acting(rollout, memory, discounted), np.int32(1))
        self.release()
        t.updates += 1

    def _device_steps(self) -> None:
        t, s = self.t, self.schedule
        worlds = self.source if isinstance(self.source, WorldSource | WorldRollouts) else None
        per_update = 1 if worlds is None else worlds.steps_per_update
        events = (s.log_every, s.eval_every, s.checkpoint_every, *((s.probe_every,) if self.probes else ()))
        until = min([s.steps] + [(t.step // every + 1) * every for every in events if every])
        updates, items = -(-(until - t.step) // per_update), None
        if isinstance(self.source, StreamSource):  # offline, so steps are updates
            source, size = self.source, np.int32(len(self.source.stream))
            updates = min(updates, source.updates)
            rows = batch_rows(self.run_key, np.int32(t.step), source.updates, source.batch_size, size)
            items = source.stream.gather(np.asarray(rows))
        t.agent, t.state, t.totals = self.chunk(
            self.source, t.agent, t.state, t.totals, self.run_key, items, np.int32(updates)
        )
        t.step += updates * per_update

    def _events(self, before: int) -> None:
        t, s = self.t, self.schedule
        last = t.step >= s.steps
        crossed = lambda every: bool(every) and (t.step // every > before // every or last)
        if any(map(crossed, (s.log_every, s.eval_every, s.probe_every, s.checkpoint_every))):
            self.release()
        if crossed(s.log_every):
            self._log()
        if crossed(s.eval_every) and self.evaluate:
            self._evaluate()
        if self.probes and crossed(s.probe_every) and int(t.agent.step):
            self._probe()
        if crossed(s.checkpoint_every):
            self.checkpoint()

    def _log(self) -> None:
        t = self.t
        assert t.totals is not None
        totals, updates = jax.device_get((t.totals, t.agent.step))  # the one transfer of a log line
        t.totals = cleared(t.totals)
        now, updates = time.perf_counter(), int(updates)
        elapsed, new = max(now - self.logged_time, 1e-9), updates - self.logged_at[1]
        rate = new / elapsed
        shared = {"time/updates_per_second": rate, "time/total_timesteps": float(t.step)}
        if self.phase == "online":
            shared["time/fps"] = (t.step - self.logged_at[0]) / elapsed
        self.logged_at, self.logged_time = (t.step, updates), now
        mean = None
        for i, run in self._going():
            with np.errstate(invalid="ignore"):  # 0/0: a metric that no update since the last line computed
                means = {name: float(np.divide(*map(np.atleast_1d, pair))[i]) for name, pair in totals.named().items()}
            rollout = self._rollout(i)
            mean = rollout.get("rollout/ep_rew_mean", mean)
            run.log(t.step, rollout | {f"train/{name}": value for name, value in means.items()} | shared)
            if new >= SETTLED:
                broken = [name for name, value in means.items() if name.endswith("_loss") and not np.isfinite(value)]
                if broken:
                    self._fail(i, f"{broken[0]} is not finite before step {t.step:,}")
        self.progress.show(t.step, mean, rate)
        if isinstance(self.source, WorldSource | WorldRollouts):
            found = np.asarray(t.state.episodes.stuck)
            if (found >= 0).any():
                first = int(found[found >= 0].min())
                name = type(self.source.env.env.env).__name__
                raise RunError(f"{name} gave an action_mask without a valid action at step {first:,} of a copy")

    def _going(self) -> list[tuple[int, Run]]:
        """The runs that have not diverged, with their place on the seed axis."""
        return [(i, run) for i, run in enumerate(self.runs) if i not in self.t.failed]

    def _sound(self) -> dict[int, AbstractAgent]:
        """The agents of the runs that go on: what may be written. One that is not finite ends its run here."""
        agents = {i: self._agent(i) for i, _ in self._going()}
        for i, agent in agents.items():
            if not all_finite(agent):
                self._fail(i, f"a parameter is not finite before step {self.t.step:,}")
        return {i: agents[i] for i, _ in self._going()}

    def _fail(self, i: int, why: str) -> None:
        """Ends a run: one that trains alone by raising `Diverged`, one of several without harm to the others."""
        run = self.runs[i]
        if self.t.seeds is None:
            raise Diverged(f"training diverged: {why}; {REMEDY} ({kept(run)})")
        self.t.failed[i] = why
        run.fail(why)
        self.progress.say(f"{run.path.name} diverged: {why}")

    def _rollout(self, i: int) -> dict[str, float]:
        if self.collector is not None:
            return self.collector.statistics()
        if not isinstance(self.source, WorldSource | WorldRollouts):
            return {}
        state = self.t.state.episodes
        recent = (state.recent_returns, state.recent_lengths, state.recent_successes)
        names = ("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate")
        numbers = [np.asarray(x) if self.t.seeds is None else np.asarray(x)[i] for x in recent]
        return {name: float(np.nanmean(x)) for name, x in zip(names, numbers, strict=True) if not np.isnan(x).all()}

    def _evaluate(self) -> None:
        t = self.t
        began = time.perf_counter()
        t.best = t.best or [-np.inf] * len(self.runs)
        for i, agent in self._sound().items():
            run = self.runs[i]
            episodes = self.evaluate[i](agent.policy, self.schedule.eval_episodes)
            run.log_eval(t.step, episodes)
            returns = np.array([episode["return"] for episode in episodes])
            successes = np.array([episode["success"] for episode in episodes])
            metrics = {
                "eval/mean_reward": float(returns.mean()),
                "eval/mean_ep_length": float(np.mean([episode["length"] for episode in episodes])),
            }
            if np.isfinite(successes).any():
                metrics["eval/success_rate"] = float(np.nanmean(successes))
            if self.schedule.references is not None:
                metrics["eval/normalized_score"] = normalized_score(float(returns.mean()), self.schedule.references)
            if self.schedule.keep_evaluated:
                checkpoint.save(run.path / "evaluated" / f"step_{t.step}", {"agent": agent}, {}, {"step": t.step})
            run.log(t.step, metrics)
            name = run.path.name if len(self.runs) > 1 else ""
            self.progress.evaluated(t.step, returns.mean(), returns.std(), name)
            if returns.mean() > t.best[i]:
                t.best[i] = float(returns.mean())
                checkpoint.save(run.path / "best", {"agent": agent}, {}, {"step": t.step, "mean_return": t.best[i]})
        self.logged_time += time.perf_counter() - began  # evaluation is no training time

    def _probe(self) -> None:
        t, alarms = self.t, {}
        began = time.perf_counter()
        monitors = [name for name, probe in self.probes.items() if isinstance(probe, AbstractMonitor)]
        t.watches = t.watches or [{name: Watch() for name in monitors} for _ in self.runs]
        key = jr.fold_in(jr.key(PROBE_STREAM), t.step)
        for i, agent in self._sound().items():
            metrics: dict[str, float] = {}
            state = t.state if t.seeds is None else jax.tree.map(lambda x, i=i: x[i], t.state)
            for name, probe in self.probes.items():
                if isinstance(probe, AbstractMonitor):
                    found, alarm = self._look(i, name, probe, agent, state)
                    alarms |= {i: alarm} if alarm is not None else {}
                else:
                    batch = self.source.batch(state, key)
                    found = {k: float(v) for k, v in jax.device_get(self.measures[name](agent, batch, key)).items()}
                metrics |= {f"diagnostics/{name}_{k}": value for k, value in found.items()}
            self.runs[i].log(t.step, metrics)
        if alarms and self.schedule.stop_on_alarm:
            self.checkpoint()  # before the end, so that what gave the alarm can be looked at
            for i, alarm in alarms.items():
                self._fail(i, f"{alarm}, at step {t.step:,}")
        self.logged_time += time.perf_counter() - began  # nor are probes training time

    def _look(
        self, i: int, name: str, monitor: AbstractMonitor, agent: Any, state: Any
    ) -> tuple[dict[str, float], str | None]:
        """One look of a monitor at the i-th run; says its alarm unless the last look gave one too."""
        watch, key = self.t.watches[i][name], jr.key(PROBE_STREAM)
        if not watch.rows:
            watch.rows = choose_rows(self.source, state, monitor.rows)
        batch = as_batch(self.source, state, watch.rows)
        found = jax.device_get(self.measures[name](agent, batch, key))
        judged = monitor.judge(agent.config, found, watch.memory)
        if judged.alarm is not None and not watch.alarmed and not self.schedule.stop_on_alarm:
            label = f"{self.runs[i].path.name}: " if len(self.runs) > 1 else ""
            self.progress.say(f"{label}step {self.t.step:,}: {judged.alarm}")
        watch.memory, watch.alarmed = judged.memory, judged.alarm is not None
        return judged.metrics, judged.alarm

    def _agent(self, i: int) -> AbstractAgent:
        """The agent of the i-th run, without a seed axis."""
        if self.t.seeds is None:
            return self.t.agent
        return take_seed(self.t.agent, i)

    def checkpoint(self) -> None:
        """Writes a checkpoint a run and removes the oldest, but never one of an agent that is not finite."""
        self.release()
        arrays: dict[str, np.ndarray] = {}
        if self.collector is not None:
            arrays = {f"collector/{name}": value for name, value in self.collector.state().items()}
        self._save(arrays)

    def _save(self, arrays: dict[str, np.ndarray]) -> None:
        t = self.t
        if t.pending is not None:
            rows = t.pending.rows() if isinstance(t.pending, Stepped) else t.pending
            arrays |= {f"pending/{j}": np.asarray(leaf) for j, leaf in enumerate(jax.tree.leaves(rows))}
        totals = {} if t.totals is None else {f"totals/{name}": pair for name, pair in t.totals.named().items()}
        for i, agent in self._sound().items():
            run = self.runs[i]
            sums = totals if t.seeds is None else {name: pair[:, i] for name, pair in totals.items()}
            watches = {
                f"watch/{name}/{key}": value
                for name, watch in (t.watches[i] if t.watches else {}).items()
                for key, value in watch.arrays().items()
            }
            state = t.state if t.seeds is None else jax.tree.map(lambda x, i=i: x[i], t.state)
            trees = {"agent": agent, "source": self.source.stored(state)}
            best = t.best[i] if t.best else None
            meta = {"step": t.step, "updates": t.updates, "phase": self.phase, "best": best}
            checkpoint.save(run.path / "checkpoints" / f"step_{t.step}", trees, arrays | sums | watches, meta)
            checkpoint.prune(run.path)

    def finish(self) -> None:
        """Receives the last rows. The checkpoint before it lets the run be prolonged exactly."""
        self._receive()
        self.release()
        self._sound()

    def rescue(self, error: RunError) -> RunError:
        """The error with what was saved. The environments may be broken, so a resume starts new episodes."""
        self.release()
        try:
            arrays: dict[str, np.ndarray] = {}
            if self.collector is not None:
                state = self.collector.state() | {"exact": np.array(False)}
                arrays = {f"collector/{name}": value for name, value in state.items() if not name.startswith("env/")}
            self._save(arrays)
        except Diverged as cause:
            return cause  # an agent that is not finite acts so as to break environments
        except (TrimtabError, OSError):
            return error  # the disk is what failed: earlier checkpoints stand, and `error` says what to do
        return RunError(f"{error} (progress up to step {self.t.step:,} is saved in {self.runs[0].path})")


def _acting(rollout: Rollout, memory: Any, discounted: Any) -> Acting:
    return Acting(rollout, memory, discounted)


def choose_rows(source: AbstractSource, state: Any, n: int) -> list[np.ndarray]:
    """The leaves of `n` different rows of the source, or of all it has if they are fewer: the same at each call."""
    draw = lambda k: jax.tree.leaves(jax.device_get(source.batch(state, k)))
    first = draw(jr.key(PROBE_STREAM))
    batches = [first] + [draw(k) for k in jr.split(jr.key(PROBE_STREAM), -(-2 * n // len(first[0])))]
    leaves = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    flat = np.concatenate([leaf.reshape(len(leaf), -1).astype(np.float64) for leaf in leaves], axis=1)
    places = np.sort(np.unique(flat, axis=0, return_index=True)[1])[:n]
    return [leaf[places] for leaf in leaves]


def as_batch(source: AbstractSource, state: Any, leaves: list[np.ndarray]) -> Any:
    """Rows from `choose_rows` in the form of the source's batches."""
    like = jax.eval_shape(lambda state: source.batch(state, jr.key(0)), state)
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in leaves])


def kept(run: Run) -> str:
    """What is left of a run that diverged."""
    left = checkpoint.checkpoints(run.path)
    return f"its last good checkpoint is {left[-1]}" if left else "it had no checkpoint yet"


def take_seed(agent: Any, i: int) -> Any:
    """The i-th agent of a seed axis; `step` has none."""
    return replace(jax.tree.map(lambda x: x[i] if x.ndim else x, agent), step=agent.step)
