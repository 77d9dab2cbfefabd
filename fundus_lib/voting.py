"""V(I): the findings of one image, voted on by several sampled answers of a model, or read off its lesion masks."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from fundus_lib.lexicon import family, find_mentions

PROMPT = ("In this {modality} image, determine the presence of the following findings: {findings}. "
          "Answer with present or absent for each finding.")  # Fundus-R1, section 3


def prompt(modality: str, findings: Iterable[str]) -> str:
    """The paper's question about a list of findings."""
    return PROMPT.format(modality=modality, findings=", ".join(findings))


def format_votes(votes: Mapping[str, bool]) -> str:
    """The answer that `parse_votes` reads: "drusen present, hard exudate absent."."""
    return ", ".join(f"{finding} {'present' if seen else 'absent'}" for finding, seen in votes.items()) + "."


def parse_votes(text: str, findings: Iterable[str]) -> dict[str, bool]:
    """One rollout's vote on each finding: present is what the text asserts and nowhere denies; what it does not name,
    hedges, or lists without a verdict (a cut answer) is absent. A child votes for its parent."""
    mentions = find_mentions(". ".join(re.findall(r"[^,;.\n]+?:?\s+(?:present|absent)\b", text)) or text)
    denied = {m.finding for m in mentions if m.status == "negated"}
    present = family(*(m.finding for m in mentions if m.status == "asserted")) - denied
    return {finding: finding in present for finding in findings}


def majority_vote(rollouts: Iterable[Mapping[str, bool]], min_votes: int = 3) -> set[str]:
    """What at least `min_votes` of the rollouts ({finding: bool} each) call present (in the paper "exceed two")."""
    votes = Counter(finding for rollout in rollouts for finding, seen in rollout.items() if seen)
    return {finding for finding, count in votes.items() if count >= min_votes}


def from_masks(masks: Iterable[Mapping[str, str]], annotated: Collection[str]) -> dict[str, bool]:
    """Presence of all that the data set outlines, from one image's masks ({finding, path}); empty without any mask."""
    drawn = family(*(mask["finding"] for mask in masks))
    return {finding: finding in drawn for finding in annotated} if drawn else {}


def s2_table(findings: pd.DataFrame, truth: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """Sensitivity, specificity and S2, their harmonic mean, of each finding (Fundus-R1, Tab. 6), with n_pos and n_neg.
    findings: record_id, finding, kept; truth: record_id -> what is there. Missing where a side has no image."""
    rows = []
    for finding, votes in findings[findings.record_id.isin(list(truth))].groupby("finding", sort=False):
        there = votes.record_id.map(lambda record: finding in truth[record]).astype(bool)  # noqa: B023
        sensitivity, specificity = votes.kept[there].mean(), 1 - votes.kept[~there].mean()
        s2 = 2 * sensitivity * specificity / ((sensitivity + specificity) or 1)
        rows.append({"finding": finding, "n_pos": there.sum(), "n_neg": (~there).sum(), "sensitivity": sensitivity,
                     "specificity": specificity, "s2": s2})
    return pd.DataFrame(rows)
