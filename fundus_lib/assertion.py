"""How a clause speaks of what it mentions: asserted, negated, hedged or hypothetical (assertion_cues.json).

The rules are ours, after ConText: its maintained versions (negspaCy, medSpaCy) need spaCy, are made for clinical notes,
know no rule talk ("in AMD one would expect ...") and take milliseconds a sentence."""

import html
import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import NamedTuple

REFERENCES = Path(__file__).parent / "references"
Span = tuple[int, int, str, str]  # start, end, name, the form when other words may stand inside


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


_WORD = re.compile(r"[Nn]on[- ](?=[a-z])[^\W_]+|[^\W_]+")  # `non-x` is one word
JOINTS = frozenset(map("".join, product(("", "-", "/", "'"), ("", " "), ("", ">"))))  # between the words of one term
_PIECE = re.compile(r"&(?:#\w+|[A-Za-z]+);|</?(?i:b|i|u|em|strong|p|br|span|div|code|su[bp])\s*/?>|.", re.DOTALL)
_LINE = re.compile(r"\n(?=\s*(?:[-*\u2022]|\(?\d{1,2}[.)]\s|[A-Z][a-z]+\b|A |\n))")  # it starts an item or a sentence
_ALIKE = str.maketrans(dict(zip(  # dashes, quotes, Cyrillic and Greek letters that look Latin
    "\u2010\u2011\u2012\u2013\u2014\u2212\u2019\u2018\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u03bf"
    "\u0391\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425",
    "------''aeopcxyioAABEKMHOPCTX", strict=True)))


def clean(text: str) -> tuple[str, Sequence[int]]:
    """The text as it looks: NFKC, no HTML dress or invisible characters, single blanks, Latin for look-alikes, ";" at
    the end of a listed line. Returns it and each character's place in the original."""
    if text.isascii() and text.isprintable() and not any(mark in text for mark in ("  ", "&", "<")):
        return text, range(len(text))
    shown = [(" " if c.isspace() else c, piece.start()) for piece in _PIECE.finditer(_LINE.sub(";", text))
             for raw in ("" if piece[0][0] == "<" and piece[0] != "<" else html.unescape(piece[0]))
             for c in unicodedata.normalize("NFKC", raw).translate(_ALIKE) if unicodedata.category(c) != "Cf"]
    shown = [after for before, after in pairwise([(" ", 0), *shown]) if before[0] + after[0] != "  "]
    return "".join(c for c, _ in shown), [place for _, place in shown]


@lru_cache(maxsize=20_000)
def stem_of(word: str) -> str:
    """Lower case, American spelling, no plural: `Haemorrhages` and `hemorrhage` are one word."""
    word, table = word.lower().replace("-", "").replace(" ", ""), reference("findings_lexicon.json")
    for british, american in table["spelling"].items():
        word = word.replace(british, american)
    word = word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else re.sub(
        "(?<=ch|sh|ss)es$|(?<=x)es$|(?<=..[^s])s$", "", word)
    return table["irregular"].get(word, word)


def key(text: str) -> tuple[str, ...]:
    """A term as the tables spell it: stemmed words, `non-x` written as one."""
    return tuple(map(stem_of, _WORD.findall(clean(text)[0].lower())))


SENTENCE_END = re.compile(r"[.!?](?=\s|$|<|[\"')])(?<!\bi\.e.)(?<!\be\.g.)(?<!\bvs.)(?<!\bca.)(?<!\bcf.)"
                          r"|[;<>\u2022]|\s(?=\(?\d\))")
_PREDICATES = {"sure", "doubted", "denied", "verb"}


class Reading(NamedTuple):
    words: list[tuple[int, int]]
    stems: list[str]
    lower: str
    lower_words: list[str]
    cues: list[tuple[int, int, str]]  # start, end, kind
    ends: list[int]  # of sentences, with 0 and the end of the text


