"""What every agent must hold, run over all of `AGENTS`: a new agent is tested by standing in that list.

Nets have width 8. Each agent compiles one update and one chunk of updates, which the tests of a module share.
A method whose default config or batch does not fit here gets a line in `SMALL` or in `make_data`.
"""

import dataclasses
import fnmatch
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.representative import every_agent
from trimtab.agents import AGENTS, batch_class, config_class
from trimtab.batches import Chunk, Rollout, Sarsa, ToGo
from trimtab.core import Spec, UsageError
from trimtab.nets.standardise import Standardise

# Random rewards are nobody's "not reached": without a mask all rows count.
SMALL: dict[str, dict[str, Any]] = {
    "diffusion-ql": {"diffusion_steps": 21, "candidates": 3, "ema_start": 1, "ema_every": 2},
    # Steps large enough to change the best of a few actions in six updates.
    "dqn": {"learning_rate": 0.03, "exploration_updates": 1, "target_every": 2},
    "fpo": {"batch_size": 8, "n_epochs": 2, "pairs": 4, "flow_steps": 3},
    "ifql": {"candidates": 3},
    # Draws and modes are nodes or cells of a grid: what is learnt must reach the next one.
    "mepoly": {"order": 2, "points": 16, "learning_rate": 0.05},
    # One norm over both networks would let the size of the actor's gradient shorten the critic's step.
    "ppo": {"batch_size": 8, "n_epochs": 2, "max_grad_norm": None},
    "reengage": {"unreached_reward": None},
    "reengage-sac": {"unreached_reward": None},
    "reengage-sets": {"encoder": (8,), "embedding": 4},
    "rlpd": {"utd": 2, "critic_members": 3},
}
"""Fields, beside `hidden`, in which the tested config of an agent differs from its default."""

GOALS: dict[str, int] = {"reengage": 2, "reengage-sac": 2, "reengage-sets": 9}
"""Agents whose observations must have goals, and the numbers of one."""

DISCRETE: set[str] = {"ppo"}
"""Agents which take discrete actions, too."""

DISCRETE_ONLY: set[str] = {"dqn"}
"""Agents which take nothing else."""

WITHOUT_BOOTSTRAP: set[str] = {"bc"}
"""Agents whose critic, if any, does not look at `next_obs`."""

BOOTSTRAP_ONLY: dict[str, dict[str, Any]] = {
    "sac-flow": {"critic": "ema"},
    "cal-ql": {"cql_alpha": 0.0},
    "cql": {"cql_alpha": 0.0},
}
"""Agents whose critics look at s' beside the bootstrap, as part of one normalised batch or for actions to be
pessimistic about: how to build them without."""

DELAY = 2
"""The longest wait, in updates, for a metric that is not computed at every update."""


def small_config(name: str) -> Any:
    """The default config with hidden layers of width 8."""
    kind = config_class(AGENTS[name])
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**({"hidden": (8, 8)} if "hidden" in fields else {}), **SMALL.get(name, {}))


@dataclass(frozen=True)
class Rig:
    """One agent, data for it, and its two compiled functions."""

    name: str
    spec: Spec
    agent: Any
    data: Any
    batch: Any
    update: Callable
    chunk: Callable
    traces: list[str]
    """One entry for each time that `update` was traced: all tests of an agent use one batch shape, so there is one."""

    def build(self, key: jax.Array, spec: Spec | None = None) -> Any:
        """Another agent with a config of its own."""
        return AGENTS[self.name].create(key, spec or self.spec, small_config(self.name))


def small_agent(name: str, key: jax.Array, spec: Spec, **changes: Any) -> Any:
    """A fresh agent whose config differs from `small_config` in `changes`."""
    return AGENTS[name].create(key, spec, dataclasses.replace(small_config(name), **changes))


