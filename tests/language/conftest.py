"""Tiny models and trainers for the wing's tests, which are skipped where the extra `language` is not installed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before Hugging Face is imported: no test may reach the network
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

WORDS = [f"w{i}" for i in range(12)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are quicker on one thread, and their sums do not depend on the number of cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a word: w0 .. w11."""
    from trimtab.language.tiny import word_tokenizer

    return word_tokenizer(WORDS)


@pytest.fixture
def model(tokenizer: Any) -> Any:
    """A Llama of two blocks and width 16; the same one in each test."""
    from trimtab.language.tiny import tiny_model

    return tiny_model(tokenizer, width=16, layers=2, heads=2, positions=32)


def low_words(prompts: list, completions: list[str], **columns: Any) -> list[float]:
    """The share of a completion's words that are w0 .. w3, by the reward function's signature in TRL."""
    del prompts, columns
    shares = [[word in WORDS[:4] for word in text.split()] for text in completions]
    return [sum(share) / max(1, len(share)) for share in shares]


@pytest.fixture
def make_grpo(model: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """`make_grpo(TrainerClass, ConfigClass, **options)`: a trainer of 8 completions of 6 tokens, three steps."""
    from datasets import Dataset

    def make(trainer: Any, config: Any, **options: Any) -> Any:
        settings = dict(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=6,
            max_steps=3,
            learning_rate=1e-3,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1.0,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=3,
        )
        prompts = Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(8)])
        return trainer(
            model=model,
            reward_funcs=low_words,
            args=config(**(settings | options)),
            train_dataset=prompts,
            processing_class=tokenizer,
        )

    return make


def weights(trainer: Any) -> list[Any]:
    """Copies of a trainer's parameters."""
    return [p.detach().clone() for p in trainer.model.parameters()]
