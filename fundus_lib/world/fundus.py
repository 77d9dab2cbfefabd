"""En-face drawings: color fundus photographs (CFP, 13 mm across) and ultra-widefield images (UWF, 30 mm).

The eye is a right one, mm from the fovea, x towards the nose, y down; a left one is mirrored at the end. Lesions have
the upper end of their real size times LESION_SIZE (a microaneurysm a little more; in UWF it would lie far below one
pixel), so that everything stays visible at the 96 pixels that a small model sees.
"""

import numpy as np

from fundus_lib.world.clinic import BLOOD, COTTON, CUP, DRUSEN, FOUR, HARD, MICRO, SECTOR, SPICULES, VESSELS
from fundus_lib.world.scene import Drawing, Layer, View, blend, camera_of, cloud, develop

LESION_SIZE, DISC_SIZE = {"CFP": 1.5, "UWF": 2.8}, {"CFP": 1.0, "UWF": 1.3}  # against life
RETINA = {"CFP": (0.80, 0.41, 0.19), "UWF": (0.62, 0.42, 0.16)}
DISC = {"CFP": ((0.96, 0.68, 0.38), (1.0, 0.96, 0.80)), "UWF": ((0.84, 0.62, 0.26), (0.98, 0.94, 0.60))}  # rim, cup
LOOKS = {  # of spots, back to front: colour, radii (mm before LESION_SIZE), across/along, rough, soft, share of flames
    DRUSEN: ((0.97, 0.82, 0.52), (0.05, 0.10), 1.0, 0.1, 0.45, 0),
    COTTON: ((0.98, 0.96, 0.92), (0.28, 0.40), 0.65, 0.2, 0.45, 0),
    HARD: ((1.0, 0.90, 0.25), (0.05, 0.12), 0.9, 0.15, 0.0, 0),
    FOUR: ((0.30, 0.02, 0.03), (0.10, 0.19), 0.8, 0.18, 0.25, 0.35),
    SECTOR: ((0.30, 0.02, 0.03), (0.13, 0.24), 0.8, 0.18, 0.25, 0.55),
    BLOOD: ((0.30, 0.02, 0.03), (0.14, 0.24), 0.8, 0.18, 0.25, 0.25),
    MICRO: ((0.46, 0.00, 0.02), (0.066, 0.072), 1.0, 0.0, 0.0, 0),
}


class Eye:
    """Anatomy of one eye, and the part of it that the image shows."""

    def __init__(self, rng, modality: str, wide: bool, height: int):
        self.rng, self.modality, self.size, uwf = rng, modality, DISC_SIZE[modality], modality == "UWF"
        self.disc = 4.6 - 0.6j + complex(*rng.normal(0, 0.12, 2))
        self.bow = rng.uniform(3.0, 3.6)  # height of the arcades above the fovea
        self.middle = complex(rng.uniform(1.0, 2.0), rng.uniform(-0.5, 0.3))
        self.axes = rng.uniform(0.96, 1.02) * (14.6 + 11.6j) if uwf else 6.5 + 6.5j  # of the field
        circle = rng.uniform(1.1, 1.2) if wide else 0.97  # of the height: the wide frame cuts it above and below
        self.half_height = rng.uniform(8.6, 9.8) if uwf else 6.5 / circle
        scale, width = (height / 22.5, height * 4 / 3) if uwf else (height * circle / 13, height * (1.5 if wide else 1))
        corner = self.middle - complex(round(width), height) / scale / 2
        self.view = View(round(width), height, (scale, scale), corner)
        self.x, self.y = self.view.grid()

    def visible(self, points, margin: float = 0.93, inner: float = 0.0) -> np.ndarray:
        """Which points lie in the field between `inner` and `margin` of the way to its rim."""
        across, down = (points - self.middle).real / self.axes.real, (points - self.middle).imag
        rim = across**2 + (down / self.axes.imag) ** 2
        return (rim < margin**2) & (rim >= inner**2) & (abs(down) < margin * self.half_height)

    def scatter(self, count: int, centre: complex, spread: complex, keep=lambda points: True) -> np.ndarray:
        """`count` points within `spread` (x, y) of `centre`, in the field, off the disc, where `keep` holds."""
        found = np.empty(0, complex)
        while len(found) < count:
            points = centre + self.rng.uniform(-1, 1, (4 * count + 8, 2)) @ [spread.real, 1j * spread.imag]
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
    for width, reflex, absorbed in ((0.150, 0.0, (0.32, 0.62, 0.50)), (0.100, 0.3, (0.16, 0.48, 0.40))):
        layer = Layer(eye.view)
        paths = np.stack([eye.arcade(up, nasal) for up in (-1, 1) for nasal in (False, True)])
        trunks = paths, np.outer([1, 0.75, 1, 0.75], width * thick * np.linspace(1, 0.4, 40))
        twigs = branches(rng, *trunks, [5, 9, 13, 18, 23, 29, 34], 14)
        for paths, widths in (branches(rng, *twigs, [4, 7, 10], 9), twigs, trunks):
            layer.strokes(paths, np.maximum(widths, 0.025 * eye.size) * np.clip((abs(paths) - 0.45) / 0.6, 0, 1))
        layer.strokes(trunks[0], trunks[1] * reflex, 110 if reflex else 255)
        coverage = layer.coverage()
        for plane, share in zip(image, absorbed, strict=True):
            plane *= 1 - np.float32(share) * coverage