def make_data(name: str, make_batch: Callable, spec: Spec, key: jax.Array, n: int) -> Any:
    """`n` random rows of the kind that the agent learns from: transitions, those with the next action or the return
    (of which every fourth has none), windows of `config.chunk` steps, or `n` steps of two environments."""
    rows = make_batch(spec, key, n)
    if batch_class(AGENTS[name]) is Sarsa:
        known = (jnp.arange(n) % 4 != 0).astype(jnp.float32)
        return Sarsa(
            rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, jnp.roll(rows.action, 1, axis=0), known
        )
    if batch_class(AGENTS[name]) is Rollout:
        rows = jax.tree.map(lambda *xs: jnp.stack(xs, 1), rows, make_batch(spec, jr.fold_in(key, 1), n))
        last = (rows.discount == 0.0) | jr.bernoulli(jr.fold_in(key, 2), 0.1, (n, 2))
        return Rollout(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, last, rows.reward, ((), ()))
    if batch_class(AGENTS[name]) is ToGo:
        to_go = jnp.where(jnp.arange(n) % 4 != 0, 2.0 * jnp.roll(rows.reward, 1), -jnp.inf)
        return ToGo(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, to_go)
    if batch_class(AGENTS[name]) is not Chunk:
        return rows
    h = small_config(name).chunk
    wide = lambda x, seed: jnp.stack([jr.permutation(jr.fold_in(key, seed + i), x) for i in range(h)], axis=1)
    valid = jnp.broadcast_to((jnp.arange(n) % 4 != 0)[:, None], (n, h)).astype(jnp.float32).at[:, 0].set(1.0)
    return Chunk(rows.obs, wide(rows.action, 0), wide(rows.reward, h), wide(rows.discount, 2 * h), rows.next_obs, valid)


def plan_size(rig: "Rig") -> int:
    """Numbers in one answer of the policy: the two of an action, for each step that it plans."""
    config = small_config(rig.name)
    return 2 * getattr(config, "chunk", 1)


def plain_update(agent, batch, key):
    """The agent's update as a function of the agent."""
    return agent.update(batch, key)


def chunk_of(agent, data, run_key, updates):
    """`updates` updates whose randomness is a function of (run_key, agent.step), as the training loop does them."""

    def body(_, agent):
        k_batch, k_update = jr.split(jr.fold_in(run_key, agent.step))
        rows = jr.randint(k_batch, (16,), 0, 64)
        return agent.update(jax.tree.map(lambda x: x[rows], data), k_update)[0]

    return jax.lax.fori_loop(0, updates, body, agent)


def with_goals(spec: Spec, size: int) -> Spec:
    """`spec` with goals of `size` numbers in its observation."""
    sizes = {"achieved_goal": 2, "desired_goal": size, "observation": 1}
    return dataclasses.replace(spec, obs={k: jax.ShapeDtypeStruct((n,), jnp.float32) for k, n in sizes.items()})


def discrete(spec: Spec) -> Spec:
    """`spec` with four actions to choose from."""
    return dataclasses.replace(spec, discrete=True, action_size=4, action_low=(), action_high=())


@pytest.fixture(scope="module", params=every_agent())
def rig(request, spec, make_batch) -> Iterator[Rig]:
    name = request.param
    spec = discrete(spec) if name in DISCRETE_ONLY else spec
    spec = with_goals(spec, GOALS[name]) if name in GOALS else spec
    agent = AGENTS[name].create(jr.key(0), spec, small_config(name))
    data = make_data(name, make_batch, spec, jr.key(1), 64)
    batch = jax.tree.map(lambda x: x[:16], data)
    traces: list[str] = []

    def update(agent, batch, key):
        traces.append(name)
        return agent.update(batch, key)

    # A function of this rig's own, so that the count of compilations is its own, too.
    chunk = jax.jit(lambda agent, data, run_key, updates: chunk_of(agent, data, run_key, updates))
    yield Rig(name, spec, agent, data, batch, jax.jit(update), chunk, traces)
    jax.clear_caches()  # this agent's programs are not needed any more: see `no_programs_are_left`


def assert_bits(a, b, *, same: bool = True):
    """Two trees hold the same bits everywhere, or differ somewhere."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert all(bool(jnp.array_equal(x, y, equal_nan=True)) for x, y in pairs) == same


def signature(tree) -> Any:
    """Structure, shapes and dtypes; the static config is part of the structure."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def critic_of(agent) -> Any:
    """The agent's value functions, or None."""
    nets = {field.name: getattr(agent, field.name) for field in dataclasses.fields(agent)}
    return {name: net for name, net in nets.items() if name in ("critic", "value")} or None


# The agent as a PyTree


def test_every_leaf_is_an_array(rig):
    for tree in (rig.agent, rig.agent.policy, rig.agent.explorer):
        assert jax.tree.leaves(tree)
        assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(tree))


