"""The answer that a response gives: lenient for evaluation, strict for rewards. Neither ever guesses.

The response is cut down to what states the answer (tags, box, JSON, "the answer is ..."). There, every option named by
letter, text or synonym is marked, what is denied is struck out, and exactly one option must be left. A mark is ‹C› for
a letter, «C» for a text; ‹?› and «» are a letter and a disease that are not among the options. Words: references/."""

import hashlib
import html
import re
import unicodedata
from collections import Counter
from difflib import get_close_matches
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from fundus_lib.lexicon import canonical_label, find_labels, key, reference


class Answer(NamedTuple):
    """value: letter (single, yesno), sorted letters (multi), label or text (open), None when there is none;
    status: ok | ambiguous (several, or letter and text disagree) | missing | refused."""
    value: str | list[str] | None
    status: str


_LISTS = reference("answer_aliases.json")
VERSION = hashlib.sha256(Path(__file__).read_bytes() + repr(_LISTS).encode()).hexdigest()[:12]  # of this extractor
_ANY = {name: f"(?:{'|'.join(words)})" for name, words in _LISTS["grammar"].items() if name != "note"}
_NUMBERS = _LISTS["numbers"]
_NUMBER = rf"({'|'.join(_NUMBERS)})\b"
_SCALE = re.compile(rf"(?i)\b(?:{_ANY['scale']}s?[ :-]*|DR-?(?=\d)){_NUMBER}(?:\s*(?:[-–/]|(?:to|or)\b)\s*{_NUMBER})?")
_TAG = re.compile(r"[<\[]\s*([/\\]?)\s*(\w[\w ]{1,13}?)\s*:?\s*[>\]]")
_INNER = r"((?:(?!</?(?i:think|answer)\s*>).)*)"
_STRICT = re.compile(rf"\s*<think>{_INNER}</think>\s*<answer>{_INNER}</answer>\s*", re.DOTALL)
_STATED = {"answer tag": re.compile(r"(?s)<answer>(.*?)(?=</?answer>|</?think>|\Z)"),
           "box": re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"),
           "JSON": re.compile(
               r"""(?i)["'](?:final[_ ]?)?(?:answer|option|choice)["']\s*:\s*(\[[^\]]*\]|"[^"]*"|'[^']*')""")}
_TAIL = (r"((?:\W{0,3}[A-Za-z][.)]\s*" + rf"(?![^.!?\n]*\b(?:{_ANY['states']}|{_ANY['verbs']})\b))?"
         r".*?)(?=[.!?;](?:\s|$)|\n|$)")  # to the end of the sentence; after "B." the text that it stands for
_STRONG = re.compile(rf"(?i)\b{_ANY['states']}\b(?:[^.:;!?\n]{{0,40}}?(?:\b{_ANY['is']}\b|[:=])|(?=\s+[A-Z]\b))[\s:]*"
                     + _TAIL)
_WEAK = re.compile(rf"(?i)\b{_ANY['concludes']}\b[\s,:]*{_TAIL}")
_REASON = re.compile(rf"(?is)[,(]?\s*\b{_ANY['reason']}\b.*")
_CORRECTED = re.compile(rf"(?is)\b(?:{_ANY['first']}\b.*?\b{_ANY['then']}\b(?!{_ANY['hedged']})|{_ANY['corrects']}\b)")
_REFUSED = re.compile(rf"(?i)\b{_ANY['refuses']}\b")
_PAIR = re.compile(r"‹(.)›[\"').:\]]*[\s-]*«\1»|«(.)»\s*[(\[]‹\2›[)\]]")
_ITEM = r"[\"'(\[]*[‹«][A-Z?]?[›»][\"')\]]*"
_LIST = rf"{_ITEM}(?:(?:\s*(?:,\s*)?n?or\s+|\s*/\s*|\s*,\s*(?!and\b)|\s+and\s+)(?:either\s)?{_ITEM}){{0,9}}"
_WORD = rf"(?!{_ANY['ends_denial']}\b)[\w'/-]+"
_GAP = rf"(?:(?:{_WORD}\s+){{0,5}}?|(?:{_WORD},?\s+){{0,8}}?n?or\s+(?:{_WORD}\s+){{0,2}}?)"
_DENIED = re.compile(rf"(?i)\b{_ANY['denies_before']}\b[\s\"':]+{_GAP}{_LIST}"
                     rf"|{_LIST}\s+(?:{_ANY['between']}\s+)*{_ANY['denies_after']}(?!\w)"
                     rf"|{_ITEM}\s*[:=(–-]\s*{_ANY['verdict_no']}\s*(?=[),;.\n]|$)")
