"""127 findings, the labels of 17 data sets, and how a sentence mentions them. The words are data: references/*.json."""

import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

REFERENCES = Path(__file__).parent / "references"
Span = tuple[int, int, str, bool]  # start, end, name, gapped (other words may stand inside)


class Mention(NamedTuple):
    """`finding` (or a label) stands at text[start:end]; status is asserted | negated | hedged | hypothetical."""
    finding: str
    start: int
    end: int
    status: str


@cache
def reference(name: str) -> dict:
    """A JSON file of references/, read once."""
    return json.loads((REFERENCES / name).read_text(encoding="utf-8"))


@cache
def findings() -> dict[str, dict]:
    """The lexicon's entry of every finding by its canonical name; shown_by: modalities that show or suggest it."""
    return {row["canonical"]: row | {"shown_by": row["modalities"] + row["indirect_modalities"]}
            for row in reference("findings_lexicon.json")["findings"]}


def family(*names: str) -> frozenset[str]:
    """The findings and their parents: a flame-shaped hemorrhage is a retinal hemorrhage too; never the reverse."""
    parents = {findings().get(name, {}).get("is_a") for name in names} - {None}
    return frozenset(names) | (family(*parents) if parents else frozenset())


_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphen, zero-width characters: they hide a word
_WORD = re.compile(r"[^\W_]+")
_JOINT = re.compile(r"[-/'\u2019\u2013]? ?>?")  # what may stand between the words of one term


