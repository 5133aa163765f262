"""Generative classification disentanglement against gradient coupling (arXiv:2509.23870).

    L     = L_GRPO + lambda L_GCD                                                                               (1)
    L_GCD = - sum_n w_y log pi(v_y | C(s, a)),  y in {good, bad},  w_y = 1 / (2 N_y)                            (2)

The actor itself is asked whether an action was good: C(s, a) is the acting prompt of s, token by token, then the
action and a question; the answer is one token of the vocabulary. The verdict trains the features that acting uses, so
that a good action in one state and a bad one in a like state lose their coupling. Labels are the only thing that gets
no gradient.

Labels come from what became of the action in the same state over all rollouts (`OutcomeLabeler`), from what the
environment knows (`OracleLabeler`), or from a judge (`CriticLabeler`). Pairs of the last `replay` batches stay: once an
action is no longer sampled its label would disappear.

| metric | formula |
|---|---|
| gcd/loss | (2), before lambda |
| gcd/accuracy | share of the labelled pairs whose likelier verdict is right |
| gcd/good, gcd/bad | pairs of each class in the batch |

Ours, since the paper's text could not be had: the template, the labels' rules, class weights, replay, and that the
softmax of (2) runs over the two label tokens alone (`full_vocab` for all).
"""

# pyright: reportPrivateImportUsage=false

import abc
import inspect
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from trimtab.errors import UsageError
from trimtab.language.objectives import IGNORED, balanced_weights, gcd_accuracy, gcd_loss, last_token
from trimtab.run.folder import write_json


@dataclass(frozen=True)
class Step:
    """One decision of a rollout, as the classifier sees it."""

    state: str
    """the text of the present state; the same text is the same state."""
    action: str
    value: float
    """return from here on: the outcome, discounted by the steps left."""
    good: bool | None = None
    """what the environment says of the action, where it knows."""
    advantage: float = 0.0
    """advantage of the whole trajectory."""
    prompt: tuple[int, ...] = ()
    """the tokens that the policy acted on, with all that came before the state; empty: those of `state`."""


@dataclass(frozen=True)
class Pair:
    """A labelled decision."""

    state: str
    action: str
    good: bool
    prompt: tuple[int, ...] = ()
    """as in `Step`."""


class AbstractLabeler(abc.ABC):
    """Says which decisions were good."""

    @abc.abstractmethod
    def label(self, steps: Sequence[Step]) -> list[bool | None]:
        """Good, bad or unknown, for each step of one batch of rollouts."""


@dataclass(frozen=True)
class OutcomeLabeler(AbstractLabeler):
    """Compares, among all visits of the same state, those in which the action was taken with all of them.

    Good if their mean value is above the mean over all visits by more than `delta` standard deviations, bad if it is
    below by as much. A state that was visited once is judged by the sign of its trajectory's advantage, if that is
    beyond `sure`.
    """

    delta: float = 0.1
    sure: float = 0.5

    def label(self, steps: Sequence[Step]) -> list[bool | None]:
        """Each step's label; None where the evidence is too small."""
        visits: dict[str, list[float]] = {}
        taken: dict[tuple[str, str], list[float]] = {}
        for step in steps:
            visits.setdefault(step.state, []).append(step.value)
            taken.setdefault((step.state, step.action), []).append(step.value)
        return [self._one(step, visits[step.state], taken[step.state, step.action]) for step in steps]

    def _one(self, step: Step, every: list[float], mine: list[float]) -> bool | None:
        if len(every) == 1:
            return step.advantage > 0 if abs(step.advantage) > self.sure else None
        mean = sum(every) / len(every)
        spread = (sum((value - mean) ** 2 for value in every) / len(every)) ** 0.5
        margin = sum(mine) / len(mine) - mean
        return None if abs(margin) <= self.delta * spread else margin > 0


@dataclass(frozen=True)
class OracleLabeler(AbstractLabeler):
    """What the environment said: `Step.good`."""

    def label(self, steps: Sequence[Step]) -> list[bool | None]:
        """Each step's own word."""
        return [step.good for step in steps]


@dataclass(frozen=True)
class CriticLabeler(AbstractLabeler):
    """A frozen judge: `judge(state, action)` is True, False, or None where it does not know."""

    judge: Callable[[str, str], bool | None]

    def label(self, steps: Sequence[Step]) -> list[bool | None]:
        """Asks once for each different pair."""
        asked: dict[tuple[str, str], bool | None] = {}
        for step in steps:
            if (step.state, step.action) not in asked:
                asked[step.state, step.action] = self.judge(step.state, step.action)
        return [asked[step.state, step.action] for step in steps]


@dataclass(frozen=True)
class GCD:
    """What `GCDMixin` does beside GRPO."""

    labeler: AbstractLabeler
    coef: float = 0.5
    """lambda in (1); 0 is plain GRPO."""
    template: str = "{state} {action} Is this action good or bad?"
    """C(s, a). It begins with the state, so that acting and judging share their features."""
    labels: tuple[str, str] = (" bad", " good")
    """the two answers, bad first; each one token."""
    max_pairs: int = 128
    """pairs of one batch, half of each class where there are as many."""
    replay: int = 4
    """batches whose pairs are kept."""
    full_vocab: bool = False

    def __post_init__(self) -> None:
        if not self.template.startswith("{state}") or "{action}" not in self.template:
            raise UsageError(f"the template must begin with {{state}} and hold {{action}}, got {self.template!r}")
        if self.coef < 0.0 or self.max_pairs < 2 or self.replay < 1:
            raise UsageError("coef must not be negative, max_pairs at least 2, replay at least 1")


