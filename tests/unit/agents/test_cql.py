"""CQL: one update against the equations in float64, and what its penalty does to values on a grid."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from tests.unit.agents.test_sac import sample
from trimtab.agents.cql import CQL, Config
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
def agent(spec) -> CQL:
    """An agent whose target differs from its critic, with lambda 1.5."""
    one, two = (CQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(12)))
    return replace(one, target=two.critic, log_lambda=jnp.log(1.5))


def test_update_is_the_equations(agent, batch, getkey):
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    k_next, k_actor = jax.random.split(key)
    k_uniform, k_here, k_after = jax.random.split(jax.random.fold_in(key, 0), 3)
    draws = jax.random.normal(k_actor, (16, 2))
    many = {name: jax.random.normal(k, (N, 16, 2)) for name, k in dict(y=k_next, here=k_here, after=k_after).items()}
    uniform = jax.random.uniform(k_uniform, (N, 16, 2), minval=-1.0, maxval=1.0)
    with jax.enable_x64(True):
        old, rows, alpha = ref.double(agent), ref.double(batch), 0.3
        draws, uniform, many = ref.double(draws), ref.double(uniform), ref.double(many)
        values = [np.asarray(old.target(rows.next_obs, sample(old.actor, rows.next_obs, e)[0])) for e in many["y"]]
        least = np.array([np.minimum(v[0], v[1]) for v in values])
        y = ref.backup(rows, least.max(0))  # (1)
        assert len(set(least.argmax(0))) == N
        pairs = [(a, jnp.full(16, 2 * np.log(0.5))) for a in uniform]
        pairs += [sample(old.actor, rows.obs, e) for e in many["here"]]
        pairs += [sample(old.actor, rows.next_obs, e) for e in many["after"]]

        def gap(f):  # (2), the actions of s' evaluated at s
            total = sum(jnp.exp(f(rows.obs, action) - log_prob[None]) for action, log_prob in pairs)
            return (jnp.log(total) - f(rows.obs, rows.action)).mean()

        td = lambda f: ref.mean_square(f(rows.obs, rows.action), y)
        q_loss, q_norm, critic = ref.first_step(lambda f: td(f) + 2.0 * 1.5 * gap(f), old.critic)  # (3)
        d = float(gap(old.critic))
        l_loss, l_norm, log_lambda = ref.first_step(lambda x: -2.0 * jnp.exp(x) * (d - 0.5), old.log_lambda)  # (6)

        def actor_loss(pi):  # (4), on the new critic
            action, log_prob = sample(pi, rows.obs, draws)
            q = critic(rows.obs, action)
            return (alpha * log_prob - jnp.minimum(q[0], q[1])).mean()

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        entropy = -float(sample(old.actor, rows.obs, draws)[1].mean())
        a_loss, a_norm, log_alpha = ref.first_step(lambda a: jnp.exp(a) * (entropy + 2.0), old.log_alpha)  # (5)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "critic_td": float(td(old.critic)),
            "critic_gap": d,
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


def test_the_penalty_pushes_the_data_up_and_the_others_down_by_their_softmax():
    # Five actions of one state; the data took the second. Drawn with densities 1, 1, 1, 1 and 4.
    q = jnp.array([0.3, -0.2, 1.0, 0.0, 0.5])
    log_density = jnp.log(jnp.array([1.0, 1.0, 1.0, 1.0, 4.0]))
    gap = lambda q: conservative_gap(q[1].reshape(1, 1), q.reshape(1, 5, 1), log_density[:, None])[0, 0]
    value, grad = jax.value_and_grad(gap)(q)
    weights = np.exp(np.array([0.3, -0.2, 1.0, 0.0, 0.5])) / np.array([1, 1, 1, 1, 4])
    np.testing.assert_allclose(value, np.log(weights.sum()) + 0.2, rtol=1e-5)
    softmax = weights / weights.sum()
    np.testing.assert_allclose(grad, softmax - np.array([0, 1, 0, 0, 0]), rtol=1e-4)


def test_with_densities_the_penalty_estimates_the_integral():
    # Actions of any density, weighed by it: the mean of exp(q - log mu) is the integral of exp q over [-1, 1].
    q = lambda a: jnp.sin(3.0 * a) - a
    grid = jnp.linspace(-1.0, 1.0, 20_001)
    wanted = np.log(np.trapezoid(np.exp(q(grid)), grid))
    a = jax.random.beta(jax.random.key(0), 2.0, 1.0, (200_000,)) * 2.0 - 1.0  # density (1 + a) / 2
    found = conservative_gap(jnp.zeros((1, 1)), q(a)[None, :, None], jnp.log((1.0 + a) / 2.0)[:, None])[0, 0]
    np.testing.assert_allclose(found - np.log(200_000), wanted, atol=0.01)


def test_without_lagrange_lambda_stays(spec, batch, getkey):
    agent = CQL.create(getkey(), spec, replace(CONFIG, lagrange=False))
    new, metrics = ref.update(agent, batch, getkey())
    assert new.log_lambda == 0.0 and metrics["cql_weight"] == 2.0 and metrics["cql_weight_loss"] == 0.0


def test_one_rule_for_the_next_action(spec, getkey):
    with pytest.raises(UsageError, match="switch max_target_backup off"):
        CQL.create(getkey(), spec, replace(CONFIG, backup_entropy=True))