def paint_retina(eye: Eye, image: np.ndarray) -> None:
    """Choroidal mottling, nerve fibres fanning out of the disc, the dark macula, the foveal reflex of the young."""
    rng, fibres = eye.rng, Layer(eye.view)
    angle, reach = rng.uniform(0, 2 * np.pi, (90, 1)), rng.uniform(1.5, 3.4, (90, 1)) * eye.size
    fibres.strokes(eye.disc + np.exp(1j * angle) * reach * [0, 0.5, 1], 0.03 * reach * [1, 0.6, 0])
    texture = 1 + 0.04 * cloud(rng, eye.view, 3.0) - 0.05 * (1 - abs(cloud(rng, eye.view, 0.6))).clip(0)
    image *= texture + 0.07 * fibres.coverage()
    for area, shares in ((0.55, (0.25, 0.36, 0.30)), (6.0, (0.10, 0.13, 0.16)), (0.008, [-rng.uniform(0, 0.4)] * 3)):
        spot = np.exp(-(eye.x**2) / area) * np.exp(-(eye.y**2) / area)
        for plane, share in zip(image, shares, strict=True):
            plane *= 1 - share * spot


def paint_disc(eye: Eye, image: np.ndarray, cupped: bool) -> list[np.ndarray]:
    """The disc and its cup; returns their masks (height, width).

    Cup/disc ratio 0.28-0.4; increased 0.72-0.85, the cup lowered until the inferior rim is the thinnest (ISNT broken).
    """
    rng, masks, radius = eye.rng, [], 0.89 * eye.size * eye.rng.uniform(0.94, 1.06)
    ratio = rng.uniform(0.72, 0.85) if cupped else rng.uniform(0.28, 0.4)
    for size, drop, colour in zip((1.0, ratio), (0.0, 0.7 * (1 - ratio) * cupped), DISC[eye.modality], strict=True):
        layer = Layer(eye.view)
        layer.blobs(rng, eye.disc + 1j * drop * radius, radius * size * np.array([0.95, 1.0]), rough=0.03, soft=0.12)
        blend(image, 0.95 * layer.coverage(), colour)
        masks.append(layer.coverage() > 0.5)
    return masks


def places(eye: Eye, finding: str, size: float) -> np.ndarray:
    """Where the spots of a lesion lie."""
    rng = eye.rng
    if finding == MICRO:  # posterior pole
        return eye.scatter(rng.integers(18, 33), 1, 4.6 + 4.2j)
    if finding == BLOOD:
        return eye.scatter(rng.integers(6, 11), eye.middle, 0.85 * eye.axes)
    if finding == FOUR:  # more than 20 in each quadrant of the field
        halves = [eye.middle + complex(a * eye.axes.real, b * eye.axes.imag) / 2 for a in (-1, 1) for b in (-1, 1)]
        return np.concatenate([eye.scatter(rng.integers(21, 25), half, eye.axes / 2) for half in halves])
    if finding == SECTOR:  # along one temporal vein, widening outwards, never across the horizontal raphe
        course, at = eye.arcade(up := -1 if rng.random() < 0.6 else 1), rng.integers(5, 38, 150)
        points = course[at] + rng.normal(0, 0.25 + 0.0046 * eye.axes.real * at, (2, 150)).T @ [1, 1j]
        return points[eye.visible(points) & (up * points.imag > 0.6)][:45]
    if finding == DRUSEN:  # macula
        return eye.scatter(rng.integers(35, 60), 0, 1.3 * size * (1 + 1j), lambda p: abs(p) < 1.3 * size)
    if finding == COTTON:  # along the arcades
        course = np.concatenate([eye.arcade(up)[6:32] for up in (-1, 1)])
        return rng.choice(course[eye.visible(course, 0.85)], rng.integers(4, 8), replace=False)
    clusters = []  # hard exudates: rings and heaps around leaking points of the macula
    for centre in eye.scatter(rng.integers(2, 5), 0.2, 3.4 + 3j):
        count, ring = rng.integers(10, 20), rng.random() < 0.5
        far = size * (rng.normal(0.5, 0.06, count) if ring else abs(rng.normal(0, 0.34, count)))
        clusters.append(centre + far * np.exp(1j * rng.uniform(0, 2 * np.pi, count)))
    points = np.concatenate(clusters)
    return points[eye.visible(points) & (abs(points) > 0.3)]


