"""How a trace argues: what it mentions and concludes, and whether the rules it appeals to are true (rules.json)."""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import cache, lru_cache
from itertools import pairwise
from math import log
from typing import NamedTuple

from fundus_lib.answers import extract_answer, parse_strict
from fundus_lib.assertion import Cues, Mention, clean, key, reading, reference, with_status
from fundus_lib.knowledge import Vocabulary, acquire, pairs, vocabulary
from fundus_lib.lexicon import canonical_label, family, find_labels, find_mentions, weights

RULES = reference("rules.json")
_BLOCK = r"<{0}>(?!\s*</)([^<]*(?:<(?!/?(?:think|answer)>)[^<]*)*)</{0}>\s*"
SHAPE = re.compile(r"\s*" + _BLOCK.format("think") + _BLOCK.format("answer"))  # one filled block of each, nothing else
_KINDS = ("next_step conclude addressed_to_judge talk_about_claims absence_proof overclaim hallmark "
          "demands all_needed says_normal free_site").split()
RULE = {name: re.compile(held) for name, held in RULES.items()
        if isinstance(held, str) and name not in (*_KINDS, "note")}
_COLON_END = re.compile(r"[:,-] [^,.;:]{3,45}\.?$")
_COMPARED = re.compile(r"(?:(\b(?:above|over|(?:larger|greater|more|wider|bigger) than|exceeding|beyond)|>)|"
                       r"\b(?:below|under|(?:less|smaller|lower) than|up to)|<) ?"
                       r"(\d+(?:\.\d+)?) ?(um\b|micron\w*|\u03bcm)?")
_LENGTH = re.compile(r"(\d+(?:\.\d+)?) (um|mm)\b")
_IS = re.compile(r" (?:is|are|equals?|were|was) (?:(?:the|an?|in|fact|really|simply|just|nothing|but|actually) )*")
_GRADES = {word: n for n, words in enumerate(("zero 0", "one i 1", "two ii 2", "three iii 3", "four iv 4"))
           for word in words.split()}
_MECHANISM = re.compile(r"- (?:Mechanism|Causes?): (.*?)(?=\n- |\n\n|\Z)", re.DOTALL)
_pattern = lru_cache(maxsize=256)(re.compile)


@cache
def _cues() -> Cues:
    """The phrases of rules.json that start with a word, by kind; rows of a table are numbered."""
    rows = {(kind, i): [row["pattern"]] for kind in ("modality_words", "mechanisms")
            for i, row in enumerate(RULES[kind])}
    return Cues({kind: [RULES[kind]] for kind in _KINDS} | rows, {})


@cache
def criteria(label: str | None) -> list[Vocabulary]:
    """Vocab[label, m] of every modality m with a page."""
    return [vocabulary(*pair) for pair in sorted(pairs()) if pair[0] == label]


@cache
def shingles_of(label: str, modality: str) -> frozenset[tuple[str, ...]]:
    """Every six words in a row of K[label, modality]."""
    words = key(acquire(label, modality).text) if (label, modality) in pairs() else ()
    return frozenset(zip(*(words[i:] for i in range(6)), strict=False))


@cache
def _taught() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]], dict[str, float]]:
    """By label the words of its mechanism and those of its pages; and the weight of each word of a mechanism."""
    few, mechanisms, pages = frozenset(RULES["function_words"]), {}, {}
    for label, modality in sorted(pairs()):
        text = acquire(label, modality).text
        told = key(" ".join(_MECHANISM.findall(text)))
        mechanisms[label] = mechanisms.get(label, frozenset()) | {word for word in told if word.isalpha()} - few
        pages[label] = pages.get(label, frozenset(key(label))) | {*key(text)}
    spread = Counter(word for words in mechanisms.values() for word in words)
    return mechanisms, pages, {word: log(len(mechanisms) / n) for word, n in spread.items()}


def _another_mechanism(report) -> bool:
    """Does a sentence use the words of another label's mechanism that the pages of its own do not know?"""
    mechanisms, pages, shares = _taught()
    labels = (report.said, *RULES["wider_labels"].get(report.said, ()))
    own = frozenset().union(*(pages.get(label, ()) for label in labels), *(
        weights().get(name, ()) for name in report.known.required | report.seen))
    rare = [(start, stem) for start, stem in report.parts.loose if stem in shares and stem not in own]
    said = [{stem for start, stem in rare if first <= start < end} for first, end in pairwise(report.parts.ends)
            if len(rare) > 2 and not _about_another(report, first, end)]
    return any(len(told & those) > 2 and sum(map(shares.get, told & those)) > 8  # guesses, as in `describes`
               for told in mechanisms.values() for those in said if len(those) > 2)


