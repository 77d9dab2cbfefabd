"""En-face drawings: color fundus photographs (CFP) and ultra-widefield images (UWF).

The eye is a right one, mm from the fovea, x towards the nose, y down; a left one is mirrored at the end. Lesions have
the upper end of their real size times LESION_SIZE (an UWF microaneurysm would lie far below one pixel): everything
stays visible at the 96 pixels that a small model sees. A CFP circle is 13 mm wide, an UWF image 30 mm.
"""

import numpy as np

from fundus_lib.world.clinic import BLOOD, COTTON, CUP, DRUSEN, FOUR, HARD, MICRO, SECTOR, SPICULES, VESSELS
from fundus_lib.world.scene import Drawing, Layer, View, blend, camera_of, cloud, develop

LESION_SIZE, DISC_SIZE = {"CFP": 1.4, "UWF": 2.7}, {"CFP": 1.0, "UWF": 1.3}  # against life
RETINA = {"CFP": (0.80, 0.41, 0.19), "UWF": (0.62, 0.42, 0.16)}
RIM = {"CFP": (0.96, 0.68, 0.38), "UWF": (0.84, 0.62, 0.26)}
CUP_COLOUR = {"CFP": (1.0, 0.96, 0.80), "UWF": (0.98, 0.94, 0.60)}


class Eye:
    """Anatomy of one eye, and the part of it that the image shows."""

    def __init__(self, rng, modality: str, wide: bool, height: int):
        self.rng, self.modality, self.size, field = rng, modality, DISC_SIZE[modality], modality == "UWF"
        self.disc = 4.6 - 0.6j + complex(*rng.normal(0, 0.12, 2))
        self.bow = rng.uniform(3.0, 3.6)  # height of the arcades above the fovea
        self.middle = complex(rng.uniform(1.0, 2.0), rng.uniform(-0.5, 0.3))
        self.axes = np.array([14.6, 11.6]) * rng.uniform(0.96, 1.02, 2) if field else np.array([6.5, 6.5])
        circle = 0.97 if not wide else rng.uniform(1.1, 1.2)  # of the height: the wide frame cuts it above and below
        width, scale = round(height * (4 / 3 if field else 1.5 if wide else 1)), height * (1 / 22.5 if field else circle / 13)
        self.half_height = rng.uniform(8.6, 9.8) if field else 6.5 / circle
        self.view = View(width, height, (scale, scale), self.middle - complex(width, height) / scale / 2)
        self.x, self.y = self.view.grid()

    def rim(self, points) -> np.ndarray:
        """Squared distance from the centre of the field, 1 at its rim."""
        return ((points - self.middle).real / self.axes[0]) ** 2 + ((points - self.middle).imag / self.axes[1]) ** 2

    def visible(self, points, margin: float = 0.93) -> np.ndarray:
        """Which points lie in the field, at most `margin` of the way to its rim."""
        return (self.rim(points) < margin**2) & (abs((points - self.middle).imag) < margin * self.half_height)

    def scatter(self, count: int, centre: complex, spread, keep=lambda points: True) -> np.ndarray:
        """`count` points within `spread` mm (x, y) of `centre`, in the field, off the disc, where `keep` holds."""
        found = np.empty(0, complex)
        while len(found) < count:
            points = centre + self.rng.uniform(-1, 1, (4 * count + 8, 2)) @ np.diag(spread) @ [1, 1j]
            good = self.visible(points) & (abs(points - self.disc) > 1.35 * self.size) & keep(points)
            found = np.concatenate([found, points[good]])
        return found[:count]

    def arcade(self, up: int, nasal: bool = False) -> np.ndarray:
        """Course of a main vessel (40,): temporally it bows around the macula and runs on, nasally it fans out."""
        rng, s, far = self.rng, np.linspace(0, 1, 40), 11.0 if self.modality == "CFP" else 17.0
        wiggle = sum(rng.normal(0, 0.12) * np.sin(k * np.pi * s + rng.uniform(0, 6)) for k in (2, 4, 7)) * s * (1 + 1j)
        if nasal:
            return self.disc + 0.6 * far * s * np.exp(1j * up * (rng.uniform(0.7, 1.25) - 0.4 * s)) + wiggle
        turn, on = np.minimum(2 * s, 1) * np.pi / 2, np.maximum(2 * s - 1, 0) * (far - 5)
        climb = up * (self.bow * np.sin(turn) + rng.uniform(-0.15, 0.15) * on)
        return self.disc - 4.8 * (1 - np.cos(turn)) ** 0.9 - on + 1j * climb + wiggle


