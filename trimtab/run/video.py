"""Videos of a policy: H.264 files that every browser plays.

A MuJoCo environment is drawn by OpenGL where that works. On a machine without (no display, no EGL, no OSMesa, or
`MUJOCO_GL=disabled`) the frames come from the ray caster of `run/raycast.py` instead: the same motion and camera angle,
but our own light and floor, so such a video does not look like Gymnasium's; a warning in the log says so.
"""

import ctypes
import functools
import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

log = logging.getLogger(__name__)

FALLBACK_SIZE = (400, 300)  # pixels; some 60 ms a frame
PROBE = """
import mujoco, os
context = mujoco.GLContext(32, 32)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
os._exit(0)  # some drivers crash while they shut down, which is no reason not to use them
"""


class VideoError(RuntimeError):
    """No frames can be had from this environment; the message names the fix."""


@runtime_checkable
class Predictor(Protocol):
    """What is filmed: observation in, action out, both numpy and in the environment's own units. What it answers
    beside the action comes back as `state` within an episode.
    """

    def predict(self, observation: Any, state: Any, *, deterministic: bool) -> tuple[Any, Any]: ...


def record(
    policy: Predictor,
    make_env: Callable[[str], Any],
    path: str | Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    fps: int | float | None = None,
    max_frames: int = 2000,
) -> Path:
    """Films deterministic episodes and returns the path of the mp4.

    `make_env("rgb_array")` gives a Gymnasium environment; episode i is reset with `seed + i`. The video plays in real
    time by the environment's `render_fps`, with at most `fps` (30) frames a second: of a faster environment only each
    k-th step is drawn, and the last of an episode. It ends after `max_frames`, if need be within an episode. The file
    appears only when it is complete. VideoError where the environment draws nothing or a package for it is missing.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"a video is an .mp4 file, not {path.name!r}")
    if episodes < 1 or max_frames < 1 or (fps is not None and fps <= 0):
        raise ValueError("episodes, max_frames and fps must be positive")
    choose_gl()  # before make_env, which may import mujoco
    from gymnasium.error import DependencyNotInstalled

    try:
        env = make_env("rgb_array")
    except DependencyNotInstalled as error:
        raise _missing(error) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    rate = float(env.metadata.get("render_fps") or 30)
    every = max(1, math.ceil(rate / (fps or 30.0) - 1e-9))
    try:
        writer = _Writer(partial, rate / every, max_frames)
        with writer:
            _film(policy, env, writer, episodes, seed, every)
        partial.replace(path)
    except DependencyNotInstalled as error:
        raise _missing(error) from error
    finally:
        env.close()
        partial.unlink(missing_ok=True)
    return path


def choose_gl() -> str:
    """Settles which OpenGL MuJoCo will use, at the cost of loading one library; call it before mujoco is imported.

    A `MUJOCO_GL` that the user has set stays. On Linux without a display it becomes "egl" or "osmesa", the first whose
    library loads. Returns the backend's name: "" for the system's own, "disabled" where there is none.
    """
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name or sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return name
    for name, libraries in (
        ("egl", ("libEGL.so.1",)),
        ("osmesa", ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")),
    ):
        for library in libraries:
            try:
                ctypes.CDLL(library)
            except OSError:
                continue
            os.environ["MUJOCO_GL"] = name
            return name
    return "disabled"


@functools.cache
def gl_works(name: str) -> bool:
    """Whether OpenGL backend `name` really draws here. Half a second, once.

    A library that loads may still lack a driver, and a broken driver may take the process down: a child process tries.
    """
    if name in ("disable", "disabled", "off", "false", "0"):
        return False
    try:
        return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _film(policy: Predictor, env: Any, writer: "_Writer", episodes: int, seed: int, every: int) -> None:
    draw = None
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        draw = draw or _drawer(env)
        title = f"episode {episode + 1}   " if episodes > 1 else ""
        step, total, ended, state = 0, 0.0, False, None
        while not writer.full:
            if step % every == 0 or ended:
                writer.add(draw(), f"{title}step {step}   return {total:.1f}")
            if ended:
                break
            action, state = policy.predict(obs, state, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            step, total, ended = step + 1, total + float(reward), terminated or truncated
        if writer.full:
            if not ended or episode + 1 < episodes:
                log.warning("the video stops after %d frames, in episode %d", writer.limit, episode + 1)
            return


def _drawer(env: Any) -> Callable[[], np.ndarray]:
    """The function that draws the environment's present state. The environment has been reset."""
    mujoco = sys.modules.get("mujoco")
    base = env.unwrapped
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    if mujoco is None or not isinstance(model, mujoco.MjModel):
        return env.render
    renderer = getattr(base, "mujoco_renderer", None)
    config, camera = getattr(renderer, "default_cam_config", None), getattr(renderer, "camera_id", -1)
    name = choose_gl()
    if gl_works(name):
        track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        if renderer is not None and camera == -1 and track != -1:
            renderer.camera_id = track  # Gymnasium 1.4 draws a fixed view, out of which a runner runs
        try:
            env.render()
            return env.render
        except Exception as error:  # drivers fail with errors of many types, some of them not even RuntimeError
            reason = f"{type(error).__name__}: {error}"
    else:
        reason = "MUJOCO_GL turns it off" if os.environ.get("MUJOCO_GL") else "no EGL or OSMesa library"
        reason = f"backend {name!r} draws nothing" if name != "disabled" else reason
    log.warning("OpenGL does not work here (%s): the video is drawn by Trimtab's software ray caster", reason)
    from trimtab.run.raycast import Raycaster

    width, height = FALLBACK_SIZE
    return Raycaster(model, data, width=width, height=height, camera_config=config, camera_id=camera).frame