class Cues(dict):
    """Kinds of phrases, given as regular expressions for lower case; only those that can start with a word are tried at
    that word (worked out once a word), which is ten times as fast as one alternation of them all."""

    def __init__(self, kinds: dict[str, Iterable[str]], parts: dict[str, str]):
        self.tried: dict[str, list[tuple[re.Pattern, re.Pattern, str]]] = {}  # by first letter
        for kind, phrase in ((kind, phrase) for kind, given in kinds.items() for phrase in given):
            for _ in parts:  # a part may hold another
                phrase = re.sub(r"\{([a-z]+)\}", lambda part: parts[part[1]], phrase)
            heads = _heads(phrase)
            for letter in {head[:1] for head in heads}:
                self.tried.setdefault(letter, []).append((re.compile("|".join(heads)), re.compile(phrase), kind))

    def __missing__(self, word: str) -> tuple:
        fitting = [(phrase, kind) for head, phrase, kind in self.tried.get(word[0], ()) if head.match(word)]
        some = re.compile("|".join(f"(?:{phrase.pattern})" for phrase, _ in fitting)).match if fitting else None
        if len(self) < 20_000:
            self[word] = some, fitting
        return some, fitting

    def find(self, read: "Reading", once: bool = False) -> list[tuple[int, int, str]]:
        """(start, end, kind) of every cue; `once`: the first that fits at a word, and none that overlap."""
        found, after = [], 0
        for (start, _), (some, fitting) in zip(read.words, map(self.__getitem__, read.lower_words), strict=True):
            if some and start >= after and some(read.lower, start):
                for phrase, kind in fitting:
                    if hit := phrase.match(read.lower, start):
                        found.append((start, hit.end(), kind))
                        if once:
                            after = hit.end()
                            break
        return found


_TOKEN = re.compile(r"\\.|\[\^?\]?[^\]]*\]|.")