class Parts(NamedTuple):
    """What a trace consists of. The first boolean: is it concluded ("so ...")?"""
    text: str
    lower: str
    ends: list[int]  # of sentences
    well_formed: bool
    answer: str | None
    says: dict[str, list[tuple[int, int]]]  # where, by kind of phrase
    mentions: list[tuple[Mention, bool]]
    labels: list[tuple[Mention, bool, bool]]  # the last: is it spelt like a finding?
    loose: list[tuple[int, str]]  # the words (place, stem) of no finding and no label

    def within(self, kind: str, first: int, end: int) -> bool:
        return any(first <= start < end for start, _ in self.says.get(kind, ()))

    def sentence(self, place: int) -> tuple[int, int]:
        at = bisect_right(self.ends, place)
        return self.ends[at - 1], self.ends[min(at, len(self.ends) - 1)]


def read_answer(trace: str, options: tuple[tuple[str, str], ...] = ()) -> str | None:
    """The label (or text) that a trace answers, strictly where it has the required shape; None: no single answer."""
    choice = dict(options) or None, "single" if options else "open"
    if trace.lower().count("<answer>") > 1:
        return None
    stated = parse_strict(trace, *choice) if SHAPE.fullmatch(trace) else extract_answer(trace, *choice)
    value = dict(options).get(stated.value, stated.value) if stated.status == "ok" else None
    return value and (canonical_label(value) or value)


@lru_cache(maxsize=64)
def take_apart(trace: str, options: tuple[tuple[str, str], ...]) -> Parts:
    shaped = SHAPE.fullmatch(trace)
    bare = shaped[1] if shaped else re.sub(r"(?is)<answer>.*|\banswer(?: is)?:? [^.]{1,60}$|</?think>", "", trace)
    text = clean(bare)[0].strip()
    read = reading(text)
    parts = Parts(text, read.lower, read.ends, bool(shaped), read_answer(trace, options), {}, [], [], [])
    for start, end, kind in _cues().find(read):
        parts.says.setdefault(kind, []).append((start, end))
    cues = [end for _, end in parts.says.get("conclude", ())] + [end.start() + 1 for end in _COLON_END.finditer(text)]
    named = find_labels(text)
    starts = [n.start for n in named]
    spelt = [m for m in find_mentions(text)  # a finding inside a disease's name ("diabetic macular edema") is none
             if not ((at := bisect_right(starts, m.start)) and named[at - 1].end >= m.end
                     and named[at - 1][1:3] != m[1:3])]
    named = [n for n in named if not any(m.start <= n.start and n.end <= m.end and n[1:3] != m[1:3] for m in spelt)
             and (n.finding != "Normal" or RULE["a_normal"].match(parts.lower, n.end))]  # "a normal number of fibers"
    taken = bytearray(len(read.words))
    for m in spelt + named:
        first, end = bisect_left(read.words, m[1:2]), bisect_left(read.words, m[2:3])
        taken[first:end] = b"x" * (end - first)
    parts.loose.extend((place[0], stem) for place, stem, inside in zip(read.words, read.stems, taken, strict=True)
                       if not inside and len(stem) > 1 and not stem.isdigit())
    last = max((parts.sentence(n.start)[0] for n in named), default=0)
    for mention in spelt + named:
        first, end = parts.sentence(mention.start)
        concluded = bisect_right(cues, mention.start) > bisect_right(cues, first) or bool(
            RULE["named"].match(parts.lower[mention.end:mention.end + 90]))
        if len(parts.mentions) == len(spelt):
            lesion = any(m.start <= mention.start < m.end for m in spelt)  # "drusen" the sign
            parts.labels.append((mention, concluded or first == last and not lesion, lesion))
        else:
            parts.mentions.append((mention, concluded))
    return parts


def false_rule(report) -> bool:
    """A rule known to be false: another disease's mechanism, wrong criteria or numbers."""
    says, sentence = report.parts.says, report.parts.sentence
    foreign = [span for i, row in enumerate(RULES["mechanisms"]) if report.said not in row["labels"]
               for span in says.get(("mechanisms", i), ()) if not _about_another(report, sentence(span[0])[0], span[0])]
    return "overclaim" in says or _wrongcriteria(report) or _wrong_number(report) or _wrong_grade(report) or (
        _mistaken_identity(report)) or _another_mechanism(report) or any(
        m.status == "asserted" for m in with_status(report.text, [(*span, "", "") for span in foreign]))


