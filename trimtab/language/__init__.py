"""The wing for language models: PyTorch and Hugging Face TRL (extra `language`). It shares no code with the JAX side.

    trimtab language train grpo --model PATH_OR_ID --algorithm gradreg --task FILE.jsonl --reward my_rewards.py

PyTorch is imported by the files of this folder, never by the folder itself. Hugging Face reads its variables once, when
it is imported: what of them matters is set here, before.
"""

import importlib.util
import os
from pathlib import Path

from trimtab.errors import UsageError

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout functions: seams.py watches what they rest on

NEEDED = ("torch", "transformers", "trl", "peft")


def require() -> None:
    """Raises `UsageError` with the line that installs what is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}: pip install 'trimtab[language]'")


def stay_offline(model: str, tokenizer: str | None = None) -> None:
    """Nothing is asked of the network where all that is read lies on disk. Call it before Hugging Face is imported."""
    if all(Path(place).exists() for place in (model, tokenizer) if place is not None):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
