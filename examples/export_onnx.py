"""Ship a policy as one ONNX file: no Trimtab and no JAX where it runs.

    python examples/export_onnx.py
    trimtab export RUN --format onnx    # the same for any run, from the command line

Needs the extra `export`. Some 15 seconds on two cores.
"""

import gymnasium
import numpy as np
import onnxruntime

import trimtab
from trimtab.training.export import check_parity, export_onnx

run = trimtab.train("sac", "InvertedPendulum-v5", steps=2_000, eval_freq=1_000)
policy = run.policy

# Observation in, action in the environment's own units out: the scaling of the action is part of the file.
path = export_onnx(policy.function(), policy.spec.zero_obs(), run.path / "policy.onnx")
difference = check_parity(policy.function(), path, policy.spec.zero_obs())
print(f"{path} ({path.stat().st_size / 1024:.0f} kB), largest difference from the policy {difference:.1e}")

session = onnxruntime.InferenceSession(str(path))
env = gymnasium.make("InvertedPendulum-v5")
obs, over, total = env.reset(seed=0)[0], False, 0.0
while not over:
    (action,) = session.run(["action"], {"obs": obs[None].astype(np.float32)})  # a batch of one
    obs, reward, terminated, truncated, _ = env.step(action[0])
    over, total = terminated or truncated, total + float(reward)
print(f"an episode by onnxruntime: return {total:.0f}")
