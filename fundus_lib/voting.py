"""V(I): the findings of one image, voted on by several sampled answers of a model, or read off its lesion masks."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from fundus_lib.lexicon import family, find_mentions

PROMPT = ("In this {modality} image, determine the presence of the following findings: {findings}. "
          "Answer with present or absent for each finding.")  # Fundus-R1, section 3
FREE_FORM = "Describe the findings in this image."  # the baseline of Tab. 6: one open question, answered once
_GROUPS = re.compile(r"(?i)\b(present|absent)(?: findings)?\s*:")
_VERDICT = re.compile(r"(?i)[^;.\n]{1,400}?\bare(?: \w+)? (?:present|absent)\b|[^,;.\n]{1,100}?\s(?:present|absent)\b")


def prompt(modality: str, findings: Iterable[str]) -> str:
    """The paper's question about a list of findings."""
    return PROMPT.format(modality=modality, findings=", ".join(findings))


def format_votes(votes: Mapping[str, bool]) -> str:
    """The answer that `parse_votes` reads: "drusen present, hard exudate absent."."""
    return ", ".join(f"{finding} {'present' if seen else 'absent'}" for finding, seen in votes.items()) + "."


def read(text: str) -> tuple[frozenset[str], set[str]]:
    """(findings that the text asserts and nowhere denies, with their parents; those it denies), its reasoning aside."""
    mentions = find_mentions(re.sub(r"^.*</think>|<think>.*", "", text, flags=re.DOTALL))
    denied = {m.finding for m in mentions if m.status == "negated"}
    return family(*(m.finding for m in mentions if m.status == "asserted")) - denied, denied


def _only_lists(sentence: str) -> bool:
    """Findings and nothing else: the question's list again, or an answer that was cut before its verdict."""
    for mention in reversed(find_mentions(sentence)):
        sentence = sentence[:mention.start] + sentence[mention.end:]
    return not re.search(r"\b(?!and\b|or\b)[a-z]{2,}", sentence, re.I)


def parse_votes(text: str, findings: Collection[str]) -> dict[str, bool]:
    """One rollout's vote on each finding. What it does not name, hedges, or lists without a verdict (a cut answer) is
    absent; a child votes for its parent. Empty, so no vote at all, when no finding asked gets a verdict."""
    text = re.sub(r"^.*</think>|<think>.*|[*_`|\"{}\[\]#]|determine the presence of[^.\n]*", " ", text, flags=re.S)
    text = re.sub(r":\s*(yes|no)\b", lambda m: " present" if m[1].lower() == "yes" else " absent", text, flags=re.I)
    before, *parts = _GROUPS.split(text)
    if parts and not find_mentions(before):  # "Present: drusen, hard exudate. Absent: microaneurysm."
        text = "".join(f"{m.finding} {said}. " for said, names in zip(parts[::2], parts[1::2], strict=True)
                       for m in find_mentions(names))
    said = [part for sentence in re.split(r"[.;\n]", text)
            for part in _VERDICT.findall(sentence) or ([] if _only_lists(sentence) else [sentence])]
    present, denied = read(". ".join(said))
    return {name: name in present for name in findings} if (present | denied) & set(findings) else {}


def verdict(rollouts: Iterable[Mapping[str, bool]], finding: str, most: int, min_votes: int) -> bool | None:
    """What rollouts, of `most` in all, decide: present from `min_votes` on, absent once too few are left for that.
    None while the rollouts that are still to come, or that could not be read ({}), could turn it."""
    votes = [rollout[finding] for rollout in rollouts if rollout]
    return True if sum(votes) >= min_votes else False if votes.count(False) > most - min_votes else None


def majority_vote(rollouts: Iterable[Mapping[str, bool]], min_votes: int = 3) -> set[str]:
    """What at least `min_votes` of the rollouts ({finding: bool} each) call present (in the paper "exceed two")."""
    votes = Counter(finding for rollout in rollouts for finding, seen in rollout.items() if seen)
    return {finding for finding, count in votes.items() if count >= min_votes}


def from_masks(masks: Iterable[Mapping[str, str]], annotated: Collection[str]) -> dict[str, bool]:
    """Presence of all that the data set outlines, from one image's masks ({finding, path}); empty without any mask."""
    drawn = family(*(mask["finding"] for mask in masks))
    return {finding: finding in drawn for finding in annotated} if drawn else {}


def s2_scores(said: pd.DataFrame, method: str, times: np.ndarray) -> np.ndarray:
    """Sensitivity, specificity and S2, their harmonic mean, of each finding when image i counts times[:, i] times.

    said: record_id, finding, present (bool), and what `method` keeps, in 0..1. times: (resamples, images). Returns
    (3, resamples, findings), findings as they first stand in `said`; missing where a side has no image.
    """
    where, there, kept = (said.record_id.factorize()[0], said.finding.factorize()[0]), said.present, said[method]
    counts = np.zeros((4, times.shape[1], said.finding.nunique()))
    counts[:, *where] = there, there * kept, ~there, ~there * (1 - kept)
    there, found, absent, left = times @ counts
    with np.errstate(invalid="ignore"):
        sensitivity, specificity = found / there, left / absent
        s2 = 2 * sensitivity * specificity / (sensitivity + specificity)
    return np.stack([sensitivity, specificity, np.where(sensitivity + specificity == 0, 0, s2)])
