"""Where this wing is sewn to TRL and transformers: the methods that it overrides, or that call what it overrides.

They are not a public interface. Each is kept here with its parameters and a hash of its source; when an upgrade moves
one, `moved` names it, and what must be read again before the new hash is written down.

    python -m trimtab.language.seams      prints what SEAMS should be with the installed versions
"""

import hashlib
import importlib
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seam:
    """One method of theirs, and what of ours rests on it."""

    where: str
    """module:Class.method"""
    rests: str
    """what of ours must be read again if it moves."""
    signature: str = ""
    digest: str = ""
    """the first 16 digits of the SHA-256 of its source."""


SEAMS: tuple[Seam, ...] = (
    Seam(
        "transformers.trainer:Trainer.training_step",
        "gradreg.GradRegMixin: one _prepare_inputs, one loss, one backward a micro-batch",
        "self, model, inputs, num_items_in_batch",
        "e9760c8ee10308d5",
    ),
    Seam(
        "transformers.trainer:Trainer._prepare_inputs",
        "gradreg.GradRegMixin._prepare_inputs before SFT and DPO",
        "self, inputs",
        "8f8c4e430d2f96d6",
    ),
    Seam(
        "transformers.trainer:Trainer._run_epoch",
        "gradreg.GradRegMixin: sync_gradients at the last micro-batch, clipping and the optimiser after it",
        "self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch",
        "31aff00f34c302a2",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer.training_step",
        "gradreg.GradRegMixin.training_step",
        "self, model, inputs, num_items_in_batch",
        "9e18632f7dd8e8d8",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._prepare_inputs",
        "gradreg.GradRegMixin._prepare_inputs",
        "self, generation_batch",
        "f824e7fb07147956",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer.compute_loss",
        "gcd.GCDMixin",
        "self, model, inputs, return_outputs, num_items_in_batch",
        "a2d6ef8bd29c3e26",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._compute_loss",
        "gcd.GCDMixin._compute_loss; gradreg: what old_per_token_logps means",
        "self, model, inputs",
        "80295546bbdbf6f7",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._get_per_token_logps_and_entropies",
        "gradreg._LogProbs: the model's output has log_probs",
        "self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, pixel_values, image_grid_thw, num_images, pixel_attention_mask, spatial_shapes, num_tiles, image_sizes, token_type_ids, mm_token_type_ids, image_position_ids",
        "ea73c3909275851d",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions",
        "gcd.GCDMixin._generate_and_score_completions; envs.text.rollout",
        "self, inputs",
        "1fa48922792dcd5c",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._generate",
        "envs.text.rollout: what a rollout function returns",
        "self, prompts",
        "2a27fdf8f5e6f356",
    ),
    Seam(
        "trl.trainer.grpo_trainer:GRPOTrainer._calculate_rewards",
        "tasks.Reward: how a reward function is called",
        "self, inputs, prompts, completions, completion_ids_list",
        "736ae29b083840b5",
    ),
    Seam(
        "trl.trainer.rloo_trainer:RLOOTrainer.training_step",
        "gradreg.GradRegMixin.training_step",
        "self, model, inputs, num_items_in_batch",
        "9e18632f7dd8e8d8",
    ),
    Seam(
        "trl.trainer.rloo_trainer:RLOOTrainer._prepare_inputs",
        "gradreg.GradRegMixin._prepare_inputs",
        "self, generation_batch",
        "f824e7fb07147956",
    ),
    Seam(
        "trl.trainer.rloo_trainer:RLOOTrainer._compute_loss",
        "gradreg: old_logps are kept by the trainer",
        "self, model, inputs",
        "c1f9fa0cd5a6948c",
    ),
    Seam(
        "trl.trainer.dpo_trainer:DPOTrainer.training_step",
        "gradreg.GradRegMixin.training_step",
        "self, args, kwargs",
        "bba41f264647016a",
    ),
    Seam(
        "trl.trainer.sft_trainer:SFTTrainer.training_step",
        "gradreg.GradRegMixin.training_step",
        "self, args, kwargs",
        "bba41f264647016a",
    ),
    Seam(
        "trl.trainer.sft_trainer:SFTTrainer.compute_loss",
        "gradreg.GradRegMixin._replay: what it notes down on the trainer",
        "self, model, inputs, return_outputs, num_items_in_batch",
        "ca448211ff653fe6",
    ),
)


def now(seam: Seam) -> Seam:
    """The same seam with the signature and the hash of what is installed. Raises `AttributeError` if it is gone."""
    module, _, path = seam.where.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    function = inspect.unwrap(found)  # TRL times some methods by a decorator
    names = ", ".join(inspect.signature(function).parameters)
    return Seam(seam.where, seam.rests, names, hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16])


def moved(seams: tuple[Seam, ...] = SEAMS) -> list[str]:
    """One line for each seam that is not as it was when this wing was last checked against it."""
    lines = []
    for seam in seams:
        try:
            found = now(seam)
        except (AttributeError, ImportError) as error:
            lines.append(f"{seam.where} is gone ({error}): read {seam.rests}")
            continue
        if found.signature != seam.signature:
            lines.append(f"{seam.where} now takes ({found.signature}), took ({seam.signature}): read {seam.rests}")
        elif found.digest != seam.digest:
            lines.append(f"{seam.where} has another body: read {seam.rests}")
    return lines


def main() -> None:
    """Prints the seams as they are now."""
    for seam in map(now, SEAMS):
        print(f"    {seam!r},")


if __name__ == "__main__":
    main()
