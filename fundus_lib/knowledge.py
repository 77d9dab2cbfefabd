"""K[y, m], what the references say about label y in modality m, and Vocab[y, m], the findings read out of it.

A page of references/pages/ is markdown: `# label`, `modalities: CFP, UWF`, `##` sections (`Signs on UWF` narrows one),
`[n]` marks, `## References`. The rules read the bullets whose first words are in _ROLES and nothing else; free text of
other references (fundus_lib.sources) is for a language model. Either result is a record that is checked against K."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel

from fundus_lib import lexicon

MODALITIES = "CFP|OCT|UWF|FFA"
KEPT = re.compile("|".join(lexicon.reference("sources.json")["kept headings"]), re.IGNORECASE)
Role = Literal["required", "required_one_of", "supportive", "excluded_definitional", "excluded_differential"]
_mentions = lru_cache(maxsize=4096)(lexicon.find_mentions)
_bare = partial(re.sub, r"\s|\[\d+\]", "")  # sentences are compared without blanks and citation marks
_ROLES: dict[str, Role] = {"required": "required", "required, one of": "required_one_of", "supportive": "supportive",
                           "contradicts": "excluded_definitional", "points elsewhere": "excluded_differential"}
_BULLET = re.compile(r"^- ([^:\n]+): (.+)$", re.MULTILINE)
PROMPTS = {name: "".join(parts) for name, parts in yaml.safe_load(
    (lexicon.REFERENCES / "prompts.yaml").read_text(encoding="utf-8")).items()}  # what language models are asked


class Passage(NamedTuple):
    """One section of one reference, or a part of it; `source` is file#section, file#page=3 or address#section."""
    source: str
    label: str
    section: str
    modalities: list[str]
    text: str
    cites: list[str]


class Knowledge(NamedTuple):
    """K[y, m]: the query, the passages as one text, {source, score, cites, start, end} of each (text[start:end])."""
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


class FindingRole(BaseModel):
    """One finding, the part it plays (`group`: the criterion of which it is an alternative), and K's own words."""
    finding: str
    role: Role
    group: int
    evidence: str


class KnowledgeRecord(BaseModel):
    """What K says about findings, in a form that a program can check."""
    findings: list[FindingRole]


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


class Shelf:
    """Passages and their BM25 index: what K is drawn from."""

    def __init__(self, passages: Iterable[Passage]):
        import bm25s  # only here: most users of this module look up vocabularies and nothing else
        self.passages, self.index = list(passages), bm25s.BM25()
        texts = [f"{p.label} {p.section} {p.text}" for p in self.passages]
        self.index.index([list(lexicon.key(text)) for text in texts], show_progress=False)
        self.pairs = frozenset((p.label, m) for p in self.passages if KEPT.search(p.section) for m in p.modalities)

    def retrieve(self, question: str) -> list[tuple[Passage, float]]:
        """Every passage with its BM25 score for the question, best first (ties keep the order)."""
        scores = self.index.get_scores(list(lexicon.key(question))).tolist()
        return sorted(zip(self.passages, scores, strict=True), key=lambda hit: -hit[1])


@cache
def embedded() -> Shelf:
    """The shelf of the embedded pages."""
    return Shelf(embedded_pages())


_adopted: dict[tuple[str, str], Vocabulary] = {}


def adopt(table: Mapping[str, Mapping]) -> None:
    """Let `pairs` and `vocabulary` of this process answer from a vocabulary.json alone; if empty, from the pages."""
    _adopted.clear()
    for pair, words in table.items():
        sets = {role: frozenset(names) for role, names in words.items() if role != "any_of"}
        _adopted[tuple(pair.split("|"))] = Vocabulary(any_of=tuple(map(frozenset, words["any_of"])), **sets)
    vocabulary.cache_clear()


def pairs() -> frozenset[tuple[str, str]]:
    """The (label, modality) pairs that have a vocabulary: those of the embedded pages, or of the adopted table."""
    return frozenset(_adopted) or embedded().pairs


def query(label: str, modality: str) -> str:
    """The paper's question to the references."""
    return f"What are the key {modality} findings for diagnosing {label}?"


@cache
def acquire(label: str, modality: str, passages: int = 8, shelf: Shelf | None = None) -> Knowledge:
    """K[y, m]: the best passages for the query that are about this label and modality and tell of symptoms, criteria or
    signs, from the embedded pages or another shelf. KeyError, with the nearest pairs, where none is."""
    name, shelf = lexicon.canonical_label(label) or label, shelf or embedded()
    if (name, modality) not in shelf.pairs:
        near = difflib.get_close_matches(f"{name} on {modality}", [f"{y} on {m}" for y, m in sorted(shelf.pairs)], 3, 0)
        raise KeyError(f"no reference page covers {label!r} on {modality}; add it, or take: {'; '.join(near)}")
    kept = [(p, round(score, 3)) for p, score in shelf.retrieve(query(name, modality))
            if p.label == name and modality in p.modalities and KEPT.search(p.section)]
    text, sources = "", []
    for p, score in kept[:passages]:
        start, text = len(text), f"{text}{p.section}\n{p.text}\n\n"
        sources.append({"source": p.source, "score": score, "cites": p.cites, "start": start, "end": len(text) - 2})
    return Knowledge(query(name, modality), text[:-2], sources)


