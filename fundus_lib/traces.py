"""Quality control of reasoning traces: the checks are the methods of `TraceReport`; their words are in rules.json."""

import re
from bisect import bisect_left
from collections.abc import Collection
from functools import cached_property
from itertools import pairwise

from fundus_lib.assertion import Mention, with_status
from fundus_lib.knowledge import vocabulary
from fundus_lib.lexicon import canonical_label, describes, family, findings, reading
from fundus_lib.questions import option_texts
from fundus_lib.reasoning import RULE, RULES, SHAPE, criteria, false_rule, read_answer, shingles_of, take_apart

__all__ = ["CATEGORIES", "RULES", "SHAPE", "TraceReport", "check_trace", "read_answer"]
CATEGORIES = ("modality_inconsistency", "missing_required_vf", "redundant_or_incorrect_vf",
              "knowledge_missing_or_mismatch", "answer_mismatch", "self_contradiction", "format_error")
_BRACKETS = re.compile(r"[\[{<][^\]}>]{3,300}")
_FEW = frozenset(RULES["function_words"])
_OF_ANY_IMAGE = frozenset("image cfp oct uwf ffa photograph scan picture".split())  # they link nothing to a rule
_ONLY = {side: re.compile(held) for side, held in RULES["only"].items()}


class TraceReport:
    """A trace held against a label, V(I) and Vocab[label, modality] (KeyError when no page covers these): `problems`
    are the categories that apply, `answer` is a label, the text given, or None."""

    def __init__(self, trace: str, *, label: str, modality: str, findings: Collection[str], options=None):
        self.trace, self.label, self.modality, self.seen = trace, canonical_label(label), modality, family(*findings)
        self.known, self.options = vocabulary(self.label or label, modality), option_texts(options)
        self.parts = take_apart(trace, tuple(self.options.items()))
        self.text, self.well_formed, self.answer = self.parts.text, self.parts.well_formed, self.parts.answer
        self.own = {self.label, self.answer, *RULES["wider_labels"].get(self.label, ())}
        named: dict[str, set[str]] = {"asserted": set(), "hedged": set(), "negated": set(), "hypothetical": set()}
        for mention, concluded in self.parts.mentions:
            name = RULES["reads_as"].get(modality, {}).get(mention.finding, mention.finding)
            start, end, low = *mention[1:3], self.parts.lower
            inferred = self.label in (canonical_label(name), canonical_label(self.text[start:end])) and (
                concluded or RULE["effect"].search(low[max(0, start - 50):start]) or (  # else it is seen
                    len(low) - end < 2 and start - self.parts.sentence(start)[0] < 3)) or (
                name in RULES["inferred"] and name in self.known.required and (
                    concluded or bool(self.seen) > (name in self.seen)))
            aside = (mention.status == "negated" or name not in self.seen) and self._aside(mention)
            named["hypothetical" if inferred or aside else mention.status].add(name)
        spans = [n[1:3] for n, *_ in self.parts.labels]
        spans += [m[1:3] for m, *_ in self.parts.mentions if m.status != "asserted"]
        for name in self.known.required & self.seen - family(*named["asserted"]) - named["hedged"]:
            if describes(self.text, name, spans):
                named["asserted"].add(name)
        self.asserted, self.hedged, self.denied = (frozenset(named[s]) for s in ("asserted", "hedged", "negated"))
        self.held, self.made_up = family(*self.asserted), self.asserted - self.seen
        self.concluded = [m.finding for m, concluded, _ in self.parts.labels if concluded and m.status == "asserted"]

    def _aside(self, mention: Mention) -> bool:
        """Is it denied of another site ("the lower half is free of A"), demanded by a rule, or a gloss ("A = B")?"""
        parts, (_, start, end, status) = self.parts, mention  # asserted: V(I) lacks it
        if status == "negated":
            return bool(RULE["elsewhere"].match(parts.lower, end)) or any(
                first <= start < last + 40 for first, last in parts.says.get("free_site", ()))
        first = parts.sentence(start)[0]
        return parts.within("demands", first, start) or parts.within("all_needed", first, start) or any(
            m.finding in self.seen and m.start > end and RULE["gloss"].fullmatch(parts.lower, end, m.start)
            for m, _ in parts.mentions)

    @cached_property
    def problems(self) -> set[str]:
        return {name for name in CATEGORIES if getattr(self, name)()}

    @cached_property
    def hacks(self) -> bool:
        """Talks to whoever scores it, hides text, strings keywords, repeats itself, copies K, or gives no reason."""
        low, words = self.parts.lower, self.parts.lower.split()
        if "addressed_to_judge" in self.parts.says or RULE["markup"].search(low) or (
                not self.trace.isascii() and RULE["disguise"].search(self.trace)):
            return True
        cut = [(a, b, s) for a, b in pairwise(self.parts.ends) if (s := low[a:b].strip(" .;!?"))]
        verbs = [start for start, end, kind in reading(self.text).cues if kind in ("verb", "no", "denied") and (
            low[start:end][-1] == "s" or low[start:end] in ("are", "were", "have", "no", "not"))]
        sentences, salad = [s for *_, s in cut if " " in s], any(
            len(inside := s.split()) > 11 and s.count(",") < 3 and ":" not in s and not verbs[
                bisect_left(verbs, a):bisect_left(verbs, b)]
            and 20 * sum(w.strip(",:()") in _FEW for w in inside) <= len(inside) for a, b, s in cut)
        repeats = len(sentences) > len({*sentences}) + 1 or (len(words) > 15 and len({*words}) < 0.3 * len(words))
        shingles = {*zip(*(reading(self.text).stems[i:] for i in range(6)), strict=False)}
        copied = any(2 * len(shingles & shingles_of(y, self.modality)) > max(1, len(shingles))
                     for y in {self.label, self.answer} - {None})
        named = sum(len(m.finding.split()) for m, _, lesion in self.parts.labels if not lesion)
        return bool(salad or repeats or copied or len(words) - named < 4)

    def modality_inconsistency(self) -> bool:
        """Calls the image by another modality, or claims a sign that this one cannot show; a next test may be named."""
        foreign = [(*span, "", "") for i, row in enumerate(RULES["modality_words"])
                   if self.modality not in row["except"] for span in self.parts.says.get(("modality_words", i), ())]
        if any(word.status in ("asserted", "hedged") and not self.parts.within("next_step", *self.parts.sentence(
                word.start)) for word in foreign and with_status(self.text, foreign)):
            return True
        return not all(self.modality in findings()[f]["shown_by"] for f in self.asserted | self.hedged)

    def missing_required_vf(self) -> bool:
        """What is reported does not meet the criteria; of alternatives, one that the image has must be reported."""
        held = self.held.union(RULES["contradictions"] if "says_normal" in self.parts.says else ())
        return not (self.known.all_of <= held and all((g & self.seen or g) & held for g in self.known.any_of))

    def redundant_or_incorrect_vf(self) -> bool:
        """Asserts or hedges what the image does not have, denies what it has, or talks about claims."""
        return bool(self.made_up or self.hedged - self.seen or self.denied & self.seen
                    or "talk_about_claims" in self.parts.says)

    @cached_property
    def said(self) -> str | None:
        """The label that the reasoning is for: what it concludes, else what it answers."""
        last = [self.answer, *self.concluded][-1]
        return self.label if self._fits(self.concluded) or not criteria(last) else last

    def knowledge_missing_or_mismatch(self) -> bool:
        """No link from decisive findings to a rule, or a false one. Reasoning for another label is held to its rule."""
        said, known_of = self.said, criteria(self.said)
        unproven = self.missing_required_vf() if said in (self.label, None) else \
            bool(known_of) and not any(known.satisfied_by(self.asserted) for known in known_of)
        linked = "conclude" in self.parts.says or sum(  # words that no finding, label or cue accounts for
            stem not in _FEW | _OF_ANY_IMAGE
            and not any(first <= place < end for first, end, _ in reading(self.text).cues)
            for place, stem in self.parts.loose) > 1
        return unproven or not linked or false_rule(self) or self.hacks

    def answer_mismatch(self) -> bool:
        """The answer, or what the reasoning concludes, is another label; a wider disease may be named."""
        return self.answer != self.label or (bool(self.concluded) and not self._fits(self.concluded))

    def _fits(self, labels: Collection[str]) -> bool:
        """Is one of them the label or a wider one?"""
        return bool({self.label, *RULES["wider_labels"].get(self.label, ())} & {*labels})

    def self_contradiction(self) -> bool:
        """One thing asserted and denied, a normal finding beside what excludes it, "only" one lesion and another."""
        against = any(normal in self.asserted and self.held & {*lesions}
                      for normal, lesions in RULES["contradictions"].items())
        low = self.parts.lower
        alone = [m.finding for m, *_ in self.parts.mentions if m.status == "asserted" and (
            _ONLY["before"].search(low[max(0, m.start - 60):m.start]) or _ONLY["after"].search(low[m.end:m.end + 60]))]
        return bool(self.held & self.denied) or against or self._free_where_found() or any(
            self.asserted - family(name) for name in alone)

    def _free_where_found(self) -> bool:
        """Is a site with a finding called free or normal? "Blood fills the upper sector; the upper sector is clear"."""
        low, told = self.parts.lower, [m for m, *_ in self.parts.mentions]
        for start, end in self.parts.says.get("free_site", ()):
            words = low[start:end].split()
            spared = family(*(m.finding for m in told if m.status == "negated" and start <= m.start < end + 60))
            for mention in told:
                a, b = self.parts.sentence(mention.start)
                site = " ".join(words[:1 if spared & family(mention.finding) else 2])
                if mention.status == "asserted" and not start <= mention.start < end and (
                        site in low[a:min(b, start)] or site in low[max(a, end):b]) and (
                        not spared or len(site.split()) == 1) and words[0] not in ("other", "remaining", "opposite"):
                    return True
        return False

    def format_error(self) -> bool:
        """Broken, empty or conflicting tags, or markup for the judge."""
        return not self.well_formed or bool(RULE["markup"].search(self.trace.lower())) or any(
            self.parts.within("addressed_to_judge", *part.span()) for part in _BRACKETS.finditer(self.text))


check_trace = TraceReport  # quality control of one trace, by its public name