def branches(rng, paths: np.ndarray, widths: np.ndarray, at: list[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Side branches of many vessels at once: paths and widths (n, k) -> both (n * len(at), steps)."""
    along = (paths[:, [i + 1 for i in at]] - paths[:, at]).ravel()
    side = np.outer(rng.choice([-1, 1], len(paths)), np.where(np.arange(len(at)) % 2, 1, -1)).ravel()
    length = np.repeat(abs(paths[:, -1] - paths[:, 0]), len(at)) * rng.uniform(0.25, 0.6, len(side))
    turn = (side * rng.uniform(0.5, 1.2, len(side)))[:, None] * (1 - 0.7 * np.linspace(0, 1, steps))
    turn += rng.normal(0, 0.18, turn.shape).cumsum(1)
    step = (along / abs(along) * length / steps)[:, None] * np.exp(1j * turn)
    course = paths[:, at].reshape(-1, 1) + step.cumsum(1) - step[:, :1]
    return course, widths[:, at].reshape(-1, 1) * np.linspace(0.7, 0.25, steps)


def paint_vessels(eye: Eye, image: np.ndarray, attenuated: bool) -> None:
    """Four arcades of a vein and an artery (two thirds of it, brighter), branching twice, fading before the fovea."""
    rng, thick = eye.rng, eye.size * (0.6 if attenuated else 1.0) * eye.rng.uniform(0.95, 1.15)
    for width, absorbed in ((0.150, (0.32, 0.62, 0.50)), (0.100, (0.16, 0.48, 0.40))):
        layer = Layer(eye.view)
        paths = np.stack([eye.arcade(up, nasal) for up in (-1, 1) for nasal in (False, True)])
        trunks = paths, np.outer([1, 0.75, 1, 0.75], width * thick * np.linspace(1, 0.4, 40))
        twigs = branches(rng, *trunks, [5, 9, 13, 18, 23, 29, 34], 14)
        for paths, widths in (branches(rng, *twigs, [4, 7, 10], 9), twigs, trunks):
            layer.strokes(paths, np.maximum(widths, 0.025 * eye.size) * np.clip((abs(paths) - 0.45) / 0.6, 0, 1))
        if width == 0.100:
            layer.strokes(trunks[0], trunks[1] * 0.3, 110)  # light reflex of an artery
        coverage = layer.coverage()
        for plane, share in zip(image, absorbed, strict=True):
            plane *= 1 - np.float32(share) * coverage


def paint_retina(eye: Eye, image: np.ndarray) -> None:
    """Choroidal mottling, nerve fibres fanning out of the disc, the dark macula, the foveal reflex of the young."""
    rng, x, y, reach = eye.rng, eye.x, eye.y, 3.0 * eye.size
    mottle = 1 + 0.04 * cloud(rng, eye.view, 3.0) - 0.05 * (1 - abs(cloud(rng, eye.view, 0.6))).clip(0)
    dx, dy = x[0] - np.float32(eye.disc.real), y[:, 0] - np.float32(eye.disc.imag)
    near = np.ix_(abs(dy) < reach, abs(dx) < reach)
    dx, dy = dx[near[1]], dy[near[0]]
    ray = ((np.arctan2(dy, dx) + np.pi) * 60).astype(np.int32)
    mottle[near] += 0.05 * rng.standard_normal(378, np.float32)[ray] * (1 - (dx**2 + dy**2) / np.float32(reach**2)).clip(0)
    image *= mottle
    for plane, pit, wide in zip(image, (0.25, 0.36, 0.30), (0.10, 0.13, 0.16), strict=True):
        for share, area in ((pit * rng.uniform(0.9, 1.1), 0.55), (wide, 6.0)):
            plane *= 1 - np.exp(-(x**2) / area) * np.exp(-(y**2) / area) * np.float32(share)
    image += np.float32(0.15 * rng.uniform(0, 1)) * np.exp(-(x**2) / 0.008) * np.exp(-(y**2) / 0.008)


def paint_disc(eye: Eye, image: np.ndarray, cupped: bool) -> list[np.ndarray]:
    """The disc and its cup; returns their masks (height, width).

    Cup/disc ratio 0.28-0.4; increased 0.72-0.85, the cup lowered until the inferior rim is the thinnest (ISNT broken).
    """
    rng, masks, radius = eye.rng, [], 0.89 * eye.size * eye.rng.uniform(0.94, 1.06)
    ratio = rng.uniform(0.72, 0.85) if cupped else rng.uniform(0.28, 0.4)
    drop = 0.7j * (1 - ratio) if cupped else 0
    for size, shift, colour in ((1.0, 0, RIM), (ratio, drop, CUP_COLOUR)):
        layer = Layer(eye.view)
        layer.blobs(rng, eye.disc + radius * shift, radius * size * np.array([0.95, 1.0]), rough=0.03, soft=0.12)
        blend(image, 0.95 * layer.coverage(), colour[eye.modality])
        masks.append(layer.coverage() > 0.5)
    return masks


BLOOD_RED = (0.30, 0.02, 0.03)
LOOKS = {  # back to front: colour, radius (mm before LESION_SIZE), across/along, rough, soft, share of flames
    DRUSEN: ((0.97, 0.82, 0.52), (0.05, 0.10), 1.0, 0.1, 0.45, 0),
    COTTON: ((0.98, 0.96, 0.92), (0.28, 0.40), 0.65, 0.2, 0.45, 0),
    HARD: ((1.0, 0.90, 0.25), (0.05, 0.12), 0.9, 0.15, 0.0, 0),
    FOUR: (BLOOD_RED, (0.10, 0.19), 0.8, 0.18, 0.25, 0.35),
    SECTOR: (BLOOD_RED, (0.13, 0.24), 0.8, 0.18, 0.25, 0.55),
    BLOOD: (BLOOD_RED, (0.14, 0.24), 0.8, 0.18, 0.25, 0.25),
    MICRO: ((0.38, 0.02, 0.03), (0.060, 0.068), 1.0, 0.0, 0.0, 0),
}


def places(eye: Eye, finding: str, size: float) -> np.ndarray:
    """Where the spots of a lesion lie."""
    rng = eye.rng
    if finding == MICRO:  # posterior pole
        return eye.scatter(rng.integers(11, 20), 1, (4.6, 4.2))
    if finding == BLOOD:
        return eye.scatter(rng.integers(6, 11), eye.middle, 0.85 * eye.axes)
    if finding == FOUR:  # more than 20 in each quadrant of the field
        corners = (-eye.axes[0], 0), (-eye.axes[1], 0)
        middles = [eye.middle + complex(a, b) + complex(*eye.axes) / 2 for a in corners[0] for b in corners[1]]
        return np.concatenate([eye.scatter(rng.integers(21, 25), middle, eye.axes / 2) for middle in middles])
    if finding == SECTOR:  # along one temporal vein, widening outwards, never across the horizontal raphe
        course, at = eye.arcade(up := -1 if rng.random() < 0.6 else 1), rng.integers(5, 38, 150)
        points = course[at] + rng.normal(0, 0.25 + 0.0046 * eye.axes[0] * at, (2, 150)).T @ [1, 1j]
        return points[eye.visible(points) & (up * points.imag > 0.6)][:45]
    if finding == DRUSEN:  # macula
        return eye.scatter(rng.integers(35, 60), 0, (1.3 * size, 1.3 * size), lambda p: abs(p) < 1.3 * size)
    if finding == COTTON:  # along the arcades
        course = np.concatenate([eye.arcade(up)[6:32] for up in (-1, 1)])
        return rng.choice(course[eye.visible(course, 0.85)], rng.integers(4, 8), replace=False)
    clusters = []  # hard exudates: rings and heaps around leaking points of the macula
    for centre in eye.scatter(rng.integers(2, 5), 0.2, (3.4, 3.0)):
        count, ring = rng.integers(10, 20), rng.random() < 0.5
        far = size * (rng.normal(0.5, 0.06, count) if ring else abs(rng.normal(0, 0.34, count)))
        clusters.append(centre + far * np.exp(1j * rng.uniform(0, 2 * np.pi, count)))
    points = np.concatenate(clusters)
    return points[eye.visible(points) & (abs(points) > 0.3)]


def paint_spots(eye: Eye, layer: Layer, finding: str, size: float) -> tuple[float, float, float]:
    """Draw a lesion made of spots; flames follow the nerve fibres. Returns the colour."""
    colour, radius, across, rough, soft, flames = LOOKS[finding]
    points = places(eye, finding, size)
    radii = eye.rng.uniform(*radius, (len(points), 1)) * np.array([size, size * across])
    radii[eye.rng.random(len(points)) < flames] *= [1.9, 0.45]
    layer.blobs(eye.rng, points, radii, np.angle(points - eye.disc), rough, soft)
    return colour


def paint_walks(eye: Eye, layer: Layer, finding: str, size: float) -> tuple[float, float, float]:
    """Draw a lesion of wandering lines: one lacy net of new vessels on the disc or an arcade, or black spicules."""
    rng, steps = eye.rng, 12
    if finding == VESSELS:
        course = eye.arcade(rng.choice([-1, 1]))[12:26]
        centres = np.array([eye.disc if rng.random() < 0.5 else rng.choice(course[eye.visible(course, 0.8)])])
        count, spread, reach, bend, width = 40, 0.26, (0.055, 0.09), 2.6, np.full(steps, 0.04)
    else:  # mid-periphery
        centres = eye.scatter(rng.integers(32, 46), eye.middle, eye.axes, lambda p: eye.rim(p) > 0.34)
        count, spread, reach, bend, width = 6, 0.04, (0.004, 0.042), 0.4, np.linspace(0.075, 0.03, steps)
    turn = rng.uniform(0, 2 * np.pi, (len(centres) * count, 1)) + rng.choice([-bend, bend]) * np.linspace(0, 1, steps)
    step = np.exp(1j * (turn + rng.normal(0, 0.3, turn.shape).cumsum(1))) * rng.uniform(*reach, (len(turn), 1)) * size
    start = np.repeat(centres, count) + rng.normal(0, spread * size, (len(turn), 2)) @ [1, 1j]
    layer.strokes(start[:, None] + step.cumsum(1), np.broadcast_to(width * size, step.shape))
    layer.centres += centres.tolist()
    return (0.74, 0.02, 0.10) if finding == VESSELS else (0.07, 0.05, 0.05)


def paint_lesions(eye: Eye, image: np.ndarray, lesions: frozenset[str]) -> tuple[dict, dict]:
    """Paint the lesions in place; returns their masks, and their centres in mm."""
    masks, centres, patterns = {}, {}, lesions & {FOUR, SECTOR}
    for finding in [f for f in (*LOOKS, SPICULES, VESSELS) if f in lesions and not (f == BLOOD and patterns)]:
        layer = Layer(eye.view)
        colour = (paint_spots if finding in LOOKS else paint_walks)(eye, layer, finding, LESION_SIZE[eye.modality])
        blend(image, 0.93 * layer.coverage(), colour)
        masks[finding], centres[finding] = layer.coverage() > 0.4, [c for c in layer.centres if eye.visible(c, 1.0)]
    if patterns:  # the pattern is the hemorrhage
        masks[BLOOD] = np.any([masks[f] for f in patterns], axis=0)
        centres[BLOOD] = [c for f in patterns for c in centres[f]]
    return masks, centres


def paint_field(eye: Eye, image: np.ndarray, vignette: float) -> np.ndarray:
    """Vignette, lids and lashes (UWF) and the dark around the field, in place; returns what is inside (height, width)."""
    rng, dx, dy = eye.rng, (eye.x - np.float32(eye.middle.real)), eye.y - np.float32(eye.middle.imag)
    rim = (dx / np.float32(eye.axes[0])) ** 2 + (dy / np.float32(eye.axes[1])) ** 2
    inside = rim < 1
    image *= 1 - np.float32(vignette) * (rim * rim).clip(0, 1)
    if eye.modality == "UWF":
        image[0] *= 1 - 0.3 * rim.clip(0, 1)  # green laser light prevails in the periphery
        lid = abs(dy) + 0.012 * dx**2 > eye.half_height + 1.3
        blend(image, lid.astype(np.float32), (0.20, 0.16, 0.10))
        lashes, foot = Layer(eye.view), eye.middle + rng.uniform(-9, 9, rng.integers(8, 26)) + 1j * (eye.half_height + 2.5)
        hair = rng.normal(0, 1.2, len(foot)) - 1j * rng.uniform(2, 4.5, len(foot))
        lashes.strokes(foot[:, None] + np.outer(hair, np.linspace(0, 1, 5)), np.full((len(foot), 5), 0.17))
        blend(image, 0.65 * lashes.coverage(), (0.10, 0.09, 0.06))
        image *= inside
        return inside & ~lid
    image *= inside
    return inside


def draw_fundus(rng, modality: str, lesions: frozenset[str], *, camera: str, height: int) -> Drawing:
    """One CFP or UWF image that shows exactly `lesions`."""
    device = camera_of(rng, camera)
    eye = Eye(rng, modality, device.wide > 0.5, height)
    image = np.empty((3, height, eye.view.width), np.float32)
    image[:] = (np.array(RETINA[modality]) * rng.uniform(0.9, 1.1) * rng.normal(1, 0.03, 3))[:, None, None]
    paint_retina(eye, image)
    disc, cup = paint_disc(eye, image, CUP in lesions)
    paint_vessels(eye, image, attenuated=SPICULES in lesions)
    masks, centres = paint_lesions(eye, image, lesions)
    if CUP in lesions:
        masks[CUP], centres[CUP] = cup, [eye.disc]
    inside = paint_field(eye, image, device.vignette)
    left = bool(rng.random() < 0.5)
    side = slice(None, None, -1 if left else 1)
    return Drawing(
        image=develop(rng, device, image[..., side]),
        masks={f: (m & inside)[:, side] for f, m in masks.items()},
        centres={f: eye.view.fractions(c, left) for f, c in centres.items()},
        fovea=eye.view.fractions(0, left)[0],
        pixel_mm=1 / eye.view.scale[0],
        laterality="left" if left else "right",
        disc=eye.view.fractions(eye.disc, left)[0],
        disc_mask=(disc & inside)[:, side],
    )