def source_of(known: Knowledge, place: str | int) -> dict:
    """The row of `sources` of a sentence of K (blanks and [n] aside) or of the character at an offset, or KeyError."""
    for row in known.sources:
        text = _bare(known.text[row["start"]:row["end"]])
        if row["start"] <= place < row["end"] if isinstance(place, int) else _bare(place) in text:
            return row
    raise KeyError(f"K ({known.query}) does not say {place!r}")


def extract_by_rules(known: Sequence[tuple[str, str, Knowledge]]) -> list[KnowledgeRecord | None]:
    """The record of each (label, modality, K), from the bullets that _ROLES lists; empty where K has none."""
    return [KnowledgeRecord(findings=[
        FindingRole(finding=name, role=_ROLES[lead.lower()], group=number, evidence=body)
        for number, (lead, body) in enumerate(_BULLET.findall(k.text.replace("\n  ", " "))) if lead.lower() in _ROLES
        for name in dict.fromkeys(m.finding for m in _mentions(body, modality))]) for _, modality, k in known]


def extract_by_llm(client, known: Sequence[tuple[str, str, Knowledge]]) -> list[KnowledgeRecord | None]:
    """The record that a language model reads out of each K (`client`: fundus_lib.client); None where it gave none."""
    from fundus_lib.client import Request
    asked = [Request(PROMPTS["knowledge"].format(label=y, modality=m, text=k.text), schema=KnowledgeRecord)
             for y, m, k in known]
    return [next(iter(reply.values), None) for reply in client.ask(asked, "knowledge records")]


def to_vocabulary(record: KnowledgeRecord, known: Knowledge, modality: str) -> tuple[Vocabulary | None, list[str]]:
    """Vocab[y, m] out of a record, and what was left out, with the reason: no finding of the modality, a sentence that
    is not K's or does not say so, two roles. None when nothing is left of its criteria: all would meet them."""
    groups, refused = {}, []
    texts = [_bare(known.text[row["start"]:row["end"]]) for row in known.sources]
    for item in record.findings:
        said = {m.finding for m in _mentions(item.evidence) if m.status != "negated" or "excluded" in item.role}
        names = {m.finding for m in _mentions(item.finding, modality) if m.status != "negated"}
        if names and names <= said and any(_bare(item.evidence) in text for text in texts):
            groups.setdefault((item.role, item.group), set()).update(names)
        else:
            why = f"not seen on {modality}" if not names else "no sentence of K" if names <= said else "not said there"
            refused.append(f"{item.role} {item.finding!r}: {why}")
    sets = [frozenset().union(*(held for at, held in groups.items() if at[0] == role)) for role in get_args(Role)]
    twice = {name for name, roles in Counter(name for names in sets for name in names).items() if roles > 1}
    refused += [f"{name!r}: given different roles" for name in sorted(twice)]
    one, others, supportive, against, elsewhere = (names - twice for names in sets)
    any_of = (frozenset(held - twice) for at, held in groups.items() if at[0] == "required_one_of")
    words = Vocabulary(one | others, supportive, against | elsewhere, one, tuple(filter(None, any_of)), against)
    spoilt = not words.required and any(item.role.startswith("required") or not any(words) for item in record.findings)
    return (None, [*refused, "none of its criteria is left"]) if spoilt else (words, refused)


@cache
def vocabulary(label: str, modality: str, passages: int = 8) -> Vocabulary:
    """Vocab[y, m] of the embedded pages by the rules, or as adopted. KeyError as `acquire`, ValueError: two roles."""
    if _adopted:
        return _adopted[lexicon.canonical_label(label), modality]
    known = acquire(label, modality, passages)
    words, refused = to_vocabulary(*extract_by_rules([(label, modality, known)]), known, modality)
    if refused:
        raise ValueError(f"{label} on {modality}: {'; '.join(refused)}.")
    return words


def build(wanted: Iterable[tuple[str, str]], passages: int = 8, shelf: Shelf | None = None,
          extract: Callable[[list], list[KnowledgeRecord | None]] = extract_by_rules) -> tuple[list[dict], dict]:
    """The rows of knowledge.jsonl (K, findings with evidence, what was refused) and the content of vocabulary.json
    (by "label|modality"), where a pair whose record fails is missing. extract: or `partial(extract_by_llm, client)`."""
    known = [(lexicon.canonical_label(y) or y, m, acquire(y, m, passages, shelf)) for y, m in wanted]
    rows, table = [], {}
    for (y, m, k), record in zip(known, extract(known), strict=True):
        words, refused = to_vocabulary(record, k, m) if record and record.findings else (None, ["no record"])
        rows.append({"label": y, "modality": m, **k._asdict(), "refused": refused,
                     "findings": record.model_dump()["findings"] if record else []})
        if words:
            table[f"{y}|{m}"] = {role: [sorted(group) for group in names] if role == "any_of" else sorted(names)
                                 for role, names in words._asdict().items()}
    return rows, table
