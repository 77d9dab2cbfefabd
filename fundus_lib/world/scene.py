"""What every drawn image is made of: a view in mm, anti-aliased layers, a camera. Points are complex: x + iy in mm."""

from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fundus_lib.world.clinic import table

OVERSAMPLING = 2  # layers are drawn this much larger and averaged down: smooth edges from a pen that knows none
CIRCLE = np.exp(2j * np.pi * np.arange(16) / 16)


@dataclass(frozen=True)
class Drawing:
    """One image with its truth. Masks are (height, width) bool; positions are fractions (x, y) of width and height."""
    image: Image.Image
    masks: dict[str, np.ndarray]  # of the lesions, as `centres`
    centres: dict[str, list[tuple[float, float]]]
    fovea: tuple[float, float]
    pixel_mm: float  # width of one pixel on the retina
    laterality: str | None = None  # "right" | "left"; a B-scan of the macula does not tell
    disc: tuple[float, float] | None = None
    disc_mask: np.ndarray | None = None


class View(NamedTuple):
    """A window on the retina: `scale` pixels per mm (x, y), the retinal point `origin` at pixel (0, 0)."""
    width: int
    height: int
    scale: tuple[float, float]
    origin: complex

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Retinal coordinates of the pixel centres in mm: x (1, width), y (height, 1)."""
        x = (np.arange(self.width) + 0.5) / self.scale[0] + self.origin.real
        y = (np.arange(self.height) + 0.5) / self.scale[1] + self.origin.imag
        return x[None, :].astype(np.float32), y[:, None].astype(np.float32)

    def pixels(self, points) -> np.ndarray:
        """Points (...) in mm as pixels (..., 2)."""
        offset = np.atleast_1d(points) - self.origin
        return np.stack([offset.real * self.scale[0], offset.imag * self.scale[1]], -1)

    def fractions(self, points, mirrored: bool = False) -> list[tuple[float, float]]:
        """Points in mm as fractions (x, y) of width and height."""
        spots = (self.pixels(points) / (self.width, self.height)).tolist()
        return [(1 - x if mirrored else x, y) for x, y in spots]


class Layer:
    """One kind of thing drawn as coverage; remembers where its instances lie."""

    def __init__(self, view: View):
        self.view, self.centres = view, []
        self.image = Image.new("L", (view.width * OVERSAMPLING, view.height * OVERSAMPLING))
        self.pen = ImageDraw.Draw(self.image)

    def polygons(self, outlines: np.ndarray, value: int = 255) -> None:
        """Fill closed outlines (n, corners)."""
        for outline in (self.view.pixels(outlines) * OVERSAMPLING).reshape(len(outlines), -1).tolist():
            self.pen.polygon(outline, fill=value)

    def blobs(self, rng, centres, radii, turn=0.0, rough: float = 0.0, soft: float = 0.0) -> None:
        """Spots: centres (n,), radii (n, 2) along and across the angles `turn`; the edge frayed and faded."""
        centres, radii = np.atleast_1d(centres), np.atleast_2d(radii)
        fray = rng.normal(0, rough, (len(centres), 16))
        outline = (radii[:, :1] * CIRCLE.real + 1j * radii[:, 1:] * CIRCLE.imag) * np.exp(1j * np.c_[turn])
        outline *= 1 + (fray + np.roll(fray, 1, axis=1)) / 2
        for size, value in ((1 + soft, 90), (1 + soft / 3, 170), (1 - soft / 3, 255))[0 if soft else 2 :]:
            self.polygons(centres[:, None] + outline * size, value)
        self.centres += centres.tolist()

    def strokes(self, paths: np.ndarray, widths: np.ndarray, value: int = 255) -> None:
        """Tapering lines: paths (n, steps), widths (n, steps)."""
        ahead = np.diff(paths, axis=1, append=2 * paths[:, -1:] - paths[:, -2:-1])
        side = 0.5j * widths * ahead / (abs(ahead) + 1e-9)
        self.polygons(np.concatenate([paths + side, (paths - side)[:, ::-1]], axis=1), value)

    def coverage(self) -> np.ndarray:
        """(height, width) float32 in 0..1."""
        return np.asarray(self.image.reduce(OVERSAMPLING), np.float32) / 255


def blend(image: np.ndarray, coverage: np.ndarray, colour) -> None:
    """Paint `colour` (channels,) over `image` (channels, height, width) in place, as opaque as `coverage`."""
    for plane, value in zip(image, colour, strict=True):
        plane += coverage * (np.float32(value) - plane)


def cloud(rng, view: View, grain: float) -> np.ndarray:
    """Smooth noise of about unit variance with grains of `grain` mm: (height, width)."""
    shape = [round(n / s / grain) + 3 for n, s in ((view.height, view.scale[1]), (view.width, view.scale[0]))]
    coarse = Image.fromarray(1.4 * rng.standard_normal(shape, np.float32))
    return np.asarray(coarse.resize((view.width, view.height), Image.Resampling.BICUBIC))


STYLES = table("looks")["cameras"]
Camera = namedtuple("Camera", STYLES["any"])  # references/world/looks.yaml explains the fields


def camera_of(rng, style: str) -> Camera:
    """One device from the ranges of its style; ValueError for an unknown style."""
    if style not in STYLES:
        raise ValueError(f"camera {style!r} is not one of {', '.join(STYLES)}")
    return Camera(*(float(rng.uniform(*between)) for between in STYLES[style].values()))


def develop(rng, camera: Camera, image: np.ndarray) -> Image.Image:
    """(3, height, width) float, about 0..1, to the delivered picture."""
    gain = 255 * np.array(camera[:3], np.float32)[:, None, None]
    exposed = np.clip(image * (camera.contrast * gain) + 0.4 * (1 - camera.contrast) * gain, 0, 255)  # pivot: 0.4
    picture = Image.fromarray(np.ascontiguousarray(exposed.astype(np.uint8).transpose(1, 2, 0)))
    picture = picture.filter(ImageFilter.GaussianBlur(camera.blur * picture.height / 1000))
    grain = (rng.standard_normal(image.shape[1:], np.float32) * np.float32(camera.noise * 255)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(picture) + grain[..., None], 0, 255).astype(np.uint8))
