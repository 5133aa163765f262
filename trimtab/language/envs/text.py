"""What a text environment is, and how a policy plays it inside GRPO.

    tokens of one episode:  observation 0 | action 0 | observation 1 | action 1 | ...

The first observation is the prompt. Everything after it is the completion, in which observations are masked: they get
no gradient, and do not count in any mean. An episode that came to its end has the tokenizer's end token last, masked as
well: by it TRL tells such an episode from one that was cut.
"""

import abc
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from trimtab.errors import UsageError
from trimtab.language.gcd import Step, refuse_pieces, takes


@dataclass(frozen=True)
class Turn:
    """What an environment answers to an action."""

    observation: str
    """what the policy reads next; nothing is asked of it after the last."""
    reward: float
    done: bool
    good: bool | None = None
    """whether the action was a step towards the goal, where the environment knows."""


class AbstractTextEnv(abc.ABC):
    """An environment that speaks. One instance plays one episode at a time; all its randomness comes from `reset`."""

    @abc.abstractmethod
    def reset(self, seed: int) -> str:
        """The first observation of the episode of this seed."""

    @abc.abstractmethod
    def step(self, action: str) -> Turn:
        """What follows from the action, given as the model wrote it."""

    @abc.abstractmethod
    def kind(self) -> str:
        """The type of the present state, by which `Correction` counts; the empty string where there are no types."""


@dataclass
class Correction:
    """Prompt-based correction: a line in the training prompt against a flaw that has become a habit.

    Every `every` batches the rate of each (kind of state, flawed action) is looked at. Above `danger` the `hint` for it
    is put before the state with probability `chance`, until its rate is below `safe`. Evaluation never sees it.
    """

    hint: Callable[[str, str], str]
    """(kind, action) -> the line, such as "do not go when the door is locked"."""
    every: int = 10
    danger: float = 0.5
    safe: float = 0.2
    chance: float = 0.5
    active: dict[str, str] = field(default_factory=dict)
    """kind -> line that is being shown."""
    _counts: dict[str, dict[str, int]] = field(default_factory=dict)
    _visits: dict[str, int] = field(default_factory=dict)
    _batches: int = 0

    def observe(self, kind: str, action: str, flawed: bool) -> None:
        """One decision without a hint."""
        self._visits[kind] = self._visits.get(kind, 0) + 1
        if flawed:
            counts = self._counts.setdefault(kind, {})
            counts[action] = counts.get(action, 0) + 1

    def line(self, kind: str, draw: random.Random) -> str:
        """What to put before a state of this kind; mostly nothing."""
        return self.active[kind] if kind in self.active and draw.random() < self.chance else ""

    def batch_done(self) -> None:
        """After each batch of rollouts."""
        self._batches += 1
        if self._batches % self.every:
            return
        for kind, visits in self._visits.items():
            counts = self._counts.get(kind, {})
            action = max(counts, key=lambda name: counts[name], default="")
            rate = counts.get(action, 0) / visits
            if rate > self.danger:
                self.active[kind] = self.hint(kind, action)
            elif rate < self.safe:
                self.active.pop(kind, None)
        self._counts.clear()
        self._visits.clear()


def rollout(
    factory: Callable[[], AbstractTextEnv],
    max_turns: int,
    max_action_tokens: int = 1,
    gamma: float = 1.0,
    correction: Correction | None = None,
    limit: int | None = None,
) -> Callable[[list[str], Any], dict[str, Any]]:
    """A `rollout_func` for TRL: plays the episode whose seed stands in each prompt, all of a batch side by side.

    `limit`: the most tokens of a completion, the end token among them; an episode is cut before the observation after
    which no action would fit. Reward functions get `outcome` (sum of rewards), `turns`, `cut` (1 for an episode that
    ended by `limit` or `max_turns` and not by itself) and `steps` (`Step`s of each episode) as columns. Environments
    are made once and used again for later batches: some start a simulator.
    """
    if limit is not None and limit < max_action_tokens + 1:
        raise UsageError(
            f"a completion of {limit} tokens has no room for an action of {max_action_tokens} and its end: raise "
            "max_completion_length, or lower max_action_tokens"
        )
    made: list[AbstractTextEnv] = []

    def play(prompts: list[str], trainer: Any) -> dict[str, Any]:
        refuse_pieces(trainer.accelerator, "a text environment")
        made.extend(factory() for _ in prompts[len(made) :])
        envs = made[: len(prompts)]
        training = trainer.model.training
        draw = random.Random(trainer.state.global_step)
        active = correction if training else None
        hint = lambda env: active.line(env.kind(), draw) if active is not None else ""
        seen = [env.reset(int(prompt)) for env, prompt in zip(envs, prompts, strict=True)]
        lines = [hint(env) for env in envs]
        texts = [f"{line} {text}".strip() for line, text in zip(lines, seen, strict=True)]
        hinted = [bool(line) for line in lines]
        episodes = [Episode(_encode(trainer, text)) for text in texts]
        for _ in range(max_turns):
            open_ = [index for index, episode in enumerate(episodes) if not (episode.done or episode.cut)]
            if not open_:
                break
            answers = act(trainer, [episodes[index].tokens for index in open_], max_action_tokens)
            for index, ids in zip(open_, answers, strict=True):
                action = trainer._tokenizer.decode(ids, skip_special_tokens=True).strip()
                kind, turn = envs[index].kind(), envs[index].step(action)
                if active is not None and not hinted[index]:
                    active.observe(kind, action, turn.good is False)
                episodes[index].add(seen[index], action, ids, turn)
                line = "" if turn.done else hint(envs[index])
                seen[index] = turn.observation
                texts[index], hinted[index] = f"{line} {turn.observation}".strip(), bool(line)
                if not turn.done:
                    room = None if limit is None else limit - max_action_tokens - 1
                    episodes[index].read(_encode(trainer, " " + texts[index]), room)
        for episode in episodes:
            episode.end(trainer._tokenizer)
        if active is not None:
            active.batch_done()
        return {
            "prompt_ids": [episode.prompt for episode in episodes],
            "completion_ids": [episode.completion for episode in episodes],
            "env_mask": [episode.mask for episode in episodes],
            "logprobs": None,
            "outcome": [sum(episode.rewards) for episode in episodes],
            "turns": [float(len(episode.rewards)) for episode in episodes],
            "cut": [float(episode.cut) for episode in episodes],
            "steps": [episode.steps(gamma) for episode in episodes],
        }

    return play