def _alternatives(pattern: str) -> list[str]:
    """What the outermost `|` of a regular expression separate."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(pattern):
        depth += (token == "(") - (token == ")")
        parts = [*parts, ""] if token == "|" and not depth else [*parts[:-1], parts[-1] + token]
    return parts


def _heads(pattern: str) -> set[str]:
    """Regular expressions for the beginning of the first word of a match; "" where that can be any word."""
    pattern = re.sub(r"^(?:\\b|\(\?<[=!][^()]*\))+", "", pattern)
    if len(parts := _alternatives(pattern)) > 1:
        return set().union(*map(_heads, parts))
    if pattern.startswith("(?:"):
        depth, inner = 0, ""
        for token in _TOKEN.findall(pattern):
            inner, depth = inner + token, depth + (token == "(") - (token == ")")
            if not depth:
                break
        rest = pattern[len(inner):]
        optional, rest = rest[:1] == "?", rest.removeprefix("?")
        heads = [_heads(part + rest) for part in _alternatives(inner[3:-1])]
        return set().union(*heads, _heads(rest) if optional else ())
    head = re.match(r"[^ ,./$()\[\\{|'-]*", pattern)[0]
    return {head + ("$" if pattern[len(head):len(head) + 1] == " " else "")}


@cache
def _assertion_cues() -> Cues:
    table = reference("assertion_cues.json")
    spelt = {kind: [re.sub(r"(?<=[a-z] )not\b", "not?", phrase.replace("cannot", "ca(?:nnot| no)"))  # "don't", "can't"
                    for phrase in phrases] for kind, phrases in table["cues"].items()}
    return Cues({kind: [f"(?:{phrase})(?!\\w)" for phrase in phrases] for kind, phrases in spelt.items()},
                table["parts"])


@lru_cache(maxsize=16)
def reading(text: str) -> Reading:
    text = text.replace("n't", " no")  # as long as before
    low = text.lower() if text.isascii() else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    words = [word.span() for word in _WORD.finditer(text)]
    lower_words = [low[start:end] for start, end in words]
    read = Reading(words, list(map(stem_of, lower_words)), low, lower_words, [],
                   [0, *(end.start() for end in SENTENCE_END.finditer(text)), len(text)])
    read.cues.extend(_assertion_cues().find(read, once=True))
    return read


_MINUS = re.compile(r" ?(?:\(-\)|-(?= ?(?:[,;.*]|$))|(?:[=:]? ?(?:0|nil|neg)|- ?(?:no|none|absent|not seen))"
                    r"(?= ?(?:[,;)]|\.?$|\. )))")
_DENIAL = re.compile(r"\b(?:not|no|never|no longer|neither|nor|without|hardly|absent|missing)\b")
_FRONTED = re.compile(r"[\W\d]*(?:in the (?:\w+ )?(?:absence|lack)|without|devoid|free|absent)(?: of)?")


def _ended(kind: str, between: str, rest: str) -> bool:
    """Has the scope of a cue before the mention ended? "no A: B", "Unlike A, B", "Without A, B is seen"."""
    if kind == "no":
        return ":" in between
    between = re.sub(r"^[^,]*, (?:which|where|whose|who|in which)\b", "", between)
    return "," in between and (kind != "fronted" or rest == "verb")


def _status(before: list[tuple[str, str]], after: list[str], rest: str) -> str:
    """Status of a mention from the cues of its clause: (kind, words up to the mention) before it, kinds after it; rest:
    the kind of the first cue after it and before the next comma."""
    if "supposed" in after or any(kind == "supposed" for kind, _ in before):
        return "hypothetical"
    state, flipped = "asserted", False
    for kind, between in before:
        if kind in ("elsewhere", "if", "compared", "typical"):
            state = state if _ended(kind, between, rest) else "hypothetical"
        elif kind in ("no", "fronted"):
            state = "asserted" if _ended(kind, between, rest) else "negated"
        elif kind == "flip":
            flipped = ":" not in between and "," not in between
        elif state != "hypothetical" or kind != "verb":  # a finite verb ends what stood before it: "no A is seen and B"
            state = "hedged" if kind == "maybe" else "asserted"
    verdict = next((kind for kind in after if kind in _PREDICATES), None)
    state = {"denied": "negated", "doubted": "hedged"}.get(verdict, state) if state == "asserted" else state
    return {"asserted": "negated", "negated": "asserted"}.get(state, state) if flipped else state


def with_status(text: str, found: list[Span], labels: bool = False) -> list[Mention]:
    """Give each span its status, from the cues of its clause. Cues inside a term belong to it alone."""
    read = reading(text)
    starts, furthest = sorted(span[0] for span in found), list(accumulate((span[1] for span in sorted(found)), max))
    cues = [cue for cue in read.cues if cue[2] != ("typical" if labels else "compared")
            and not ((at := bisect_left(starts, cue[1])) and furthest[at - 1] > cue[0])]
    edges = sorted(read.ends + [first for first, _, kind in cues if kind == "stop"])
    mentions, question = [], "?" in text
    for start, end, name, hint in found:
        left, right = edges[bisect_right(edges, start) - 1], edges[bisect_left(edges, end)]
        clause = [cue for cue in cues[bisect_left(cues, (left,)):bisect_left(cues, (right,))]
                  if cue[1] <= right and cue[2] != "stop"]
        before = [("fronted" if kind == "no" and (_FRONTED.fullmatch(read.lower, left, last) or _FRONTED.fullmatch(
                   read.lower, first, last) and _FRONTED.match(read.lower, left)) else kind, text[last:start])
                  for first, last, kind in clause if last <= start]
        after = [(first, kind) for first, _, kind in clause if first >= end]
        comma = text.find(",", end)
        rest = next((kind for first, kind in after if comma < 0 or first < comma), "")
        asked = question and text.startswith("?", read.ends[bisect_left(read.ends, end)])
        status = "hypothetical" if asked else _status(before, [kind for _, kind in after], rest)
        minus = _MINUS.match(text, end)
        denied = minus or hint and any(word[0] not in hint for word in _DENIAL.finditer(read.lower, start, end))
        mentions.append(Mention(name, start, end, "negated" if denied and status == "asserted" else status))
    return mentions


def in_original(mentions: list[Mention], places: Sequence[int]) -> list[Mention]:
    """Mentions of a cleaned text with their places in the original."""
    return mentions if isinstance(places, range) else [
        m._replace(start=places[m.start], end=places[m.end - 1] + 1) for m in mentions]
