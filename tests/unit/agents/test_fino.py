"""FINO's noised flow matching, guided choice and temperature, against closed forms and FQL."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents import fql
from trimtab.agents.fino import FINO, NOISES, Config, next_xi, noise_std, noisy_flow_matching_loss
from trimtab.agents.fql import FQL
from trimtab.core import AbstractPolicy, Spec, UsageError
from trimtab.nets.critic import Critic
from trimtab.ops.ode import integrate
from trimtab.policies.compose import GUIDES, Guided, Uniform
from trimtab.policies.flow import flow_matching_loss
from trimtab.policies.velocity import AbstractVelocity

SMALL = dict(hidden=(8, 8), gamma=0.9)


def agent(spec, **changes) -> FINO:
    return FINO.create(jr.key(0), spec, Config(**(SMALL | changes)))


def slope(noise: str, eta: float, s: float, t):
    """Of the best velocity at time t for data N(0, s^2): it is linear in x, E[target x] / E[x^2]."""
    kept = 1.0 - eta
    if noise == "ot":
        share = t * s**2 / (t**2 * s**2 + (1.0 - kept * t) ** 2)  # E[a x] / E[x^2]
        return share - kept * (1.0 - t * share) / (1.0 - kept * t)
    spread = t**2 * s**2 + (1.0 - t) ** 2 + jnp.square(noise_std(noise, eta, t))
    return (t * s**2 - (1.0 if noise in ("code", "none") else kept) * (1.0 - t)) / spread


def std_after(noise: str, eta: float, s: float, steps: int) -> float:
    """The standard deviation of that velocity's samples."""
    return float(integrate(lambda x, t: slope(noise, eta, s, t) * x, jnp.ones((1, 1)), steps)[0, 0])


@pytest.mark.parametrize(
    ("data_std", "none", "paper", "paper_impl", "code"),
    [
        (0.0, (0.0, 0.0), (0.2105, 0.1841), (0.0873, 0.0464), (0.0536, 0.0120)),
        (0.05, (0.05, 0.0199), (0.2211, 0.1918), (0.1036, 0.0629), (0.0694, 0.0288)),
        (0.1, (0.1, 0.0617), (0.2479, 0.2130), (0.1427, 0.1016), (0.1066, 0.0663)),
        (0.2, (0.2, 0.1542), (0.3234, 0.2786), (0.2433, 0.1975), (0.2004, 0.1552)),
        (0.5, (0.5, 0.4308), (0.5940, 0.5249), (0.5614, 0.4924), (0.4992, 0.4306)),
    ],
)
def test_how_wide_each_noise_makes_gaussian_data(data_std, none, paper, paper_impl, code):
    """Exactly (by many steps) and in the ten steps that are taken."""
    for noise, (exact, ten) in dict(none=none, paper=paper, paper_impl=paper_impl, code=code).items():
        assert std_after(noise, 0.1, data_std, 10) == pytest.approx(ten, abs=1e-3)
        assert std_after(noise, 0.1, data_std, 4000) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("data_std", [0.05, 0.2, 0.5])
def test_the_target_away_from_the_noised_point_adds_variances(data_std):
    assert std_after("ot", 0.1, data_std, 4000) == pytest.approx(np.hypot(data_std, 0.1), abs=1e-3)


def test_the_papers_noise_is_a_path_with_a_least_width():
    """(1 - t)^2 + sigma(t)^2 = (1 - (1 - eta) t)^2."""
    t = jnp.linspace(0.0, 1.0, 11)
    total = jnp.square(1.0 - t) + jnp.square(noise_std("paper", 0.1, t))
    np.testing.assert_allclose(total, np.square(1.0 - 0.9 * np.asarray(t)), rtol=1e-5, atol=1e-6)


