"""The mathematics of the wing for language models, as pure functions of tensors.

Policy gradient, over the tokens t of a completion, with the group-relative advantage A of GRPO:

    A_i  = R_i - mean(R),  divided by std(R) + 1e-4 where rewards are scaled                                    (1)
    L    = - mean_i sum_t min(rho A, clip(rho, 1 - c, 1 + c) A),  rho = pi(y_t) / pi_old(y_t)                   (2)
    k3   = exp(d) - d - 1,  d = log pi_ref(y_t) - log pi(y_t)                                                   (3)

Gradient coupling (arXiv:2509.23870): a step of size eta on (s, a) with advantage A moves other log-probabilities by

    d log pi(a'|s') = eta A K,  K = < grad log pi(a|s), grad log pi(a'|s') >                                    (4)
    K_W             = [(e_a - pi(.|s)) . (e_a' - pi(.|s'))] [h(s) . h(s')]    for the output layer W alone      (5)

The first factor of (5) is fixed by the actions; the second, the likeness of the hidden states, is what can be learnt.
The classification loss that pulls them apart, with label tokens v_good, v_bad and weights w_y = 1 / (2 N_y):

    L_GCD = - sum_n w_y log pi(v_y | C(s, a))                                                                   (6)

Two states m (majority, `go` is right) and n (minority, `go` is wrong), logits z, visits w, kappa = K(m,n) / K(n,n):

    dz_n/dt = - w_n p (1 - p) + kappa w_m q (1 - q),   dz_m/dt = w_m q (1 - q) - kappa w_n p (1 - p)            (7)
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""A label that counts for nothing: padding of a batch of classifications."""


def group_advantages(rewards: Float[Tensor, " b"], size: int, scale: bool = True) -> Float[Tensor, " b"]:
    """(1) over consecutive groups of `size` completions of one prompt."""
    groups = rewards.view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4) if scale else centred).view(-1)


def surrogate_loss(
    log_probs: Float[Tensor, "b t"],
    old: Float[Tensor, "b t"],
    advantages: Float[Tensor, " b"],
    mask: Float[Tensor, "b t"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """(2), summed over the tokens of a completion and averaged over completions."""
    ratio, weight = torch.exp(log_probs - old), advantages[:, None]
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -(torch.minimum(ratio * weight, clipped * weight) * mask).sum(1).mean()


def k3(log_probs: Float[Tensor, "b t"], reference: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """(3): an unbiased, non-negative estimate of KL(pi || pi_ref) on tokens drawn from pi."""
    difference = reference - log_probs
    return torch.exp(difference) - difference - 1.0


def balanced_weights(labels: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """w_y = 1 / (2 N_y) of (6) for labels 0 (bad) and 1 (good), 0 for `IGNORED`; they sum to 1 if both classes occur.

    A class that is absent contributes nothing, so that the other keeps its weight of a half.
    """
    weights = torch.zeros(labels.shape, dtype=torch.get_default_dtype(), device=labels.device)
    for label in (0, 1):
        chosen = labels == label
        weights = torch.where(chosen, 0.5 / chosen.sum().clamp(min=1), weights)
    return weights


def last_token(values: Float[Tensor, "n t v"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n v"]:
    """`values` at the last real token of each row, on whichever side the padding is."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), positions, -1).amax(1).clamp(min=0)
    return values[torch.arange(len(values), device=values.device), last]


def gcd_loss(
    logits: Float[Tensor, "n v"],
    labels: Int[Tensor, " n"],
    label_ids: tuple[int, int],
    weights: Float[Tensor, " n"] | None = None,
    full_vocab: bool = False,
) -> Float[Tensor, ""]:
    """(6): cross-entropy of the verdict token. `label_ids` are the tokens of bad and good, in this order.

    By default the softmax runs over the two label tokens alone, which is steadier than over the whole vocabulary.
    """
    weights = balanced_weights(labels) if weights is None else weights
    index = labels.clamp(min=0)
    tokens = torch.tensor(label_ids, device=logits.device)
    if full_vocab:
        chosen, scores = tokens[index], logits
    else:
        chosen, scores = index, logits[:, tokens]
    log_probs = scores.float().log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)
    return -(weights.to(log_probs.dtype) * log_probs).sum()


def gcd_accuracy(
    logits: Float[Tensor, "n v"], labels: Int[Tensor, " n"], label_ids: tuple[int, int]
) -> Float[Tensor, ""]:
    """Share of the labelled rows whose likelier verdict is right; NaN without any."""
    known = labels != IGNORED
    likelier = logits[:, torch.tensor(label_ids, device=logits.device)].argmax(-1)
    return (likelier == labels)[known].float().mean()


def output_kernel(
    logits: Float[Tensor, " v"],
    hidden: Float[Tensor, " d"],
    action: int,
    other_logits: Float[Tensor, " v"],
    other_hidden: Float[Tensor, " d"],
    other_action: int,
) -> Float[Tensor, ""]:
    """(5): the part of the kernel (4) that goes through the output layer, logits = W h."""
    residual, other = -logits.softmax(0), -other_logits.softmax(0)
    residual[action] += 1.0
    other[other_action] += 1.0
    return (residual @ other) * (hidden @ other_hidden)


def risky_advantage(q: float, r: float) -> float:
    """Advantage of a risky action that is taken with probability q and lowers success by r: (1 - r) - (1 - q r)."""
    return -r * (1.0 - q)


def coupled_drift(q: float, p: float, visits: float, kappa: float, scaled: bool = False) -> tuple[float, float]:
    """(7): dz_m/dt and dz_n/dt of exact policy gradient, `visits` = w_m; `scaled` divides advantages by the group's
    standard deviation, which turns x (1 - x) into its root."""
    spread = lambda x: (x * (1.0 - x)) ** (0.5 if scaled else 1.0)
    right, wrong = visits * spread(q), (1.0 - visits) * spread(p)
    return right - kappa * wrong, kappa * right - wrong
