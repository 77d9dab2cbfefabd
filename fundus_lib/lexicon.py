"""The project's vocabulary: 127 visual findings, the labels of 17 data sets, and how a sentence mentions them.

`find_mentions` says for every mention whether the sentence asserts it, denies it, hedges or only supposes it. Terms and
cue words are data (references/*.json); the grammar - sentences, clauses, what a cue word governs - is below.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

REFERENCES = Path(__file__).parent / "references"
Span = tuple[int, int, str, bool]  # start, end, name, gapped: foreign words may stand inside


class Finding(NamedTuple):
    """One canonical visual finding; it satisfies its `parent`, the wider finding, and never the reverse."""
    name: str
    modalities: frozenset[str]  # where it is seen or can be inferred
    parent: str | None


class Mention(NamedTuple):
    """`finding` (a label, from `find_labels`) stands at text[start:end]; status asserted|negated|hedged|hypothetical."""
    finding: str
    start: int
    end: int
    status: str


@cache
def reference(name: str) -> dict:
    """A JSON file of references/, read once."""
    return json.loads((REFERENCES / name).read_text(encoding="utf-8"))


@cache
def findings() -> dict[str, Finding]:
    """Every finding by its canonical name, in the lexicon's order."""
    return {row["canonical"]: Finding(row["canonical"], frozenset(row["modalities"] + row["indirect_modalities"]),
                                      row["is_a"]) for row in reference("findings_lexicon.json")["findings"]}


@cache
def family(name: str) -> frozenset[str]:
    """The finding and its parents: a flame-shaped hemorrhage is a retinal hemorrhage too."""
    parent = findings()[name].parent if name in findings() else None
    return frozenset({name}) | (family(parent) if parent else frozenset())


def families(names: Iterable[str]) -> frozenset[str]:
    """The findings and all their parents."""
    return frozenset().union(*map(family, names))


_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphen, zero-width characters: they hide a word
_WORD = re.compile(r"[^\W_]+")
_AMERICAN = (("haem", "hem"), ("oedem", "edem"), ("fibre", "fiber"), ("calibre", "caliber"), ("isation", "ization"),
             ("tumour", "tumor"), ("grey", "gray"), ("colour", "color"), ("ischaem", "ischem"))


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
    for british, american in _AMERICAN:
        word = word.replace(british, american)
    return word[:-3] + "y" if word.endswith("ies") else re.sub("(?<=..[^s])s$", "", word)


def key(text: str) -> tuple[str, ...]:
    """A term as the tables spell it: stemmed words, `non-x` written as one."""
    return tuple(map(_stem, _WORD.findall(re.sub(r"\bnon[- ](?=[a-z])", "non", clean(text)[0].lower()))))


class _Phrases:
    """Terms by their words. One all-capital word is an abbreviation: case-sensitive, with an optional s."""

    def __init__(self, terms: Iterable[tuple[str, str]]):
        self.names: dict[tuple[str, ...], str] = {}
        for term, name in terms:
            self.names.setdefault((term,) if term.isupper() and " " not in term else key(term), name)
        self.sizes: dict[str, list[int]] = {}
        for words in sorted(self.names, key=len, reverse=True):
            self.sizes.setdefault(words[0], []).append(len(words))

    def longest(self, raw: list[str], stems: list[str], joined: list[bool], at: int) -> tuple[str | None, int]:
        """The longest term that starts at word `at`: (name, number of words); (None, 1) when none does."""
        for size in self.sizes.get(stems[at], ()):
            name = self.names.get(tuple(stems[at:at + size])) if at + size <= len(raw) else None
            if name and all(joined[at + 1:at + size]):
                return name, size
        code = raw[at].removesuffix("s")
        return (self.names.get((code,)) if code.isupper() else None), 1

    def spans(self, text: str) -> list[Span]:
        """Every term in the text; `A and B c` holds `A c` too, and `c is A` is `A c` (gapped)."""
        words = list(_WORD.finditer(text))
        raw = [word.group() for word in words]
        stems = [_stem(word) for word in raw]
        joined = [True, *(text[a.end():b.start()] in (" ", "-", "/", "' ", "'", "\u2019", "\u2013", " >")
                          for a, b in pairwise(words))]
        found, at = [], 0
        while at < len(words):
            name, size = self.longest(raw, stems, joined, at)
            last = at + size - 1
            if name:
                found.append((words[at].start(), words[last].end(), name, False))
            if size > 1 and at > 1 and raw[at - 1] in ("and", "or", "nor"):
                shared = self.names.get((stems[at - 2], stems[last]))
                found += [(*words[at - 2].span(), shared, False)] if shared else []
            elif not name and raw[at + 1:at + 2] and raw[at + 1] in ("is", "are", "was", "were", "appears", "appear"):
                found += [(words[at].start(), words[j].end(), self.names[stems[j], stems[at]], True) for j in
                          range(at + 2, min(at + 5, len(words))) if (stems[j], stems[at]) in self.names]
            at += size
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


