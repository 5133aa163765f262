"""How strongly learning one decision moves another (arXiv:2509.23870).

    K((s,a), (s',a')) = < grad log pi(a|s), grad log pi(a'|s') >                                                (1)
    d log pi(a'|s')   = eta A K   after a step of size eta on (s, a) with advantage A, to first order           (2)
    CI                = mean cos(grad log pi(a|s), grad log pi(a'|s')) over good a in s, bad a' in s'           (3)

CI well above 0: what is learnt from good decisions also raises the bad ones of like states. Near 0 the two are told
apart; below 0 each pushes the other down. The mean over pairs of products is the product of two means, so that (1) and
(3) need four vectors of the size of the model, not one a decision.

| metric | formula |
|---|---|
| coupling/gradient_cosine | CI (3) |
| coupling/hidden_cosine | mean cosine of the last hidden states of s and s', before the action |
| coupling/kernel | mean K (1); its scale changes as the model learns, so compare cosines over time |
"""

# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from trimtab.errors import UsageError

Decision = tuple[str, str]
"""The text of a state, and of the action taken in it."""


def encode(tokenizer: Any, decision: Decision) -> tuple[Tensor, int]:
    """The tokens of state and action, (1, t), and how many belong to the state."""
    state, action = (tokenizer(text, add_special_tokens=False).input_ids for text in decision)
    if not state or not action:
        raise UsageError(f"a decision needs a state and an action with at least one token each, got {decision!r}")
    return torch.tensor([state + action]), len(state)


def log_prob(model: Any, ids: Tensor, start: int, choices: Tensor | None = None) -> Tensor:
    """log pi(a|s): the sum over the tokens from `start` on. `choices`: the tokens that the policy chooses among, where
    it does not choose among all."""
    logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
    every = logits if choices is None else logits[:, choices]
    return (logits.gather(1, ids[0, start:, None]).squeeze(1) - every.logsumexp(-1)).sum()


