import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from trimtab.policies.distributions import Categorical, Normal

MASK = jnp.array([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


def categorical(logits, mask=None):
    return Categorical.create(logits, (logits.shape[-1],), False, mask)


def test_normal_against_scipy():
    mean, log_std, x = (jr.normal(k, (4, 3)) for k in jr.split(jr.key(0), 3))
    found, reference = Normal(mean, log_std), stats.norm(np.asarray(mean), np.exp(np.asarray(log_std)))
    np.testing.assert_allclose(found.log_prob(x), reference.logpdf(np.asarray(x)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found.entropy(), reference.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(found.mode(), mean)


def test_masked_is_the_softmax_over_what_is_left():
    logits = jr.normal(jr.key(1), (2, 5))
    found = categorical(logits, MASK)
    reduced = jax.nn.log_softmax(logits[0, jnp.array([0, 2])])
    np.testing.assert_allclose(found.log_prob(jnp.array([2, 3]))[0], reduced[1], rtol=1e-6)
    np.testing.assert_allclose(found.entropy()[0], -(jnp.exp(reduced) * reduced).sum(), rtol=1e-6)
    np.testing.assert_array_equal(jnp.exp(found.logits[0])[0, jnp.array([1, 3, 4])], 0.0)
    assert categorical(jnp.zeros((1, 5)), MASK[:1]).entropy() == pytest.approx(np.log(2))


def test_masked_actions_are_never_drawn():
    logits = jnp.zeros((2, 5)).at[0, 1].set(50.0)  # the network loves what is forbidden
    found = categorical(logits, MASK)
    drawn = np.asarray(jax.vmap(found.sample)(jr.split(jr.key(2), 2000)))
    assert set(drawn[:, 0]) == {0, 2} and set(drawn[:, 1]) == {0, 1, 2, 3, 4}
    assert found.mode()[0] == 0 and drawn.dtype == np.int32


@pytest.mark.parametrize("what", ["log_prob", "entropy"])
def test_masked_logits_get_no_gradient(what):
    def value(logits):
        found = categorical(logits, MASK)
        return (found.entropy() if what == "entropy" else found.log_prob(jnp.array([2, 3]))).sum()

    grad = jax.grad(value)(jr.normal(jr.key(3), (2, 5)))
    np.testing.assert_array_equal(grad[0, jnp.array([1, 3, 4])], 0.0)
    assert np.isfinite(grad).all() and (grad[0, jnp.array([0, 2])] != 0).all() and (grad[1] != 0).all()


def test_a_row_that_allows_nothing_is_as_if_it_allowed_all():
    logits = jr.normal(jr.key(4), (1, 5))
    np.testing.assert_array_equal(categorical(logits, jnp.zeros((1, 5), bool)).logits[0], categorical(logits).logits[0])


def test_several_factors_are_independent():
    logits, mask = jr.normal(jr.key(5), (3, 5)), jnp.ones((3, 5), bool).at[:, 4].set(False)
    both = Categorical.create(logits, (2, 3), True, mask)
    first, second = categorical(logits[:, :2]), categorical(logits[:, 2:], mask[:, 2:])
    action = jnp.array([[0, 1], [1, 0], [1, 1]])
    expected = first.log_prob(action[:, 0]) + second.log_prob(action[:, 1])
    np.testing.assert_allclose(both.log_prob(action), expected, rtol=1e-6)
    np.testing.assert_allclose(both.entropy(), first.entropy() + second.entropy(), rtol=1e-6)
    assert both.sample(jr.key(6)).shape == (3, 2)
    np.testing.assert_array_equal(both.mode(), jnp.stack([first.mode(), second.mode()], -1))
