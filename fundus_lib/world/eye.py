"""Anatomy of the en-face drawings: one eye, its background, its disc, its vessels, and the rim of the picture.

The eye is a right one, mm from the fovea, x towards the nose, y down; a left one is mirrored at the end."""

import numpy as np

from fundus_lib.world.scene import Camera, Drawing, Layer, View, blend, cloud, develop

DISC_SIZE = {"CFP": 1.0, "UWF": 1.3}  # against life
DISC = {"CFP": ((0.96, 0.68, 0.38), (1.0, 0.96, 0.80)), "UWF": ((0.84, 0.62, 0.26), (0.98, 0.94, 0.60))}  # rim, cup
CHALK, SWOLLEN = ((0.99, 0.99, 0.97), (0.86, 0.89, 0.90)), ((1.0, 0.48, 0.40), (1.0, 0.64, 0.50))  # rim, cup


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

    def far(self, centre: complex, radii: complex) -> np.ndarray:
        """Distance (height, width) from `centre` in units of the two `radii`: 1 on the ellipse."""
        return np.sqrt(((self.x - centre.real) / radii.real) ** 2 + ((self.y - centre.imag) / radii.imag) ** 2)

    def scatter(self, count: int, centre: complex, spread: complex, keep=lambda points: True) -> np.ndarray:
        """`count` points within `spread` (x, y) of `centre`, in the field, off the disc, where `keep` holds."""
        found = np.empty(0, complex)
        while len(found) < count:
            points = centre + self.rng.uniform(-1, 1, (4 * count + 8, 2)) @ [spread.real, 1j * spread.imag]
            good = self.visible(points) & (abs(points - self.disc) > 1.35 * self.size) & keep(points)
            found = np.concatenate([found, points[good]])
        return found[:count]

    def arcade(self, up: int, nasal: bool = False, steps: int = 40) -> np.ndarray:
        """Course of a main vessel (steps,): temporally it bows around the macula and runs on, nasally it fans out."""
        rng, s, far = self.rng, np.linspace(0, 1, steps), 11.0 if self.modality == "CFP" else 17.0
        wiggle = sum(rng.normal(0, 0.12) * np.sin(k * np.pi * s + rng.uniform(0, 6)) for k in (2, 4, 7)) * s * (1 + 1j)
        if nasal:
            return self.disc + 0.6 * far * s * np.exp(1j * up * (rng.uniform(0.7, 1.25) - 0.4 * s)) + wiggle
        turn, on = np.minimum(2 * s, 1) * np.pi / 2, np.maximum(2 * s - 1, 0) * (far - 5)
        climb = up * (self.bow * np.sin(turn) + rng.uniform(-0.15, 0.15) * on)
        return self.disc - 4.8 * (1 - np.cos(turn)) ** 0.9 - on + 1j * climb + wiggle

    def deliver(self, device: Camera, image: np.ndarray, inside: np.ndarray, masks, centres, disc) -> Drawing:
        """The picture with its truth, of a right or left eye by lot; a mask ends where the field does (`inside`)."""
        left = bool(self.rng.random() < 0.5)
        side = slice(None, None, -1 if left else 1)
        return Drawing(develop(self.rng, device, image[..., side]),
                       {f: (mask & inside)[:, side] for f, mask in masks.items()},
                       {f: self.view.fractions(points, left) for f, points in centres.items()},
                       self.view.fractions(0, left)[0], 1 / self.view.scale[0], "left" if left else "right",
                       self.view.fractions(self.disc, left)[0], disc[:, side])


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