def test_the_config_is_the_only_static_field(rig):
    static = {field.name for field in dataclasses.fields(rig.agent) if field.metadata.get("static", False)}
    assert static == {"config"}
    hash(rig.agent.config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rig.agent.config.gamma = 0.5


def test_update_keeps_structure_shapes_and_dtypes(rig):
    new, _ = rig.update(rig.agent, rig.batch, jr.key(2))
    assert signature(new) == signature(rig.agent)
    assert new.step == rig.agent.step + 1
    assert_bits(new, rig.agent, same=False)


def test_takes_dict_observations(rig, dict_spec, make_batch):
    dict_spec = rig.spec if rig.name in GOALS else discrete(dict_spec) if rig.name in DISCRETE_ONLY else dict_spec
    agent, batch = rig.build(jr.key(0), dict_spec), make_data(rig.name, make_batch, dict_spec, jr.key(1), 16)
    new, _ = jax.eval_shape(plain_update, agent, batch, jr.key(2))
    assert jax.tree.structure(new) == jax.tree.structure(agent)


def test_a_discrete_world_gives_one_clear_line(rig):
    if rig.name in DISCRETE:
        pytest.skip("takes discrete actions")
    if rig.name in DISCRETE_ONLY:
        with pytest.raises(UsageError, match=f"{rig.name} needs one discrete choice, but actions have 5 continuous"):
            rig.build(jr.key(0), dataclasses.replace(rig.spec, discrete=False, action_size=5))
        return
    with pytest.raises(UsageError) as error:
        rig.build(jr.key(0), dataclasses.replace(rig.spec, discrete=True, action_size=5))
    message = str(error.value)
    assert "\n" not in message and rig.name in message and "5" in message


# Compilation


def test_one_trace_in_three_calls(rig):
    agent = rig.agent
    for i in range(3):
        agent, _ = rig.update(agent, rig.batch, jr.key(i))
    assert len(rig.traces) == 1


def test_two_agents_built_apart_share_one_compilation(rig):
    rig.update(rig.agent, rig.batch, jr.key(2))
    rig.update(rig.build(jr.key(9)), rig.batch, jr.key(2))
    assert len(rig.traces) == 1 and rig.update._cache_size() == 1


def test_donation(rig):
    donating = jax.jit(plain_update, donate_argnums=0)
    expected, _ = rig.update(rig.agent, rig.batch, jr.key(2))
    first = rig.build(jr.key(0))  # the same agent in buffers of its own; no two of its leaves may share one
    second, _ = donating(first, rig.batch, jr.key(2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    third, _ = donating(second, rig.batch, jr.key(3))
    assert third.step == 2


# Randomness and time are arguments


def test_same_key_same_bits(rig):
    assert_bits(rig.build(jr.key(0)), rig.agent)
    assert_bits(rig.build(jr.key(9)), rig.agent, same=False)
    assert_bits(rig.update(rig.agent, rig.batch, jr.key(2)), rig.update(rig.agent, rig.batch, jr.key(2)))


def test_chunks_do_not_change_results(rig):
    def run(*lengths):
        agent = rig.agent
        for updates in lengths:
            agent = rig.chunk(agent, rig.data, jr.key(5), jnp.int32(updates))
        return agent

    whole = run(6)
    assert whole.step == 6
    assert_bits(run(1, 1, 1, 1, 1, 1), whole)
    assert_bits(run(2, 2, 2), whole)
    assert_bits(run(3, 3), whole)
    assert_bits(run(5), whole, same=False)


def test_a_chunk_is_its_updates_one_by_one(rig):
    agent = rig.agent
    for step in range(4):
        k_batch, k_update = jr.split(jr.fold_in(jr.key(5), step))
        rows = jr.randint(k_batch, (16,), 0, 64)
        agent, _ = rig.update(agent, jax.tree.map(lambda x, rows=rows: x[rows], rig.data), k_update)
    chunked = rig.chunk(rig.agent, rig.data, jr.key(5), jnp.int32(4))
    for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(agent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # fused differently; Adam enlarges the last bits


def test_a_vmapped_seed_is_its_solo_run(rig):
    solos = [rig.agent, rig.build(jr.key(9))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *solos)
    stacked = eqx.tree_at(lambda a: a.step, stacked, jnp.int32(0))
    axes = eqx.tree_at(lambda a: a.step, jax.tree.map(lambda _: 0, rig.agent), None)  # one step for all seeds
    mapped = jax.vmap(chunk_of, in_axes=(axes, None, 0, None), out_axes=axes)
    run_keys = jr.split(jr.key(5), 2)
    both = jax.jit(mapped)(stacked, rig.data, run_keys, jnp.int32(4))
    assert both.step == 4 and both.step.shape == ()
    for seed, solo in enumerate(solos):
        alone = rig.chunk(solo, rig.data, run_keys[seed], jnp.int32(4))
        one = eqx.tree_at(lambda a: a.step, jax.tree.map(lambda x, i=seed: x[i] if x.ndim else x, both), both.step)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    # A branch that waits for `step` stays a branch: nothing is computed for nothing.
    branches = lambda f, *args: str(jax.make_jaxpr(f)(*args, jnp.int32(4))).count("cond[")
    in_solo = branches(chunk_of, rig.agent, rig.data, jr.key(5))
    assert branches(mapped, stacked, rig.data, run_keys) == in_solo
    assert in_solo > 0 or rig.name != "td3"  # the count counts


def test_saved_loaded_and_continued_is_the_same(rig):
    agent = rig.chunk(rig.agent, rig.data, jr.key(5), jnp.int32(3))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, agent)
    file.seek(0)
    skeleton = jax.eval_shape(lambda key: rig.build(key), jr.key(7))
    loaded = eqx.tree_deserialise_leaves(file, skeleton)
    assert_bits(loaded, agent)
    go_on = lambda a: rig.chunk(a, rig.data, jr.key(5), jnp.int32(3))
    assert_bits(go_on(loaded), go_on(agent))
    assert_bits(go_on(loaded), rig.chunk(rig.agent, rig.data, jr.key(5), jnp.int32(6)))


# Metrics


def test_metrics_are_finite_documented_and_always_the_same(rig):
    doc = inspect.getdoc(sys.modules[type(rig.agent).__module__]) or ""
    documented = re.findall(r"[\w*]+", doc)
    agent, history = rig.agent, []
    for i in range(2 * DELAY):
        agent, metrics = rig.update(agent, rig.batch, jr.key(i))
        history.append(metrics)
    for metrics in history:
        assert metrics.keys() == history[0].keys() and metrics
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    for name in history[0]:
        globs = [word for word in documented if word == name or ("*" in word and word.endswith("_grad_norm"))]
        assert any(fnmatch.fnmatch(name, glob) for glob in globs), f"{name} is not in the docstring of {rig.name}"
        values = np.array([metrics[name] for metrics in history])
        assert not np.isinf(values).any(), name
        missing = np.isnan(values)
        assert not missing.all(), f"{name} is never computed"
        if missing.any():
            assert "NaN" in doc, f"{name} is NaN at times, which the docstring of {rig.name} does not say"
            assert (missing[:DELAY] == missing[DELAY:]).all(), f"{name} is NaN at no fixed period: {values}"


# Who learns from what


def test_the_actors_loss_does_not_reach_the_critic(rig, monkeypatch):
    kind = type(rig.agent)
    if critic_of(rig.agent) is None or "_actor_loss" not in vars(kind):
        pytest.skip("no critic beside an actor")
    original = kind._actor_loss

    def reversed_and_loud(*args):
        loss, metrics = original(*args)
        return -1000.0 * loss, metrics

    # One update from each of the first steps, so that a delayed actor is due in one of them.
    starts = [dataclasses.replace(rig.agent, step=jnp.int32(step)) for step in range(DELAY)]
    before = [rig.update(agent, rig.batch, jr.key(2))[0] for agent in starts]
    monkeypatch.setattr(kind, "_actor_loss", reversed_and_loud)
    changed = jax.jit(lambda agent, batch, key: plain_update(agent, batch, key))
    after = [changed(agent, rig.batch, jr.key(2))[0] for agent in starts]
    for a, b in zip(
        jax.tree.leaves([critic_of(x) for x in before]), jax.tree.leaves([critic_of(x) for x in after]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # Adam's first step would move by 6e-4
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(
            jax.tree.leaves([x.actor for x in before]), jax.tree.leaves([x.actor for x in after]), strict=True
        )
    ]
    assert max(moved) > 1e-4  # the reversed loss was in use


def test_only_terminated_transitions_cut_the_bootstrap(rig):
    critic = critic_of(rig.agent)
    if critic is None or rig.name in WITHOUT_BOOTSTRAP:
        pytest.skip("does not bootstrap")
    start, update = rig.agent, rig.update
    if rig.name in BOOTSTRAP_ONLY:
        start, update = small_agent(rig.name, jr.key(0), rig.spec, **BOOTSTRAP_ONLY[rig.name]), jax.jit(plain_update)

    def learn(discount: float, shift: float):
        batch = dataclasses.replace(
            rig.batch,
            discount=jnp.full_like(rig.batch.discount, discount),
            next_obs=jax.tree.map(lambda x: x + shift, rig.batch.next_obs),
        )
        agent, metrics = update(start, batch, jr.key(2))
        return critic_of(agent), metrics["critic_loss"], metrics.get("critic_grad_norm")

    # Terminated: what would have come next has no say. Cut by a time limit (discount stays 1): it has.
    assert_bits(learn(0.0, 0.0), learn(0.0, 3.0))
    assert learn(1.0, 0.0)[1] != learn(1.0, 3.0)[1]
    assert learn(0.0, 0.0)[1] != learn(1.0, 0.0)[1]


# Acting


@pytest.mark.parametrize("which", ["policy", "explorer"])
@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_actions_are_in_range_for_any_leading_axes(rig, which, kind, dict_spec, make_obs):
    if rig.name in DISCRETE_ONLY:
        dict_spec = discrete(dict_spec)
    spec = rig.spec if kind == "vector" or rig.name in GOALS else dict_spec
    agent = rig.agent if spec is rig.spec else rig.build(jr.key(0), spec)
    policy = getattr(agent, which)
    for lead in ((), (4,), (2, 3)):
        obs = jax.tree.map(lambda x: 10.0 * x, make_obs(spec, jr.key(3), lead))
        action = policy(obs, jr.key(4))
        if spec.discrete:
            assert action.shape == lead and action.dtype == jnp.int32
            assert ((action >= 0) & (action < spec.action_size)).all()
            continue
        assert action.shape == (*lead, plan_size(rig)) and action.dtype == jnp.float32
        assert np.abs(action).max() <= 1.0 and np.isfinite(action).all()


def test_acting_follows_learning(rig, make_obs):
    # The policy is made of the agent's own networks, not of a copy from its start.
    obs = make_obs(rig.spec, jr.key(3), (4,))
    trained = rig.chunk(rig.agent, rig.data, jr.key(5), jnp.int32(6))
    for which in ("policy", "explorer"):
        assert np.any(getattr(rig.agent, which)(obs, jr.key(4)) != getattr(trained, which)(obs, jr.key(4)))


def test_the_policy_is_a_small_part_of_the_agent(rig):
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size(rig.agent.policy) < 0.5 * size(rig.agent)


# Standardised observations

STANDARDISING = [
    (name, fields)
    for name in sorted(AGENTS)
    if "normalize_obs" in {f.name for f in dataclasses.fields(config_class(AGENTS[name]))}
    for fields in {
        "bc": ({}, {"policy": "deterministic"}, {"policy": "flow"}),
        "sac-flow-chunked": ({}, {"velocity": "decoder"}, {"velocity": "mlp"}),
    }.get(name, ({},))
]
"""Agents that can standardise, and fields that choose a network of theirs."""


@pytest.mark.parametrize(
    ("name", "fields"),
    [pytest.param(*each, marks=() if each[0] == "fql" else (pytest.mark.thorough,)) for each in STANDARDISING],
)
def test_all_networks_see_standardised_observations(name, fields, spec, make_batch, make_obs):
    """On data that are moved and widened, an agent that knows their moments is the plain one on those as they were."""
    assert {"iql", "cql", "fql", "qc-fql", "ifql", "fac", "fino", "rlpd", "cal-ql", "sac-flow-chunked"} <= dict(
        STANDARDISING
    ).keys()
    known = dataclasses.replace(spec, obs_mean=np.full(3, 5.0, np.float32), obs_std=np.full(3, 2.0, np.float32))
    move = lambda obs: 5.0 + 2.001 * obs
    plain = small_agent(name, jr.key(0), known, normalize_obs=False, **fields)
    scaled = small_agent(name, jr.key(0), known, normalize_obs=True, **fields)
    batch = make_data(name, make_batch, spec, jr.key(1), 16)
    moved = dataclasses.replace(batch, obs=move(batch.obs), next_obs=move(batch.next_obs))
    obs = make_obs(spec, jr.key(2), (4,))
    for one, other in ((scaled.policy, plain.policy), (scaled.explorer, plain.explorer)):
        np.testing.assert_allclose(one(move(obs), jr.key(3)), other(obs, jr.key(3)), atol=1e-4)
    update = jax.jit(plain_update)
    (new, found), (_, wanted) = update(scaled, moved, jr.key(4)), update(plain, batch, jr.key(4))
    for metric, value in wanted.items():
        np.testing.assert_allclose(found[metric], value, rtol=2e-3, atol=2e-4, err_msg=metric)
    assert any(float(jnp.abs(found[m] - update(scaled, batch, jr.key(4))[1][m])) > 0.01 for m in found)
    is_moments = lambda node: isinstance(node, Standardise)
    pairs = [[x for x in jax.tree.leaves(tree, is_leaf=is_moments) if is_moments(x)] for tree in (scaled, new)]
    assert pairs[0] and len(pairs[0]) == len(pairs[1])
    for before, after in zip(*pairs, strict=True):
        assert_bits(before, after)
