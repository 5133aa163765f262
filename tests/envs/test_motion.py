"""Rotations, clips, files and gaits of the motions, and the environment that follows them."""

import json
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from trimtab.core import UsageError
from trimtab.envs.gym import Collector, spec_of
from trimtab.envs.make import find
from trimtab.envs.motion import MOTIONS, builders, rotations
from trimtab.envs.motion.clip import MotionClip
from trimtab.envs.motion.imitation import REACH, Imitation
from trimtab.envs.motion.readers import JOINTS, NAMES, pybullet_motion, read_deepmimic

RNG = np.random.default_rng(0)
UP = np.array([0.0, 0.0, 1.0])


def random_rotations(n: int) -> np.ndarray:
    q = RNG.normal(size=(n, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def test_rotations_are_mujocos():
    for p, q in zip(random_rotations(20), random_rotations(20), strict=True):
        product, turned, vector = np.zeros(4), np.zeros(3), RNG.normal(size=3)
        mujoco.mju_mulQuat(product, p, q)
        np.testing.assert_allclose(rotations.multiply(p, q), product, atol=1e-12)
        mujoco.mju_rotVecQuat(turned, vector, p)
        np.testing.assert_allclose(rotations.rotate(p, vector), turned, atol=1e-12)
        apart = np.zeros(3)
        mujoco.mju_subQuat(apart, q, p)  # from p to q, in the frame of p
        np.testing.assert_allclose(rotations.between(p, q), apart, atol=1e-9)
    many = random_rotations(20)
    np.testing.assert_allclose(rotations.rotate(many[0], np.eye(3))[1], rotations.rotate(many[0], np.eye(3)[1]))
    same = np.sign(many[:, :1]) * many
    np.testing.assert_allclose(rotations.exponential(rotations.logarithm(many)), same, atol=1e-12)
    small = np.array([1e-12, 0.0, 0.0])
    np.testing.assert_allclose(rotations.logarithm(rotations.exponential(small)), small, rtol=1e-6)


def test_the_heading_is_where_the_body_points():
    yaw = rotations.exponential(0.7 * UP)
    tilted = rotations.multiply(yaw, rotations.exponential(np.array([0.3, -0.4, 0.0])))
    forward = rotations.rotate(tilted, np.array([1.0, 0.0, 0.0]))
    expected = rotations.exponential(np.arctan2(forward[1], forward[0]) * UP)
    np.testing.assert_allclose(rotations.heading(tilted), expected, atol=1e-12)
    np.testing.assert_allclose(rotations.heading(yaw), yaw, atol=1e-12)


def turning(speed: float, cyclic: bool = True) -> MotionClip:
    """A root that turns evenly about its own x axis while it goes forward and up, and one hinge, over 2 seconds."""
    times = np.array([0.0, 0.5, 1.2, 2.0])
    turned = rotations.exponential(speed * times[:, None] * np.array([1.0, 0.0, 0.0]))[:, None]
    turned[2] = -turned[2]  # the same rotation
    position = np.stack([3.0 * times, 0.0 * times, 1.0 + 0.0 * times], axis=1)
    return MotionClip.create(
        times, position, turned, np.array([[0.0], [1.0], [-1.0], [0.0]]), (), ("h",), cyclic=cyclic
    )


def test_frames_and_what_lies_between_them():
    clip = turning(1.3)
    for i, t in enumerate(clip.times[:-1]):
        pose, _ = clip.at(float(t))
        np.testing.assert_allclose(pose.position, clip.position[i], atol=1e-12)
        np.testing.assert_allclose(rotations.between(pose.rotations, clip.rotations[i]), 0.0, atol=1e-9)
        np.testing.assert_allclose(pose.angles, clip.angles[i], atol=1e-12)
    for t in (0.1, 0.7, 1.9):
        pose, rate = clip.at(t)
        np.testing.assert_allclose(rate.turning, [[1.3, 0.0, 0.0]], atol=1e-9)
        np.testing.assert_allclose(rate.position, [3.0, 0.0, 0.0], atol=1e-9)
        np.testing.assert_allclose(rotations.logarithm(pose.rotations), [[1.3 * t, 0.0, 0.0]], atol=1e-9)
    np.testing.assert_allclose(clip.at(0.85)[0].angles, 0.0, atol=1e-12)  # half-way from 1 to -1
    np.testing.assert_allclose(clip.at(0.85)[1].angles, -2.0 / 0.7)


def test_a_cycle_goes_on_from_where_the_last_one_ended():
    clip = turning(np.pi)  # a whole turn a cycle
    for t in (2.0, 4.0):
        before, after = clip.at(t - 1e-7)[0], clip.at(t + 1e-7)[0]
        np.testing.assert_allclose(before.position, after.position, atol=1e-5)
        np.testing.assert_allclose(rotations.between(before.rotations, after.rotations), 0.0, atol=1e-5)
    np.testing.assert_allclose(clip.at(5.0)[0].position, [15.0, 0.0, 1.0])
    assert clip.phase(5.0) == pytest.approx(0.5)
    once = turning(np.pi, cyclic=False)
    np.testing.assert_allclose(once.at(9.0)[0].position, [6.0, 0.0, 1.0])
    assert not once.at(9.0)[1].position.any() and once.phase(9.0) == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(times=np.array([0.0, 1.0, 0.5, 2.0])), "times rise from 0"),
        (dict(angles=np.zeros((4, 2))), "needs arrays of shapes"),
        (dict(rotations=np.ones((4, 1, 4))), "not of length 1"),
        (dict(position=np.full((4, 3), np.nan)), "not finite"),
    ],
)
def test_clips_that_are_none(changes, says):
    clip = turning(1.0)
    parts = dict(times=clip.times, position=clip.position, rotations=clip.rotations, angles=clip.angles) | changes
    with pytest.raises(UsageError, match=says):
        MotionClip.create(**parts, hinges=("h",), cyclic=True)