class _Writer:
    """An mp4 under construction: H.264, yuv420p, even sizes, readable from its start."""

    def __init__(self, path: Path, fps: float, limit: int):
        self._path, self._fps, self._file, self._count, self.limit = path, fps, None, 0, limit

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def full(self) -> bool:
        return self._count >= self.limit

    def add(self, frame: Any, text: str) -> None:
        image = np.asarray(frame)
        if image.ndim != 3 or image.shape[2] != 3:
            raise VideoError("the environment draws no frames: make_env must hand its argument on as `render_mode`")
        image = _caption(image.astype(np.uint8), text)
        image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if self._file is None:
            import imageio.v2 as imageio

            self._file = imageio.get_writer(
                self._path,
                format="FFMPEG",  # pyright: ignore[reportArgumentType]
                mode="I",
                fps=self._fps,
                codec="libx264",
                pixelformat="yuv420p",
                macro_block_size=2,
                quality=None,
                output_params=["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"],
                ffmpeg_log_level="error",
            )
        with warnings.catch_warnings():
            # ffmpeg starts with the first frame. JAX warns of any fork; this one is followed by an exec at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            self._file.append_data(image)
        self._count += 1


def _caption(image: np.ndarray, text: str) -> np.ndarray:
    """Small white text on a dark plate in the lower left corner; none on pictures too small to read it."""
    if min(image.shape[:2]) < 100:
        return image
    from PIL import Image, ImageDraw

    size = max(11, image.shape[0] // 26)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    left, bottom = size * 0.6, image.shape[0] - size * 0.6
    box = draw.textbbox((left, bottom), text, font=_font(size), anchor="ls")
    draw.rounded_rectangle((box[0] - 5, box[1] - 4, box[2] + 5, box[3] + 4), radius=4, fill=(20, 26, 36, 150))
    draw.text((left, bottom), text, font=_font(size), anchor="ls", fill=(255, 255, 255, 240))
    return np.asarray(picture)


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _missing(error: Exception) -> VideoError:
    if "pygame" in str(error):
        return VideoError("this environment draws its frames with pygame, which is missing: `pip install pygame`")
    return VideoError(f"this environment cannot draw its frames: {error}")
