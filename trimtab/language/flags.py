"""The flags of `trimtab language train`. They need no PyTorch: `--help` and wrong flags are answered at once."""

import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.errors import UsageError
from trimtab.run.logging import check_loggers

TRAINERS = {"grpo": ("plain", "gradreg", "gcd"), "rloo": ("plain", "gradreg")}
"""Trainers of TRL that the command runs, and the algorithms that go before each."""

LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "luspo", "cispo", "sapo", "vespo")
"""Losses of GRPO in TRL; rloo has its own."""


@dataclass(frozen=True)
class Flags:
    """What `trimtab language train` takes."""

    model: str
    """folder of a Hugging Face causal language model, or its id on the hub."""
    algorithm: Literal["plain", "gradreg", "gcd"] = "plain"
    """TRL's trainer as it is, with gradient regularisation, or with generative classification."""
    task: Path | None = None
    """JSON lines, each with a prompt (text or chat messages) and the columns that reward functions ask for."""
    reward: tuple[str, ...] = ()
    """my_rewards.py or my_rewards.py:function; functions called gold or gold_... are measured, never paid for."""
    gold: tuple[str, ...] = ()
    """more reward functions that are only measured."""
    reward_weights: tuple[float, ...] = ()
    """weights of the paid reward functions, in their order; default 1."""
    env: str | None = None
    """a text environment in place of a task: door-world, science-world:TASK, text-world:FOLDER, or my_env.py:Class."""
    max_turns: int = 15
    """turns of an episode of --env."""
    max_action_tokens: int = 1
    """tokens of one action of --env."""
    tokenizer: str | None = None
    """folder or id of the tokenizer, where it is not with the model."""
    steps: int = 500
    """optimiser steps."""
    batch_size: int = 8
    """completions a device takes at once."""
    accumulation: int = 1
    """such batches in one optimiser step."""
    num_generations: int = 8
    """completions of each prompt, compared with one another."""
    max_completion_length: int = 256
    """tokens of a completion; with --env of a whole episode, which is cut before the turn that has no room."""
    temperature: float = 1.0
    """of sampling."""
    learning_rate: float = 1e-6
    """of AdamW."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """its decay over the run."""
    max_grad_norm: float = 1.0
    """the gradient is clipped to this norm."""
    beta: float = 0.0
    """weight of the KL divergence to the reference."""
    entropy_coef: float = 0.0
    """weight of the policy's mean entropy a token, which keeps rare actions sampled; grpo's."""
    reset_reference: int = 0
    """steps after which the policy becomes the reference; 0: never. With --beta."""
    loss: str = "dapo"
    """grpo's loss: grpo, dapo, dr_grpo, bnpo, luspo, cispo, sapo or vespo. The useful gamma depends on it."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """what advantages are divided by."""
    gamma: float = 0.0
    """gradreg: strength; 0.001 to 0.01 for large models with mean losses, more for small ones."""
    eps: float = 1e-3
    """gradreg: size of the probe."""
    gamma_warmup: int = 0
    """gradreg: steps before gamma sets in."""
    gamma_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """gradreg: decay of gamma over the run."""
    gr_exclude: tuple[str, ...] = ("embed", "wte", "wpe", "lm_head", "classifier", "score")
    """gradreg: parameters with one of these in their names are not perturbed."""
    coef: float = 0.5
    """gcd: weight of the classification loss."""
    labels: tuple[str, str] = (" bad", " good")
    """gcd: the two verdicts, bad first, one token each."""
    labeler: str = "outcome"
    """gcd: outcome, oracle (the environment's word), or my_judge.py:function of (state, action)."""
    template: str = "{state} {action} Is this action good or bad?"
    """gcd: the question; it begins with {state}."""
    probe: Path | None = None
    """coupling index: JSON lines with state, action and good (true or false)."""
    probe_freq: int = 20
    """steps between its measurements."""
    lora: int = 0
    """rank of low-rank adapters; 0 trains all weights."""
    lora_alpha: int = 0
    """their scale; 0: twice the rank."""
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    """modules that get adapters."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """weights; auto: float32, and as saved under the adapters of --lora on a GPU. Forward passes on a GPU are bfloat16
    unless this says float32, or gradreg probes."""
    eval_task: Path | None = None
    """task for evaluations; default: the first prompts of the task itself."""
    eval_freq: int = 0
    """steps between evaluations; one follows at the end in any case."""
    eval_prompts: int = 32
    """prompts of an evaluation."""
    log_freq: int = 1
    """steps between log lines."""
    checkpoint_freq: int = 100
    """steps between checkpoints."""
    log: tuple[str, ...] = ("csv", "tensorboard")
    """loggers: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """seed of everything random in the run."""
    out: Path = Path("runs")
    """folder under which the run folder is made."""
    name: str | None = None
    """name of the run folder, in place of the time stamp."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """where to train."""


OWNED = {
    "gradreg": ("gamma", "eps", "gamma_warmup", "gamma_schedule", "gr_exclude"),
    "gcd": ("coef", "labels", "labeler", "template"),
}
"""Flags that mean something to one algorithm alone."""

LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulation": 1,
    "num_generations": 2,  # completions are compared
    "max_completion_length": 1,
    "max_turns": 1,
    "max_action_tokens": 1,
    "log_freq": 1,
    "probe_freq": 1,
    "eval_prompts": 1,
    "eval_freq": 0,
    "checkpoint_freq": 0,
    "reset_reference": 0,
    "gamma_warmup": 0,
    "lora": 0,
    "lora_alpha": 0,
    "seed": 0,
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,
    "beta": 0.0,
    "entropy_coef": 0.0,
    "gamma": 0.0,
    "coef": 0.0,
}
"""Flag -> its smallest value."""


def check(flags: Flags, trainer: str) -> None:
    """Raises `UsageError` for what cannot be meant, as far as the flags alone show it."""
    if flags.algorithm not in TRAINERS[trainer]:
        can = [name for name, algorithms in TRAINERS.items() if flags.algorithm in algorithms]
        raise UsageError(f"{flags.algorithm} does not run before {trainer}: choose {' or '.join(can)}")
    if (flags.task is None) == (flags.env is None):
        raise UsageError("give either --task FILE.jsonl or --env NAME")
    if flags.task is not None and not flags.reward:
        raise UsageError("a task needs --reward my_rewards.py: what completions are paid for")
    if flags.env is not None and flags.eval_task is not None:
        raise UsageError("--eval-task goes with --task: an environment is evaluated on episodes of its own")
    _check_numbers(flags)
    for owner, names in OWNED.items():
        for name in names:
            if flags.algorithm != owner and getattr(flags, name) != getattr(Flags, name):
                raise UsageError(f"{_flag(name)} is {owner}'s, not {flags.algorithm}'s: add --algorithm {owner}")
    if flags.algorithm == "gradreg" and not flags.gamma:
        raise UsageError("gradreg needs --gamma above 0: start with 0.001 and raise it in factors of 3")
    if flags.algorithm == "gcd":
        try:
            flags.template.format(state="", action="")
        except (LookupError, ValueError, AttributeError) as error:
            raise UsageError(
                f"--template knows {{state}} and {{action}} and no other name in braces, got {flags.template!r}"
            ) from error
    _check_launch(flags)
    if flags.loss not in LOSSES:
        near = difflib.get_close_matches(flags.loss, LOSSES, n=1)
        raise UsageError(f"unknown loss {flags.loss!r}: {f'did you mean {near[0]!r}?' if near else ', '.join(LOSSES)}")
    if flags.entropy_coef and trainer != "grpo":
        raise UsageError(f"--entropy-coef is grpo's, not {trainer}'s: train grpo, or leave it out")
    if flags.reset_reference and not flags.beta:
        raise UsageError("--reset-reference needs --beta above 0: without it there is no reference")
    if flags.reset_reference and flags.lora:
        raise UsageError("--reset-reference does not go with --lora: adapters have no reference to reset")
    if flags.dtype == "bfloat16" and flags.algorithm == "gradreg":
        raise UsageError("gradreg needs float32 weights, for its probe is a small difference: leave --dtype out")
    if flags.dtype == "bfloat16" and not flags.lora:
        raise UsageError(
            "--dtype bfloat16 loses most updates of full training, which are less than half of the last digit of a "
            "weight: leave --dtype out (on a GPU the passes are bfloat16 all the same), or add --lora 16"
        )
    check_loggers(flags.log)


def _check_numbers(flags: Flags) -> None:
    for name, least in LEAST.items():
        value = getattr(flags, name)
        if not (math.isfinite(value) and value >= least):
            raise UsageError(f"{_flag(name)} must be at least {least:g}, got {value}")
    for name in ("temperature", "eps"):
        value = getattr(flags, name)
        if not (math.isfinite(value) and value > 0.0):
            raise UsageError(f"{_flag(name)} must be above 0, got {value}")
    if flags.seed >= 2**32:
        raise UsageError(f"--seed must be below 2^32, got {flags.seed}")
    if not all(map(math.isfinite, flags.reward_weights)):
        raise UsageError(f"--reward-weights must be finite, got {' '.join(map(str, flags.reward_weights))}")
    rows = flags.batch_size * flags.accumulation * processes()
    if rows % flags.num_generations:
        devices = f" x devices ({flags.batch_size} x {flags.accumulation} x {processes()})" if processes() > 1 else ""
        raise UsageError(
            f"batch_size x accumulation{devices or f' ({flags.batch_size} x {flags.accumulation})'} must be a multiple "
            f"of num_generations ({flags.num_generations})"
        )


def _check_launch(flags: Flags) -> None:
    on = lambda variable: os.environ.get(variable, "").lower() in ("1", "true", "yes")
    for name, variable in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("FSDP", "ACCELERATE_USE_FSDP")):
        if on(variable) and flags.algorithm == "gradreg":
            raise UsageError(
                f"gradreg needs whole gradients between two backward passes, which {name} keeps in pieces: launch "
                "without it (accelerate launch --multi_gpu), or train with --algorithm plain"
            )
        if on(variable) and flags.reset_reference:
            raise UsageError(
                f"--reset-reference needs the whole reference for its checkpoints, which {name} keeps in pieces: "
                "launch without it (accelerate launch --multi_gpu)"
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if flags.algorithm == "gradreg" and precision != "no":
        raise UsageError(
            f"gradreg takes a small difference of two gradients, which {precision} drowns in rounding: launch with "
            "--mixed_precision no"
        )


def processes() -> int:
    """How many processes the launcher has started, by the variables that Accelerate reads."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return max([1, *(int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit())])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
