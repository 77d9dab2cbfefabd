"""Reasoning traces: the writer of the embedded world, and the checks that a trace must pass to be learnt from.

A check is a method of `Reading` that says "there is this problem"; its name is the category. Word lists, false rules and
mechanisms are data (references/rules.json).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import pandas as pd

from fundus_lib.answers import extract_answer, parse_strict
from fundus_lib.knowledge import Vocabulary, pairs, vocabulary
from fundus_lib.lexicon import canonical_label, clean, families, family, find_labels, find_mentions, findings, reference
from fundus_lib.questions import option_texts

CATEGORIES = ("modality_inconsistency", "missing_required_vf", "redundant_or_incorrect_vf",
              "knowledge_missing_or_mismatch", "answer_mismatch", "self_contradiction", "format_error")
SHAPE = re.compile(r"\s*<think>(?=\s*\S)((?:(?!</?think>|</?answer>).)+)</think>\s*<answer>(?=\s*\S)"
                   r"((?:(?!</?think>|</?answer>).)+)</answer>\s*", re.DOTALL)  # one block of each, nothing else
NORMAL = ("normal", "intact")  # how the names of normal findings begin


def write_trace(label: str, modality: str, seen: Collection[str], options=None) -> str:
    """V(I), the rule that ties it to the label, the answer: a template short enough for the small model.

    seen: V(I) within the vocabulary of (label, modality). Required findings come first; at most two that would
    contradict the label are named as absent. The answer is the option's own spelling of the label, where there is one.
    """
    known = vocabulary(label, modality)
    decisive, others = ([f for f in findings() if f in seen and f in group] for group in (known.required, known.supportive))
    absent: list[str] = []
    for name in findings():  # one of a family says enough
        if name in known.definitional and not name.startswith(NORMAL) and not family(name) & {*absent, *seen}:
            absent.append(name)
    rule = ", ".join(decisive) + (" without " + " or ".join(absent[:2]) if absent and decisive else "")
    answer = next((text for text in option_texts(options).values() if canonical_label(text) == label), label)
    trace = write_simple_trace(modality, answer, decisive + others)
    return trace.replace(" </think>", f" {rule or 'This'} indicates {label}. </think>")


def write_simple_trace(modality: str, answer: str, seen: Collection[str] | None = None) -> str:
    """The trace of a question about modality or side or, with the findings seen, about one lesion."""
    shown = f"This is a {modality} image." if seen is None else \
        f"This {modality} image shows {', '.join(seen) or 'no listed finding'}."
    return f"<think> {shown} </think> <answer> {answer} </answer>"


@cache
def _pattern(pattern: str) -> re.Pattern:
    return re.compile(reference("rules.json").get(pattern, pattern), re.IGNORECASE)


def says(what: str, text: str) -> bool:
    """Does the text hold a pattern, given as such or by its name in rules.json?"""
    return bool(_pattern(what).search(text))


class Told(NamedTuple):
    """What a trace says, whatever the truth may be; a mention comes with: does it follow "so", "indicates", ...?"""
    text: str  # the reasoning, cleaned
    well_formed: bool
    answer: str | None  # a label, or text that names none
    mentions: list[tuple]
    labels: list[tuple]


@lru_cache(maxsize=8192)
def _take_apart(trace: str, options: tuple[tuple[str, str], ...]) -> Told:
    shaped, choice = SHAPE.fullmatch(trace), (dict(options) or None, "single" if options else "open")
    stated = parse_strict(trace, *choice) if shaped else extract_answer(trace, *choice)
    value = dict(options).get(stated.value, stated.value) if stated.status == "ok" else None
    text = clean(shaped[1] if shaped else re.sub(r"(?is)<answer>.*|\banswer:.*|</?think>", "", trace))[0].strip()
    cues = [cue.end() for cue in _pattern("conclude").finditer(text)]
    named = [m for m in find_labels(text) if m.status == "asserted"]
    spelt = [m for m in find_mentions(text)  # a finding inside a disease's name ("diabetic macular edema") is none
             if not any(n.start <= m.start and m.end <= n.end and n.end - n.start > m.end - m.start for n in named)]
    starts = [0, *(match.end() for match in re.finditer(r"[.;] ", text))]
    return Told(text, bool(shaped), value and (canonical_label(value) or value), *(
        [(m, any(max(s for s in starts if s <= m.start) < cue <= m.start for cue in cues)) for m in group]
        for group in (spelt, named)))


class Reading:
    """A trace held against a label, the findings of the image and the label's vocabulary.

    KeyError when no reference page covers (label, modality). Each name of CATEGORIES is a check: True is a problem.
    """

    def __init__(self, trace: str, label: str, modality: str, seen: Collection[str], options=None):
        self.told = _take_apart(trace, tuple(option_texts(options).items()))
        self.trace, self.label, self.modality = trace, canonical_label(label), modality
        self.known, self.seen = vocabulary(label, modality), families(seen)
        named: dict[str, set[str]] = {status: set() for status in ("asserted", "hedged", "negated", "hypothetical")}
        for mention, concluded in self.told.mentions:
            # retinal new vessels do not show in a B-scan of the macula: there the word means choroidal ones
            finding = "choroidal neovascularization" if (mention.finding, modality) == ("neovascularization", "OCT") \
                else mention.finding
            if not (concluded and (disease := canonical_label(finding)) and (finding in self.known.required or disease == self.label)):
                named[mention.status].add(finding)  # else it is what the trace infers, not what it saw
        self.asserted, self.hedged, self.denied = (frozenset(named[s]) for s in ("asserted", "hedged", "negated"))
        self.held = families(self.asserted)
        self.concluded = {mention.finding for mention, concluded in self.told.labels if concluded}

    @property
    def made_up(self) -> frozenset[str]:
        """Asserted findings that the image does not have; a parent of one that it has is supported."""
        return self.asserted - self.seen

    @cached_property
    def addresses_judge(self) -> bool:
        """Talks to whoever scores it, strings keywords without a predicate, or repeats one sentence."""
        sentences = [s for s in re.split(r"[.;!?]\s*", self.told.text) if s]
        salad = any(len(s.split()) >= 9 and not says("predicate", s) for s in sentences)
        return salad or says("addressed_to_judge", self.told.text) or max(Counter(sentences).values(), default=0) > 2

    def proves(self, known: Vocabulary) -> bool:
        """What is asserted meets these criteria and nothing speaks against them."""
        return known.satisfied_by(self.asserted) and not self.asserted & known.excluded

    def false_rule(self) -> bool:
        """A rule known to be false, another disease's mechanism, or a hallmark that is not among the criteria."""
        rules, text = reference("rules.json"), self.told.text
        about = [rule["pattern"] for rule in rules["false_rules"] if self.label in (rule["labels"] or [self.label])
                 and self.label not in rule["except"]]
        foreign = [entry["pattern"] for entry in rules["mechanisms"] if self.label not in entry["labels"]]
        return any(says(pattern, text) for pattern in about + foreign) or any(
            says(r"^ (?:is|are) (?:the |a )?(?:hallmark|defining|cardinal)", text[m.end:])
            and m.finding not in self.known.required for m, _ in self.told.mentions)

    def modality_inconsistency(self) -> bool:
        """Calls the image by another modality, or claims a sign that this one cannot show; a next test may be named."""
        foreign = [words["pattern"] for words in reference("rules.json")["modality_words"] if self.modality not in words["fits"]]
        named = [s for s in re.split(r"(?<=[.;])\s", self.told.text) if any(says(words, s) for words in foreign)]
        return any(not says("next_step", sentence) for sentence in named) or any(
            self.modality not in findings()[name].modalities for name in self.asserted | self.hedged)

    def missing_required_vf(self) -> bool:
        """What is reported does not meet the criteria; of alternatives, one that the image has must be reported."""
        normal = [f for f in findings() if f.startswith(NORMAL)] if says("says_normal", self.told.text) else []
        held = self.held.union(normal)
        return not (self.known.all_of <= held and all((group & self.seen or group) & held for group in self.known.any_of))

    def redundant_or_incorrect_vf(self) -> bool:
        """Asserts or hedges what the image does not have, denies what it has, or talks about claims."""
        return bool(self.made_up or self.hedged - self.seen or self.denied & self.seen) or says("talk_about_claims", self.told.text)

    def knowledge_missing_or_mismatch(self) -> bool:
        """No link from the decisive findings to a rule, or a false one. A reasoning for another label is held against
        that label's criteria, in any modality."""
        other = next(iter(self.concluded), self.told.answer) if self.label not in self.concluded else self.label
        if other in (self.label, None):
            unproven = self.missing_required_vf()
        else:
            criteria = [vocabulary(*pair) for pair in pairs() if pair[0] == other]
            unproven = bool(criteria) and not any(self.proves(known) for known in criteria)
        linked = says("link", self.told.text) or any(says(r"\b(?:is|are) (?:an? )?$", self.told.text[:m.start])
                                                     for m, _ in self.told.labels)
        return unproven or not linked or self.false_rule() or self.addresses_judge

    def answer_mismatch(self) -> bool:
        """The answer, or what the reasoning concludes, is another label; a wider disease may be named."""
        fits = {self.label, *reference("rules.json")["wider_labels"].get(self.label, [])}
        return self.told.answer != self.label or bool(self.concluded) and not fits & self.concluded

    def self_contradiction(self) -> bool:
        """The same thing asserted and denied, a normal finding beside what excludes it, "only" one lesion and another."""
        against = any(normal in self.asserted and self.held & {*lesions}
                      for normal, lesions in reference("rules.json")["contradictions"].items())
        alone = [m.finding for m, _ in self.told.mentions if says(r"(?<!not )\bonly $", self.told.text[:m.start])]
        return bool(self.held & self.denied) or against or any(self.asserted - family(name) for name in alone)

    def format_error(self) -> bool:
        """Broken, empty or conflicting tags, or markup for the judge."""
        return not self.told.well_formed or "<!--" in self.trace

    def problems(self) -> set[str]:
        """The categories that apply."""
        return {name for name in CATEGORIES if getattr(self, name)()}