class Episode:
    """The tokens of one episode and what was decided in it."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.completion: list[int] = []
        self.mask: list[int] = []
        self.rewards: list[float] = []
        self.done = False
        """the environment has ended it."""
        self.cut = False
        """it was ended from outside."""
        self._decisions: list[tuple[str, str, bool | None, tuple[int, ...]]] = []

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.completion

    def add(self, state: str, action: str, ids: list[int], turn: Turn) -> None:
        """The policy's own tokens, and what came of them."""
        self._decisions.append((state, action, turn.good, tuple(self.tokens)))
        self.completion += ids
        self.mask += [1] * len(ids)
        self.rewards.append(turn.reward)
        self.done = turn.done

    def read(self, ids: list[int], room: int | None = None) -> None:
        """The environment's tokens. Where the completion would be longer than `room` with them, it is cut instead."""
        if room is not None and len(self.completion) + len(ids) > room:
            self.cut = True
            return
        self.completion += ids
        self.mask += [0] * len(ids)

    def end(self, tokenizer: Any) -> None:
        """After the last turn: the end token, or for an episode that had more to come, `cut`."""
        self.cut = not self.done
        end = tokenizer.eos_token_id
        if self.done:
            self.read([tokenizer.pad_token_id if end is None else end])

    def steps(self, gamma: float) -> list[Step]:
        """The decisions with the outcome, discounted by the steps that were still to come."""
        outcome, last = sum(self.rewards), len(self._decisions) - 1
        return [
            Step(state, action, gamma ** (last - index) * outcome, good, prompt=prompt)
            for index, (state, action, good, prompt) in enumerate(self._decisions)
        ]


def _encode(trainer: Any, text: str) -> list[int]:
    return trainer._tokenizer(text, add_special_tokens=False).input_ids


def act(trainer: Any, sequences: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Samples up to `tokens` tokens after each sequence by the trainer's settings, whatever the model's own are."""
    tokenizer, device = trainer._tokenizer, trainer.accelerator.device
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    model = trainer.accelerator.unwrap_model(trainer.model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if tokens == 1 and _untouched(trainer.args):
                # One forward pass: `generate` costs ten times as much for a single token. Like `generate`, it counts
                # positions from the first real token: a model with learned positions would else see the padding.
                counted = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes(model, "position_ids") else {}
                logits = model(input_ids=ids, attention_mask=mask, **counted).logits[:, -1].float()
                return torch.multinomial((logits / trainer.temperature).softmax(-1), 1).tolist()
            settings = trainer.generation_kwargs | {"max_new_tokens": tokens}
            config = copy.deepcopy(trainer.generation_config)
            config.max_new_tokens = tokens
            wrapped, accelerator = trainer.model_wrapped, trainer.accelerator
            with unwrap_model_for_generation(wrapped, accelerator, generation_kwargs=settings) as speaker:
                out = speaker.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    finally:
        model.train(training)
    ends = {tokenizer.pad_token_id, *trainer.eos_token_ids}
    answers = []
    for row in out[:, longest:].tolist():
        kept = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: max(1, kept)])
    return answers


def _untouched(args: Any) -> bool:
    """Whether the settings sample from the softmax of the logits by temperature, and do nothing else to it."""
    cuts = args.top_k or args.min_p or args.top_p != 1.0 or args.repetition_penalty != 1.0
    return not (cuts or args.generation_kwargs)


def outcome(outcome: list[float]) -> list[float]:
    """The reward function of text environments: the sum of the episode's rewards."""
    return outcome