_UNDECIDED = re.compile(rf"{_ITEM}\s*,?\s+(?:or|to|through|vs\.?|versus)\s+(?:\w+\s+)?{_ITEM}")
_NO_NAME, _NO_LETTER, _UNSTATED, _JOIN, _SMALL, _ALSO = (
    re.compile(f"(?i){_ANY[name]}") for name in ("no_name", "no_letter", "unstated", "join", "small", "also"))
_DISAGREE = re.compile(r"‹(.)›[\"')\]]?[\s.:=-]*«(?!\1)")
_BEFORE = re.compile(rf"(?i)(?:^\W*|[.;:!?,(\[›»]\s*|\b{_ANY['before_letter']}\s+)[\"'(\[]*$")
_AFTER = re.compile(rf"\s*(?:[^\w\s‹«]|$)|\s+(?:{_ANY['after_letter']}|{_ANY['modal']}|[A-Z])\b(?!-)")
_LETTERS = re.compile(r"(?<![\w‹«-])(?<!\w['’])[A-Z](?![\w›»-]|['’]\w)"  # a list of letters stands or falls as one
                      r"(?:\s*(?:[,/&+]|\b(?:and|n?or|to|through)\b)\s*(?:and\s+|or\s+)?[A-Z](?![\w›»'’-])"
                      rf"(?:(?<![AI])(?= [a-z])|(?={_AFTER.pattern})))*(?!\s?[/&+]\s?[A-Z]\b|\s?:?\s?[A-Z]?\s+ratio)")
_YES_NO = re.compile(rf"(?is)\W*(?:option\W+)?(?:([A-MO-XZ])\b\W*)?(?:there (?:is|are) (?=no\b))?"
                     rf"(?:({_ANY['yes']}|({_ANY['no']}(?! doubt)))\b)?(.*)")


def _clean(text: str) -> str:
    """NFKC, no invisible characters, no HTML, markdown or LaTeX dress; Chinese terms in English."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = re.sub(r"(?i)</?(?:b|i|u|em|strong|p|br|span|div|code)\s*/?>", " ", text)
    text = re.sub(r"[*`$‹›«»\xad\u200b-\u200f\u202a-\u206f\ufeff]|\\(?:text|math)\w*|(?<!\w)_+|_+(?!\w)", "", text)
    for chinese in () if text.isascii() else sorted(_LISTS["chinese"], key=len, reverse=True):
        text = text.replace(chinese, f" {_LISTS['chinese'][chinese]} ")
    return text


def _grades(text: str) -> str:
    """Grades in one spelling: `Grade two`, `level II` and `DR2` are grade2; `stage 2-3` is grade2 or grade3."""
    return _SCALE.sub(lambda match: " or ".join(f"grade{_NUMBERS[n.lower()]}" for n in match.groups() if n), text)


def _fold(text: str) -> str:
    """One spelling for names that differ in case, plural, hyphens, British spelling or numerals."""
    return "".join(key(_grades(text))).replace("syndrome", "disease").replace("ae", "e").replace("oe", "e")


@cache
def _names() -> tuple[dict[str, set[str]], set[str]]:
    """({name: all names of the same}, names of diseases), folded."""
    labels = [[row["canonical"], *row["synonyms"]] for entry in reference("labels.json")["datasets"]
              for row in entry["labels"] if row["kind"] not in ("prognosis", "quality")]
    findings = [[row["canonical"], *row["abbreviations"], *row["synonyms"], *row["lexical_variants"]]
                for row in reference("findings_lexicon.json")["findings"]]
    groups, same = {}, {}
    for names in (*labels, *findings, *_LISTS["diseases"], *_LISTS["words"], *zip(chain(*_LISTS["scales"]))):
        groups.setdefault(_fold(names[0]), set()).update(_fold(name) for name in names)
    for group in groups.values():
        for name in group:  # a number is no name
            same.setdefault(name, {name}).update(n for n in groups.get(name, group) if not n.startswith("grade"))
    return same, {n for n in map(_fold, chain(*labels, *_LISTS["diseases"])) if not re.match("no(?!n|rmal)|grade", n)}


@lru_cache(maxsize=4096)
def _surfaces(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Folded name -> letter; "" for diseases that are no option and for names that two options share. A number is a
    name only where most options are grades of one scale; a subtype names its parent where no option is a subtype."""
    same, diseases = _names()
    own, subtypes = [(letter, _fold(text)) for letter, text in options], []
    synonyms = [(letter, name) for letter, text in own
                for name in same.get(text) or same.get(re.sub("(?:disease|syndrome)$", "", text), ())]
    for scale in _LISTS["scales"]:
        grade = {name: f"grade{n}" for n, names in enumerate(scale) for name in same[_fold(names)]}
        graded = [(letter, grade[text]) for letter, text in own if text in grade]
        synonyms += graded if 2 * len(graded) > len(own) else []
    for parent, names in _LISTS["kinds"].items():
        below = set().union(*(same[_fold(name)] for name in names))
        if below.isdisjoint(text for _, text in own):
            subtypes += [(letter, name) for letter, text in own if text in same[_fold(parent)] for name in below]
    surfaces = dict.fromkeys(diseases, "")
    for pairs in (subtypes, synonyms, own):  # an option's own words outrank another option's synonym
        claims = Counter(name for _, name in set(pairs))
        surfaces |= {name: letter if claims[name] == 1 else "" for letter, name in pairs}
    return surfaces


