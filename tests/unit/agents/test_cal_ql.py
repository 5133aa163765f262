"""Cal-QL: one update against the equations in float64, and what the return of the data bounds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from tests.unit.agents.test_sac import sample
from trimtab.agents.cal_ql import CalQL, Config, calibrate
from trimtab.batches import ToGo
from trimtab.core import UsageError
from trimtab.ops import conservative_gap

N = 3
CONFIG = Config(
    cql_alpha=2.0,
    cql_actions=N,
    lagrange=True,
    target_gap=0.5,
    actor_lr=ref.RATE,
    critic_lr=ref.RATE,
    gamma=ref.GAMMA,
    tau=ref.TAU,
    hidden=(8,),
    init_ent_coef=0.3,
)


@pytest.fixture(scope="module")
def agent(spec) -> CalQL:
    """An agent whose target differs from its critic, with lambda 1.5."""
    one, two = (CalQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(12)))
    return replace(one, target=two.critic, log_lambda=jnp.log(1.5))


@pytest.fixture
def returned(agent, batch) -> ToGo:
    """`batch` with returns of about the values' size; every third row has none."""
    size = np.asarray(agent.critic(batch.obs, batch.action)).mean(0)
    to_go = jnp.where(jnp.arange(16) % 3 != 0, size, -jnp.inf)
    return ToGo(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, to_go)


@pytest.mark.parametrize("best_of", [True, False])
def test_update_is_the_equations(best_of, agent, returned, getkey):
    key, agent = getkey(), replace(agent, config=replace(agent.config, max_target_backup=best_of))
    new, metrics = ref.update(agent, returned, key)
    k_next, k_actor = jax.random.split(key)
    k_uniform, k_here, k_after = jax.random.split(jax.random.fold_in(key, 0), 3)
    draws = jax.random.normal(k_actor, (16, 2))
    many = {name: jax.random.normal(k, (N, 16, 2)) for name, k in dict(here=k_here, after=k_after).items()}
    many["y"] = jax.random.normal(k_next, (N, 16, 2)) if best_of else jax.random.normal(k_next, (16, 2))[None]
    uniform = jax.random.uniform(k_uniform, (N, 16, 2), minval=-1.0, maxval=1.0)
    with jax.enable_x64(True):
        old, rows, alpha = ref.double(agent), ref.double(returned), 0.3
        draws, uniform, many = ref.double(draws), ref.double(uniform), ref.double(many)
        values = [np.asarray(old.target(rows.next_obs, sample(old.actor, rows.next_obs, e)[0])) for e in many["y"]]
        y = ref.backup(rows, np.array([np.minimum(v[0], v[1]) for v in values]).max(0))  # (1)
        free = [(a, 2 * np.log(0.5)) for a in uniform]
        bound = [sample(old.actor, rows.obs, e) for e in many["here"]]
        bound += [sample(old.actor, rows.next_obs, e) for e in many["after"]]

        def gap(f):  # (2), (3): only values of the policy's actions are held up
            total = sum(jnp.exp(f(rows.obs, action) - log_prob) for action, log_prob in free)
            for action, log_prob in bound:
                total += jnp.exp(jnp.maximum(f(rows.obs, action), rows.to_go[None]) - log_prob[None])
            return (jnp.log(total) - f(rows.obs, rows.action)).mean()

        below = np.mean([np.asarray(old.critic(rows.obs, a)) < np.asarray(rows.to_go)[None] for a, _ in bound])
        assert 0.1 < below < 0.6
        td = lambda f: ref.mean_square(f(rows.obs, rows.action), y)
        q_loss, q_norm, critic = ref.first_step(lambda f: td(f) + 2.0 * 1.5 * gap(f), old.critic)  # (4)
        d = float(gap(old.critic))
        l_loss, l_norm, log_lambda = ref.first_step(lambda x: -2.0 * jnp.exp(x) * (d - 0.5), old.log_lambda)  # (7)

        def actor_loss(pi):  # (5), on the new critic
            action, log_prob = sample(pi, rows.obs, draws)
            q = critic(rows.obs, action)
            return (alpha * log_prob - jnp.minimum(q[0], q[1])).mean()

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        entropy = -float(sample(old.actor, rows.obs, draws)[1].mean())
        a_loss, a_norm, log_alpha = ref.first_step(lambda a: jnp.exp(a) * (entropy + 2.0), old.log_alpha)  # (6)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "critic_td": float(td(old.critic)),
            "critic_gap": d,
            "critic_calibrated": below,
            "cql_weight_loss": l_loss,
            "cql_weight_grad_norm": l_norm,
            "cql_weight": 2.0 * np.exp(log_lambda),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_entropy": entropy,
            "ent_coef_loss": a_loss,
            "ent_coef_grad_norm": a_norm,
            "ent_coef": np.exp(log_alpha),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.log_alpha, log_alpha, "temperature")
        ref.assert_same(new.log_lambda, log_lambda, "lambda")
        ref.assert_same(new.target, ref.mix(critic, old.target), "target")


def test_a_value_below_the_return_is_not_pushed_down():
    """One state, one uniform action and two of the policy, valued 0, 1 and -1, with a return of 0.5."""
    values, density, to_go = jnp.array([0.0, 1.0, -1.0]), jnp.zeros((3, 1)), jnp.array([0.5])
    gap = lambda v: conservative_gap(jnp.zeros((1, 1)), calibrate(v.reshape(1, 3, 1), 1, to_go)[0], density)[0, 0]
    bounded, share = calibrate(values.reshape(1, 3, 1), 1, to_go)
    np.testing.assert_allclose(bounded[0, :, 0], [0.0, 1.0, 0.5])
    assert share == 0.5
    weights = np.exp([0.0, 1.0, 0.5]) / np.exp([0.0, 1.0, 0.5]).sum()
    np.testing.assert_allclose(jax.grad(gap)(values), [weights[0], weights[1], 0.0], rtol=1e-5)


def test_counts_below_one(spec, getkey):
    with pytest.raises(UsageError, match="cql_actions must be at least 1, got 0"):
        CalQL.create(getkey(), spec, replace(CONFIG, cql_actions=0))


@pytest.mark.parametrize("hidden", [None, (16, 4)])
def test_critics_may_have_widths_of_their_own(hidden, spec, getkey):
    found = CalQL.create(getkey(), spec, replace(CONFIG, critic_hidden=hidden))
    widths = lambda net: tuple(layer.bias.shape[-1] for layer in net.layers[:-1])
    assert widths(found.critic.mlp) == (hidden or (8,)) == widths(found.target.mlp)
    assert widths(found.actor.net) == (8,)
