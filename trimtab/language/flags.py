"""The flags of `trimtab language train`. They need no PyTorch: `--help` and wrong flags are answered at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TRAINERS = ("grpo", "rloo")
"""Trainers of TRL that the command runs."""


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
    """tokens of a completion."""
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
    """weights; auto: float32 on the CPU and for gradreg, whose probe bfloat16 would lose; else as saved."""
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
