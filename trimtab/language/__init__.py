"""The wing for language models: PyTorch and Hugging Face TRL (extra `language`). It shares no code with the JAX side.

    trimtab language train grpo --model PATH_OR_ID --algorithm gradreg --task FILE.jsonl --reward my_rewards.py

PyTorch is imported by the files of this folder, never by the folder itself.
"""

import importlib.util

from trimtab.errors import UsageError

NEEDED = ("torch", "transformers", "trl", "peft")


def require() -> None:
    """Raises `UsageError` with the line that installs what is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}: pip install 'trimtab[language]'")
