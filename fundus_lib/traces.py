"""Quality control of reasoning traces: the checks are the methods of `TraceReport`; their words are in rules.json."""

import re
from collections.abc import Collection
from functools import cache, cached_property, lru_cache

from fundus_lib.answers import extract_answer, parse_strict
from fundus_lib.knowledge import pairs, vocabulary
from fundus_lib.lexicon import canonical_label, clean, family, find_labels, find_mentions, findings, reference
from fundus_lib.questions import option_texts

RULES = reference("rules.json")
CATEGORIES = ("modality_inconsistency", "missing_required_vf", "redundant_or_incorrect_vf",
              "knowledge_missing_or_mismatch", "answer_mismatch", "self_contradiction", "format_error")
SHAPE = re.compile(r"\s*<think>(?!\s*</)((?:(?!</?think>|</?answer>).)+)</think>\s*<answer>(?!\s*</)"
                   r"((?:(?!</?think>|</?answer>).)+)</answer>\s*", re.DOTALL)  # one filled block of each, nothing else


@cache
def rule(kind: str, name: str | None = None) -> re.Pattern:
    """A word list of rules.json; with a label or modality, all that this list of rules holds against it."""
    held = RULES[kind]
    if name:
        held = "|".join(r["pattern"] for r in held if name in (r.get("labels") or [name]) and name not in r["except"])
    return re.compile(held, re.IGNORECASE)


@lru_cache(maxsize=8192)
def _take_apart(trace: str, options: tuple[tuple[str, str], ...]) -> tuple[str, bool, str | None, list, list]:
    """(reasoning, well formed, answer, findings, labels); the last two with: does it follow "so", "indicates", ...?"""
    shaped, choice = SHAPE.fullmatch(trace), (dict(options) or None, "single" if options else "open")
    stated = parse_strict(trace, *choice) if shaped else extract_answer(trace, *choice)
    value = dict(options).get(stated.value, stated.value) if stated.status == "ok" else None
    text = clean(shaped[1] if shaped else re.sub(r"(?is)<answer>.*|\banswer:.*|</?think>", "", trace))[0].strip()
    starts = [0, *(match.end() for match in re.finditer(r"[.;] ", text))]
    cues = [cue.end() for cue in rule("conclude").finditer(text)]
    named = [m for m in find_labels(text) if m.status == "asserted"]
    spelt = [m for m in find_mentions(text)  # a finding inside a disease's name ("diabetic macular edema") is none
             if not any(n.start <= m.start and m.end <= n.end and n.end - n.start > m.end - m.start for n in named)]
    return text, bool(shaped), value and (canonical_label(value) or value), *(
        [(m, any(max(s for s in starts if s <= m.start) < cue <= m.start for cue in cues)) for m in group]
        for group in (spelt, named))


class TraceReport:
    """A trace held against a label, V(I) and Vocab[label, modality] (KeyError when no page covers these): `problems`
    are the categories that apply, `answer` is a label, the text given, or None."""

    def __init__(self, trace: str, *, label: str, modality: str, findings: Collection[str], options=None):
        self.trace, self.label, self.modality, self.seen = trace, canonical_label(label), modality, family(*findings)
        self.known, self.options = vocabulary(label, modality), option_texts(options)
        parts = _take_apart(trace, tuple(self.options.items()))
        self.text, self.well_formed, self.answer, self.mentions, self.labels = parts
        named: dict[str, set[str]] = {"asserted": set(), "hedged": set(), "negated": set(), "hypothetical": set()}
        for mention, concluded in self.mentions:
            name = RULES["reads_as"].get(modality, {}).get(mention.finding, mention.finding)
            disease = canonical_label(name) if concluded else None
            if not disease or not (name in self.known.required or disease == self.label):  # else inferred, not seen
                named[mention.status].add(name)
        self.asserted, self.hedged, self.denied = (frozenset(named[s]) for s in ("asserted", "hedged", "negated"))
        self.held, self.made_up = family(*self.asserted), self.asserted - self.seen
        self.concluded = [mention.finding for mention, concluded in self.labels if concluded]

    @cached_property
    def problems(self) -> set[str]:
        return {name for name in CATEGORIES if getattr(self, name)()}

    @cached_property
    def addresses_judge(self) -> bool:
        """Talks to whoever scores it, strings keywords without a predicate, or repeats one sentence."""
        sentences = [s for s in re.split(r"[.;!?]\s*", self.text) if s]
        salad = any(len(s.split()) > 11 and not rule("predicate").search(s) for s in sentences)
        return bool(salad or len(sentences) > len({*sentences}) + 1 or rule("addressed_to_judge").search(self.text))

    def false_rule(self) -> bool:
        """A rule known to be false, another disease's mechanism, or a hallmark that is not among the criteria."""
        called = {match.start() for match in rule("hallmark").finditer(self.text)}
        hallmarks = {m.finding for m, _ in self.mentions if m.end in called}
        return bool(hallmarks - self.known.required or rule("false_rules", self.label).search(self.text))

    def modality_inconsistency(self) -> bool:
        """Calls the image by another modality, or claims a sign that this one cannot show; a next test may be named."""
        foreign, next_step = rule("modality_words", self.modality), rule("next_step")
        named = any(foreign.search(s) and not next_step.search(s) for s in re.split(r"(?<=[.;])\s", self.text))
        return named or not all(self.modality in findings()[f]["shown_by"] for f in self.asserted | self.hedged)

    def missing_required_vf(self) -> bool:
        """What is reported does not meet the criteria; of alternatives, one that the image has must be reported."""
        held = self.held.union(RULES["contradictions"] if rule("says_normal").search(self.text) else ())
        return not (self.known.all_of <= held and all((g & self.seen or g) & held for g in self.known.any_of))

    def redundant_or_incorrect_vf(self) -> bool:
        """Asserts or hedges what the image does not have, denies what it has, or talks about claims."""
        return bool(self.made_up or self.hedged - self.seen or self.denied & self.seen
                    or rule("talk_about_claims").search(self.text))

    def knowledge_missing_or_mismatch(self) -> bool:
        """No link from decisive findings to a rule, or a false one. Reasoning for another label is held to its rule."""
        said = self.label if self.label in self.concluded else [self.answer, *self.concluded][-1]
        criteria = [vocabulary(*pair) for pair in pairs() if pair[0] == said]
        unproven = self.missing_required_vf() if said in (self.label, None) else \
            bool(criteria) and not any(known.satisfied_by(self.asserted) for known in criteria)
        linked = rule("link").search(self.text) or any(
            rule("called").search(self.text[:mention.start]) for mention, _ in self.labels)
        return unproven or not linked or self.false_rule() or self.addresses_judge

    def answer_mismatch(self) -> bool:
        """The answer, or what the reasoning concludes, is another label; a wider disease may be named."""
        fits = {self.label, *RULES["wider_labels"].get(self.label, [])}
        return self.answer != self.label or (bool(self.concluded) and not fits & {*self.concluded})

    def self_contradiction(self) -> bool:
        """One thing asserted and denied, a normal finding beside what excludes it, "only" one lesion and another."""
        against = any(normal in self.asserted and self.held & {*lesions}
                      for normal, lesions in RULES["contradictions"].items())
        only = {match.end() for match in rule("only").finditer(self.text)}
        alone = [m.finding for m, _ in self.mentions if m.start in only]
        return bool(self.held & self.denied) or against or any(self.asserted - family(name) for name in alone)

    def format_error(self) -> bool:
        """Broken, empty or conflicting tags, or markup for the judge."""
        return not self.well_formed or "<!--" in self.trace


check_trace = TraceReport  # quality control of one trace, by its public name
