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
    """The answer that `parse_votes` reads: "drusen: present, hard exudate: absent."."""
    return ", ".join(f"{finding}: {'present' if seen else 'absent'}" for finding, seen in votes.items()) + "."


def parse_votes(text: str, findings: Iterable[str]) -> dict[str, bool]:
    """One rollout's vote on each finding. Only what is asserted and nowhere denied is present: a finding that the text
    does not mention, hedges, or lists without a verdict (a cut answer) is absent. A child votes for its parent."""
    listed = re.findall(r"[^,;.\n]+:\s*(?:present|absent)", text)
    mentions = find_mentions(". ".join(listed) or text)
    present = frozenset().union(*(family(m.finding) for m in mentions if m.status == "asserted"))
    denied = {m.finding for m in mentions if m.status == "negated"}
    return {finding: finding in present - denied for finding in findings}


def majority_vote(rollouts: Iterable[Mapping[str, bool]], min_votes: int = 3) -> set[str]:
    """The findings that at least `min_votes` rollouts call present. rollouts: {finding: bool} each.

    Three of five is the paper's rule (its votes "exceed two"). No vote is silent: a missing finding counts as absent."""
    votes = Counter(finding for rollout in rollouts for finding, seen in rollout.items() if seen)
    return {finding for finding, count in votes.items() if count >= min_votes}


def from_masks(masks: Iterable[Mapping[str, str]], annotated: Collection[str]) -> dict[str, bool]:
    """Presence of every finding that the data set annotates, from an image's masks ({finding, path} each).

    Empty without any mask: an image that nobody outlined says nothing. annotated: `data.ANNOTATED[dataset]`."""
    drawn = frozenset().union(*(family(mask["finding"]) for mask in masks))
    return {finding: finding in drawn for finding in annotated} if drawn else {}


def s2_table(findings: pd.DataFrame, truth: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """Sensitivity, specificity and their harmonic mean S2 for each finding, as in Fundus-R1's Table 6.

    findings: record_id, finding, kept; truth: record_id -> findings that are there. S2 is missing where a finding is
    never or always there. Returns finding, n_pos, n_neg, sensitivity, specificity, s2."""
    rows = findings[findings.record_id.isin(list(truth))]
    there = pd.Series([f in truth[r] for r, f in zip(rows.record_id, rows.finding, strict=True)], rows.index, bool)
    right = (rows.kept == there).groupby([rows.finding, there.rename("there")]).agg(["sum", "count"]).unstack(fill_value=0)
    right = right.reindex(columns=[(c, t) for c in ("sum", "count") for t in (True, False)], fill_value=0)
    n_pos, n_neg = right["count", True], right["count", False]
    sensitivity, specificity = right["sum", True] / n_pos, right["sum", False] / n_neg
    total = (sensitivity + specificity).replace(0, 1)  # both 0: S2 is 0
    return pd.DataFrame({"n_pos": n_pos, "n_neg": n_neg, "sensitivity": sensitivity, "specificity": specificity,
                         "s2": 2 * sensitivity * specificity / total}).reset_index()
