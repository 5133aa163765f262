"""PPO against an update worked out by hand in float64, and the limits of its loss."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from trimtab.agents.ppo import PPO, Config
from trimtab.batches import Rollout
from trimtab.core import Spec, UsageError
from trimtab.ops import shuffled

SMALL = Config(hidden=(4,), n_steps=3, batch_size=3, n_epochs=2, gamma=0.9, gae_lambda=0.8, learning_rate=1e-2)
CASES = {
    "default": SMALL,
    "clipped": replace(
        SMALL, n_epochs=3, clip_range=0.02, clip_range_vf=0.05, ent_coef=0.1, vf_coef=0.7, max_grad_norm=1.0
    ),
    "plain": replace(SMALL, normalise_advantage=False, normalise_obs=False, normalise_reward=False, max_grad_norm=None),
    "annealed": replace(SMALL, anneal_steps=24),
    "shared": replace(SMALL, shared=True),
}


def rollout(spec: Spec, key: jax.Array, t: int = 3, n: int = 2, memory=((), ())) -> Rollout:
    keys = jr.split(key, 6)
    obs, next_obs = jr.normal(keys[0], (2, t, n, spec.obs_size))
    kind = jr.randint(keys[1], (t, n), 0, spec.action_size) if spec.discrete else jr.normal(keys[1], (t, n, 2))
    discount = jr.bernoulli(keys[3], 0.7, (t, n)).astype(jnp.float32)
    last = (discount == 0.0) | jr.bernoulli(keys[4], 0.3, (t, n))
    sums = jr.normal(keys[5], (t, n))
    return Rollout(obs, kind, jr.normal(keys[2], (t, n)), discount, next_obs, last, sums, memory)


class ByHand:
    """PPO with one hidden layer of tanh, in NumPy and float64, gradients and Adam written out."""

    def __init__(self, agent: PPO) -> None:
        self.config = agent.config
        wide = lambda x: np.asarray(x, np.float64)
        self.p = {}
        for name, net in (("pi", agent.actor.net), ("v", agent.critic)):
            for i, layer in enumerate(net.head.layers):
                self.p |= {f"{name}{i}w": wide(layer.weight), f"{name}{i}b": wide(layer.bias)}
        self.p["log_std"] = wide(agent.actor.head.log_std)
        self.m = {k: np.zeros_like(x) for k, x in self.p.items()}
        self.v = {k: np.zeros_like(x) for k, x in self.p.items()}
        self.count, self.updates = 0, int(agent.step)
        self.seen, self.sums = np.zeros((0, 3)), np.zeros(0)

    def forward(self, name, x):
        if name == "v" and self.config.shared:
            hidden = self.forward("pi", x)[0]
            return hidden, hidden @ self.p["v0w"] + self.p["v0b"]
        hidden = np.tanh(x @ self.p[f"{name}0w"] + self.p[f"{name}0b"])
        return hidden, hidden @ self.p[f"{name}1w"] + self.p[f"{name}1b"]

    def backward(self, name, x, hidden, g):
        if name == "v" and self.config.shared:
            inner = (g @ self.p["v0w"].T) * (1 - hidden**2)
            return {"v0w": hidden.T @ g, "v0b": g.sum(0), "pi0w": x.T @ inner, "pi0b": inner.sum(0)}
        inner = (g @ self.p[f"{name}1w"].T) * (1 - hidden**2)
        return {
            f"{name}1w": hidden.T @ g,
            f"{name}1b": g.sum(0),
            f"{name}0w": x.T @ inner,
            f"{name}0b": inner.sum(0),
        }

    def log_prob(self, x, action):
        mean, std = self.forward("pi", x)[1], np.exp(self.p["log_std"])
        return (-0.5 * ((action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)

    def normal(self, x):
        if not (self.config.normalise_obs and len(self.seen)):
            return x
        return np.clip((x - self.seen.mean(0)) / np.sqrt(self.seen.var(0) + 1e-8), -10, 10)

    def update(self, batch: Rollout, key: jax.Array) -> None:
        c, flat = self.config, lambda x: np.asarray(x, np.float64).reshape(-1, *x.shape[2:])
        t, n = batch.reward.shape
        raw, x, next_x = flat(batch.obs), self.normal(flat(batch.obs)), self.normal(flat(batch.next_obs))
        reward = flat(batch.reward)
        self.sums = np.concatenate([self.sums, flat(batch.discounted)])
        if c.normalise_reward:
            reward = np.clip(reward / np.sqrt(self.sums.var() + 1e-8), -10, 10)
        value, next_value = self.forward("v", x)[1][:, 0], self.forward("v", next_x)[1][:, 0]
        delta = (reward + c.gamma * flat(batch.discount) * next_value - value).reshape(t, n)
        advantage, after = np.zeros((t, n)), np.zeros(n)
        for i in reversed(range(t)):
            after = delta[i] + c.gamma * c.gae_lambda * ~np.asarray(batch.last)[i] * after
            advantage[i] = after
        advantage, action = advantage.reshape(-1), flat(batch.action)
        target, old = advantage + value, self.log_prob(x, action)
        rate = c.learning_rate * (1 - self.updates * t * n / c.anneal_steps if c.anneal_steps else 1.0)
        for k in jr.split(key, c.n_epochs):
            order = np.asarray(shuffled(k, t * n)).reshape(-1, c.batch_size)
            for rows in order:
                self.descend(x[rows], action[rows], old[rows], advantage[rows], target[rows], value[rows], rate)
        self.seen = np.concatenate([self.seen, raw])
        self.updates += 1

    def descend(self, x, action, old, advantage, target, value_old, rate):
        c, b = self.config, len(x)
        if c.normalise_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        hidden, mean = self.forward("pi", x)
        std = np.exp(self.p["log_std"])
        ratio = np.exp(self.log_prob(x, action) - old)
        clipped = np.clip(ratio, 1 - c.clip_range, 1 + c.clip_range)
        passes = ratio * advantage <= clipped * advantage  # else the clipped side is the smaller: no gradient
        g_log_prob = -np.where(passes, ratio * advantage, 0.0) / b
        g_mean = g_log_prob[:, None] * (action - mean) / std**2
        grads = self.backward("pi", x, hidden, g_mean)
        z = (action - mean) / std
        grads["log_std"] = (g_log_prob[:, None] * (z**2 - 1)).sum(0) - c.ent_coef
        hidden, value = self.forward("v", x)
        value = value[:, 0]
        error = value - target
        if c.clip_range_vf is not None:
            near = value_old + np.clip(value - value_old, -c.clip_range_vf, c.clip_range_vf)
            inside = np.abs(value - value_old) < c.clip_range_vf
            error = np.where((value - target) ** 2 >= (near - target) ** 2, error, inside * (near - target))
        for k, g in self.backward("v", x, hidden, c.vf_coef * error[:, None] / b).items():
            grads[k] = grads.get(k, 0.0) + g
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        shrink = 1.0 if c.max_grad_norm is None else min(1.0, c.max_grad_norm / norm)
        self.count += 1
        for k, g in grads.items():
            self.m[k] = 0.9 * self.m[k] + 0.1 * shrink * g
            self.v[k] = 0.999 * self.v[k] + 0.001 * (shrink * g) ** 2
            m, v = self.m[k] / (1 - 0.9**self.count), self.v[k] / (1 - 0.999**self.count)
            self.p[k] = self.p[k] - rate * m / (np.sqrt(v) + 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_equals_an_update_by_hand(case, spec):
    agent = PPO.create(jr.key(0), spec, CASES[case])
    ours = ByHand(agent)
    update = jax.jit(lambda agent, batch, key: agent.update(batch, key))
    for i in range(2):  # the second with something in the normalisers and in Adam
        batch, key = rollout(spec, jr.key(10 + i)), jr.key(20 + i)
        agent, _ = update(agent, batch, key)
        ours.update(batch, key)
    found = ByHand(agent).p
    for name, expected in ours.p.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_the_hand_made_clips_bite(spec):
    # Otherwise the case "clipped" would show nothing about the clips.
    agent = PPO.create(jr.key(0), spec, CASES["clipped"])
    for i in range(2):
        agent, metrics = agent.update(rollout(spec, jr.key(10 + i)), jr.key(20 + i))
        assert metrics["clip_fraction"] > 0.1


@pytest.mark.parametrize("memory", [0, 5])
def test_the_first_ratio_is_one(spec, memory):
    config = replace(SMALL, n_steps=4, n_epochs=1, batch_size=8, memory=memory, sequence=2)
    agent = PPO.create(jr.key(0), spec, config)
    batch = rollout(spec, jr.key(1), t=4)
    actor = agent.explorer
    if memory:  # what was remembered before each step, as acting would store it
        seen, state = [], actor.memory((2,))
        for t in range(4):
            seen.append(state)
            _, state = actor.draw(batch.obs[t], state, jr.key(0))
            state = jax.tree.map(lambda h, t=t: jnp.where(batch.last[t][:, None], 0.0, h), state)
        batch = replace(batch, memory=jax.tree.map(lambda *xs: jnp.stack(xs), *seen))
    _, metrics = agent.update(batch, jr.key(2))
    assert abs(float(metrics["approx_kl"])) < 1e-6 and metrics["clip_fraction"] == 0.0


def test_densities_on_a_grid_are_asked_for_a_minibatch_at_a_time(spec):
    config = replace(SMALL, n_steps=64, batch_size=8, distribution="polynomial", order=2, points=50)
    agent, batch = PPO.create(jr.key(0), spec, config), rollout(spec, jr.key(1), t=64)
    rows = jax.make_jaxpr(lambda agent, batch: agent._rows(batch, batch.reward))(agent, batch)
    assert 8 * 50**2 <= _largest(rows.jaxpr) < 16 * 50**2


def _largest(jaxpr) -> int:
    """Numbers of the largest array that is made on the way."""
    made = [np.prod(v.aval.shape) for e in jaxpr.eqns for v in e.outvars]
    return int(max(made + [_largest(inner) for e in jaxpr.eqns for inner in jaxprs_in_params(e.params)]))


@pytest.mark.parametrize(("advantage", "ratio", "moves"), [(1.0, 1.3, False), (1.0, 0.5, True), (-1.0, 1.3, True)])
def test_no_gradient_beyond_the_clip(spec, advantage, ratio, moves):
    config = replace(SMALL, normalise_advantage=False, normalise_reward=False)
    agent = PPO.create(jr.key(0), spec, config)
    batch = rollout(spec, jr.key(1), t=1, n=1)
    rows, _ = agent._rows(batch, batch.reward)
    rows = replace(rows, advantage=jnp.full((1, 1), advantage), log_prob=rows.log_prob - jnp.log(jnp.float32(ratio)))
    grads = jax.grad(lambda actor: agent._actor_loss(actor, rows, jr.key(0))[0])(agent.actor)
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads)) == moves


def test_target_kl_leaves_the_rest_out(spec):
    batch = rollout(spec, jr.key(1))
    free = PPO.create(jr.key(0), spec, replace(SMALL, target_kl=1e9))
    plain = PPO.create(jr.key(0), spec, SMALL)
    a, m = free.update(batch, jr.key(2))
    b, _ = plain.update(batch, jr.key(2))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    assert m["skipped"] == 0.0
    strict = PPO.create(jr.key(0), spec, replace(SMALL, target_kl=1e-12, learning_rate=0.1))
    _, m = strict.update(batch, jr.key(2))
    assert m["skipped"] == 0.75  # the first of four minibatches has a ratio of one; the second has not


def test_sizes_that_do_not_fit(spec):
    with pytest.raises(UsageError, match="sequence 16 must divide"):
        PPO.create(jr.key(0), spec, Config(memory=8, n_steps=24))
    with pytest.raises(UsageError, match="n_epochs must be at least 1"):
        PPO.create(jr.key(0), spec, Config(n_epochs=0))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(shared=True, memory=4), "can share the hidden layers of a perceptron, not a memory or linear"),
        (dict(rank=3), "rank is that of a linear policy's gains: add --agent.network linear"),
        (dict(distribution="polynomial", block=-1), "block must be at least 1, or 0 for all dimensions in one, got -1"),
        (dict(distribution="beta"), "unknown distribution 'beta': choose one of normal, mixture, polynomial"),
    ],
)
def test_choices_that_do_not_fit(spec, changes, line):
    with pytest.raises(UsageError, match=line):
        PPO.create(jr.key(0), spec, Config(**changes))


@pytest.mark.parametrize(("name", "line"), [("beta", "unknown distribution 'beta'"), ("mixture", "are discrete")])
def test_distributions_of_discrete_actions(spec, name, line):
    with pytest.raises(UsageError, match=line):
        PPO.create(jr.key(0), Spec(spec.obs, 4, True), Config(distribution=name))


def test_the_parts_of_a_mixture_begin_apart(spec):
    agent = PPO.create(jr.key(0), spec, Config(distribution="mixture", hidden=(8,)))
    found, _ = agent.actor.step(jnp.ones((1, 3)), None, ())
    apart = np.linalg.norm(found.mean[0, :, None] - found.mean[0, None], axis=-1)
    assert apart[np.triu_indices(4, 1)].min() > 0.1
    normal = PPO.create(jr.key(0), spec, Config(hidden=(8,)))
    assert np.abs(normal.actor.step(jnp.ones((1, 3)), None, ())[0].mean).max() < 0.05
