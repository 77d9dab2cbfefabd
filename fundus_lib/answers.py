"""The answer that a response gives: lenient for evaluation, strict for rewards. Neither ever guesses.

The response is cut down to what states the answer (tags, box, JSON, "the answer is ..."). There, every option that is
named (letter, text or synonym) is marked, what is denied is struck out, and exactly one option must be left. A mark is
‹C› for a letter and «C» for a text; ‹?› and «» are a letter and a disease that are not among the options.
"""

import html
import re
import unicodedata
from collections import Counter
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import NamedTuple

from fundus_lib.lexicon import canonical_label, find_labels, key, reference


class Answer(NamedTuple):
    """value: letter (single, yesno), sorted letters (multi), label or text (open), None when there is none;
    status: ok | ambiguous (several, or letter and text disagree) | missing | refused."""

    value: str | list[str] | None
    status: str


_LISTS = reference("answer_aliases.json")
_ANY = {name: f"(?:{'|'.join(words)})" for name, words in _LISTS["grammar"].items() if name != "note"}
_NUMBERS = {word: str(n) for n, words in enumerate(("zero", "one i", "two ii", "three iii", "four iv", "five v"))
            for word in (str(n), *words.split())}
_SCALE = re.compile(rf"(?i)\b(?:{_ANY['scale']}[ :-]*|DR-?(?=\d))({'|'.join(_NUMBERS)})\b")
_TAG = re.compile(r"[<\[]\s*([/\\]?)\s*(\w[\w ]{1,13}?)\s*:?\s*[>\]]")
_INNER = r"((?:(?!</?(?i:think|answer)\s*>).)*)"
_STRICT = re.compile(rf"\s*<think>{_INNER}</think>\s*<answer>{_INNER}</answer>\s*", re.DOTALL)
_STATED = (re.compile(r"(?s)<answer>(.*?)(?=</?answer>|</?think>|\Z)"),
           re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"),
           re.compile(r"""(?i)["'](?:final[_ ]?)?(?:answer|option|choice)["']\s*:\s*(\[[^\]]*\]|"[^"]*"|'[^']*')"""))
_TAIL = r"((?:\W{0,3}[A-Za-z][.)]\s*)?.*?)(?=[.!?;](?:\s|$)|\n|$)"  # to the end of the sentence
_STRONG = re.compile(rf"(?i)\b{_ANY['states']}\b(?:[^.:;!?\n]{{0,40}}?(?:\b{_ANY['is']}\b|[:=])|(?=\s+[A-Z]\b))[\s:]*"
                     + _TAIL)
_WEAK = re.compile(rf"(?i)\b{_ANY['concludes']}\b[\s,:]*{_TAIL}")
_REASON = re.compile(rf"(?is)[,(]?\s*\b{_ANY['reason']}\b.*")
_REFUSED = re.compile(rf"(?i)\b{_ANY['refuses']}\b")
_PAIR = re.compile(r"‹(.)›[\"').:\]]*[\s-]*«\1»|«(.)»\s*[(\[]‹\2›[)\]]")
_ITEM = r"[\"'(\[]*[‹«][A-Z?]?[›»][\"')\]]*"
_LIST = rf"{_ITEM}(?:(?:\s*(?:,\s*)?n?or\s+|\s*/\s*|\s*,\s*(?!and\b)|\s+and\s+)(?:either\s)?{_ITEM}){{0,9}}"
_WORD = rf"(?!{_ANY['ends_denial']}\b)[\w'/-]+"
_GAP = rf"(?:(?:{_WORD}\s+){{0,5}}?|(?:{_WORD},?\s+){{0,8}}?n?or\s+(?:{_WORD}\s+){{0,2}}?)"
_DENIED = re.compile(rf"(?i)\b{_ANY['denies_before']}\b[\s\"']+{_GAP}{_LIST}"
                     rf"|{_LIST}\s+(?:{_ANY['between']}\s+)*{_ANY['denies_after']}\b")