def _abbreviates(code: str, text: str) -> bool:
    """Are three or more capitals, unknown as a name, the initials of `text`? (Unlike DR or MH they are telling.)"""
    words = re.findall(r"(?<![^\W_])(?!(?i:of|the|and|with|disease|syndrome)\b)[^\W_]", text)
    return len(code) > 2 and code.isupper() and code == "".join(words).upper() and not {
        _fold(code), _fold(text)} & _names()[0].keys()


def _mark(text: str, options: dict[str, str], prose: bool) -> str:
    """`text` with the options that it names marked; in prose a bare capital counts only where an option can stand."""
    text, surfaces = _SMALL.sub(lambda match: match[0].upper(), _grades(text)), _surfaces(tuple(options.items()))
    words = list(re.finditer(r"[^\W_]+", text))
    stems, marked, at, i = [_fold(word[0]) for word in words], "", 0, 0
    def name_at(first: int) -> tuple[str, int]:  # the longest name that starts at this word, and the word after it
        for last in range(min(len(words), first + 9), first, -1):
            start, end, name = words[first].start(), words[last - 1].end(), "".join(stems[first:last])
            if name in surfaces and len(name) > 1 and (len(name) > 2 or text[start:end].isupper()) and not (
                    re.search(r"[.,;:!?]", text[start:end])
                    or _NO_NAME.search(f"{text[max(0, start - 40):start]}«{name}»{text[end:end + 20]}")):
                return name, last
        return "", first + 1
    def mark_letters(match: re.Match) -> str:
        before, after = match.string[max(0, match.start() - 30):match.start()], match.string[match.end():][:30]
        fits = (_AFTER.match(after) or not (prose or match[0] in "AI")) and (not prose or _BEFORE.search(before))
        fits = fits and not _NO_LETTER.search(f"{before}‹{match[0]}›{after}")  # "A" may be an article, "I" the writer
        return re.sub("[A-Z]", lambda one: f"‹{one[0] if one[0] in options else '?'}›", match[0]) if fits else match[0]
    while i < len(words):
        name, last = name_at(i)
        if not name and (join := _JOIN.match(text, words[i].end())):  # of "wet or dry AMD" the first is wet AMD
            second = i + 1 + len(join[0].strip(" /,").split())
            shared = stems[second:name_at(second)[1]]
            name = next((w for k in range(1, len(shared)) if (w := stems[i] + "".join(shared[k:])) in surfaces), "")
        if name:
            marked, at, i = f"{marked}{text[at:words[i].start()]}«{surfaces[name]}»", words[last - 1].end(), last - 1
        i += 1
    return _LETTERS.sub(mark_letters, marked + text[at:])


