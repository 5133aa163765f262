"""Writes the golden losses anew: `python tests/golden/regenerate.py [AGENT ...]`.

Only on purpose: a change of these numbers is a change of results, and the CHANGELOG has to say so. Prints what moved.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr

from trimtab.agents import AGENTS, batch_class, config_class
from trimtab.batches import Chunk, Rollout, Sarsa, ToGo, Transition
from trimtab.core import Spec

HERE = Path(__file__).parent
UPDATES = 20

# Rates a few times the defaults, so that twenty updates of a wrong rule leave a mark on the losses.
OVERRIDES = {"hidden": (8, 8), "learning_rate": 3e-3, "tau": 0.1, "gamma": 0.9, "phase": "offline"}
OVERRIDES |= {
    "unreached_reward": None,
    "encoder": (8,),
    "embedding": 4,
    "actor_lr": 3e-3,
    "critic_lr": 3e-3,
    "width": 8,
    "gate_hidden": (8,),
    "utd": 2,
}


DISCRETE = {"dqn"}


def stream(key: jax.Array) -> Transition:
    """A batch of 32 rows with rewards and next observations that hang together; a fifth of them terminates."""
    k_obs, k_action, k_noise, k_end = jr.split(key, 4)
    obs = jr.normal(k_obs, (32, 3))
    action = jr.uniform(k_action, (32, 2), minval=-1.0, maxval=1.0)
    moved = jnp.concatenate([action, action[:, :1] * action[:, 1:]], axis=1)
    return Transition(
        obs=obs,
        action=action,
        reward=0.1 - 0.1 * jnp.square(obs[:, :2] + action).sum(1),
        discount=1.0 - jr.bernoulli(k_end, 0.2, (32,)).astype(jnp.float32),
        next_obs=0.9 * obs + 0.3 * moved + 0.1 * jr.normal(k_noise, (32, 3)),
    )


def windows(key: jax.Array, h: int) -> Chunk:
    """32 windows of `h` steps; a fifth of their steps terminates, and every fourth window reaches beyond an end."""
    rows = [stream(jr.fold_in(key, i)) for i in range(h)]
    side_by_side = lambda name: jnp.stack([getattr(row, name) for row in rows], axis=1)
    valid = jnp.ones((32, h)).at[::4, h // 2 + 1 :].set(0.0)
    named = {name: side_by_side(name) for name in ("action", "reward", "discount")}
    return Chunk(obs=rows[0].obs, next_obs=rows[-1].next_obs, valid=valid, **named)


def with_goals(rows: Transition, sets: bool) -> Transition:
    """`rows` with the first two numbers as what is achieved, and the last two before the step as what is wanted; or a
    set of two goals, of which the step reaches the first and the second is there in every other row."""
    goal = rows.obs[:, 1:]
    if sets:
        there = jnp.stack([jnp.ones(32), (jnp.arange(32) % 2).astype(jnp.float32)], axis=1)[..., None]
        goal = jnp.concatenate([there, jnp.stack([rows.next_obs[:, :2], goal], axis=1)], axis=-1).reshape(32, 6)
    parts = lambda x: {"achieved_goal": x[:, :2], "desired_goal": goal, "observation": x}
    return Transition(parts(rows.obs), rows.action, rows.reward, rows.discount, parts(rows.next_obs))


def with_next(key: jax.Array) -> Sarsa:
    """`stream` with next actions that hang together with the next observations; every fourth row has none."""
    rows = stream(key)
    action = jnp.tanh(rows.next_obs[:, :2] + 0.3 * jr.normal(jr.fold_in(key, 4), (32, 2)))
    known = jnp.ones(32).at[::4].set(0.0)
    return Sarsa(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, action, known)


def rollout(key: jax.Array) -> Rollout:
    """`stream` as 8 steps of 4 environments; a sixth of the steps that go on are cut."""
    rows = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), stream(key))
    last = (rows.discount == 0.0) | jr.bernoulli(jr.fold_in(key, 5), 1 / 6, (8, 4))
    return Rollout(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, last, rows.reward, ((), ()))


def with_return(key: jax.Array) -> ToGo:
    """`stream` with returns around what values become; every fourth row has none."""
    rows = stream(key)
    to_go = jnp.where(jnp.arange(32) % 4 != 0, rows.reward + 0.3 * jr.normal(jr.fold_in(key, 4), (32,)), -jnp.inf)
    return ToGo(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, to_go)


def losses(name: str) -> dict[str, list[float | None]]:
    """Every loss and mean of `UPDATES` updates; None where it is not computed. Independent of any recorded file."""
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    kind = config_class(AGENTS[name])
    known = {field: value for field, value in OVERRIDES.items() if field in kind.__dataclass_fields__}
    config = kind(**known)
    goals, sets = name.startswith("reengage"), name == "reengage-sets"
    if goals:
        example = with_goals(stream(jr.key(0)), sets).obs
        spec = replace(spec, obs=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), example))
    if name in DISCRETE:
        spec = Spec(spec.obs, 4, True)
    reads = batch_class(AGENTS[name])
    if reads is Rollout:
        config = replace(config, batch_size=8, n_epochs=2, **({"pairs": 4} if name == "fpo" else {}))
    agent = AGENTS[name].create(jr.key(0), spec, config)
    update = jax.jit(lambda agent, batch, key: agent.update(batch, key))
    history: dict[str, list[float | None]] = {}
    for step in range(UPDATES):
        k_batch, k_update = jr.split(jr.fold_in(jr.key(1), step))
        if reads is Chunk:
            batch = windows(k_batch, config.chunk)
        else:
            make = {Sarsa: with_next, ToGo: with_return, Rollout: rollout}.get(reads, stream)
            batch = make(k_batch)
            batch = with_goals(batch, sets) if goals else batch
            if name in DISCRETE:  # the signs of both dimensions as one of four actions
                batch = replace(batch, action=(batch.action > 0).astype(jnp.int32) @ jnp.array([1, 2]))
        agent, metrics = update(agent, batch, k_update)
        for metric, value in jax.device_get(metrics).items():
            if not metric.endswith("_grad_norm"):
                history.setdefault(metric, []).append(None if math.isnan(value) else float(f"{value:.7g}"))
    return dict(sorted(history.items()))


def main(names: list[str]) -> None:
    """Writes one file an agent and prints how far each series moved."""
    for name in names or sorted(AGENTS):
        file, new = HERE / f"{name}.json", losses(name)
        old = json.loads(file.read_text()) if file.exists() else {}
        for metric in sorted(old.keys() | new.keys()):
            if metric not in old or metric not in new:
                print(f"{name} {metric}: {'new' if metric in new else 'gone'}")
                continue
            pairs = [(a, b) for a, b in zip(old[metric], new[metric], strict=True) if a is not None and b is not None]
            worst = max((abs(a - b) / max(abs(a), 1e-8) for a, b in pairs), default=0.0)
            print(f"{name} {metric}: largest relative change {worst:.1e}")
        lines = [f'  "{metric}": {json.dumps(values)}' for metric, values in new.items()]
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
