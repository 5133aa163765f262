"""The only loop, the only jit, evaluation and checkpoints."""