_UNDECIDED = re.compile(rf"{_ITEM}\s*,?\s+or\s+(?:\w+\s+)?{_ITEM}")
_DISAGREE = re.compile(r"‹(.)›[\"')\]]?[\s.:=-]*«(?!\1)")
_SMALL = re.compile(r"(?i)(?:^\W*|\(|\b(?:option|choice|answer)(?: is)?\s*:?\s*)[a-z](?=\W*$|[.):])")
_LETTER = re.compile(r"(?<![\w‹«-])(?<!\w['’])([A-Z])(?![\w›»-]|['’]\w)")
_BEFORE = re.compile(rf"(?i)(?:^|[.;:!?,(\[›»]\s*|\b{_ANY['before_letter']}\s+)[\"'(\[]*$")
_AFTER = re.compile(rf"\s*(?:[^\w\s‹«]|$)|\s+(?:{_ANY['after_letter']}|[A-Z])\b(?!-)")
_NO_LETTER = re.compile(rf"(?i)\b{_ANY['no_letter_after']}\s$")
_YES_NO = re.compile(rf"(?is)\W*(?:option\W+)?(?:([A-MO-XZ])\b\W*)?(?:({_ANY['yes']}|({_ANY['no']}))\b)?(.*)")


def _clean(text: str) -> str:
    """NFKC, no invisible characters, no HTML, markdown or LaTeX dress; Chinese terms in English."""
    text = "".join(c for c in unicodedata.normalize("NFKC", html.unescape(text)) if unicodedata.category(c) != "Cf")
    text = re.sub(r"(?i)</?(?:b|i|u|em|strong|p|br|span|div|code)\s*/?>", " ", text)
    text = re.sub(r"[*`$‹›«»]|\\(?:text|math)\w*|(?<!\w)_+|_+(?!\w)", "", text)
    for chinese in () if text.isascii() else sorted(_LISTS["chinese"], key=len, reverse=True):
        text = text.replace(chinese, f" {_LISTS['chinese'][chinese]} ")
    return text


def _grades(text: str) -> str:
    """Grades in one spelling: `Grade two`, `level II` and `DR2` are grade2."""
    return _SCALE.sub(lambda match: f"grade{_NUMBERS[match[1].lower()]}", text)


def _fold(text: str) -> str:
    """One spelling for names that differ in case, plural, hyphens, British spelling or numerals."""
    return "".join(key(_grades(text))).replace("ae", "e").replace("oe", "e")


@cache
def _names() -> tuple[dict[str, set[str]], set[str]]:
    """({head: all names of the same}, names of diseases), folded."""
    labels = [row for entry in reference("labels.json")["datasets"] for row in entry["labels"]]
    labels = [[row["canonical"], *row["synonyms"]] for row in labels if row["kind"] not in ("prognosis", "quality")]
    findings = [[row["canonical"], *row["abbreviations"], *row["synonyms"], *row["lexical_variants"]]
                for row in reference("findings_lexicon.json")["findings"]]
    groups: dict[str, set[str]] = {}
    for names in (*labels, *findings, *_LISTS["equal"]):
        groups.setdefault(_fold(names[0]), set()).update(map(_fold, names))
    return groups, {_fold(name) for names in labels for name in names if not name.lower().startswith("no ")}