def deepmimic(frames: int = 3, loop: str = "wrap") -> dict:
    """A file as DeepMimic writes it, y up: the body turns about the vertical, steps to its right, and bends its right
    knee."""
    rows = []
    for i in range(frames):
        half = 0.05 * i
        rows.append([0.1, 0.0, 0.9, 0.2 * i, np.cos(half), 0.0, np.sin(half), 0.0])
        for name, size in JOINTS[1:]:
            angle = -0.3 * i if name == "right_knee" else 0.0
            rows[-1] += [angle] if size == 1 else [1.0, 0.0, 0.0, 0.0]
    return {"Loop": loop, "Frames": rows}


def test_a_file_of_deepmimics(tmp_path):
    path = tmp_path / "turn.txt"
    path.write_text(json.dumps(deepmimic()))
    clip = read_deepmimic(path)
    assert clip.cyclic and clip.duration == pytest.approx(0.2) and len(clip.balls) == 8
    np.testing.assert_allclose(clip.position, [[0, 0, 0.9], [0, -0.2, 0.9], [0, -0.4, 0.9]], atol=1e-12)
    np.testing.assert_allclose(rotations.logarithm(clip.rotations[2, 0]), 0.2 * UP, atol=1e-12)  # z is up now
    np.testing.assert_allclose(clip.angles[:, clip.hinges.index("right_knee")], [0.0, -0.3, -0.6])
    env = Imitation("humanoid", str(path), anywhere=False, noise=0.0)
    env.reset(seed=0)
    env._time = 0.2 - 1e-9
    qpos, _ = env._numbers(*env._reference(env._time))
    mujoco.mj_forward(env.model, env.data)
    assert qpos[env.model.joint("right_knee").qposadr[0]] == pytest.approx(-0.6, abs=1e-6)
    env.data.qpos[:] = qpos
    mujoco.mj_kinematics(env.model, env.data)
    knee, foot = env.data.body("right_shank").xpos, env.data.body("right_foot").xpos
    behind = rotations.rotate(rotations.inverse(clip.rotations[2, 0]), foot - knee)
    assert behind[0] < -0.2 and behind[2] < -0.3  # a knee bends backwards
    right = rotations.rotate(rotations.inverse(clip.rotations[2, 0]), knee - clip.position[2])
    assert right[1] < -0.05  # and the right leg is on the right


def test_quaternions_of_recordings_are_of_any_length_but_0(tmp_path):
    path, record = tmp_path / "turn.txt", deepmimic()
    straight = record["Frames"][1][4:8]
    record["Frames"][1][4:8] = [0.6 * x for x in straight]  # as in pybullet's kick
    path.write_text(json.dumps(record))
    np.testing.assert_allclose(read_deepmimic(path).rotations[1, 0], [straight[0], 0.0, 0.0, straight[2]], atol=1e-12)
    record["Frames"][1][4:8] = [0.0] * 4
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="quaternions of length 0"):
        read_deepmimic(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no motion file of DeepMimic: it needs JSON"),
        (json.dumps({"Loop": "wrap", "Frames": [[0.1] * 43] * 3}), "a frame has 44 numbers"),
        (json.dumps(deepmimic() | {"Loop": "maybe"}), "Loop is wrap or none"),
        (None, "cannot read the motion"),
    ],
)
def test_files_that_are_none(tmp_path, content, says):
    path = tmp_path / "motion.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=says) as error:
        read_deepmimic(path)
    assert "\n" not in str(error.value)