def _chosen(text: str, options: dict[str, str], kind: str, prose: bool) -> Answer:
    """What is left of the options named in `text` when the denied ones are struck out."""
    if _REFUSED.search(text):
        return Answer(None, "refused")
    marked = _PAIR.sub(r"«\1\2»", _mark(text, options, prose))
    kept = _DENIED.sub(" ", marked)
    left, named = set(re.findall(r"[‹«]([A-Z?])", kept)), set(re.findall(r"[‹«]([A-Z])", marked))
    left = set(options) - named if not left and len(options) == 2 and len(named) == 1 else left  # one of two denied
    undecided = any(len(set(re.findall(r"[‹«](.)", match[0]))) > 1 for match in _UNDECIDED.finditer(kept))
    if undecided or _DISAGREE.search(kept) or "?" in left or (kind != "multi" and len(left) > 1):
        return Answer(None, "ambiguous")
    return Answer(sorted(left) if kind == "multi" else left.pop(), "ok") if left else Answer(None, "missing")


def _choose(text: str, options: dict[str, str], kind: str, prose: bool) -> Answer:
    """First what the text calls its answer, then all of it, then without its reasons, then its conclusions."""
    shorter = text[corrected.end():] if (corrected := _CORRECTED.search(text)) else text
    if all(option and option.lower() in shorter.lower() for option in options.values()):  # restated in a row
        row = (rf"(?:(?:option\W*)?{letter}\W{{1,4}})?{re.escape(option)}" for letter, option in options.items())
        shorter = re.sub(r"(?i)(?<!\w)" + r"\W*(?:(?:and|or)\b\W*)?".join(row) + r"(?!\w)", " ", shorter)
    if shorter != text and (answer := _choose(shorter, options, kind, prose)).status in ("ok", "ambiguous"):
        return answer
    whole = re.sub(r"^\W+|\W+$", "", text)[:200]
    if kind == "multi" and re.fullmatch(r"[A-Z]{2,}", whole):
        text = ", ".join(whole)
    elif whole.lower() in _NUMBERS and whole.upper() not in options and whole not in options.values():
        text = f"grade {whole}"
    letter = None if whole.upper() in options else _surfaces(tuple(options.items())).get(_fold(whole))
    same = [one for one, o in options.items() if one == letter or _abbreviates(o, whole) or _abbreviates(whole, o)]
    if len(same) == 1:
        return Answer(same if kind == "multi" else same[0], "ok")
    for part in _STRONG.findall(text)[::-1]:  # what follows each cue; the last word counts
        if (answer := _chosen(part, options, kind, prose=False)).status != "missing":
            return answer
    claims = _UNSTATED.sub(" _ ", text) if prose else text
    if (first := _chosen(claims, options, kind, prose)).status in ("ok", "refused"):
        return first
    rest = [(_REASON.sub("", claims), prose), *((part, False) for part in _WEAK.findall(text)[::-1])]
    answers = (_chosen(part, options, kind, as_prose) for part, as_prose in rest)
    return next((answer for answer in answers if answer.status == "ok"), first)


def _yes_or_no(text: str, yes: str, no: str, prose: bool) -> Answer:
    """A leading letter, yes or no; or, in an answer of one clause, whether it affirms."""
    stated = [text, *_STRONG.findall(text)][-1]
    text = text if len(stated) == 1 and _YES_NO.match(text)[2] else stated  # "Yes, option B"
    letter, word, negative, rest = _YES_NO.match(text).groups()
    said = {no if negative else yes} if word else set()
    if letter and (word or not re.match(r"\w", rest)):
        said.add(letter.upper())
    if said:
        said |= {yes if also else no if other else last.upper() for also, other, last in _ALSO.findall(rest)}
    elif not (word or prose or re.search(r"(?i)[,;]|\bbut\b", text)):
        cues = (no, "rejects"), (yes, "affirms")
        said = {*[side for side, cue in cues if re.search(rf"(?i)\b{_ANY[cue]}\b", text)][:1]}
    status = "ambiguous" if len(said) > 1 else "ok" if said and said <= {yes, no} else "missing"
    status = "refused" if _REFUSED.search(text) else status
    return Answer(said.pop() if status == "ok" else None, status)


