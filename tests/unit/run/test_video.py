"""Videos: readable files with the right frames, the software renderer against geometry, errors that name the fix."""

import ctypes
import gc
import logging
import os
import subprocess
import sys
import time
import warnings

import gymnasium
import imageio.v3 as iio
import imageio_ffmpeg
import mujoco  # here, so that no test imports it first while MUJOCO_GL is patched
import numpy as np
import pytest

from trimtab.run.raycast import Raycaster
from trimtab.run.video import VideoError, choose_gl, gl_works, record


class Walk(gymnasium.Env):
    """A white column that stands at pixel `10 * step`; ends after `length` steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, length=6, fps=20, size=(61, 91), fail=None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self._length, self._size, self._fail, self.closed, self.seeds = length, size, fail, False, []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._step += 1
        return np.zeros(1, np.float32), 1.0, self._step == self._length, False, {}

    def render(self):
        if isinstance(self._fail, Exception):
            raise self._fail
        if self._fail == "none":
            return None
        frame = np.zeros((*self._size, 3), np.uint8)
        frame[:, 10 * self._step : 10 * self._step + 10] = 255
        return frame

    def close(self):
        self.closed = True


class Constant:
    """A policy that always does the same."""

    def __init__(self, action):
        self._action = np.array(action, np.float32)

    def predict(self, obs, state=None, *, deterministic=True):
        assert deterministic
        return self._action, None


def read(path):
    """The frames of an mp4. imageio-ffmpeg leaves its pipes to the garbage collector when it reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        frames = iio.imread(path)
        gc.collect()
    return frames


def facts(path):
    """What ffmpeg says of an mp4: codec, pix_fmt, fps and others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        reader = imageio_ffmpeg.read_frames(str(path))
        found = next(reader)
        reader.close()
        del reader
        gc.collect()
    return found


def columns(frames):
    """The step that each frame of a `Walk` shows."""
    return [int(np.argmax(frame.sum((0, 2), dtype=float)) // 10) for frame in frames]


def test_file_is_h264_with_one_frame_a_step(tmp_path):
    env = Walk()
    path = record(Constant([0.0]), lambda mode: env, tmp_path / "sub" / "a.mp4", episodes=2, seed=7)
    frames = read(path)
    assert columns(frames) == [0, 1, 2, 3, 4, 5, 6] * 2  # the state after reset, then each step
    assert frames.shape[1:] == (62, 92, 3)  # yuv420p needs even sizes
    found = facts(path)
    assert found["codec"] == "h264" and found["pix_fmt"].startswith("yuv420p") and found["fps"] == 20.0
    assert env.seeds == [7, 8] and env.closed
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("fps", "length", "shown", "rate"),
    [(None, 6, [0, 3, 6], 80 / 3), (None, 7, [0, 3, 6, 7], 80 / 3), (80, 2, [0, 1, 2], 80.0), (40, 3, [0, 2, 3], 40.0)],
)
def test_fast_environments_play_in_real_time(tmp_path, fps, length, shown, rate):
    path = record(Constant([0.0]), lambda mode: Walk(length, fps=80), tmp_path / "a.mp4", fps=fps)
    assert columns(read(path)) == shown
    assert facts(path)["fps"] == pytest.approx(rate, abs=0.01)


def test_max_frames_ends_the_video(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = record(Constant([0.0]), lambda mode: Walk(), tmp_path / "a.mp4", episodes=3, max_frames=9)
    assert columns(read(path)) == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert "after 9 frames, in episode 2" in caplog.text
    caplog.clear()
    record(Constant([0.0]), lambda mode: Walk(), tmp_path / "b.mp4", max_frames=7)
    assert not caplog.text


def test_caption_tells_the_step(tmp_path):
    path = record(Constant([0.0]), lambda mode: Walk(1, size=(120, 160)), tmp_path / "a.mp4")
    first, last = read(path).astype(int)
    corner = np.s_[100:, 60:]  # the column stands left of it
    assert first[corner].max() > 100 and np.abs(first[corner] - last[corner]).max() > 100
    assert first[:90, 60:].max() < 20


def test_errors_name_the_fix_and_leave_no_file(tmp_path):
    pygame = gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install gymnasium[classic]`")
    for failure, message in ((pygame, r"missing: `pip install pygame`$"), ("none", "render_mode")):
        env = Walk(fail=failure)
        with pytest.raises(VideoError, match=message):
            record(Constant([0.0]), lambda mode, env=env: env, tmp_path / "a.mp4")
        assert env.closed and not list(tmp_path.iterdir())

    def missing(mode):
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed, run `pip install swig`")

    with pytest.raises(VideoError, match="Box2D is not installed"):
        record(Constant([0.0]), missing, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"\.mp4 file, not 'a\.gif'"):
        record(Constant([0.0]), lambda mode: Walk(), tmp_path / "a.gif")
    with pytest.raises(ValueError, match="must be positive"):
        record(Constant([0.0]), lambda mode: Walk(), tmp_path / "a.mp4", episodes=0)


def test_an_interrupted_video_leaves_the_old_one(tmp_path):
    path = record(Constant([0.0]), lambda mode: Walk(), tmp_path / "a.mp4")
    old = path.read_bytes()

    class Broken(Constant):
        def predict(self, obs, state=None, *, deterministic=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(Broken([0.0]), lambda mode: Walk(), path)
    assert path.read_bytes() == old and [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def pole_pixels(image):
    """Row and column of the teal pixels of InvertedPendulum's pole."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return np.argwhere((green > red + 60) & (blue > red + 60))