class Fixed(AbstractVelocity):
    """v = slope x, whatever the time and the observation."""

    slope: jax.Array
    action_size: int = eqx.field(static=True)

    def encode(self, obs, times):
        return times

    def forward(self, x, i, memory, train):
        return self.slope * x, None, self


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("noise", NOISES)
def test_the_loss_is_least_at_the_closed_form(noise, t, monkeypatch):
    """All times being t, the loss is a parabola in the slope of v = slope x, whose least point is k(t)."""
    monkeypatch.setattr(jr, "uniform", lambda key, shape: jnp.full(shape, t))
    action, obs = 0.3 * jr.normal(jr.key(0), (200_000, 1)), jnp.zeros((200_000, 1))
    loss = lambda k: noisy_flow_matching_loss(Fixed(k, 1), obs, action, jr.key(1), noise, 0.1).mean()
    at = lambda k: float(loss(jnp.float32(k)))
    down, middle, up = at(-1.0), at(0.0), at(1.0)
    least = 0.5 * (down - up) / (down - 2.0 * middle + up)
    assert least == pytest.approx(float(slope(noise, 0.1, 0.3, jnp.float32(t))), abs=0.02)


@pytest.mark.parametrize("noise", NOISES)
def test_without_noise_it_is_plain_flow_matching_to_the_bit(noise, spec, batch):
    velocity = agent(spec).flow.velocity
    plain = flow_matching_loss(velocity, batch.obs, batch.action, jr.key(3))
    noised = noisy_flow_matching_loss(velocity, batch.obs, batch.action, jr.key(3), noise, 0.0)
    if noise == "ot":  # its target is computed from the point, which is x_t
        np.testing.assert_allclose(noised, plain, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(noised, plain)


@pytest.mark.thorough
def test_without_noise_it_learns_as_fql_does(spec, batch):
    ours, theirs = agent(spec, noise="none", phase="offline"), FQL.create(jr.key(0), spec, fql.Config(**SMALL))
    for i in range(3):
        ours, a = ours.update(batch, jr.fold_in(jr.key(1), i))
        theirs, b = theirs.update(batch, jr.fold_in(jr.key(1), i))
        for name in ("critic_loss", "bc_loss", "actor_loss"):
            np.testing.assert_array_equal(a[name], b[name])
    for name in ("actor", "flow", "critic", "target"):
        for x, y in zip(jax.tree.leaves(getattr(ours, name)), jax.tree.leaves(getattr(theirs, name)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_its_flow_sees_time_at_frequencies(spec, batch):
    """sin and cos of t at three frequencies: six inputs more of v, and of nothing else."""
    wavy, plain = agent(spec, time_waves=3), agent(spec)
    sizes = [made.flow.velocity.net.layers[0].weight.size for made in (wavy, plain)]
    assert sizes[0] - sizes[1] == 6 * plain.config.hidden[0]
    for one, other in ((wavy.actor, plain.actor), (wavy.critic, plain.critic)):
        shapes = [[x.shape for x in jax.tree.leaves(eqx.filter(net, eqx.is_array))] for net in (one, other)]
        assert shapes[0] == shapes[1]
    after, _ = wavy.update(batch, jr.key(0))
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(eqx.filter(after.flow, eqx.is_array)))


def guided(spec: Spec, xi: float | None, n: int = 8) -> Guided:
    critic = Critic.create(spec, (8,), 2, jr.key(4))
    return Guided(Uniform.create(spec), critic, None if xi is None else jnp.float32(xi), n, "mean")


def mean_value(policy: Guided, obs) -> float:
    return float(policy.critic(obs, policy(obs, jr.key(5))).mean())


@pytest.mark.thorough
def test_a_larger_xi_takes_better_actions_and_more_candidates_help(spec):
    obs = jr.normal(jr.key(6), (4000, 3))
    values = [mean_value(guided(spec, xi), obs) for xi in (0.0, 1.0, 10.0, 1000.0)]
    assert (np.diff(values) > 0).all()
    best = mean_value(guided(spec, None), obs)
    assert values[-1] == pytest.approx(best, abs=2e-3)
    plain = float(guided(spec, 0.0).critic(obs, Uniform.create(spec)(obs, jr.key(7))).mean())
    assert values[0] == pytest.approx(plain, abs=0.02)  # xi = 0: any of them
    assert mean_value(guided(spec, 10.0, n=2), obs) < mean_value(guided(spec, 10.0, n=32), obs)


class Loud(Critic):
    """Values that are the third number of the observation times those of a critic which does not see it."""

    def __call__(self, obs, action):
        q = super().__call__(obs.at[:, 2].set(0.0), action)
        return q * jnp.broadcast_to(obs[:, 2], q.shape)


def loud(spec: Spec, guide: str) -> Guided:
    policy = guided(spec, 3.0)
    return replace(policy, critic=Loud(policy.critic.mlp), guide=guide)


QUIET = jr.normal(jr.key(6), (200, 3)).at[:, 2].set(1.0)
"""States, and the same with the values of every second a thousand times as large."""
EVERY_SECOND_LOUD = QUIET.at[1::2, 2].set(1000.0)


@pytest.mark.parametrize("guide", GUIDES)
def test_what_values_are_divided_by(guide, spec):
    """The choice from logits that are worked out apart."""
    policy, obs = loud(spec, guide), EVERY_SECOND_LOUD
    k_inner, k_choice = jr.split(jr.key(8))
    many = jnp.broadcast_to(obs[None], (8, *obs.shape))
    actions = policy.inner(many, k_inner)
    q = np.stack([np.asarray(policy.critic(*pair)).mean(0) for pair in zip(many, actions, strict=True)])
    size = dict(row=np.abs(q).mean(0), batch=np.abs(q).mean(), plain=1.0)[guide]
    which = jr.categorical(k_choice, jnp.asarray(3.0 * q / size), axis=0)
    np.testing.assert_array_equal(policy(obs, jr.key(8)), actions[which, jnp.arange(200)])


@pytest.mark.parametrize("guide", GUIDES)
def test_the_agent_explores_by_its_guide(guide, spec):
    assert agent(spec, guide=guide).explorer.guide == guide


def test_one_states_values_do_not_touch_anothers_choice(spec):
    """Whether they do is the difference between "row" and "batch"; whether their own do, that to "plain"."""
    kept = {}
    for guide in GUIDES:
        policy = loud(spec, guide)
        same = np.asarray(policy(QUIET, jr.key(8)) == policy(EVERY_SECOND_LOUD, jr.key(8))).all(1)
        kept[guide] = same[::2].all(), same[1::2].all()
    assert kept == {"row": (True, True), "batch": (False, False), "plain": (True, False)}


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_evaluation_takes_the_best_and_exploration_draws(q_agg, spec):
    """Of eight plain samples, by the mean or the least of the critics; with xi = 0 any of them is drawn."""
    fino, obs = agent(spec, candidates=8, xi=0.0, q_agg=q_agg), jr.normal(jr.key(6), (200, 3))
    k_inner, k_choice = jr.split(jr.key(8))
    many = jnp.broadcast_to(obs[None], (8, *obs.shape))
    actions = fino.actor(many, k_inner)
    q = np.stack([np.asarray(fino.critic(*pair)) for pair in zip(many, actions, strict=True)])
    values = dict(mean=q.mean(1), min=q.min(1))
    best = {how: value.argmax(0) for how, value in values.items()}
    assert (best["mean"] != best["min"]).any()
    np.testing.assert_array_equal(fino.policy(obs, jr.key(8)), actions[best[q_agg], np.arange(200)])
    drawn = jr.categorical(k_choice, jnp.zeros((8, 200)), axis=0)
    np.testing.assert_array_equal(fino.explorer(obs, jr.key(8)), actions[drawn, np.arange(200)])


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_targets_q_agg_as_asked(q_agg, spec, batch):
    fino = agent(spec, q_agg=q_agg)
    q = np.asarray(fino.target(batch.next_obs, fino.actor(batch.next_obs, jr.key(1))))
    value = q.mean(0) if q_agg == "mean" else q.min(0)
    wanted = np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * value
    np.testing.assert_allclose(fino._target(batch, jr.key(1)), wanted, rtol=1e-5, atol=1e-6)


class Numbered(AbstractPolicy):
    """The i-th candidate of each state is (i, 0)."""

    def __call__(self, obs, key):
        rows = jnp.arange(obs.shape[0], dtype=jnp.float32)[:, None]
        return jnp.stack([jnp.broadcast_to(rows, obs.shape[:2]), jnp.zeros(obs.shape[:2])], axis=-1)


def test_without_xi_every_candidate_is_as_likely(spec):
    """Whatever their values: chi squared of 4,000 choices among eight, below its 99.9 % quantile. With xi it is not."""
    obs = jr.normal(jr.key(6), (4000, 3))
    for xi, even in ((0.0, True), (1.0, False)):
        chosen = np.asarray(replace(guided(spec, xi), inner=Numbered())(obs, jr.key(5))[:, 0]).astype(int)
        counts = np.bincount(chosen, minlength=8)
        assert (np.square(counts - 500).sum() / 500 < 24.3) == even


def test_the_choice_does_not_know_the_scale_of_values(spec):
    obs, policy = jr.normal(jr.key(6), (50, 3)), guided(spec, 3.0)
    louder = replace(policy.critic, mlp=scale_last(policy.critic.mlp, 100.0))
    scaled = replace(policy, critic=louder)
    np.testing.assert_array_equal(policy(obs, jr.key(8)), scaled(obs, jr.key(8)))
    one = Guided(policy.inner, policy.critic, jnp.float32(3.0), 1, "mean")
    assert one(obs[0], jr.key(8)).shape == (2,)  # one candidate, one state: still a vector


def test_xi_follows_the_spread():
    at = lambda entropy: float(next_xi(jnp.float32(1.0), jnp.float32(entropy), -2.0, 0.1))
    assert at(-2.0) == pytest.approx(1.0) and at(0.0) == pytest.approx(1.2) and at(-4.0) == pytest.approx(0.8)
    assert at(-100.0) == 0.0


@pytest.mark.thorough
def test_xi_moves_online_when_it_is_due_and_at_no_other_time(spec, batch):
    fino = agent(spec, entropy_every=2, entropy_samples=40)
    first, m = fino.update(batch, jr.key(1))
    assert first.xi == fino.xi and m["action_entropy"] == 0.0
    second, m = first.update(batch, jr.key(2))
    wanted = 10.0 + 0.1 * (float(m["action_entropy"]) + 2.0)
    assert m["action_entropy"] != 0.0 and float(second.xi) == pytest.approx(max(wanted, 0.0), rel=1e-5)
    offline, _ = agent(spec, entropy_every=1, phase="offline").update(batch, jr.key(1))
    assert offline.xi == fino.xi
    # Updates on data count: after one of them the first one online is the second.
    offline = replace(offline, config=replace(fino.config, entropy_samples=20))
    assert offline.update(batch, jr.key(2))[0].xi != fino.xi


def scale_last(mlp, factor: float):
    """The network whose output is `factor` times as large."""
    last = mlp.layers[-1]
    return replace(mlp, layers=(*mlp.layers[:-1], replace(last, weight=factor * last.weight, bias=factor * last.bias)))


def test_the_spread_is_that_of_its_own_actions(spec, batch):
    """Half the size of all actions is log 2 less entropy in each of two dimensions."""
    fino = agent(spec, entropy_samples=400, candidates=1)
    small, smaller = (replace(fino, actor=replace(fino.actor, net=scale_last(fino.actor.net, f))) for f in (0.8, 0.4))
    spread = [float(one._steer(batch, jr.key(1))[1]) for one in (small, smaller)]
    assert spread[0] - spread[1] == pytest.approx(2 * np.log(2.0), abs=0.05)


def test_the_spread_is_that_of_the_actions_chosen(spec, batch):
    fino = agent(spec, entropy_samples=200, candidates=8)
    loud = replace(fino, critic=replace(fino.critic, mlp=scale_last(fino.critic.mlp, 100.0)))
    even, greedy = (float(replace(loud, xi=jnp.float32(xi))._steer(batch, jr.key(1))[1]) for xi in (0.0, 1e3))
    assert even - greedy > 0.3  # the best of eight lie closer together than what they are chosen from


BAD = [dict(noise="white"), dict(q_agg="max"), dict(guide="column")]
BAD += [dict(candidates=0), dict(entropy_every=0), dict(entropy_samples=0)]


@pytest.mark.parametrize("eta", [-0.1, 1.0])
def test_noise_out_of_range(eta, spec):
    with pytest.raises(UsageError, match=f"eta must be at least 0 and less than 1, got {eta}"):
        agent(spec, eta=eta)


@pytest.mark.parametrize("bad", BAD)
def test_unknown_choices(bad, spec):
    ((name, value),) = bad.items()
    message = f"unknown {name} '{value}': choose one of" if isinstance(value, str) else f"{name} must be at least 1"
    with pytest.raises(UsageError, match=message):
        agent(spec, **bad)


def test_as_many_candidates_as_half_the_actions(spec):
    wide = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 21, False, (-1.0,) * 21, (1.0,) * 21)
    assert agent(spec).config.candidates == 1 and agent(wide).config.candidates == 10