def clean(text: str) -> tuple[str, Sequence[int]]:
    """NFKC, no zero-width characters, single blanks. Returns the text and each character's place in the original."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text, range(len(text))
    shown = [(" " if c.isspace() else c, place) for place, raw in enumerate(_UNSEEN.sub("\0", text)) if raw != "\0"
             for c in unicodedata.normalize("NFKC", raw)]
    shown = [after for before, after in pairwise([(" ", 0), *shown]) if before[0] + after[0] != "  "]
    return "".join(c for c, _ in shown), [place for _, place in shown]


@lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    """Lower case, American spelling, no plural: `Haemorrhages` and `hemorrhage` are one word."""
    word = word.lower()
    for british, american in reference("findings_lexicon.json")["spelling"].items():
        word = word.replace(british, american)
    return word[:-3] + "y" if word.endswith("ies") else re.sub("(?<=..[^s])s$", "", word)


def key(text: str) -> tuple[str, ...]:
    """A term as the tables spell it: stemmed words, `non-x` written as one."""
    return tuple(map(_stem, _WORD.findall(re.sub(r"\bnon[- ](?=[a-z])", "non", clean(text)[0].lower()))))


class _Phrases:
    """Terms by their words. One all-capital word is an abbreviation: case-sensitive, with an optional s."""

    def __init__(self, terms: Iterable[tuple[str, str]]):
        self.names: dict[tuple[str, ...], str] = {}
        self.longest: dict[str, int] = {}  # words of the longest term, by the stem of its first word
        for term, name in terms:
            words = (term,) if term.isupper() and " " not in term else key(term)
            self.names.setdefault(words, name)
            self.longest[_stem(words[0])] = max(len(words), self.longest.get(_stem(words[0]), 0))

    def spans(self, text: str) -> list[Span]:
        """Every term in the text, the longest at each word."""
        words, stems, gaps, *_ = _parse(text)
        found, after = [], 0
        for at in (i for i, stem in enumerate(stems) if stem in self.longest):
            sizes = range(min(self.longest[stems[at]], len(words) - at) if at >= after else 0, 0, -1)
            fits = (n for n in sizes if tuple(stems[at:at + n]) in self.names and all(gaps[at:at + n - 1]))
            size, code = next(fits, 0), words[at].group().removesuffix("s")
            name = self.names.get(tuple(stems[at:at + size]) if size or not code.isupper() else (code,))
            if name and at >= after:
                after = at + max(size, 1)
                found.append((words[at].start(), words[after - 1].end(), name, False))
        return found


_SENTENCE_END = re.compile(r"(?<!i\.e)(?<!e\.g)(?<!vs)[.!?](?=\s|$|<)|[;<>]|\s\d\)")
_PREDICATES = {"sure", "doubted", "denied", "verb"}


@cache
def _cues() -> re.Pattern:
    """One pattern with a named group for each kind of cue of assertion_cues.json."""
    table = reference("assertion_cues.json")
    pattern = "|".join(rf"\b(?P<{kind}>{'|'.join(words)})\b" for kind, words in table["cues"].items())
    for part, words in table["parts"].items():
        pattern = pattern.replace("{" + part + "}", words)
    return re.compile(pattern, re.IGNORECASE)


@lru_cache(maxsize=64)
def _parse(text: str) -> tuple[list[re.Match], list[str], list[bool], list[tuple[int, int, str]], list[int]]:
    """(words, their stems, may a term go on to the next word?, cues (start, end, kind), sentence ends)."""
    words = list(_WORD.finditer(text))
    gaps = [bool(_JOINT.fullmatch(text, a.end(), b.start())) for a, b in pairwise(words)]
    return (words, [_stem(word.group()) for word in words], gaps, [(*cue.span(), cue.lastgroup) for cue in
            _cues().finditer(text)], [0, *(end.start() for end in _SENTENCE_END.finditer(text)), len(text)])


def _status(before: list[tuple[str, str]], after: list[str]) -> str:
    """Status of a mention from the cues of its clause: (kind, words up to the mention) before it, kinds after it."""
    if "supposed" in after or any(kind == "supposed" for kind, _ in before):
        return "hypothetical"
    state = "asserted"
    for kind, between in before:
        if kind == "elsewhere":
            state = state if "," in between else "hypothetical"
        else:  # a finite verb ends what stood before it: "no A is seen and B ..."
            state = {"no": "negated", "maybe": "hedged"}.get(kind, "asserted")
    verdict = next((kind for kind in after if kind in _PREDICATES), None)
    return {"denied": "negated", "doubted": "hedged"}.get(verdict, state) if state == "asserted" else state


def _with_status(text: str, found: list[Span]) -> list[Mention]:
    """Give each span its status, from the cues of its clause. Cues inside a term belong to it, unless it is gapped."""
    *_, cues, ends = _parse(text)
    cues = [cue for cue in cues if not any(s < cue[1] and cue[0] < e for s, e, _, gapped in found if not gapped)]
    edges = sorted(ends + [first for first, _, kind in cues if kind == "stop"])
    mentions = []
    for start, end, name, _ in found:
        left, right = edges[bisect_right(edges, start) - 1], edges[bisect_left(edges, end)]
        clause = [cue for cue in cues if left <= cue[0] and cue[1] <= right and cue[2] != "stop"]
        inside = any(kind in ("no", "denied") for first, last, kind in clause if start <= first and last <= end)
        before = [(kind, text[last:start]) for _, last, kind in clause if last <= start]
        after = [kind for first, _, kind in clause if first >= end]
        mentions.append(Mention(name, start, end, "negated" if inside else _status(before, after)))
    return mentions


@cache
def _finding_terms() -> tuple[_Phrases, list[tuple[re.Pattern, str, bool, set[str]]]]:
    """The terms, and the hints for elliptical forms: (pattern, finding, gapped, words of which one is there)."""
    rows = findings().items()
    terms = _Phrases((term, name) for name, row in rows for term in
                     (name, *row["abbreviations"], *row["synonyms"], *row["lexical_variants"]))
    return terms, [(re.compile(hint, re.IGNORECASE), name, ".{" in hint or "[^.]{" in hint, {*row["hint_words"]})
                   for name, row in rows for hint in row["regex_hints"]]


def find_mentions(text: str, modality: str | None = None) -> list[Mention]:
    """Every finding that `text` names, in reading order; with a modality, only what that can show (directly or not)."""
    text, places = clean(text)
    terms, hints = _finding_terms()
    found = terms.spans(text)
    for pattern, name, gapped, needed in hints:
        for match in () if needed.isdisjoint(_parse(text)[1]) else pattern.finditer(text):
            start, end = match.span()
            near = [other for other in found if other[0] < end and start < other[1]]
            longer = not gapped and any(other[1] - other[0] > end - start for other in near)
            if not (longer or any(other[2] == name for other in near) or _SENTENCE_END.search(match.group())):
                gone = [o for o in near if (o[2] == findings()[name]["is_a"] if gapped else o[:2] != (start, end))]
                found = [other for other in found if other not in gone] + [(start, end, name, gapped)]
    collective = [(*match.span(), name, False) for entry in reference("findings_lexicon.json")["collective_terms"]
                  for match in re.finditer(rf"\b{entry['term']}\b", text) for name in entry["findings"]
                  if not any(other[0] < match.end() and match.start() < other[1] for other in found)]
    mentions = _with_status(text, found + collective)
    mentions = [m for i, m in enumerate(mentions) if i < len(found) or m.status == "negated"]  # "fluid" asserts no kind
    return sorted((m._replace(start=places[m.start], end=places[m.end - 1] + 1) for m in mentions
                   if modality is None or modality in findings()[m.finding]["shown_by"]), key=lambda m: m[1:3])


@cache
def _labels() -> tuple[dict[tuple[str, ...], str], _Phrases]:
    """(label by key, terms for free text: no masks, no `grade 1`). A term that two labels share names neither."""
    rows = [row for entry in reference("labels.json")["datasets"] for row in entry["labels"]]
    names, kinds, terms = {}, {}, {}
    for row in sorted(rows, key=lambda row: row["kind"] == "lesion"):  # `Drusen` the diagnosis, then `drusen` the mask
        name = names.setdefault(key(row["canonical"]), row["canonical"])
        kind = kinds.setdefault(name, row["kind"])
        code = [row["original"]] if re.fullmatch("[A-Za-z]{2,6}", row["original"]) and row["kind"] != "lesion" else []
        for term in [row["canonical"], *row["synonyms"], *code] if kind not in ("prognosis", "quality") else []:
            terms.setdefault(key(term), []).append((name, term))
    del terms[key("NO")]  # OCTDL's code for normal is an English word
    table = {term: uses[0][0] for term, uses in terms.items() if len({name for name, _ in uses}) == 1} | names
    return table, _Phrases((term, table[at]) for at, uses in terms.items() if at in table for _, term in uses
                           if kinds[table[at]] != "lesion" and not re.search(r"\d", term))


@lru_cache(maxsize=4096)
def canonical_label(text: str) -> str | None:
    """The label that `text` names as a whole (canonical name, synonym or unanimous code; any case), else None."""
    return _labels()[0].get(key(text))


def find_labels(text: str) -> list[Mention]:
    """Every label named inside `text` (`.finding` holds the label), longest match first, with its status."""
    cleaned, places = clean(text)
    return [m._replace(start=places[m.start], end=places[m.end - 1] + 1)
            for m in _with_status(cleaned, _labels()[1].spans(cleaned))]