class TraceReport(NamedTuple):
    """The categories of problems found; the answer as a label (or the text given, or None)."""
    problems: set[str]
    answer: str | None


def check_trace(trace: str, *, label: str, modality: str, findings: Collection[str], options=None) -> TraceReport:
    """Quality control of one trace against its label and V(I); KeyError when no page covers (label, modality)."""
    reading = Reading(trace, label, modality, findings, options)
    return TraceReport(reading.problems(), reading.told.answer)


def build(questions: pd.DataFrame, seen: pd.DataFrame, max_words: int) -> pd.DataFrame:
    """traces.parquet: one row a training question, with its checks (True: passed) and `kept` (all of them).

    questions: questions.parquet; seen: findings.parquet (record_id, finding, kept). A diagnosis whose (label, modality)
    has no page gets no trace. Questions about modality, side or a lesion are checked for form and length alone."""
    found = seen[seen.kept].groupby("record_id").finding.agg(list).to_dict()
    rows = []
    for question in questions[questions.split == "train"].itertuples():
        shown = found.get(question.record_id, [])
        if question.label is not None and (question.label, question.modality) in pairs():
            text = write_trace(question.label, question.modality, shown, question.options)
            problems = Reading(text, question.label, question.modality, shown, question.options).problems()
        elif question.label is None:
            text = write_simple_trace(question.modality, question.answer_text, [question.finding] if question.finding and question.answer_text == "Yes" else None)
            problems = set() if SHAPE.fullmatch(text) else {"format_error"}
        else:
            continue
        rows.append({"question_id": question.id, "text": text, "answer": question.answer_text}
                    | {f"no_{name}": name not in problems for name in CATEGORIES}
                    | {"within_length": len(text.split()) <= max_words})
    traces = pd.DataFrame(rows)
    return traces.assign(kept=traces.filter(regex="^(no_|within_)").all(axis=1))
