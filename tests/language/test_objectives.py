"""Closed forms and hand-worked numbers."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.language import objectives as o  # noqa: E402

pytestmark = pytest.mark.language


def test_advantages_of_two_groups_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0])
    plain = o.group_advantages(rewards, 3, scale=False)
    assert torch.allclose(plain, torch.tensor([2 / 3, -1 / 3, -1 / 3, -2 / 3, 1 / 3, 1 / 3]))
    scaled = o.group_advantages(rewards, 3)
    assert torch.allclose(scaled, plain / (math.sqrt(1 / 3) + 1e-4))


def test_surrogate_clips_only_what_would_go_further():
    # ratios 2 and 1/2 with advantages of both signs: the pessimistic one of (2) by hand, clip 0.2.
    old = torch.zeros(2, 2)
    log_probs = torch.log(torch.tensor([[2.0, 0.5], [2.0, 0.5]]))
    loss = o.surrogate_loss(log_probs, old, torch.tensor([1.0, -1.0]), torch.ones(2, 2))
    assert loss.item() == pytest.approx(-((1.2 + 0.5) + (-2.0 - 0.8)) / 2)


def test_k3_is_the_divergence_in_the_mean_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    values = o.k3(p.log()[drawn][None], q.log()[drawn][None])
    assert values.min() >= 0.0
    assert values.mean().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=5e-3)


def test_balanced_weights():
    labels = torch.tensor([1, 0, 0, 0, o.IGNORED])
    weights = o.balanced_weights(labels)
    assert torch.allclose(weights, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6, 0.0]))
    assert weights.sum().item() == pytest.approx(1.0)
    only = o.balanced_weights(torch.tensor([1, 1, o.IGNORED]))
    assert torch.allclose(only, torch.tensor([0.25, 0.25, 0.0]))


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [o.IGNORED, o.IGNORED], [1, 0]])
def test_classification_loss_is_finite_whatever_class_is_missing(labels):
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = o.gcd_loss(logits, torch.tensor(labels), (2, 5))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert (loss.item() == 0.0) == (labels[0] == o.IGNORED)


def test_classification_loss_by_hand():
    logits = torch.zeros(2, 4)
    logits[0, 3] = math.log(3.0)  # p(good) = 3/4 among the two labels
    labels = torch.tensor([1, 0])
    assert o.gcd_loss(logits, labels, (1, 3)).item() == pytest.approx(-0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 2))
    full = -0.5 * math.log(3 / 6) - 0.5 * math.log(1 / 4)
    assert o.gcd_loss(logits, labels, (1, 3), full_vocab=True).item() == pytest.approx(full)
    assert o.gcd_accuracy(logits, labels, (1, 3)).item() == 1.0  # a tie goes to bad, the first


def test_the_answer_is_read_at_the_last_real_token_on_either_side_of_the_padding():
    values = torch.arange(2 * 4 * 1, dtype=torch.float32).view(2, 4, 1)
    left, right = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert o.last_token(values, left).flatten().tolist() == [3.0, 7.0]
    assert o.last_token(values, right).flatten().tolist() == [1.0, 6.0]


def test_kernel_of_the_output_layer_equals_autograd():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    hidden = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    actions = (1, 4)
    grads = []
    for h, action in zip(hidden, actions, strict=True):
        w = weight.clone().requires_grad_()
        grads.append(torch.autograd.grad((w @ h).log_softmax(0)[action], w)[0])
    logits = hidden @ weight.T
    found = o.output_kernel(logits[0], hidden[0], actions[0], logits[1], hidden[1], actions[1])
    assert found.item() == pytest.approx((grads[0] * grads[1]).sum().item(), rel=1e-6)


def test_the_lemma_a_risky_action_is_punished_in_expectation():
    # success is certain without the risky action and has probability 1 - r with it.
    q, r, n = 0.3, 0.4, 400_000
    generator = torch.Generator().manual_seed(0)
    risky = torch.rand(n, generator=generator) < q
    success = torch.where(risky, torch.rand(n, generator=generator) < 1 - r, torch.tensor(True)).float()
    advantage = success - success.mean()
    assert advantage[risky].mean().item() == pytest.approx(o.risky_advantage(q, r), abs=4e-3)
    weighted = (advantage * risky).mean().item()
    assert weighted == pytest.approx(q * r * (q - 1), abs=1e-3)


def test_pushing_one_bad_action_down_lifts_the_other_and_yet_the_good_one_gains():
    # Three actions, good, mildly bad and bad, of which the good one alone is paid for.
    logits, reward = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0]).double()
    p = logits.softmax(0)
    score = torch.eye(3, dtype=torch.float64) - p  # row a: grad log pi(a)
    punished = (logits - 0.1 * score[2]).softmax(0)
    assert punished[2] < p[2] and punished[1] > p[1] and punished[1] - p[1] > punished[0] - p[0]  # the likeliest gains
    advantage = reward - p @ reward
    expected = (logits + 0.1 * (p * advantage) @ score).softmax(0)
    assert expected[0] > p[0] and expected[1] < p[1] and expected[2] < p[2]


def test_coupled_drift_is_the_gradient_flow_of_two_coupled_logits():
    # z_m = theta . a, z_n = theta . b with |a| = |b| = 1: the exact gradient of the expected reward moves them by (7).
    kappa, visits = 0.6, 0.85
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([kappa, math.sqrt(1 - kappa**2)])
    theta = torch.tensor([0.4, -0.3], requires_grad=True)
    q, p = torch.sigmoid(theta @ a), torch.sigmoid(theta @ b)
    (grad,) = torch.autograd.grad(visits * q + (1 - visits) * (1 - p), theta)
    dz = o.coupled_drift(q.item(), p.item(), visits, kappa)
    assert dz == pytest.approx(((grad @ a).item(), (grad @ b).item()), rel=1e-5)


def test_the_flaw_grows_while_the_majority_still_learns():
    assert o.coupled_drift(0.5, 0.3, 0.85, 0.7)[1] > 0 > o.coupled_drift(0.5, 0.3, 0.85, -0.2)[1]
    assert o.coupled_drift(1.0, 0.5, 0.85, 0.7)[1] < 0  # once the majority is learnt, only its own signal is left
    assert abs(o.coupled_drift(0.5, 0.3, 0.85, 0.7, scaled=True)[1]) > abs(o.coupled_drift(0.5, 0.3, 0.85, 0.7)[1])