def trained(model: Any, layers: str) -> list[tuple[str, Tensor]]:
    """The parameters that gradients are taken by: "all" that train, or the output layer's, "head"."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if layers == "head":
        head = model.get_output_embeddings().weight
        named = [(name, p) for name, p in named if p is head]
    if not named:
        raise UsageError(f"the model trains no parameters of {layers!r}: choose layers 'all' or 'head'")
    return named


def gradient(model: Any, ids: Tensor, start: int, layers: str = "all", choices: Tensor | None = None) -> Tensor:
    """grad log pi(a|s), flat."""
    params = [p for _, p in trained(model, layers)]
    grads = torch.autograd.grad(log_prob(model, ids, start, choices), params, allow_unused=True)
    parts = zip(grads, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in parts])


@dataclass(frozen=True)
class CouplingProbe:
    """(1) and (3) between good decisions and bad ones; some sixteen of each will do: each costs a backward pass."""

    tokenizer: Any
    good: tuple[Decision, ...]
    bad: tuple[Decision, ...]
    layers: str = "all"
    choices: tuple[str, ...] = ()
    """the actions, of one token each, that the policy chooses among; empty: all there are."""

    def __post_init__(self) -> None:
        if not self.good or not self.bad:
            raise UsageError("a coupling probe needs at least one good and one bad decision")

        for decision in (*self.good, *self.bad):
            encode(self.tokenizer, decision)  # before anything is trained

    def __call__(self, model: Any) -> dict[str, float]:
        """The metrics of this file, on the model as it is; its mode and gradients are left as they were."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            good, bad = (self._means(model, decisions, device) for decisions in (self.good, self.bad))
        finally:
            model.train(training)
        kernel, gradients, hidden = (float(mine @ other) for mine, other in zip(good, bad, strict=True))
        return {"gradient_cosine": gradients, "hidden_cosine": hidden, "kernel": kernel}

    def _means(self, model: Any, decisions: Sequence[Decision], device: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The means over decisions of the gradient, of its direction, and of the direction of the hidden state."""
        sums: list[Tensor] = []
        choices = [self.tokenizer(choice, add_special_tokens=False).input_ids[0] for choice in self.choices]
        among = torch.tensor(choices, device=device) if choices else None
        for ids, start in (encode(self.tokenizer, decision) for decision in decisions):
            ids = ids.to(device)
            grad = gradient(model, ids, start, self.layers, among)
            found = [grad, _direction(grad), _direction(self._hidden(model, ids, start))]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        first, second, third = (total / len(decisions) for total in sums)
        return first, second, third

    def _hidden(self, model: Any, ids: Tensor, start: int) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids[:, :start], output_hidden_states=True).hidden_states[-1][0, -1].float()


def _direction(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=0)


def predicted(model: Any, step: tuple[Tensor, int], others: Sequence[tuple[Tensor, int]], size: float) -> Tensor:
    """(2): the change of log pi of each of `others` after a gradient step of `size` (eta A) on `step`."""
    mine = gradient(model, *step)
    return torch.stack([size * (mine @ gradient(model, *other)) for other in others])


def measured(model: Any, step: tuple[Tensor, int], others: Sequence[tuple[Tensor, int]], size: float) -> Tensor:
    """What (2) predicts, by taking the step, and then putting the parameters back."""
    params = [p for _, p in trained(model, "all")]
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        before = torch.stack([log_prob(model, *other) for other in others])
    grads = torch.autograd.grad(log_prob(model, *step), params, allow_unused=True)
    try:
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                if g is not None:
                    p.add_(size * g)
            return torch.stack([log_prob(model, *other) for other in others]) - before
    finally:
        with torch.no_grad():
            for p, old in zip(params, kept, strict=True):
                p.copy_(old)


MOST = 16
"""Decisions of each side of a probe file: each costs a backward pass."""


def read_probe(path: Path, tokenizer: Any) -> CouplingProbe:
    """The decisions of a coupling probe: JSON lines with state, action, good. Raises `UsageError` naming the line."""
    if not path.is_file():
        raise UsageError(f"no such probe file: {path}; it holds JSON lines with state, action and good")
    sides: dict[bool, list[Decision]] = {True: [], False: []}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            decision, good = (row["state"], row["action"]), row["good"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{where} needs state, action and good ({type(error).__name__})") from error
        if not isinstance(good, bool):
            raise UsageError(f"{where}: good is true or false, without quotes, got {good!r}")
        for name, text in zip(("state", "action"), decision, strict=True):
            if not isinstance(text, str) or not tokenizer(text, add_special_tokens=False).input_ids:
                raise UsageError(f"{where}: the {name} must be text with at least one token, got {text!r}")
        sides[good].append(decision)
        if len(sides[good]) > MOST:
            side = "good" if good else "bad"
            raise UsageError(f"{where}: a probe takes {MOST} {side} decisions, for each costs a backward pass: choose")
    if not all(sides.values()):
        raise UsageError(f"{path} needs at least one good and one bad decision")
    return CouplingProbe(tokenizer, tuple(sides[True]), tuple(sides[False]))


class CouplingCallback(TrainerCallback):
    """Logs a probe every so many optimiser steps, among the trainer's own metrics."""

    def __init__(self, probe: CouplingProbe, every: int = 20) -> None:
        self.probe, self.every = probe, every
        self.trainer: Any = None
        """set by who builds the trainer; its metrics are added to."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Raises `UsageError` without a trainer: transformers does not tell its callbacks whose they are."""
        if self.trainer is None:
            raise UsageError("the coupling callback does not know its trainer: set callback.trainer = trainer")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        """Measures after the optimiser's step."""
        if state.global_step % self.every == 0 or state.global_step == 1:
            for name, value in self.probe(model).items():
                self.trainer._metrics["train"][f"coupling/{name}"].append(value)
