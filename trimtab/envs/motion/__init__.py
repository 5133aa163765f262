"""Bodies that follow reference motions in MuJoCo. Importing this registers them with Gymnasium and loads none."""

from typing import Any

import gymnasium

from trimtab.envs.motion.readers import NAMES

MOTIONS: dict[str, tuple[str, str, int]] = {
    "QuadrupedTrot": ("quadruped", "trot", 300),
    "QuadrupedHop": ("quadruped", "hop", 300),
    "QuadrupedFlip": ("quadruped", "flip", 300),
    "HumanoidWalk": ("humanoid", "walk", 300),
}
"""Name -> body, clip, and the longest episode in steps of a sixtieth of a second."""

MOTIONS |= {f"HumanoidMimic{name.title().replace('_', '')}": ("humanoid", f"humanoid3d_{name}", 300) for name in NAMES}

ARMS = tuple(f"{side}_{part}" for side in ("right", "left") for part in ("wrist", "forearm"))

MAY_TOUCH: dict[str, tuple[str, ...] | None] = {
    "HumanoidMimicCartwheel": ARMS,
    "HumanoidMimicCrawl": None,
    "HumanoidMimicGetupFacedown": None,
    "HumanoidMimicGetupFaceup": None,
    "HumanoidMimicRoll": None,
}
"""Bodies that may touch the ground beside the feet, None for all, where the motion itself touches it with them."""

for _name, (_body, _clip, _steps) in MOTIONS.items():
    _kwargs: dict[str, Any] = dict(body=_body, clip=_clip)
    if _name in MAY_TOUCH:
        _kwargs["may_touch"] = MAY_TOUCH[_name]
    if f"trimtab/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            id=f"trimtab/{_name}-v0",
            entry_point="trimtab.envs.motion.imitation:Imitation",
            max_episode_steps=_steps,
            kwargs=_kwargs,
        )