def test_without_opengl_the_ray_caster_films(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    make_env = lambda mode: gymnasium.make("InvertedPendulum-v5", render_mode=mode, reset_noise_scale=0.0)
    with caplog.at_level(logging.WARNING):
        path = record(Constant([1.0]), make_env, tmp_path / "a.mp4")
    assert "software ray caster" in caplog.text and "MUJOCO_GL turns it off" in caplog.text
    frames = read(path)
    # The cart is pushed to the right, so the pole falls to the left until the episode ends; at 25 steps a second.
    env = make_env(None)
    env.reset(seed=0)
    steps, ended = 0, False
    while not ended:
        _, _, ended, _, _ = env.step(np.ones(1, np.float32))
        steps += 1
    assert len(frames) == steps + 1 and frames.shape[1:] == (300, 400, 3)
    upright, fallen = pole_pixels(frames[0]), pole_pixels(frames[-1])
    assert len(upright) > 1000 and len(fallen) > 1000
    lean = lambda pixels: np.polyfit(pixels[:, 0], pixels[:, 1], 1)[0]  # columns a row, positive to the left upwards
    assert abs(lean(upright)) < 0.02
    assert lean(fallen) == pytest.approx(np.tan(-env.unwrapped.data.qpos[1]), abs=0.06)
    assert len(set(map(tuple, upright)) & set(map(tuple, fallen))) < 0.7 * len(upright)
    env.close()


def test_with_opengl_gymnasium_draws(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
    if not gl_works(choose_gl()):
        pytest.skip("no OpenGL on this machine")
    program = (
        "import gymnasium, sys, numpy as np; from trimtab.run.video import record\n"
        "class Policy:\n    def predict(self, obs, state, *, deterministic): return np.zeros(3, np.float32), None\n"
        "make = lambda mode: gymnasium.make('Hopper-v5', render_mode=mode, max_episode_steps=4, width=64, height=48)\n"
        "record(Policy(), make, sys.argv[1], fps=200)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.mp4")], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    frames = read(tmp_path / "a.mp4")
    assert frames.shape == (5, 48, 64, 3) and frames.std() > 10


SCENE = """
<mujoco>
  <worldbody>
    {floor}
    <geom name="ball" type="sphere" size="0.2" pos="0.5 0 1" rgba="0.9 0.1 0.1 1"/>
    <body name="runner" pos="0 0 1"><joint type="slide" axis="1 0 0"/>
      <geom type="box" size="0.1 0.1 0.1" rgba="0.1 0.1 0.9 1"/></body>
    <site type="sphere" size="0.15" pos="-0.6 0 1" rgba="0.1 0.9 0.1 1"/>
  </worldbody>
</mujoco>
"""
FLOOR = '<geom type="plane" size="9 9 1" rgba="0.8 0.8 0.8 1"/>'


def draw(floor="", slide=0.0, **camera):
    model = mujoco.MjModel.from_xml_string(SCENE.format(floor=floor))
    data = mujoco.MjData(model)
    data.qpos[0] = slide
    mujoco.mj_forward(model, data)
    config = {"lookat": np.array([0.0, 0.0, 1.0]), "distance": 4.0, "azimuth": 90.0, "elevation": 0.0} | camera
    return Raycaster(model, data, width=240, height=180, camera_config=config).frame().astype(int)


def strongest(image, channel):
    """Row and column of the pixels in which one colour stands far above the others."""
    others = np.delete(image, channel, axis=2).max(2)
    return np.argwhere(image[:, :, channel] > others + 50)


def test_ray_caster_places_things_where_geometry_says():
    image = draw()
    pixels_a_metre = 180 / (2 * 4.0 * np.tan(np.radians(45 / 2)))  # at the distance of the camera's target
    for channel, x, area in ((0, 0.5, np.pi * 0.2**2), (1, -0.6, np.pi * 0.15**2)):
        seen = strongest(image, channel)
        np.testing.assert_allclose(seen.mean(0), [89.5, 119.5 + x * pixels_a_metre], atol=0.6)
        assert len(seen) == pytest.approx(area * pixels_a_metre**2, rel=0.06)
    box = strongest(image, 2)
    assert len(box) == pytest.approx((0.2 * pixels_a_metre * 4.0 / 3.9) ** 2, rel=0.15)  # its front face, nearer
    assert image[5].mean() < image[85, :20].mean()  # the sky darkens upwards
    # Lit from the viewer's upper left.
    ball = strongest(image, 0)
    rows, middle = ball[:, 0], ball[:, 0].mean()
    red = image[ball[:, 0], ball[:, 1], 0]
    assert red[rows < middle - 4].mean() > red[rows > middle + 4].mean() + 20
    assert red[ball[:, 1] < ball[:, 1].mean() - 4].mean() > red[ball[:, 1] > ball[:, 1].mean() + 4].mean() + 10


def test_camera_follows_the_tracked_body_and_the_floor_passes_by():
    view = dict(floor=FLOOR, elevation=-20.0)
    still, moved = draw(**view), draw(**view, slide=2.3)
    assert strongest(moved, 2)[:, 1].mean() > 200 or len(strongest(moved, 2)) == 0  # out of a fixed view
    still, moved = draw(**view, trackbodyid=1), draw(**view, trackbodyid=1, slide=2.3)
    np.testing.assert_allclose(strongest(moved, 2).mean(0), strongest(still, 2).mean(0), atol=0.6)
    assert np.abs(still[150:] - moved[150:]).mean() > 2.0
    # A shadow: somewhere on the floor it is much darker than any tile.
    tiles = still[120:].sum(2)
    assert tiles.min() < 0.75 * np.median(tiles)


@pytest.mark.parametrize("name", ["Hopper-v5", "InvertedPendulum-v5"])
def test_a_frame_is_fast(name):
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    caster = Raycaster(env.model, env.data, camera_config=env.mujoco_renderer.default_cam_config)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        image = caster.frame()
        times.append(time.perf_counter() - start)
    assert image.shape == (240, 320, 3) and image.std() > 5
    assert min(times) < 0.3  # 0.02 to 0.05 s on an idle core


def test_choose_gl(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    present = set()

    def load(library):
        if library not in present:
            raise OSError(library)

    monkeypatch.setattr(ctypes, "CDLL", load)
    for libraries, name in (
        (set(), "disabled"),
        ({"libOSMesa.so.8"}, "osmesa"),
        ({"libOSMesa.so.8", "libEGL.so.1"}, "egl"),
    ):
        monkeypatch.setenv("MUJOCO_GL", "")
        present = libraries
        assert choose_gl() == name
        assert choose_gl() == name  # and stays
    present = {"libEGL.so.1"}
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert choose_gl() == "osmesa"  # the user's choice
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setenv("DISPLAY", ":0")
    assert choose_gl() == ""
    assert not gl_works("disabled")