def _wrongcriteria(report) -> bool:
    """A hallmark or demand that is not among the criteria, "all needed" of alternatives, absence taken as proof."""
    pair, says = (report.said, report.modality), report.parts.says
    known = vocabulary(*pair) if pair in pairs() else report.known

    def names(first: int, end: int) -> frozenset[str]:
        return family(*(m.finding for m, *_ in report.parts.mentions
                        if first <= m.start < end and m.status != "negated"))

    for kind in ("hallmark", "demands", "all_needed"):
        for place, after in says.get(kind, ()) if known.required else ():
            first, end = report.parts.sentence(place)
            told = (kind != "demands" and names(first, place)) or names(after, end)
            met = told and told & known.required
            if kind == "all_needed":  # of a single list of alternatives, one is enough
                met = len(known.any_of) != 1 or known.all_of
            if (told or kind == "all_needed") and not met and not _about_another(report, first, end):
                return True
    denied = [m for m, *_ in report.parts.mentions if m.status == "negated"]
    return not known.required & {*RULES["contradictions"]} and any(
        not any(m.finding in known.excluded for m in denied if start <= m.start < end)
        for start, end in says.get("absence_proof", ()))


def _about_another(report, first: int, end: int) -> bool:
    told = [n.finding for n, _, lesion in report.parts.labels if not lesion and first <= n.start < end]
    return bool(told) and not report.own & {*told}


def _mistaken_identity(report) -> bool:
    """One finding called another: "the burns are the bone spicules"."""
    found = sorted((m for m, _ in report.parts.mentions if m.status != "negated"), key=lambda m: m.start)
    return any(_IS.fullmatch(report.parts.lower, one.end, other.start) and not (
        family(one.finding) & family(other.finding)) for one, other in pairwise(found))


@cache
def _numbers(label: str) -> dict[str, set[float]]:
    """The numbers with a unit of length on the pages of a label, by unit."""
    found: dict[str, set[float]] = {}
    for pair in sorted(pairs()):
        for size, unit in _LENGTH.findall(acquire(*pair).text.lower()) if pair[0] == label else ():
            found.setdefault(unit, set()).add(float(size))
    return found


def _wrong_number(report) -> bool:
    """A size that the scales call otherwise, a threshold that K does not know, too many quadrants demanded."""
    low = report.parts.lower
    for cue in _COMPARED.finditer(low):
        first, end = report.parts.sentence(cue.start())
        size, more = float(cue[2]), bool(cue[1])
        for row in RULES["measures"]:
            if bool(row["unit"]) != bool(cue[3]) or not row["unit"] and size > 1 or not _pattern(row["about"]).search(
                    low, first, end):
                continue
            for words, (least, most) in row["words"].items():
                said = _pattern(rf"(?:[^.;]*?{RULES['calls']}| )(?:{words})\b").match(low, cue.end(), end)
                if said and (size >= most or size < least if more else size <= least or size > 1.25 * most):
                    return True
    for cue in RULE["cutoff"].finditer(low):
        known = _numbers(report.said).get(cue[2].replace("\u03bc", "u")[:2].replace("mi", "um"))
        if known and float(cue[1]) not in known:
            return True
    for first, end in pairwise(report.parts.ends) if "quadrant" in low else ():
        for about, right in RULES["quadrants"].items():
            said = _pattern(rf"\b(?:{about})([^.;]*?)\b(one|two|three|four|all|each|every|single|any|\d)\b(?: of)?"
                            r"(?: the)?(?: \w+)? quadrants?\b").search(low, first, end)
            if said and said[2] not in right and RULE["insists"].search(low, first, said.end()):
                return True
    return False


def _wrong_grade(report) -> bool:
    """A grade of a scale that belongs to other signs: "in the ICDR venous beading is grade 1"."""
    low = report.parts.lower
    for scale, grades in RULES["scales"].items():
        for cue in _pattern(scale).finditer(low):
            first, end = report.parts.sentence(cue.start())
            said = RULE["stated"].search(low, first, end)
            if said and not RULE["unlike"].search(low, first, end):
                told = [grades[name] for m, *_ in report.parts.mentions + report.parts.labels
                        if first <= m.start < said.start() and m.status == "asserted"
                        for name in family(m.finding) if name in grades]
                if told and max(told) != _GRADES.get(said[1], said[1]):
                    return True
    return False
