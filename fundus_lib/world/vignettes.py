"""Complex cases: a written history with one to three drawn images, where neither is enough for the diagnosis.

references/vignettes.json is a table read both ways: every set of images (a pair) stands in it with several histories
and several answers, and every history with several pairs and several answers. Cases of one turn that share a history
share its every word, and those that share a pair share its every pixel. The questions are open, as in the complex part
of MM-Retinal-Reason: options that fit the images would tell what they show, options that fit the history what it says.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fundus_lib.lexicon import reference
from fundus_lib.questions import prompt
from fundus_lib.world import draw
from fundus_lib.world.clinic import complete

TABLE = reference("vignettes.json")
PAIRS, HISTORIES = TABLE["pairs"], TABLE["histories"]
CELLS = [(pair, told, answer) for pair, entry in PAIRS.items() for told, answer in entry["answers"].items()]
LABELS = sorted({answer for _, _, answer in CELLS})
QUESTION = "Which diagnosis do the history and the images support together?"
RANGES = {"days": (2, 9), "weeks": (3, 9), "months": (4, 12), "years": (8, 22), "dioptres": (9, 14),
          "high": (206, 236), "low": (122, 136), "tense": (26, 34), "calm": (12, 16)}  # lowest, highest
OTHER = {"right": "left", "left": "right"}
ELSEWHERE = "screening"  # the camera that no training image is from


class CaseImage(NamedTuple):
    """One image of a case, not yet drawn; equal names are the same picture."""

    name: str
    modality: str
    findings: tuple[str, ...]  # sorted, normal ones included
    role: str  # "affected" | "fellow"
    eye: str  # "right" | "left"


@dataclass(frozen=True)
class Case:
    """One complex case: an open question."""

    id: str
    pair: str  # the images that it shares with cases of another diagnosis
    told: str  # kind of history
    history: str
    images: tuple[CaseImage, ...]
    question: str
    answer: str  # canonical label
    away: bool  # in a test, drawn by the camera ELSEWHERE: every other pair of a turn, the others in the next one

    @property
    def reason(self) -> str:
        """What ties the answer to both: what was drawn, and what the history is about."""
        seen = {image.modality: [name for name in image.findings if not name.startswith(("normal", "intact"))]
                or image.findings for image in self.images}
        shown = " ".join(f"This {modality} image shows {', '.join(names)}." for modality, names in seen.items())
        return f"{shown} With {HISTORIES[self.told]['clue']} this indicates {self.answer}."


def tell(rng, told: str, side: str) -> str:
    """A history of one kind about the eye on one side. It is told before anybody has looked at the images."""
    entry = HISTORIES[told]
    numbers = {name: rng.integers(low, high + 1) for name, (low, high) in RANGES.items()}
    numbers |= {"sugar": f"{rng.uniform(8.6, 11.2):.1f}", "side": side}
    acuity, (low, high) = rng.choice(entry["acuity"]), entry["ages"]
    parts = [rng.choice(entry["complaints"]), rng.choice(entry["background"])]
    parts = [part.format(**numbers) for part in parts[:: rng.choice([1, -1])]]
    who = f"{rng.choice(entry['who'])}, {rng.integers(low, high + 1)} years."
    return f"{who} {' '.join(parts)} {side.capitalize()} eye {acuity}."


def complex_cases(seed: int, count: int) -> list[Case]:
    """`count` cases, the same ones for the same seed: turn after turn through the table, in a new wording each time."""
    cases, kinds, pairs = [], list(HISTORIES), list(PAIRS)
    for number in range(count):
        turn, cell = divmod(number, len(CELLS))
        pair, told, answer = CELLS[cell]
        side = ("right", "left")[np.random.default_rng([seed, turn]).integers(2)]
        history = tell(np.random.default_rng([seed, turn, 1 + kinds.index(told)]), told, side)
        shown = [(image["modality"], tuple(sorted(complete(image["lesions"], image["modality"]))), role)
                 for image in PAIRS[pair]["images"] for role in image["roles"]]
        images = [CaseImage(f"{seed}-{turn:04d}-{pairs.index(pair)}{k}", modality, findings, role,
                            side if role == "affected" else OTHER[side])
                  for k, (modality, findings, role) in enumerate(shown)]
        cases.append(Case(f"{seed}-{number:05d}", pair, told, history, tuple(images), QUESTION, answer,
                          (turn + pairs.index(pair)) % 2 == 1))
    return cases


def write_cases(folder: str | Path, cases: Sequence[Case], *, camera: str, height: int, split: str) -> Path:
    """Draw the images and write folder/complex_reason_<split>.json in MM-Retinal-Reason's format; returns that file.

    `reason` is `Case.reason`: written from what was drawn, not from a vote. `pmcid` is null as no article is behind a
    case. dataset and domain name the camera: out-of-domain are the test cases of one that no training image is from.
    """
    folder, records = Path(folder), []
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    cameras = {case: ELSEWHERE if case.away and split == "test" else camera for case in cases}
    for image, seen_by in {image.name: (image, cameras[case]) for case in cases for image in case.images}.values():
        for attempt in range(100):  # the side of an en-face drawing falls by lot
            rng = np.random.default_rng([zlib.crc32(image.name.encode()), attempt])
            drawing = draw(rng, image.modality, image.findings, camera=seen_by, height=height)
            if drawing.laterality in (None, image.eye):
                break
        drawing.image.save(folder / "images" / split / f"{image.name}.png")
    for case in cases:
        caption = " ".join(f"Image {n}: {i.modality} of the {i.eye} eye." for n, i in enumerate(case.images, 1))
        records.append({
            "image": [f"images/{split}/{image.name}.png" for image in case.images],
            "conversations": [{"from": "human", "value": f"{case.history} {caption} {prompt(case.question, None)}"},
                              {"from": "gpt", "value": f"<answer> {case.answer} </answer>"}],
            "reason": case.reason, "title": f"Case {case.id}", "caption": caption, "pmcid": None,
            "dataset": f"cases, {cameras[case]} camera",
            "domain": "in-domain" if cameras[case] == camera else "out-of-domain"})
    file = folder / f"complex_reason_{split}.json"
    file.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return file
