"""A software renderer for MuJoCo scenes, for machines on which no OpenGL works.

MuJoCo's own collision code casts the rays (`mj_multiRay` of MuJoCo >= 3.5, which also gives surface normals); the light
is added here in numpy: one key light with shadows, a sky that fades into the horizon, a checkered floor. It draws every
geom that a ray can meet (primitives, meshes, height fields) in its material's colour, and sites as ellipsoids. It does
not draw textures, tendons, skins, flexes, reflections or the model's own lights. A frame of 320x240 takes some 50 ms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

HORIZON = np.array([0.93, 0.95, 0.97], np.float32)
ZENITH = np.array([0.52, 0.68, 0.88], np.float32)
NADIR = np.array([0.74, 0.77, 0.82], np.float32)
KEY_LIGHT = np.array([1.0, 0.97, 0.92], np.float32)
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))  # the rotated grid


@dataclass(frozen=True, eq=False)
class Camera:
    """Where the picture is taken from. Metres, world frame; the three axes are orthonormal."""

    position: Float[np.ndarray, "3"]
    right: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]
    forward: Float[np.ndarray, "3"]
    half_height: float
    """tangent of half the vertical field of view."""


class Raycaster:
    """Draws one model and its data.

    `camera_config` takes the keys of Gymnasium's `default_camera_config`: `trackbodyid`, `distance` (metres), `lookat`
    (3,), `azimuth`, `elevation` (degrees). The camera follows the tracked body over the ground and keeps its height;
    without a `trackbodyid` it follows the first body if that floats freely. `camera_id >= 0` takes that camera of the
    model instead.
    """

    def __init__(
        self,
        model,
        data,
        *,
        width: int = 320,
        height: int = 240,
        camera_config: dict | None = None,
        camera_id: int = -1,
    ):
        import mujoco as library

        if width < 2 or height < 2:
            raise ValueError(f"a frame needs at least 2x2 pixels, not {width}x{height}")
        mujoco: Any = library  # its type stubs lack the visualiser
        self._mujoco, self._model, self._data = mujoco, model, data
        self._width, self._height, self._camera_id = width, height, camera_id
        self._scene = mujoco.MjvScene(model, model.ngeom + model.nsite + 100)
        self._option, self._perturb, self._view = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()

        config = dict(camera_config or {})
        floats = model.nbody > 1 and model.body_jntnum[1] > 0
        floats = floats and model.jnt_type[model.body_jntadr[1]] == mujoco.mjtJoint.mjJNT_FREE
        self._track = int(config.get("trackbodyid", 0)) or int(floats)
        self._lookat = np.array(config.get("lookat", np.median(data.geom_xpos, axis=0)), np.float64)
        self._distance = float(config.get("distance", 0.0)) or float(model.stat.extent)
        self._azimuth = np.radians(float(config.get("azimuth", self._view.azimuth)))
        self._elevation = np.radians(float(config.get("elevation", self._view.elevation)))
        self._tile = 2.0 ** np.round(np.log2(self._distance / 6.0))

    def frame(self) -> UInt8[np.ndarray, "height width 3"]:
        """Draws the state that `data` holds now."""
        camera = self._camera()
        columns, rows = np.meshgrid(np.arange(self._width) + 0.5, np.arange(self._height) + 0.5)
        mujoco, scene = self._mujoco, self._scene
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturb, self._view, mujoco.mjtCatBit.mjCAT_ALL, scene
        )
        visible = [scene.geoms[i] for i in range(scene.ngeom)]
        colours = np.zeros((self._model.ngeom, 3), np.float32)
        for geom in visible:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and 0 <= geom.objid < len(colours):
                colours[geom.objid] = geom.rgba[:3]
        sites = [geom for geom in visible if geom.objtype == mujoco.mjtObj.mjOBJ_SITE]

        image, label = self._shade(camera, self._rays(camera, columns.ravel(), rows.ravel()), colours, sites)
        image, label = image.reshape(self._height, self._width, 3), label.reshape(self._height, self._width)

        # Only outlines need more than one ray a pixel; shading inside a surface is smooth.
        edge = np.zeros(label.shape, bool)
        for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
            differs = label[here] != label[there]
            edge[here] |= differs
            edge[there] |= differs
        if edge.any():
            column = np.concatenate([columns[edge] + dx for dx, _ in SUBPIXELS])
            row = np.concatenate([rows[edge] + dy for _, dy in SUBPIXELS])
            fine, _ = self._shade(camera, self._rays(camera, column, row), colours, sites)
            image[edge] = fine.reshape(len(SUBPIXELS), -1, 3).mean(0)
        return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def _camera(self) -> Camera:
        if self._camera_id >= 0:
            right, up, back = self._data.cam_xmat[self._camera_id].reshape(3, 3).T
            half_height = np.tan(np.radians(self._model.cam_fovy[self._camera_id]) / 2.0)
            return Camera(self._data.cam_xpos[self._camera_id].copy(), right, up, -back, float(half_height))
        lookat = self._lookat.copy()
        if self._track:
            lookat[:2] = self._data.xpos[self._track, :2]
        (sin_a, sin_e), (cos_a, cos_e) = (
            np.sin([self._azimuth, self._elevation]),
            np.cos([self._azimuth, self._elevation]),
        )
        forward = np.array([cos_e * cos_a, cos_e * sin_a, sin_e])
        right = np.array([sin_a, -cos_a, 0.0])
        half_height = np.tan(np.radians(self._model.vis.global_.fovy) / 2.0)
        return Camera(lookat - self._distance * forward, right, np.cross(right, forward), forward, float(half_height))

    def _rays(
        self, camera: Camera, column: Float[np.ndarray, " n"], row: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Unit directions through points of the picture, given in pixels from its upper left corner."""
        scale = 2.0 * camera.half_height / self._height
        x, y = (column - self._width / 2.0) * scale, (self._height / 2.0 - row) * scale
        rays = camera.forward + x[:, None] * camera.right + y[:, None] * camera.up
        return rays / np.linalg.norm(rays, axis=1, keepdims=True)

    def _cast(
        self, origin: Float[np.ndarray, "3"], rays: Float[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
        """The first geom each ray meets (-1 for none), the distance to it and its normal there."""
        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros(3 * count)
        if count:
            groups = np.asarray(self._option.geomgroup, np.uint8)
            vectors = np.ascontiguousarray(rays).ravel()
            self._mujoco.mj_multiRay(
                self._model, self._data, origin, vectors, groups, 1, -1, geom, distance, normal, count, 1e10
            )
        return geom, distance, normal.reshape(count, 3)

    def _shade(
        self, camera: Camera, rays: Float[np.ndarray, "n 3"], colours: Float[np.ndarray, "geoms 3"], sites: list
    ) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
        """Colours in [0, 1], and a label that changes where an outline runs."""
        geom, distance, normal = self._cast(camera.position, rays)
        hit = geom >= 0
        image = _sky(rays[:, 2].astype(np.float32))
        label = 2 * geom.astype(np.int64)

        # The light stands behind the viewer's left shoulder. It is a point, so one call casts every shadow.
        target = camera.position + self._distance * camera.forward
        towards = -camera.forward * [1.0, 1.0, 0.0] - 0.6 * camera.right + [0.0, 0.0, 1.6]
        light = target + 4.0 * self._distance * towards / np.linalg.norm(towards)
        points, facing = camera.position + distance[hit, None] * rays[hit], normal[hit]
        facing = np.where(np.sum(facing * rays[hit], axis=1, keepdims=True) > 0.0, -facing, facing)
        to_light = light - points
        span = np.linalg.norm(to_light, axis=1)
        to_light /= span[:, None]
        _, reach, _ = self._cast(light, -to_light)
        lit = (reach < 0.0) | (reach > span - 0.01 * self._distance)
        label[hit] += ~lit

        albedo = colours[geom[hit]]
        plane = self._model.geom_type[geom[hit]] == self._mujoco.mjtGeom.mjGEOM_PLANE
        floor = plane & (facing[:, 2] > 0.9)
        cosine = np.abs(np.sum(facing[floor] * rays[hit][floor], axis=1))
        footprint = 2.0 * camera.half_height / self._height * distance[hit][floor] / np.maximum(cosine, 0.02)
        checks = _checker(points[floor, :2] / self._tile, footprint / self._tile)
        # A floor is pulled towards white: many models paint it black and white, which drowns what stands on it.
        albedo[floor] = (0.35 * albedo[floor] + 0.5) * (0.84 + 0.16 * checks[:, None])

        lambert = np.maximum(np.sum(facing * to_light, axis=1), 0.0) * lit
        ambient = 0.42 + 0.14 * facing[:, 2]
        shine = to_light - rays[hit]
        shine = np.sum(facing * shine, axis=1) / np.linalg.norm(shine, axis=1)
        gloss = np.where(plane, 0.0, 0.25) * lit * np.maximum(shine, 0.0) ** 40
        light_sum = ambient[:, None] + 0.62 * lambert[:, None] * KEY_LIGHT
        shaded = albedo * light_sum.astype(np.float32) + gloss[:, None].astype(np.float32)
        haze = 1.0 - np.exp(-((np.maximum(distance[hit] - 1.5 * self._distance, 0.0) / (5.0 * self._distance)) ** 2))
        image[hit] = shaded + (haze * plane)[:, None].astype(np.float32) * (HORIZON - shaded)

        depth = np.where(hit, distance, np.inf)
        for number, site in enumerate(sites):
            seen, cosine = _ellipsoid(camera.position, rays, depth, site)
            colour = np.array(site.rgba[:3], np.float32) * (0.5 + 0.5 * cosine[:, None])
            image[seen] += float(site.rgba[3]) * (colour - image[seen])
            label[seen] = -2 * (number + 2)
        return image, label


def _sky(height: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Colour of the sky; `height` is the vertical part of a unit direction."""
    above, below = np.clip(height / 0.7, 0.0, 1.0)[:, None], np.clip(-height / 0.7, 0.0, 1.0)[:, None]
    return HORIZON + above**0.8 * (ZENITH - HORIZON) + below * (NADIR - HORIZON)


def _checker(position: Float[np.ndarray, "n 2"], width: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A checkerboard of unit tiles in [0, 1], averaged over a box of `width` so that far tiles do not flicker."""
    width = width[:, None] + 1e-6
    triangle = lambda x: np.abs((x / 2.0) % 1.0 - 0.5)
    stripes = 2.0 * (triangle(position - width / 2.0) - triangle(position + width / 2.0)) / width
    return 0.5 - 0.5 * stripes[:, 0] * stripes[:, 1]


def _ellipsoid(origin: Float[np.ndarray, "3"], rays: Float[np.ndarray, "n 3"], depth: Float[np.ndarray, " n"], site):
    """Which rays (n,) meet a site's ellipsoid before `depth`, and for those the cosine of ray and normal."""
    size = np.maximum(np.asarray(site.size, np.float64), 1e-6)
    axes = np.asarray(site.mat, np.float64).reshape(3, 3)
    start, along = (origin - site.pos) @ axes / size, rays @ axes / size
    a, b, c = np.sum(along**2, axis=1), along @ start, start @ start - 1.0
    root = b**2 - a * c
    distance = (-b - np.sqrt(np.maximum(root, 0.0))) / a
    seen = (root > 0.0) & (distance > 0.0) & (distance < depth)
    normal = (start + distance[seen, None] * along[seen]) / size
    normal = normal @ axes.T
    return seen, np.abs(np.sum(normal * rays[seen], axis=1)) / np.linalg.norm(normal, axis=1)