def test_without_pybullet_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install pybullet"):
        pybullet_motion("walk")
    monkeypatch.undo()
    assert all(f"trimtab/HumanoidMimic{name.title().replace('_', '')}-v0" in gymnasium.registry for name in NAMES)


def test_an_installed_pybullet_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "pybullet_data" / "data" / "motions"
    folder.mkdir(parents=True)
    (tmp_path / "pybullet_data" / "__init__.py").write_text("")
    (folder / "humanoid3d_kick.txt").write_text(json.dumps(deepmimic(loop="none")))
    monkeypatch.syspath_prepend(str(tmp_path))
    env = gymnasium.make("trimtab/HumanoidMimicKick-v0", disable_env_checker=True)
    assert not env.unwrapped.clip.cyclic
    env.reset(seed=0)
    ends = [env.step(np.zeros(28))[2:4] for _ in range(12)]
    assert ends[-1] == (False, True) and ends[0] == (False, False)  # the clip is over: cut, not terminated


def lowest(env: Imitation, t: float) -> float:
    """Height of the lowest point of the feet above the ground in the reference."""
    env.data.qpos[:], _ = env._numbers(*env._reference(t))
    mujoco.mj_kinematics(env.model, env.data)
    heights = []
    for foot in env.body.feet:
        geom = int(env.model.body(foot).geomadr[0])
        size = env.model.geom_size[geom]
        down = size[0] if env.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE else size[2]
        heights.append(env.data.geom_xpos[geom][2] - down)
    return min(heights)


@pytest.mark.parametrize(("body", "clip"), [("quadruped", "trot"), ("quadruped", "hop"), ("humanoid", "walk")])
def test_made_motions_stand_on_the_ground(body, clip):
    env = Imitation(body, clip, noise=0.0)
    found = [lowest(env, t) for t in env.clip.times]
    grounded = np.array([t <= 0.35 for t in env.clip.times]) if clip == "hop" else np.ones(len(found), bool)
    np.testing.assert_allclose(np.array(found)[grounded], 0.0, atol=1e-3)
    assert min(found) > -1e-3
    first, end = env.clip.at(0.0)[0], env.clip.at(env.clip.duration)[0]
    np.testing.assert_allclose(first.rotations, end.rotations, atol=1e-9)
    np.testing.assert_allclose(first.angles, end.angles, atol=1e-9)


def test_hops_fly_freely_and_trots_go_as_fast_as_their_feet():
    clip = builders.hop()
    flying = clip.times > 0.35 + 1e-9
    height, times = clip.position[flying, 2], clip.times[flying]
    np.testing.assert_allclose(np.diff(height, 2) / np.diff(times)[0] ** 2, -9.81, rtol=1e-6)
    left, landed = (clip.at(t)[1].position[2] for t in (0.36, 0.59))
    assert left == pytest.approx(1.15, abs=0.1) and landed == pytest.approx(-1.15, abs=0.1)  # about g times 0.25 / 2
    env = Imitation("quadruped", "trot")
    foot = env.model.body("front_left_foot").id

    def place(t: float) -> float:
        env.data.qpos[:], _ = env._numbers(*env._reference(t))
        mujoco.mj_kinematics(env.model, env.data)
        return float(env.data.xpos[foot][0])

    assert place(0.375) == pytest.approx(place(0.125), abs=0.01)  # its stance: it stays where it is
    assert place(0.625) - place(0.125) == pytest.approx(env.clip.position[-1, 0], abs=0.01)
    turned = builders.flip().at(0.35 + 0.3)[0].rotations[0]
    np.testing.assert_allclose(rotations.rotate(turned, UP), -UP, atol=1e-6)  # on its back half-way


