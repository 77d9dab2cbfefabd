"""OCT and FFA drawings: what is new in them is seen where its mask says, alone and among others."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from fundus_lib.world import clinic
from fundus_lib.world.clinic import (
    BLOOD,
    GEOGRAPHIC,
    INNER_BRIGHT,
    MICRO,
    PEAKED,
    PED,
    SHRM,
    SRF,
    THICK_CHOROID,
    VESSELS,
    VMT,
)  # fmt: skip
from fundus_lib.world.ffa import draw_ffa
from fundus_lib.world.oct import draw_oct

DRAW = {"OCT": draw_oct, "FFA": draw_ffa}
BRIGHT = {"OCT": {GEOGRAPHIC, INNER_BRIGHT, VMT, SHRM}, "FFA": {MICRO, VESSELS}}
DARK = {"OCT": {THICK_CHOROID, PEAKED, SRF}, "FFA": {BLOOD}}


def drawing_of(modality, lesions, seed=5, height=128):
    return DRAW[modality](np.random.default_rng(seed), frozenset(lesions), camera="clinic", height=height)


@pytest.mark.parametrize("height", (80, 192))
@pytest.mark.parametrize(("modality", "finding"), [(m, f) for m in DRAW for f in sorted(BRIGHT[m] | DARK[m])])
def test_a_lesion_is_brighter_or_darker_than_its_ring(modality, finding, height):
    drawing = drawing_of(modality, {finding} | ({PED} if finding == PEAKED else set()), height=height)
    mask, (width, _) = drawing.masks[finding], drawing.image.size
    assert mask.shape == (height, width) and 0.0005 < mask.mean() < 0.3
    near = binary_dilation(mask, iterations=4)
    at = [(min(int(y * height), height - 1), min(int(x * width), width - 1)) for x, y in drawing.centres[finding]]
    assert np.mean([near[spot] for spot in at]) > 0.8
    grey = np.asarray(drawing.image, float)[..., 1]
    ring = binary_dilation(mask, iterations=4) & ~binary_dilation(mask)
    contrast = grey[mask].mean() - grey[ring].mean()
    assert contrast > 12 if finding in BRIGHT[modality] else contrast < -12


@pytest.mark.parametrize("modality", DRAW)
def test_any_subset_can_be_drawn(modality):
    """Also what random findings never put side by side; each finding of the set leaves a mask."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lesions = {f for f in clinic.LESIONS[modality] if rng.random() < (seed + 1) / 40}
        lesions |= {PED} if PEAKED in lesions else set()
        drawing = drawing_of(modality, lesions, seed, height=64)
        assert set(drawing.masks) == set(drawing.centres) == lesions
        assert all(len(centres) for centres in drawing.centres.values())
        assert 0 < drawing.fovea[1] < 1 and drawing.image.size[1] == 64


def extent(mask, axis):
    return int(mask.any(axis=1 - axis).sum())


def test_shapes_that_tell_one_lesion_from_another():
    flat, peaked = (drawing_of("OCT", lesions).masks[PED] for lesions in ({PED}, {PED, PEAKED}))
    assert extent(peaked, 0) > 1.2 * extent(flat, 0) and extent(peaked, 1) < 0.7 * extent(flat, 1)  # taller, narrower
    both = drawing_of("OCT", {SRF, SHRM})
    assert not (both.masks[SRF] & both.masks[SHRM]).any()                   # the fluid lies above the mass
    normal, pulled = (drawing_of("OCT", lesions).fovea[1] for lesions in ((), {VMT}))
    assert pulled < normal - 0.1                                            # the fovea is up by more than 0.17 mm
    thick = np.flatnonzero(drawing_of("OCT", {THICK_CHOROID}).masks[THICK_CHOROID].any(axis=1))
    assert 0.15 < (thick[-1] - thick[0]) / 128 * 1.7 < 0.5                  # large vessels fill 0.15 mm and more


def test_an_angiogram_is_grey_with_a_nasal_disc_and_white_vessels():
    for seed in range(6):
        drawing = drawing_of("FFA", (), seed)
        pixels = np.asarray(drawing.image)
        assert (pixels == pixels[..., :1]).all()
        assert (drawing.disc[0] > drawing.fovea[0]) == (drawing.laterality == "right")
        height, width = pixels.shape[:2]
        column, row = int(drawing.fovea[0] * width), int(drawing.fovea[1] * height)
        assert pixels[row - 2 : row + 3, column - 2 : column + 3, 0].mean() < np.percentile(pixels, 60)
        assert np.percentile(pixels, 99) > 130