@lru_cache(maxsize=4096)
def _surfaces(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Folded name -> letter; "" for diseases that are no option and for names that two options share."""
    groups, diseases = _names()
    own = [(letter, _fold(text)) for letter, text in options]
    synonyms = [(letter, same) for letter, name in own
                for same in groups.get(name) or set().union(*(group for group in groups.values() if name in group))]
    surfaces = dict.fromkeys(diseases, "")
    for pairs in (synonyms, own):  # an option's own words outrank another option's synonym
        claims = Counter(name for _, name in pairs)
        surfaces |= {name: letter if claims[name] == 1 else "" for letter, name in pairs}
    return surfaces


def _mark(text: str, options: dict[str, str], prose: bool) -> str:
    """`text` with the options that it names marked; in prose a bare capital counts only where an option can stand."""
    text, surfaces = _SMALL.sub(lambda match: match[0].upper(), _grades(text)), _surfaces(tuple(options.items()))
    words = list(re.finditer(r"[^\W_]+", text))
    stems, marked, at, i = [_fold(word[0]) for word in words], "", 0, 0
    while i < len(words):
        for j in range(min(len(words), i + 9), i, -1):  # the longest name first
            start, end, name = words[i].start(), words[j - 1].end(), "".join(stems[i:j])
            named = name in surfaces and (len(name) > 2 or text[start:end].isupper()) and len(name) > 1
            adjective = name == "normal" and re.match(rf"\s{_ANY['normal_of']}\b", text[end:])
            if named and not adjective and not re.search(r"[.,;:!?]", text[start:end]):
                marked, at, i = f"{marked}{text[at:start]}«{surfaces[name]}»", end, j - 1
                break
        i += 1
    text = marked + text[at:]

    def letter(match: re.Match) -> str:
        before, after = text[max(0, match.start() - 30):match.start()], text[match.end():match.end() + 30]
        fits = _AFTER.match(after) or not (prose or match[1] in "AI")  # "A" may be an article, "I" the writer
        if not fits or (prose and not _BEFORE.search(before)) or _NO_LETTER.search(before):
            return match[0]
        return f"‹{match[1] if match[1] in options else '?'}›"

    return _LETTER.sub(letter, text)


def _chosen(text: str, options: dict[str, str], kind: str, prose: bool) -> Answer:
    """What is left of the options named in `text` when the denied ones are struck out."""
    if _REFUSED.search(text):
        return Answer(None, "refused")
    marked = _PAIR.sub(r"«\1\2»", _mark(text, options, prose))
    kept = _DENIED.sub(" ", marked)
    left, named = set(re.findall(r"[‹«]([A-Z?])", kept)), set(re.findall(r"[‹«]([A-Z])", marked))
    if not left and len(options) == 2 and len(named) == 1:
        left = set(options) - named  # of two options one is denied
    undecided = any(len(set(re.findall(r"[‹«](.)", match[0]))) > 1 for match in _UNDECIDED.finditer(kept))
    if undecided or _DISAGREE.search(kept) or "?" in left or (kind != "multi" and len(left) > 1):
        return Answer(None, "ambiguous")
    return Answer(sorted(left) if kind == "multi" else left.pop(), "ok") if left else Answer(None, "missing")


def _said(cue: re.Pattern, text: str) -> list[str]:
    """What follows each cue, to the end of its sentence; the last one first."""
    return [match[1] for match in cue.finditer(text)][::-1]


def _choose(text: str, options: dict[str, str], kind: str, prose: bool) -> Answer:
    """First what the text calls its answer, then all of it, then without its reasons, then its conclusions."""
    whole = re.sub(r"^\W+|\W+$", "", text)
    if kind == "multi" and re.fullmatch(r"[A-Z]{2,}", whole):
        text = ", ".join(whole)
    elif whole.lower() in _NUMBERS and whole.upper() not in options and whole not in options.values():
        text = f"grade {whole}"
    for part in _said(_STRONG, text):
        if (answer := _chosen(part, options, kind, prose=False)).status != "missing":
            return answer
    first = _chosen(text, options, kind, prose)
    if first.status in ("ok", "refused"):
        return first
    rest = [(_REASON.sub("", text), prose), *((part, False) for part in _said(_WEAK, text))]
    answers = (_chosen(part, options, kind, as_prose) for part, as_prose in rest)
    return next((answer for answer in answers if answer.status == "ok"), first)


def _yes_or_no(text: str, yes: str, no: str, prose: bool) -> Answer:
    """A leading letter, yes or no; or, in an answer of one clause, whether it affirms."""
    text = (*_said(_STRONG, text), text)[0]
    letter, word, negative, rest = _YES_NO.match(text).groups()
    said = {no if negative else yes} if word else set()
    if letter and (word or not re.match(r"\w", rest)):
        said.add(letter.upper())
    elif not (word or prose or re.search(r"(?i)[,;]|\bbut\b", text)):
        heard = [side for side, cue in ((no, "rejects"), (yes, "affirms")) if re.search(rf"(?i)\b{_ANY[cue]}\b", text)]
        said = set(heard[:1])
    if _REFUSED.search(text):
        return Answer(None, "refused")
    if len(said) > 1 or re.match(r"(?i)\s+(?:and|or)\s+(?:yes|no)\b", rest):
        return Answer(None, "ambiguous")
    return Answer(said.pop(), "ok") if said and said <= {yes, no} else Answer(None, "missing")


def _read(text: str, options: dict[str, str] | None, kind: str, prose: bool = False) -> Answer:
    """The answer in a text that states it (prose: in a text that may)."""
    text = re.sub(r"\\boxed|[{}]", " ", text).strip()
    if not re.search(r"\w", text):
        return Answer(None, "missing")
    if kind == "open":
        text = (*_said(_STRONG, text), text)[0] if prose else text
        labels = {canonical_label(text)} - {None} or {m.finding for m in find_labels(text) if m.status != "negated"}
        if not labels and _REFUSED.search(text):
            return Answer(None, "refused")
        return Answer(labels.pop() if len(labels) == 1 else text, "ambiguous" if len(labels) > 1 else "ok")
    options = options or ({"A": "Yes", "B": "No"} if kind == "yesno" else dict.fromkeys("ABCDEFGHIJ", ""))
    sides = {side: letter for letter, words in options.items() for side in ("yes", "no")
             if words.lower() in _LISTS["grammar"][side]}
    if len(options) == len(sides) == 2:
        return _yes_or_no(text, sides["yes"], sides["no"], prose)
    return _choose(text, options, kind, prose)


def _tag(match: re.Match) -> str:
    """A misspelt <answer> or <think> as it should be; any other bracket unchanged."""
    near = get_close_matches(match[2].lower(), ("answer", "final answer", "ans", "think", "thinking"), 1, 0.7)
    return f"<{'/' if match[1] else ''}{'think' if near[0].startswith('think') else 'answer'}>" if near else match[0]


def extract_answer(response: str | None, options: dict[str, str] | None = None, kind: str = "single") -> Answer:
    """What a response answers, wherever it says so; never raises, never guesses.

    options: {"A": text, ...}; kind: single | multi | yesno | open. The answer tag outside the thinking comes first
    (several must agree), then a box or JSON, then what the text states; inside the thinking only what is stated there.
    """
    text = _TAG.sub(_tag, _clean(str(response or "")))
    outside = re.sub(r"(?s)<think>.*?(?:</think>|\Z)", " ", text).rsplit("</think>")[-1]
    for part in (outside, text):
        for stated in filter(None, (pattern.findall(part) for pattern in _STATED)):
            answers = [_read(one, options, kind) for one in stated if re.search(r"\w", one)]
            first = answers[0] if answers else Answer(None, "missing")
            return first if all(answer == first for answer in answers) else Answer(None, "ambiguous")
        if part is outside and (answer := _read(part, options, kind, prose=True)).status != "missing":
            return answer
    thought = _said(_STRONG, text.partition("</think>")[0]) if "</think>" in text else []
    return _read(thought[0], options, kind) if thought else Answer(None, "missing")


def parse_strict(response: str, options: dict[str, str] | None = None, kind: str = "single") -> Answer:
    """As `extract_answer`, from exactly one closed <think> and one closed <answer> block and nothing else."""
    match = _STRICT.fullmatch(response)
    return _read(_clean(match[2]), options, kind) if match else Answer(None, "missing")