@pytest.mark.parametrize(("body", "clip"), [("quadruped", "trot"), ("humanoid", "walk")])
def test_rates_are_the_change_of_poses(body, clip):
    env, t, h = Imitation(body, clip), 0.1234, 1e-6
    now, rate = env._numbers(*env._reference(t))
    after, _ = env._numbers(*env._reference(t + h))
    change = np.zeros(env.model.nv)
    mujoco.mj_differentiatePos(env.model, change, h, now, after)
    np.testing.assert_allclose(change, rate, atol=1e-4)


@pytest.mark.parametrize(("body", "clip"), [("quadruped", "trot"), ("humanoid", "walk")])
def test_the_reward_by_hand(body, clip):
    env = Imitation(body, clip, noise=0.0)
    env.reset(seed=1)
    pose, rate = env._reference(env._time)
    total = lambda pose, rate: sum(env.reward_parts(pose, rate, *env._reference(env._time)).values())
    assert total(pose, rate) == pytest.approx(1.0)
    ahead = replace(pose, position=pose.position + np.array([0.2, 0.0, 0.1]))
    assert total(ahead, rate) == pytest.approx(0.8 + 0.2 * np.exp(-5 * 0.05))
    faster = replace(rate, position=rate.position + np.array([0.5, 0.0, 0.0]))
    assert total(pose, faster) == pytest.approx(0.7 + 0.2 * np.exp(-5 * 0.01 * 0.25) + 0.1 * np.exp(-0.25))
    angles, name = pose.angles.copy(), "front_left_knee" if body == "quadruped" else "right_knee"
    hinges = [env.model.joint(i).name for i in range(1, env.model.njnt)]
    hinges = [n for n in hinges if n in env.clip.hinges]
    angles[hinges.index(name)] += 0.4
    parts = env.reward_parts(replace(pose, angles=angles), rate, pose, rate)
    share = (1 / 15) if body == "quadruped" else 0.0625 / 0.9993
    assert parts["reward_pose"] == pytest.approx(0.5 * np.exp(-2 * share * 0.16), rel=1e-6)
    assert parts["reward_ends"] < 0.15 and parts["reward_root"] == pytest.approx(0.2)
    turned = pose.rotations.copy()
    turned[0] = rotations.multiply(turned[0], rotations.exponential(np.array([0.0, 0.3, 0.0])))
    parts = env.reward_parts(replace(pose, rotations=turned), rate, pose, rate)
    share = 0.2 if body == "quadruped" else 0.208 / 0.9993
    assert parts["reward_pose"] == pytest.approx(0.5 * np.exp(-2 * share * 0.09), rel=1e-6)
    assert parts["reward_root"] == pytest.approx(0.2 * np.exp(-5 * 0.1 * 0.09), rel=1e-6)
    spun = rate.turning.copy()
    spun[0] += np.array([0.0, 0.0, 2.0])
    parts = env.reward_parts(pose, replace(rate, turning=spun), pose, rate)
    assert parts["reward_velocity"] == pytest.approx(0.05 * np.exp(-0.1 * share * 4.0), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning")  # bounds are infinite, as MuJoCo's are
@pytest.mark.parametrize("name", ["QuadrupedTrot", "HumanoidWalk"])
def test_a_sound_environment(name):
    env = gymnasium.make(f"trimtab/{name}-v0", disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    spec = spec_of(env)
    assert set(spec.obs) == {"phase", "reference", "state"} and spec.obs["state"] == spec.obs["reference"]
    obs, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    assert all(np.array_equal(obs[part], again[part]) for part in obs)
    assert np.abs(obs["state"] - obs["reference"]).max() < 0.1
    assert find(f"trimtab/{name}-v0").spec.action_size == env.action_space.shape[0]


def test_episodes_begin_anywhere_and_actions_shift_the_targets():
    env, times = Imitation("quadruped", "trot"), []
    for seed in range(40):
        env.reset(seed=seed)
        times.append(env._time / env.clip.duration)
    assert min(times) < 0.15 and max(times) > 0.85
    human = Imitation("humanoid", "walk", noise=0.02)
    human.reset(seed=0)
    wanted, _ = human._reference(human._time)
    apart = rotations.between(wanted.rotations, human._own()[0].rotations)
    assert np.abs(apart[0]).max() < 1e-9 and 0.01 < apart[1:].std() < 0.03  # ball joints are shifted, the root is not
    first = Imitation("quadruped", "trot", anywhere=False, noise=0.0)
    obs, _ = first.reset(seed=0)
    np.testing.assert_allclose(obs["state"], obs["reference"], atol=1e-12)
    np.testing.assert_allclose(obs["phase"], [0, 0, 0, 1, 1, 1], atol=1e-12)
    action = np.linspace(-2.0, 1.0, 12)
    *_, info = first.step(action)
    expected = first._joints(first._reference(1 / 60)[0]) + REACH * np.clip(action, -1.0, 1.0)
    np.testing.assert_allclose(info["target"], expected)


def test_a_fall_ends_the_episode():
    env = Imitation("quadruped", "trot", noise=0.0)
    env.reset(seed=0)
    pose, rate = env._reference(env._time)
    away = replace(pose, position=pose.position + np.array([0.0, 0.9, 0.0]))  # farther than 0.7 from the reference
    env.set_state(*env._numbers(away, rate))
    assert env.step(np.zeros(12))[2:4] == (True, False)
    env.reset(seed=0)
    down = replace(pose, position=np.array([pose.position[0], 0.0, 0.1]))  # the trunk is on the ground
    env.set_state(*env._numbers(down, rate))
    assert env.step(np.zeros(12))[2:4] == (True, False)
    env.reset(seed=0)
    assert env.step(np.zeros(12))[2:4] == (False, False)


def handstand(may_touch: tuple[str, ...] | None) -> tuple[bool, set[str]]:
    """Whether an episode ends that begins on both hands, and what touches the ground then."""
    env = Imitation("humanoid", "walk", noise=0.0, anywhere=False, may_touch=may_touch)
    env.reset(seed=0)
    pose, rate = env._reference(0.0)
    over = rotations.exponential(np.array([0.0, np.pi, 0.0]))
    turned = np.broadcast_to(np.eye(4)[0], pose.rotations.shape).copy()
    balls = [n for n in (env.model.joint(i).name for i in range(1, env.model.njnt)) if n in env.clip.balls]
    for joint in ("right_shoulder", "left_shoulder"):
        turned[1 + balls.index(joint)] = over
    turned[0] = over
    high = np.array([pose.position[0], 0.0, 0.2362 + 0.2435 + 0.2748 + 0.2589 + 0.03])
    env.set_state(*env._numbers(replace(pose, position=high, rotations=turned, angles=0.0 * pose.angles), rate))
    fallen = env.step(np.zeros(28))[2]
    return fallen, {env.model.body(env.model.geom_bodyid[g]).name for g in env.data.contact.geom.ravel()} - {"world"}


def test_hands_may_touch_the_ground_where_the_motion_does():
    hands = {"right_wrist", "left_wrist"}
    assert handstand(()) == (True, hands)
    assert handstand(tuple(hands)) == (False, hands) and handstand(None) == (False, hands)
    assert handstand(("right_wrist",)) == (True, hands)
    parts = {name: gymnasium.spec(f"trimtab/{name}-v0").kwargs.get("may_touch", ()) for name in MOTIONS}
    assert hands < set(parts["HumanoidMimicCartwheel"]) and parts["HumanoidMimicWalk"] == ()
    free = {name for name, may_touch in parts.items() if may_touch is None}
    assert free == {f"HumanoidMimic{name}" for name in ("Crawl", "Roll", "GetupFaceup", "GetupFacedown")}
    with pytest.raises(UsageError, match="the quadruped has no part 'hand': choose from trunk, "):
        Imitation("quadruped", "trot", may_touch=("hand",))


def test_the_state_comes_back_exactly():
    make = lambda: gymnasium.make("trimtab/QuadrupedTrot-v0", disable_env_checker=True)
    spec = spec_of(make())
    one, other = Collector(make, 1, spec, 0), Collector(make, 1, spec, 5)
    actions = RNG.uniform(-0.2, 0.2, (12, 1, 12)).astype(np.float32)
    for i in range(4):
        one.step(actions[i], i)
    assert other.restore({k: np.array(v) for k, v in one.state().items()})
    for i in range(4, 12):
        a, b = one.step(actions[i], i), other.step(actions[i], i)
        assert a.reward == b.reward and np.array_equal(a.next_obs["state"], b.next_obs["state"])


def test_what_there_is_not():
    with pytest.raises(UsageError, match="unknown body 'dog': choose quadruped or humanoid"):
        Imitation("dog")
    with pytest.raises(UsageError, match="the clip is not of the joints of the humanoid"):
        Imitation("humanoid", "trot")
    assert {body for body, _, _ in MOTIONS.values()} == {"quadruped", "humanoid"}