def _status(before: list[tuple[str, str]], after: list[str]) -> str:
    """Status of one mention from the cues of its clause: (kind, words from cue to mention) before it, kinds after it."""
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
    cues = [(*cue.span(), cue.lastgroup) for cue in _cues().finditer(text)] if found else []
    cues = [cue for cue in cues if not any(s < cue[1] and cue[0] < e for s, e, _, gapped in found if not gapped)]
    edges = [0, *(match.start() for match in _SENTENCE_END.finditer(text)), len(text)]
    edges = sorted(edges + [first for first, _, kind in cues if kind == "stop"])
    mentions = []
    for start, end, name, _ in found:
        left, right = max(e for e in edges if e <= start), min(e for e in edges if e >= end)
        clause = [cue for cue in cues if left <= cue[0] and cue[1] <= right and cue[2] != "stop"]
        inside = any(kind in ("no", "denied") for first, last, kind in clause if start <= first and last <= end)
        before = [(kind, text[last:start]) for _, last, kind in clause if last <= start]
        after = [kind for first, _, kind in clause if first >= end]
        mentions.append(Mention(name, start, end, "negated" if inside else _status(before, after)))
    return mentions


@cache
def _finding_terms() -> tuple[_Phrases, list[tuple[re.Pattern, str, bool]]]:
    """The terms, and the hints for elliptical forms: (pattern, finding, gapped)."""
    rows = reference("findings_lexicon.json")["findings"]
    terms = _Phrases((term, row["canonical"]) for row in rows for term in
                     (row["canonical"], *row["abbreviations"], *row["synonyms"], *row["lexical_variants"]))
    return terms, [(re.compile(hint, re.IGNORECASE), row["canonical"], ".{" in hint or "[^.]{" in hint)
                   for row in rows for hint in row["regex_hints"]]


@lru_cache(maxsize=4096)
def _mentions(text: str) -> list[Mention]:
    """Every finding mentioned in a cleaned text: terms, then hints, then collective terms that are denied."""
    terms, hints = _finding_terms()
    found = terms.spans(text)
    for pattern, name, gapped in hints:
        for match in pattern.finditer(text):
            start, end = match.span()
            near = [other for other in found if other[0] < end and start < other[1]]
            longer = not gapped and any(other[1] - other[0] > end - start for other in near)
            if longer or any(other[2] == name for other in near) or _SENTENCE_END.search(match.group()):
                continue
            gone = [o for o in near if (o[2] == findings()[name].parent if gapped else o[:2] != (start, end))]
            found = [other for other in found if other not in gone] + [(start, end, name, gapped)]
    collective = [(*match.span(), name, False) for entry in reference("findings_lexicon.json")["collective_terms"]
                  for match in re.finditer(rf"\b{entry['term']}\b", text) for name in entry["findings"]
                  if not any(other[0] < match.end() and match.start() < other[1] for other in found)]
    mentions = _with_status(text, found + collective)  # "no fluid" denies each kind, "fluid" asserts none
    return sorted((m for i, m in enumerate(mentions) if i < len(found) or m.status == "negated"), key=lambda m: m[1:3])


def find_mentions(text: str, modality: str | None = None) -> list[Mention]:
    """Every finding that `text` names, in reading order; start and end are places in `text` as given.

    modality: keep only findings which that modality shows or lets one infer; None keeps all (needed to notice that a
    photograph is said to show an OCT sign)."""
    cleaned, places = clean(text)
    return [m._replace(start=places[m.start], end=places[m.end - 1] + 1) for m in _mentions(cleaned)
            if modality is None or modality in findings()[m.finding].modalities]


@cache
def _labels() -> tuple[dict[tuple[str, ...], str], dict[str, str], _Phrases]:
    """(label by key, kind by label, terms for free text: no masks, no `grade 1`). A synonym or code that two data sets
    use for different labels names neither."""
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
    return table, kinds, _Phrases((term, table[at]) for at, uses in terms.items() if at in table for _, term in uses
                                  if kinds[table[at]] != "lesion" and not re.search(r"\d", term))


def canonical_label(text: str) -> str | None:
    """The label that `text` names as a whole (canonical name, synonym or unanimous code; any case), else None."""
    return _labels()[0].get(key(text))


def label_kind(label: str) -> str:
    """diagnosis | grade | condition | lesion | prognosis | quality (of a canonical label)."""
    return _labels()[1][label]


def find_labels(text: str) -> list[Mention]:
    """Every label named inside `text` (`.finding` holds the label), longest match first, with its status."""
    cleaned, places = clean(text)
    return [m._replace(start=places[m.start], end=places[m.end - 1] + 1)
            for m in _with_status(cleaned, _labels()[2].spans(cleaned))]