def paint_vessels(eye: Eye, image: np.ndarray, attenuated: bool, tortuous: float = 0.0) -> Layer:
    """Four arcades of a vein and an artery (two thirds of it, brighter), branching twice, fading before the fovea.
    tortuous: 0..1, how far the veins go to 1.8 times their width and a winding course. Returns such veins."""
    rng, winding, fine = eye.rng, Layer(eye.view), 4 if tortuous else 1  # bends need finer steps
    thick = eye.size * (0.6 if attenuated else 1.0) * rng.uniform(0.95, 1.15) * np.linspace(1, 0.4, 40 * fine)
    for width, reflex, absorbed in ((0.150, 0.0, (0.32, 0.62, 0.50)), (0.100, 0.3, (0.16, 0.48, 0.40))):
        layer, wave = Layer(eye.view), 0 if reflex else tortuous
        paths = np.stack([eye.arcade(up, nasal, 40 * fine) for up in (-1, 1) for nasal in (False, True)])
        trunks = paths, width * (1 + 0.8 * wave) * np.outer([1, 0.75, 1, 0.75], thick)
        if wave:
            ahead = np.gradient(paths, axis=1)
            phase = 3.2 * abs(ahead).cumsum(1) / eye.size + rng.spawn(1)[0].uniform(0, 6, (4, 1)) + np.sin(abs(paths))
            paths += 0.3j * wave * eye.size * ahead / abs(ahead) * np.sin(phase) * np.linspace(0, 8, 160).clip(0, 1)
            winding.centres = paths[:, 12::12].ravel().tolist()
            winding.strokes(*trunks)
        twigs = branches(rng, *trunks, [fine * i for i in (5, 9, 13, 18, 23, 29, 34)], 14)
        for paths, widths in (branches(rng, *twigs, [4, 7, 10], 9), twigs, trunks):
            layer.strokes(paths, np.maximum(widths, 0.025 * eye.size) * np.clip((abs(paths) - 0.45) / 0.6, 0, 1))
        layer.strokes(trunks[0], trunks[1] * reflex, 110 if reflex else 255)
        coverage = layer.coverage()
        for plane, share in zip(image, absorbed, strict=True):
            plane *= 1 - np.float32(share) * coverage
    return winding


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


def paint_disc(eye: Eye, image: np.ndarray, cupped: float, pale: float = 0.0, swollen: float = 0.0) -> list[np.ndarray]:
    """The disc and its cup; returns their masks (height, width).
    Cup/disc ratio 0.28-0.4; increased 0.72-0.85, the cup lowered until the inferior rim is the thinnest (ISNT broken).
    pale: 0..1, towards chalk. swollen: 0..1, towards 1.55 times the size, red, in a grey halo, without edge and cup."""
    rng, masks, radius = eye.rng, [], 0.89 * eye.size * eye.rng.uniform(0.94, 1.06) * (1 + 0.55 * swollen)
    ratio = rng.uniform(0.72, 0.85) if cupped else rng.uniform(0.28, 0.4) * (1 - 0.6 * swollen)
    if swollen:
        halo = np.exp(-(eye.far(eye.disc, radius * (1.45 + 1.45j)) ** 4))
        blend(image, 0.75 * swollen * halo * (1 + 0.25 * cloud(rng.spawn(1)[0], eye.view, 0.35)), (0.98, 0.72, 0.52))
    for size, plain, red, chalk in zip((1.0, ratio), DISC[eye.modality], SWOLLEN, CHALK, strict=True):
        layer, drop = Layer(eye.view), 0.7 * (1 - size) * (cupped > 0)
        layer.blobs(rng, eye.disc + 1j * drop * radius, radius * size * np.array([0.95, 1.0]), rough=0.03, soft=0.12)
        coverage = layer.coverage()
        if swollen and size == 1:
            coverage = (3.2 * (1.15 - eye.far(eye.disc, radius * (1 + 1j)))).clip(0, 1)
        colour = np.array(plain) + swollen * (np.array(red) - plain)
        blend(image, 0.95 * coverage * (cupped or 1 if size < 1 else 1), colour + pale * (chalk - colour))
        masks.append(coverage > 0.5)
    return masks


def paint_field(eye: Eye, image: np.ndarray, device: Camera) -> np.ndarray:
    """Light, lids, lashes (UWF) and the dark around the field, in place; returns what is inside (height, width)."""
    rng, dx, dy = eye.rng, eye.x - eye.middle.real, eye.y - eye.middle.imag
    rim = (dx / eye.axes.real) ** 2 + (dy / eye.axes.imag) ** 2
    image *= (1 - device.dark) * (1 - device.vignette * (rim * rim).clip(0, 1))
    at, wide = -0.95j * eye.axes.imag * np.exp(-1j * rng.uniform(0, np.pi)), 0.09 * eye.axes.imag**2  # off the disc
    glint = np.exp(-((dx - at.real) ** 2) / wide) * np.exp(-((dy - at.imag) ** 2) / wide)
    blend(image, np.float32(device.reflex) * glint, (1.0, 0.92, 0.80))
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