def label_ids(tokenizer: Any, labels: tuple[str, str]) -> tuple[int, int]:
    """The tokens of the two answers. Raises `UsageError` for one that is no single token of this vocabulary."""
    found = []
    for label in labels:
        ids = tokenizer(label, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            pieces = "unknown to it" if ids == [tokenizer.unk_token_id] else f"{len(ids)} tokens"
            raise UsageError(
                f"the label {label!r} is {pieces} in this model's vocabulary: choose two of one token each, such "
                "as ' good' and ' bad' with a blank, or 'good' and 'bad' without"
            )
        found.append(ids[0])
    if found[0] == found[1]:
        raise UsageError(f"the labels {labels[0]!r} and {labels[1]!r} are the same token: choose two that differ")
    return found[0], found[1]


def build_pairs(steps: Sequence[Step], labeler: AbstractLabeler) -> list[Pair]:
    """The labelled decisions of a batch, each once, in the order of their first appearance."""
    found: dict[tuple[str, str], Pair] = {}
    for step, good in zip(steps, labeler.label(steps), strict=True):
        if good is not None:
            found.setdefault((step.state, step.action), Pair(step.state, step.action, good, step.prompt))
    return list(found.values())


class Replay:
    """The pairs of the last few batches; a newer label of the same decision replaces the older."""

    def __init__(self, batches: int) -> None:
        self._batches: deque[list[Pair]] = deque(maxlen=batches)

    def add(self, pairs: list[Pair]) -> None:
        """One batch."""
        self._batches.append(pairs)

    def pairs(self) -> list[Pair]:
        """All of them, the newest first."""
        newest: dict[tuple[str, str], Pair] = {}
        for batch in reversed(self._batches):
            for pair in batch:
                newest.setdefault((pair.state, pair.action), pair)
        return list(newest.values())

    def write(self, place: Path) -> None:
        """As JSON, whole or not at all."""
        write_json(place, {"batches": [[asdict(pair) for pair in batch] for batch in self._batches]})

    def read(self, place: Path) -> None:
        """What `write` wrote, in place of what is here."""
        self._batches.clear()
        for batch in json.loads(place.read_text())["batches"]:
            self.add([Pair(**pair | {"prompt": tuple(pair["prompt"])}) for pair in batch])


def balanced(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """At most `most` pairs, drawn so that the rarer class is kept whole as far as half of them."""
    draw = random.Random(seed)
    good, bad = [pair for pair in pairs if pair.good], [pair for pair in pairs if not pair.good]
    fewer = min(len(bad), max(most // 2, most - len(good)))
    chosen = draw.sample(bad, fewer) + draw.sample(good, min(len(good), most - fewer))
    draw.shuffle(chosen)
    return chosen


class GCDMixin:
    """Adds lambda L_GCD to `GRPOTrainer`: `class X(GCDMixin, GRPOTrainer)`, `trainer.gcd = GCD(...)` before `train`.

    Rollout functions return the decisions of each completion as a list of `Step` under the key "steps"; without one, a
    completion is one decision in the state of its prompt.
    """

    gcd: GCD | None = None
    _gcd_replay: Replay | None = None

    @property
    def gcd_replay(self) -> Replay:
        """The pairs of the last batches of this process."""
        assert self.gcd is not None
        if self._gcd_replay is None:
            self._gcd_replay = Replay(self.gcd.replay)
        return self._gcd_replay

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        trainer: Any = self
        wanted = self.gcd is not None and self.gcd.coef > 0.0
        if wanted:
            refuse_pieces(trainer.accelerator, "gcd")
        out = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.gcd is None or not wanted or not trainer.model.training:
            return out
        self.gcd_replay.add(build_pairs(self._steps(inputs, out), self.gcd.labeler))
        pairs = balanced(self.gcd_replay.pairs(), self.gcd.max_pairs, trainer.state.global_step)
        for name in ("good", "bad"):
            count = sum(pair.good == (name == "good") for pair in pairs)
            trainer._metrics["train"][f"gcd/{name}"].append(float(count))
        return out | spread(pairs, len(out["prompt_ids"]), self.gcd, trainer._tokenizer, out["prompt_ids"].device)

    def _steps(self, inputs: list[dict[str, Any]], out: dict[str, Any]) -> list[Step]:
        """The decisions of the rollouts, with the advantages of their trajectories."""
        advantages = out["advantages"].tolist()
        if inputs and "steps" in inputs[0]:
            rows = zip(inputs, advantages, strict=True)
            return [replace(step, advantage=advantage) for row, advantage in rows for step in row["steps"]]
        trainer: Any = self
        decode = trainer._tokenizer.decode
        real = lambda name: [
            tuple(ids[mask.bool()].tolist()) for ids, mask in zip(out[f"{name}_ids"], out[f"{name}_mask"], strict=True)
        ]
        return [
            Step(decode(prompt), decode(ids, skip_special_tokens=True).strip(), gain, row.get("good"), gain, prompt)
            for prompt, ids, gain, row in zip(real("prompt"), real("completion"), advantages, inputs, strict=True)
        ]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if self.gcd is None or "gcd_ids" not in inputs:
            return loss
        trainer: Any = self
        judged = self._judged(model, inputs)
        return loss + self.gcd.coef * judged / trainer.current_gradient_accumulation_steps  # (1)

    def _judged(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """(2) of one micro-batch, times the number of micro-batches that the weights of (2) were made for."""
        trainer: Any = self
        assert self.gcd is not None
        ids, mask, labels, weights = (
            inputs[f"gcd_{name}"].flatten(0, 1) for name in ("ids", "mask", "labels", "weights")
        )
        chosen, metrics = labels != IGNORED, trainer._metrics["train"]
        if not chosen.any():
            metrics["gcd/loss"].append(0.0)
            if trainer.accelerator.num_processes == 1:
                return weights.sum()
            # Every process must run the model equally often, or their collectives no longer match. Which of them has
            # pairs in this micro-batch is chance, so one that has none runs a row of weight 0.
            chosen[0], mask = True, torch.ones_like(mask)
        logits = answers(model, trainer.accelerator.unwrap_model(model), ids[chosen], mask[chosen])
        verdicts, labels = label_ids(trainer._tokenizer, self.gcd.labels), labels[chosen]
        judged = gcd_loss(logits, labels, verdicts, weights[chosen], full_vocab=self.gcd.full_vocab)
        judged = judged * trainer.args.steps_per_generation
        if (labels != IGNORED).any():
            metrics["gcd/loss"].append(judged.item())
            metrics["gcd/accuracy"].append(gcd_accuracy(logits, labels, verdicts).item())
        return judged


def takes(model: Any, name: str) -> bool:
    """Whether the model's forward has a parameter `name`, with adapters or without."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return name in inspect.signature(inner.forward).parameters


def refuse_pieces(accelerator: Any, what: str) -> None:
    """Raises `UsageError` where parameters are kept in pieces: each forward pass is then a collective of all processes,
    while `what` runs the model as often as the process's own data ask for."""
    plugin = accelerator.state.deepspeed_plugin
    pieces = "DeepSpeed's ZeRO-3" if plugin is not None and plugin.zero_stage == 3 else ""
    pieces = "FSDP" if accelerator.distributed_type == DistributedType.FSDP else pieces
    if pieces:
        raise UsageError(
            f"{what} needs whole parameters on each device, which {pieces} keeps in pieces: launch without it "
            "(accelerate launch --multi_gpu)"
        )


def answers(model: Any, inner: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits after the last real token of each row. Other positions are not projected to the vocabulary where the
    model can do without: for a large one those logits would take more memory than all else.

    `inner` is the model itself, `model` what the trainer has wrapped it in."""
    if not takes(inner, "logits_to_keep"):
        return last_token(model(input_ids=ids, attention_mask=mask).logits, mask)
    last = mask.sum(1) - 1  # the padding is on the right
    kept, row = last.unique(return_inverse=True)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
    return logits[torch.arange(len(ids), device=ids.device), row]


def question(pair: Pair, gcd: GCD, tokenizer: Any) -> list[int]:
    """The tokens of C(s, a): those that were acted on, and then the rest of the template."""
    tokens = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    rest = gcd.template.removeprefix("{state}").format(state=pair.state, action=pair.action)
    return [*(pair.prompt or tokens(pair.state)), *tokens(rest)]


def spread(pairs: Sequence[Pair], rows: int, gcd: GCD, tokenizer: Any, device: Any) -> dict[str, torch.Tensor]:
    """Classifications as tensors whose first axis is the batch: TRL's shuffling and splitting keep them with it.

    ids and mask (rows, k, length), padded on the right; labels (rows, k), `IGNORED` where there is none, and w_y of (2)
    over all pairs, so that the loss does not depend on how the batch is split.
    """
    encoded = [question(pair, gcd, tokenizer) for pair in pairs]
    each = max(1, -(-len(pairs) // rows))
    length = max(map(len, encoded), default=1)
    ids = torch.full((rows, each, length), tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full((rows, each), IGNORED)
    for index, (pair, tokens) in enumerate(zip(pairs, encoded, strict=True)):
        row, place = index % rows, index // rows
        ids[row, place, : len(tokens)] = torch.tensor(tokens)
        mask[row, place, : len(tokens)] = 1
        labels[row, place] = int(pair.good)
    found = {"ids": ids, "mask": mask, "labels": labels, "weights": balanced_weights(labels)}
    return {f"gcd_{name}": value.to(device) for name, value in found.items()}


class GCDGRPOTrainer(GCDMixin, GRPOTrainer):
    """GRPO with generative classification; its config is `GRPOConfig`."""


GCDGRPOConfig = GRPOConfig
