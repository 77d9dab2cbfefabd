"""K[y, m], what the references say about label y in modality m, and Vocab[y, m], the findings read out of it.

A page of references/pages/ is markdown: `# label`, `modalities: CFP, UWF`, `##` sections (`Signs on UWF` narrows one),
`[n]` marks, `## References`. Bullets whose first words are in _ROLES carry the vocabulary.
"""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from fundus_lib import lexicon

MODALITIES = "CFP|OCT|UWF|FFA"
KEPT_SECTIONS = ("symptoms", "diagnostic criteria", "signs")  # what the paper keeps of a retrieved page
_ROLES = {"required": "all_of", "required, one of": "any_of", "supportive": "supportive",
          "contradicts": "definitional", "points elsewhere": "differential"}


class Passage(NamedTuple):
    """One section of one reference; `source` is file#section."""
    source: str
    label: str
    section: str
    modalities: list[str]
    text: str
    cites: list[str]


class Knowledge(NamedTuple):
    """K[y, m]: the query, the passages kept as one text, and {source, score, cites} of each."""
    query: str
    text: str
    sources: list[dict]


class Vocabulary(NamedTuple):
    """Vocab[y, m]: disjoint sets of canonical findings."""
    required: frozenset[str]  # all_of and the members of any_of
    supportive: frozenset[str]
    excluded: frozenset[str]  # definitional ones contradict the label, the others point to another disease
    all_of: frozenset[str]
    any_of: tuple[frozenset[str], ...]  # one member of each suffices
    definitional: frozenset[str]

    def satisfied_by(self, reported: Iterable[str]) -> bool:
        """Does what is reported meet the criteria (a child counts for its parent), and nothing speak against them?"""
        held = lexicon.family(*reported)
        return self.all_of <= held and all(group & held for group in self.any_of) and not self.excluded & {*reported}


def embedded_pages() -> list[Passage]:
    """Every section of references/pages/*.md. ValueError names the page whose head is malformed."""
    passages = []
    for path in sorted((lexicon.REFERENCES / "pages").glob("*.md")):
        head, *sections = path.read_text(encoding="utf-8").split("\n## ")
        label = lexicon.canonical_label(head.partition("\n")[0].removeprefix("# "))
        if label is None or "modalities: " not in head:
            raise ValueError(f"{path}: a page starts with '# <label of labels.json>' and 'modalities: CFP, ...'.")
        cites = dict(re.findall(r"^\[(\d+)\] (.+)$", sections.pop(), re.MULTILINE))
        for section, _, text in (part.partition("\n") for part in sections):
            shown = re.findall(MODALITIES, section) or re.findall(MODALITIES, head.partition("modalities: ")[2])
            cited = [cites[mark] for mark in dict.fromkeys(re.findall(r"\[(\d+)\]", text))]
            passages.append(Passage(f"pages/{path.name}#{section}", label, section, shown, text.strip(), cited))
    return passages


SOURCES = (embedded_pages,)  # further references (EyeWiki, PMC) belong here: functions that return passages


@cache
def _index() -> tuple[list[Passage], "bm25s.BM25"]:  # noqa: F821
    import bm25s  # only here: most users of this module look up vocabularies and nothing else
    passages, index = [passage for source in SOURCES for passage in source()], bm25s.BM25()
    index.index([list(lexicon.key(f"{p.label} {p.section} {p.text}")) for p in passages], show_progress=False)
    return passages, index


@cache
def pairs() -> frozenset[tuple[str, str]]:
    """The (label, modality) pairs that the references cover."""
    return frozenset((p.label, m) for p in _index()[0] if p.section.startswith("Diagnostic") for m in p.modalities)


def query(label: str, modality: str) -> str:
    """The paper's question to the references."""
    return f"What are the key {modality} findings for diagnosing {label}?"


def retrieve(question: str) -> list[tuple[Passage, float]]:
    """Every passage with its BM25 score for the question, best first (ties keep the page order)."""
    passages, index = _index()
    scores = index.get_scores(list(lexicon.key(question))).tolist()
    return sorted(zip(passages, scores, strict=True), key=lambda hit: -hit[1])


@cache
def acquire(label: str, modality: str, passages: int = 8) -> Knowledge:
    """K[y, m]: the best passages for the query that are about this label and modality and tell of symptoms, criteria or
    signs. KeyError, with the nearest pairs, where no page covers the pair."""
    name = lexicon.canonical_label(label) or label
    if (name, modality) not in pairs():
        near = difflib.get_close_matches(f"{name} on {modality}", [f"{y} on {m}" for y, m in sorted(pairs())], 3, 0)
        raise KeyError(f"no reference page covers {label!r} on {modality}; nearest: {'; '.join(near)}. "
                       "A page in fundus_lib/references/pages/ adds it.")
    kept = [(p, score) for p, score in retrieve(query(name, modality)) if p.label == name and modality in p.modalities
            and p.section.lower().startswith(KEPT_SECTIONS)][:passages]
    return Knowledge(query(name, modality), "\n\n".join(f"{p.section}\n{p.text}" for p, _ in kept),
                     [{"source": p.source, "score": round(score, 3), "cites": p.cites} for p, score in kept])


@cache
def vocabulary(label: str, modality: str, passages: int = 8) -> Vocabulary:
    """Vocab[y, m], read from the bullets of K[y, m]. KeyError as `acquire`; ValueError when a finding has two roles."""
    known = acquire(label, modality, passages)
    roles: dict[str, list[frozenset[str]]] = {role: [] for role in _ROLES.values()}
    for lead, body in re.findall(r"^- ([^:\n]+): (.+)$", known.text.replace("\n  ", " "), re.MULTILINE):
        if lead.lower() in _ROLES:
            roles[_ROLES[lead.lower()]].append(frozenset(m.finding for m in lexicon.find_mentions(body, modality)))
    sets = {role: frozenset().union(*groups) for role, groups in roles.items()}
    if twice := [f for f in lexicon.findings() if sum(f in names for names in sets.values()) > 1]:
        raise ValueError(f"{label} on {modality}: two bullets give different roles to {', '.join(twice)}.")
    return Vocabulary(sets["all_of"] | sets["any_of"], sets["supportive"], sets["definitional"] | sets["differential"],
                      sets["all_of"], tuple(roles["any_of"]), sets["definitional"])


def build(wanted: Iterable[tuple[str, str]], passages: int = 8) -> tuple[list[dict], dict[str, dict]]:
    """The rows of knowledge.jsonl and the content of vocabulary.json (by "label|modality") for the given pairs."""
    wanted = [(lexicon.canonical_label(label), modality) for label, modality in wanted]
    rows = [{"label": y, "modality": m, **acquire(y, m, passages)._asdict()} for y, m in wanted]
    return rows, {f"{y}|{m}": {role: [sorted(group) for group in names] if role == "any_of" else sorted(names)
                               for role, names in vocabulary(y, m, passages)._asdict().items()} for y, m in wanted}
