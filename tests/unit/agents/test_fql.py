"""FQL: one update against the equations in float64, and the two ways of weighing its values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.fql import FQL, Config
from trimtab.core import UsageError

K = 3
CONFIG = Config(alpha=0.7, flow_steps=K, learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,))


@pytest.fixture(scope="module")
def agent(spec) -> FQL:
    """An agent whose target differs from its critic and whose mu leaves [-1, 1] at times."""
    one, two = (FQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(12)))
    return replace(one, target=two.critic, actor=jax.tree.map(lambda leaf: 2.0 * leaf, one.actor))


@pytest.mark.parametrize("agg", ["mean", "min"])
@pytest.mark.parametrize("normalize", [False, True])
def test_update_is_the_equations(agg, normalize, agent, batch, getkey):
    key, agent = getkey(), replace(agent, config=replace(CONFIG, q_agg=agg, normalize_q=normalize))
    new, metrics = ref.update(agent, batch, key)
    k_flow, k_actor, k_next = jax.random.split(key, 3)
    k_start, k_time = jax.random.split(k_flow)
    draws = [jax.random.normal(k, (16, 2)) for k in (k_start, k_actor, k_next)]
    times = jax.random.uniform(k_time, (16,))
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        x0, z, z_next, times = ref.double((*draws, times))
        mu = lambda pi, obs, z: pi.net(jnp.concatenate([obs, z], axis=1))
        clip = lambda x: jnp.clip(x, -1.0, 1.0)
        after = mu(old.actor, rows.next_obs, z_next)
        assert 0.02 < (np.abs(after) > 1.0).mean() < 0.98
        q = np.asarray(old.target(rows.next_obs, clip(after)))
        y = ref.backup(rows, q.mean(0) if agg == "mean" else q.min(0))  # (1)
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)
        v = lambda net, x, t: net.velocity.net(jnp.concatenate([rows.obs, x, t], axis=1))

        def bc_loss(net):  # (3)
            t = times[:, None] * jnp.ones((1, 2))
            x = (1.0 - t) * x0 + t * rows.action
            return ((v(net, x, t[:, :1]) - (rows.action - x0)) ** 2).mean()

        v_loss, v_norm, flow = ref.first_step(bc_loss, old.flow)
        x = z
        for i in range(K):  # the old flow, from the start that mu gets
            x = x + v(old.flow, x, jnp.full((16, 1), i / K)) / K
        assert (np.abs(x) > 1.0).any()
        q_of = lambda pi: critic(rows.obs, clip(mu(pi, rows.obs, z))).mean(0)
        scale = np.abs(np.asarray(q_of(old.actor))).mean() if normalize else 1.0

        def actor_loss(pi):  # (4): the distance before mu is clipped, the value after
            return 0.7 * ((mu(pi, rows.obs, z) - clip(x)) ** 2).mean() - q_of(pi).mean() / scale

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "bc_loss": v_loss,
            "bc_grad_norm": v_norm,
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_distance": ((mu(old.actor, rows.obs, z) - clip(x)) ** 2).mean(),
            "actor_q": q_of(old.actor).mean(),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.flow, flow, "flow")
        ref.assert_same(new.actor, actor, "mu")
        ref.assert_same(new.target, ref.mix(critic, old.target), "target: mixed from the new critic")
    assert new.step == 1


def test_an_unknown_aggregation_is_named(spec, getkey):
    with pytest.raises(UsageError, match="unknown q_agg 'max': choose one of mean, min"):
        FQL.create(getkey(), spec, replace(CONFIG, q_agg="max"))
