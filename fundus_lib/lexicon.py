"""127 findings, the labels of 17 data sets, and how a sentence mentions them. The words are data: references/*.json."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from math import log
from typing import NamedTuple

from fundus_lib import assertion
from fundus_lib.assertion import REFERENCES as REFERENCES
from fundus_lib.assertion import Cues, Mention, Span, clean, key, reading, reference, with_status


@cache
def findings() -> dict[str, dict]:
    """The lexicon's entry of every finding by its canonical name; shown_by: modalities that show or suggest it."""
    return {row["canonical"]: row | {"shown_by": row["modalities"] + row["indirect_modalities"]}
            for row in reference("findings_lexicon.json")["findings"]}


@lru_cache(maxsize=4096)
def family(*names: str) -> frozenset[str]:
    """The findings and their parents: a flame-shaped hemorrhage is a retinal hemorrhage too; never the reverse."""
    parents = {findings().get(name, {}).get("is_a") for name in names} - {None}
    return frozenset(names) | (family(*sorted(parents)) if parents else frozenset())


class _Phrases:
    """Terms by their words. One all-capital word is an abbreviation: case-sensitive, with an optional s."""

    def __init__(self, terms: Iterable[tuple[str, str]]):
        self.codes: dict[str, str] = {}
        self.tree: dict = {}  # stem -> what may follow; under None the name of the term that ends there
        for term, name in terms:
            if term.isupper() and " " not in term:
                self.codes.setdefault(term, name)
            else:
                node = self.tree
                for word in key(term):
                    node = node.setdefault(word, {})
                node.setdefault(None, name)
        code_stems = frozenset(assertion.stem_of(code + s) for code in self.codes for s in ("", "s"))
        self.first = code_stems.union(self.tree)

    def spans(self, text: str) -> list[Span]:
        """Every term in the text, the longest at each word."""
        read = reading(text)
        found, after, last = [], 0, len(read.stems) - 1
        for at, stem in [(i, stem) for i, stem in enumerate(read.stems) if stem in self.first]:
            start, end = read.words[at]
            if start < after:
                continue
            node, to, name = self.tree.get(stem), at, None
            while node:
                if None in node:
                    name, after = node[None], read.words[to][1]
                if to == last or text[read.words[to][1]:read.words[to + 1][0]] not in assertion.JOINTS:
                    break
                to += 1
                node = node.get(read.stems[to])
            if name is None:
                name, after = self.codes.get(text[start:end].removesuffix("s")), end
            if name:
                found.append((start, after, name, ""))
        return found


class _Form(NamedTuple):
    """An elliptical form: "the cup is enlarged"."""
    hint: str
    findings: tuple[str, ...]
    use: str  # names | denies (an antonym: "the retina is attached") | collective (counts only when it is denied)


@cache
def _finding_terms() -> tuple[_Phrases, list[_Form], Cues]:
    """The terms, the elliptical forms, and where they are: cues whose kind is the place in the list of forms."""
    table, rows = reference("findings_lexicon.json"), findings().items()
    given = [(term, name) for name, row in rows for term in
             (name, *row["abbreviations"], *row["synonyms"], *row["lexical_variants"])]
    terms = _Phrases(given + [(re.sub(r"(?:optic )?disc\b", disc, term), name) for term, name in given if "disc" in term
                              for disc in ("disc", "optic disc", "optic nerve head")])
    forms = [_Form(hint, (name,), "names") for name, row in rows for hint in row["regex_hints"]]
    forms += [_Form(row["pattern"], tuple(row["findings"]), "denies") for row in table["antonyms"]]
    forms += [_Form(rf"\b{row['term']}\b", tuple(row["findings"]), "collective") for row in table["collective_terms"]]
    hints = [form.hint.replace(" {be} ", "{is}") if form.use == "names" else form.hint for form in forms]  # "disc pale"
    return terms, forms, Cues({i: [re.sub(r"(?<!\\)\((?!\?)", "(?:", hint)] for i, hint in enumerate(hints)},
                              table["hint_parts"])