def paint_walks(eye: Eye, layer: Layer, finding: str, size: float) -> tuple[float, float, float]:
    """Draw a lesion of wandering lines: one lacy net of new vessels on the disc or an arcade, or black spicules."""
    rng, steps = eye.rng, 12
    if finding == VESSELS:
        course = eye.arcade(rng.choice([-1, 1]))[12:26]
        centres = np.array([eye.disc if rng.random() < 0.5 else rng.choice(course[eye.visible(course, 0.8)])])
        count, spread, reach, bend, width = 40, 0.26, (0.055, 0.09), 2.6, np.full(steps, 0.04)
    else:  # mid-periphery
        centres = eye.scatter(rng.integers(32, 46), eye.middle, eye.axes, lambda p: eye.visible(p, inner=0.58))
        count, spread, reach, bend, width = 6, 0.04, (0.004, 0.042), 0.4, np.linspace(0.075, 0.03, steps)
    turn = rng.uniform(0, 2 * np.pi, (len(centres) * count, 1)) + rng.choice([-bend, bend]) * np.linspace(0, 1, steps)
    step = np.exp(1j * (turn + rng.normal(0, 0.3, turn.shape).cumsum(1))) * rng.uniform(*reach, (len(turn), 1)) * size
    start = np.repeat(centres, count) + rng.normal(0, spread * size, (len(turn), 2)) @ [1, 1j]
    layer.strokes(start[:, None] + step.cumsum(1), np.broadcast_to(width * size, step.shape))
    layer.centres += centres.tolist()
    return (0.74, 0.02, 0.10) if finding == VESSELS else (0.07, 0.05, 0.05)


def paint_lesions(eye: Eye, image: np.ndarray, lesions: frozenset[str]) -> tuple[dict, dict]:
    """Paint the lesions in place; returns their masks, and their centres in mm."""
    masks, centres, patterns, size = {}, {}, lesions & {FOUR, SECTOR}, LESION_SIZE[eye.modality]
    for finding in [f for f in (*LOOKS, SPICULES, VESSELS) if f in lesions and not (f == BLOOD and patterns)]:
        layer = Layer(eye.view)
        if finding in LOOKS:
            colour, radius, across, rough, soft, flames = LOOKS[finding]
            points = places(eye, finding, size)
            radii = eye.rng.uniform(*radius, (len(points), 1)) * np.array([size, size * across])
            radii[eye.rng.random(len(points)) < flames] *= [1.9, 0.45]  # along the nerve fibres
            layer.blobs(eye.rng, points, radii, np.angle(points - eye.disc), rough, soft)
        else:
            colour = paint_walks(eye, layer, finding, size)
        coverage = layer.coverage()
        blend(image, 0.93 * coverage, colour)
        masks[finding], centres[finding] = coverage > 0.4, [c for c in layer.centres if eye.visible(c, 1.0)]
    if patterns:  # the pattern is the hemorrhage
        masks[BLOOD] = np.any([masks[f] for f in patterns], axis=0)
        centres[BLOOD] = [c for f in patterns for c in centres[f]]
    return masks, centres


def paint_field(eye: Eye, image: np.ndarray, vignette: float) -> np.ndarray:
    """Vignette, lids, lashes (UWF) and the dark around the field, in place; returns what is inside (height, width)."""
    rng, dx, dy = eye.rng, eye.x - eye.middle.real, eye.y - eye.middle.imag
    rim = (dx / eye.axes.real) ** 2 + (dy / eye.axes.imag) ** 2
    image *= 1 - vignette * (rim * rim).clip(0, 1)
    lid = np.zeros_like(rim)
    if eye.modality == "UWF":
        image[0] *= 1 - 0.3 * rim.clip(0, 1)  # green laser light prevails in the periphery
        lid[abs(dy) + 0.012 * dx**2 > eye.half_height + 1.3] = 1
        blend(image, lid, (0.20, 0.16, 0.10))
        lashes, foot = Layer(eye.view), rng.uniform(-9, 9, (rng.integers(8, 26), 1)) + 1j * (eye.half_height + 2.5)
        hair = (rng.normal(0, 1.2, foot.shape) - 1j * rng.uniform(2, 4.5, foot.shape)) * np.linspace(0, 1, 5)
        lashes.strokes(eye.middle + foot + hair, np.full(hair.shape, 0.17))
        blend(image, 0.65 * lashes.coverage(), (0.10, 0.09, 0.06))
    image *= rim < 1
    return (rim < 1) & (lid == 0)


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
    inside, left = paint_field(eye, image, device.vignette), bool(rng.random() < 0.5)
    side = slice(None, None, -1 if left else 1)
    return Drawing(develop(rng, device, image[..., side]), {f: (m & inside)[:, side] for f, m in masks.items()},
                   {f: eye.view.fractions(c, left) for f, c in centres.items()}, eye.view.fractions(0, left)[0],
                   1 / eye.view.scale[0], "left" if left else "right", eye.view.fractions(eye.disc, left)[0],
                   (disc & inside)[:, side])
