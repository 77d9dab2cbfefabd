"""K[y, m], what the references say about label y in modality m, and Vocab[y, m], the findings read out of it.

A page of references/pages/ is markdown: `# label`, a line `modalities: CFP, UWF`, `##` sections (a heading such as
`Signs on UWF` narrows its section), `[n]` marks, `## References`. Bullets whose first words are in _ROLES carry the
vocabulary. SOURCES is the wall behind which further references (EyeWiki, PMC) belong: functions that return passages.
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
    """One section of one reference; `source` is file#section, `label` canonical."""
    source: str
    label: str
    section: str
    modalities: tuple[str, ...]
    text: str
    cites: tuple[str, ...]


class Knowledge(NamedTuple):
    """K[y, m]: the query, the passages kept as one text, and {source, score, cites} of each."""
    label: str
    modality: str
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
        """Does what is reported meet the criteria? A child counts for its parent."""
        held = lexicon.families(reported)
        return self.all_of <= held and all(group & held for group in self.any_of)


@cache
def embedded_pages() -> tuple[Passage, ...]:
    """Every section of references/pages/*.md. ValueError names the page whose head is malformed."""
    passages = []
    for path in sorted((lexicon.REFERENCES / "pages").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        head = re.match(r"# (.+)\nmodalities: (.+)\n", text)
        label = lexicon.canonical_label(head[1]) if head else None
        if label is None:
            raise ValueError(f"{path}: a page starts with '# <label of labels.json>' and 'modalities: CFP, ...'.")
        sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE))
        cites = dict(re.findall(r"^\[(\d+)\] (.+)$", sections.pop("References", ""), re.MULTILINE))
        for section, body in sections.items():
            shown = re.findall(MODALITIES, section) or re.findall(MODALITIES, head[2])
            cited = tuple(cites[mark] for mark in dict.fromkeys(re.findall(r"\[(\d+)\]", body)))
            passages.append(Passage(f"pages/{path.name}#{section}", label, section, tuple(shown), body.strip(), cited))
    return tuple(passages)


SOURCES = (embedded_pages,)


@cache
def pairs() -> dict[tuple[str, str], str]:
    """The (label, modality) pairs that the references cover, with the paper's query for each."""
    found = [(p.label, modality) for source in SOURCES for p in source() for modality in p.modalities
             if p.section.startswith("Diagnostic criteria")]
    return {(y, m): f"What are the key {m} findings for diagnosing {y}?" for y, m in found}


@cache
def _index() -> tuple[object, list[Passage]]:
    import bm25s  # here, since most users of this module only look up vocabularies
    passages, index = [passage for source in SOURCES for passage in source()], bm25s.BM25()
    index.index([list(lexicon.key(f"{p.label} {p.section} {p.text}")) for p in passages], show_progress=False)
    return index, passages


def retrieve(query: str) -> list[tuple[Passage, float]]:
    """Every passage with its BM25 score for the query, best first (ties keep the page order)."""
    index, passages = _index()
    scores = index.get_scores(list(lexicon.key(query))).tolist()
    return sorted(zip(passages, scores, strict=True), key=lambda hit: -hit[1])


@cache
def acquire(label: str, modality: str, passages: int = 6) -> Knowledge:
    """K[y, m]: of the passages ranked for the query, the best `passages` that are about this label and modality and
    tell of symptoms, criteria or signs. KeyError, with the nearest pairs, for a pair without a page."""
    pair = (lexicon.canonical_label(label) or label, modality)
    if pair not in pairs():
        near = difflib.get_close_matches(" on ".join(pair), [" on ".join(known) for known in pairs()], n=3, cutoff=0)
        raise KeyError(f"no reference page covers {label!r} on {modality}; nearest: {'; '.join(near)}. "
                       "A page in fundus_lib/references/pages/ adds it.")
    kept = [(p, score) for p, score in retrieve(pairs()[pair]) if p.label == pair[0] and modality in p.modalities
            and p.section.lower().startswith(KEPT_SECTIONS)][:passages]
    text = "\n\n".join(f"{p.label}: {p.section}\n{p.text}" for p, _ in kept)
    sources = [{"source": p.source, "score": round(score, 3), "cites": list(p.cites)} for p, score in kept]
    return Knowledge(*pair, pairs()[pair], text, sources)


@cache
def vocabulary(label: str, modality: str, passages: int = 6) -> Vocabulary:
    """Vocab[y, m], read out of K[y, m]: a bullet's first words say its role, find_mentions turns the rest into
    canonical findings. KeyError as `acquire`; ValueError when one finding has two roles."""
    known = acquire(label, modality, passages)
    roles: dict[str, list[frozenset[str]]] = {role: [] for role in _ROLES.values()}
    for lead, body in re.findall(r"^- ([^:\n]+): (.+)$", known.text.replace("\n  ", " "), re.MULTILINE):
        if lead.lower() in _ROLES:
            roles[_ROLES[lead.lower()]].append(frozenset(m.finding for m in lexicon.find_mentions(body, modality)))
    sets = {role: frozenset().union(*groups) for role, groups in roles.items()}
    for finding in frozenset().union(*sets.values()):
        if len(held := [role for role, names in sets.items() if finding in names]) > 1:
            raise ValueError(f"{known.label} on {modality}: {finding!r} is {' and '.join(held)} at once.")
    return Vocabulary(sets["all_of"] | sets["any_of"], sets["supportive"], sets["definitional"] | sets["differential"],
                      sets["all_of"], tuple(roles["any_of"]), sets["definitional"])


def build(wanted: Iterable[tuple[str, str]], passages: int = 6) -> tuple[list[dict], dict[str, dict]]:
    """The rows of knowledge.jsonl and the content of vocabulary.json (by "label|modality") for the given pairs."""
    known = [acquire(*pair, passages) for pair in wanted]
    table = {f"{k.label}|{k.modality}": {
        role: [sorted(group) for group in names] if role == "any_of" else sorted(names)
        for role, names in vocabulary(k.label, k.modality, passages)._asdict().items()} for k in known}
    return [k._asdict() for k in known], table
