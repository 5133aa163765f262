"""What the methods for language models add to one optimiser step of GRPO, generation left out.

A Llama of 4 layers and width 256 (1,000 words) takes 32 completions of 32 tokens after prompts of 32; GCD judges 16
pairs of 66 tokens beside them. Plain GRPO of TRL is the peer: its steps a second over ours are the cost, at most 2.2
for gradient regularisation and 1.6 for classification.
"""

import os
import sys
import tempfile
import time
import warnings

from pairs import arguments, rates, row, serve, show, write

WORDS, PROMPT, COMPLETION, BATCH, PAIRS = 1_000, 32, 32, 32, 16
LIMITS = {"gradreg": 2.2, "gcd": 1.6}


def ours(name: str):
    """`plain`, `gradreg` or `gcd`: a function that takes n optimiser steps on one batch and tells the seconds."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    warnings.simplefilter("ignore")
    import torch
    from datasets import Dataset
    from trl import GRPOTrainer

    from trimtab.language.gcd import GCD, GCDGRPOTrainer, OracleLabeler, Step
    from trimtab.language.gradreg import GradRegGRPOConfig, GradRegGRPOTrainer
    from trimtab.language.tiny import tiny_model, word_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"w{i}" for i in range(WORDS)])
    draw = lambda n: torch.randint(4, WORDS, (n,)).tolist()

    def play(prompts, trainer):
        steps = [[Step(tokenizer.decode(draw(64)), "w1", 0.0, good=i % 2 == 0)] for i in range(len(prompts))]
        ids = lambda n: [draw(n) for _ in prompts]
        return dict(prompt_ids=ids(PROMPT), completion_ids=ids(COMPLETION), logprobs=None, steps=steps)

    kinds = {"plain": GRPOTrainer, "gradreg": GradRegGRPOTrainer, "gcd": GCDGRPOTrainer}
    with tempfile.TemporaryDirectory() as folder:
        trainer = kinds[name](
            model=tiny_model(tokenizer, width=256, layers=4, positions=256),
            reward_funcs=lambda completions, **columns: [float(i % 3) for i in range(len(completions))],
            args=GradRegGRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                num_generations=8,
                max_completion_length=COMPLETION,
                gr_gamma=1.0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                max_steps=10,
            ),
            train_dataset=Dataset.from_list([{"prompt": "w0"}] * BATCH),
            processing_class=tokenizer,
            rollout_func=play,
        )
    if isinstance(trainer, GCDGRPOTrainer):
        trainer.gcd = GCD(OracleLabeler(), template="{state} w2 {action}", labels=("w3", "w4"), max_pairs=PAIRS)
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "w0"} for _ in range(BATCH)])
    trainer._generate_and_score_completions = lambda inputs: batch
    trainer.accelerator.gradient_state._set_sync_gradients(True)

    def work(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            trainer.training_step(trainer.model, [], None)
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        return time.perf_counter() - began

    return work


def main() -> int:
    """Measures and prints the table; 1 if a method costs more than it may."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(ours(flags.worker))
        return 0
    names = ["plain", *LIMITS]
    found = rates(__file__, names, "step", dict.fromkeys(names, 2), 5 if flags.quick else 15)
    table = [row(f"{name}, one step", found[name], found["plain"], "TRL's GRPO", "steps/s") for name in LIMITS]
    show(table)
    costs = {name: 1.0 / line["ratio"] for name, line in zip(LIMITS, table, strict=True)}
    for name, limit in LIMITS.items():
        print(f"{name}: {costs[name]:.2f} times the plain step (at most {limit})")
    write(flags.json, table, samples=found, costs=costs, limits=LIMITS)
    return int(any(costs[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