def _read(text: str, options: dict[str, str] | None, kind: str, prose: bool = False) -> Answer:
    """The answer in a text that states it (prose: in a text that may)."""
    text = re.sub(r"\\boxed|[{}]", " ", text).strip()
    if not re.search(r"\w", text):
        return Answer(None, "missing")
    if kind == "open":
        text = [text, *_STRONG.findall(text)][-1] if prose else text
        labels = {canonical_label(text)} - {None} or {m.finding for m in find_labels(text) if m.status != "negated"}
        return Answer(None, "refused") if not labels and _REFUSED.search(text) else Answer(
            labels.pop() if len(labels) == 1 else text, "ambiguous" if len(labels) > 1 else "ok")
    options = options or ({"A": "Yes", "B": "No"} if kind == "yesno" else dict.fromkeys("ABCDEFGHIJ", ""))
    sides = {side: letter for letter, words in options.items() for side in ("yes", "no")
             if words.lower() in _LISTS["grammar"][side]}
    if len(options) == len(sides) == 2:
        return _yes_or_no(text, sides["yes"], sides["no"], prose)
    return _choose(text, options, kind, prose)


@lru_cache(maxsize=4096)
def _tag(bracket: str) -> str:
    """A misspelt <answer> or <think> as it should be; any other bracket unchanged."""
    slash, name = _TAG.fullmatch(bracket).groups()
    near = get_close_matches(name.lower(), ("answer", "final answer", "ans", "think", "thinking"), 1, 0.7)
    return f"<{slash and '/'}{'think' if near[0].startswith('think') else 'answer'}>" if near else bracket


def _decide(response: str | None, options: dict[str, str] | None, kind: str) -> tuple[Answer, str, str]:
    """The answer, which part of the response gave it, and the text of that part."""
    text = _TAG.sub(lambda match: _tag(match[0]), _clean(str(response or "")))
    outside = re.sub(r"(?s)<think>.*?(?:</think>|\Z)", " ", text).rsplit("</think>")[-1]
    for part, where in ((outside, ""), (text, " in the thinking")):
        for rule, stated in ((rule, found) for rule, pattern in _STATED.items() if (found := pattern.findall(part))):
            answers = [_read(one, options, kind) for one in stated if re.search(r"\w", one)] or [_read("", None, kind)]
            agreed = answers.count(answers[0]) == len(answers)
            return answers[0] if agreed else Answer(None, "ambiguous"), rule + where, " | ".join(stated)
        if part is outside and (answer := _read(part, options, kind, prose=True)).status != "missing":
            return answer, "text", part
    thought = _STRONG.findall(text.partition("</think>")[0])[-1:] if "</think>" in text else []
    return (_read(thought[0], options, kind), "last statement in the thinking", thought[0]) if thought else (
        Answer(None, "missing"), "text", outside)


def extract_answer(response: str | None, options: dict[str, str] | None = None, kind: str = "single") -> Answer:
    """What a response answers, wherever it says so; never raises or guesses. kind: single | multi | yesno | open. The
    answer tag outside the thinking comes first (several must agree), then a box or JSON, then what the text states."""
    return _decide(response, options, kind)[0]


def explain_answer(response: str | None, options: dict[str, str] | None = None,
                   kind: str = "single") -> tuple[Answer, str, str, str]:
    """`extract_answer`, which part of the response decided, its words, and the marks of the options found in them. The
    part is a "final statement" where the last "the answer is ..." alone gives the answer, else "text": all of it."""
    answer, rule, text = _decide(response, options, kind)
    if rule == "text" and (stated := _STRONG.findall(text)) and _read(stated[-1], options, kind) == answer:
        rule, text = "final statement", stated[-1]
    marks = re.findall(r"‹.›|«.?»", _mark(text, options, rule == "text")) if options else []
    return answer, rule, text.strip(), " ".join(marks)


def parse_strict(response: str, options: dict[str, str] | None = None, kind: str = "single") -> Answer:
    """As `extract_answer`, from exactly one closed <think> and one closed <answer> block and nothing else."""
    match = _STRICT.fullmatch(response)
    return _read(_clean(match[2]), options, kind) if match else Answer(None, "missing")