def find_mentions(text: str, modality: str | None = None) -> list[Mention]:
    """Every finding that `text` names, in reading order; with a modality, only what that can show (directly or not)."""
    text, places = clean(text)
    read, (terms, forms, cues) = reading(text), _finding_terms()
    found, later = terms.spans(text), []
    for place, start, end in sorted((i, start, end) for start, end, i in cues.find(read)):
        form, near = forms[place], [other for other in found if other[0] < end and start < other[1]]
        gapped = form.hint if "{be}" in form.hint or "{is}" in form.hint or "[^" in form.hint else ""
        if form.use != "names":
            later += [(start, end, name, gapped, form.use) for name in form.findings
                      if not any(other[2] == name or form.use == "collective" for other in near)]
            continue
        name, = form.findings
        longer = not gapped and any(other[1] - other[0] > end - start for other in near)
        if not (longer or any(other[2] == name for other in near) or assertion.SENTENCE_END.search(text[start:end])):
            gone = [o for o in near if (  # its parent, and what it could be taken for: "hemorrhage" on the disc
                o[2] == findings()[name]["is_a"] or start <= o[0] and o[1] <= end and name in findings()[o[2]][
                    "confusable_with"] if gapped else o[:2] != (start, end))]
            found = [other for other in found if other not in gone] + [(start, end, name, gapped)]
    mentions = with_status(text, found + [span[:4] for span in later])
    for (*_, use), mention in zip(later, mentions[len(found):], strict=True):
        mentions.remove(mention)  # "fluid" asserts no kind of it, "attached" denies a detachment
        if mention.status == ("asserted" if use == "denies" else "negated"):
            mentions.append(mention._replace(status="negated"))
    return sorted((m for m in assertion.in_original(mentions, places) if modality is None or modality in findings()[
        m.finding]["shown_by"]), key=lambda m: m[1:3])


@cache
def weights() -> dict[str, dict[str, float]]:
    """By finding, the words of its terms, looks and place with their weight: the rarer among findings, the heavier."""
    few, told = frozenset(reference("rules.json")["function_words"]), {}
    for name, row in findings().items():
        texts = [name, *row["synonyms"], *row["lexical_variants"]]
        texts += [re.sub(r"\\[a-z]|\{\w+\}", " ", hint) for hint in row["regex_hints"]]
        looks = [*row["appearance"].values(), *row["indirect_appearance"].values(), row["location"] or ""]
        told[name] = dict.fromkeys((w for text in looks for w in key(text)), 0.7) | dict.fromkeys(
            (w for text in texts for w in key(text)), 1.0)
    spread = Counter(word for words in told.values() for word in words)
    return {name: {word: (2 if word in key(name) and spread[word] < 4 else share) * log(len(told) / spread[word])
                   for word, share in words.items() if word not in few} for name, words in told.items()}


def describes(text: str, name: str, sides: Sequence[Span] = ()) -> bool:
    """Does one sentence of a cleaned text describe the finding in words of its own ("a gap through every layer")?
    Enough rare words of its terms, looks and place stand there, asserted; `sides`: spans that do not count."""
    read, shares = reading(text), weights()[name]
    words = [(start, end, stem, "") for (start, end), stem in zip(read.words, read.stems, strict=True)
             if stem in shares and not any(side[0] <= start < side[1] for side in sides)]
    told = {(bisect_right(read.ends, m.start), m.finding) for m in with_status(text, words) if m.status == "asserted"}
    return any(sum(shares[word] for at, word in told if at == one) > 8.5 for one, _ in told)  # a guess, on 444 traces


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
    for word in ("NO", "early", "late"):  # OCTDL's code for normal and ADAM's stages are English words
        del terms[key(word)]
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
    return assertion.in_original(with_status(cleaned, _labels()[1].spans(cleaned), labels=True), places)
