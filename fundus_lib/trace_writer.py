"""Reasoning traces: written by a grammar or a language model from V(I) and K, or by a vision model from the image alone
(the free-form baseline), and kept when neither `traces` nor the checks below find a fault. Words: phrases.json."""

import re
from collections import Counter, namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from zlib import crc32

import pandas as pd

from fundus_lib.intervals import wilson_interval
from fundus_lib.knowledge import PROMPTS, Passage, Vocabulary, acquire, embedded, pairs, vocabulary
from fundus_lib.lexicon import canonical_label, family, find_labels, find_mentions, findings, reference
from fundus_lib.questions import option_texts
from fundus_lib.traces import CATEGORIES, RULES, TraceReport

PHRASES = reference("phrases.json")
LOOK_ALIKES, FACTS = ("Look-alikes",), ("Mechanism", "Scale", "Limits", "Confirmed by")  # bullets that are quoted
Trace = namedtuple("Trace", "text sources")  # sources: those of K (page#section) that its rule and quotations are from
Quote = namedtuple("Quote", "lead text source asserted denied")  # words of a page's bullet, the findings in them


def write_trace(label: str, modality: str, seen: Collection[str], options=None, *, wording: int = 0) -> str:
    """V(I) = `seen` within the pair's vocabulary, the rule that ties it to the label, the answer.
    Wording 0 is the short one of the small model. The others differ in order, depth (findings and rule; absent signs; a
    look-alike; a fact) and words, by wording and item alone. Of findings outside V(I) only excluded ones are named, to
    deny them; a V(I) that misses the criteria is told as it is. KeyError when no page covers (label, modality)."""
    return compose(label, modality, seen, options, wording=wording).text


def compose(label: str, modality: str, seen: Collection[str], options=None, *, wording: int = 0,
            max_words: float = float("inf")) -> Trace:
    """`write_trace` with its sources; what makes it longer than `max_words` is left out, the deepest first."""
    decisive, others, absent = _evidence(label, modality, seen)
    answer = next((text for text in option_texts(options).values() if canonical_label(text) == label), label)
    sources = [page.source for page in _pages(label, modality) if re.search("(?m)^- (Required|Supportive)", page.text)]
    if wording == 0:
        rule = ", ".join(decisive) + (" without " + " or ".join(absent[:2]) if absent and decisive else "") or "This"
        text = write_simple_trace(modality, answer, decisive + others)
        return Trace(text.replace(" </think>", f" {rule} indicates {label}. </think>"), sources)
    known, held, item = vocabulary(label, modality), family(*seen), (label, modality, sorted(seen), wording)
    met = known.all_of <= held and all(group & held for group in known.any_of)
    decisive += [name for name in findings() if name in {*seen} - {*decisive} and family(name) & known.required]
    others, anatomy = [name for name in others if name not in decisive], [*PHRASES["anatomy"], ""]
    shown = decisive + others
    if _hash("order", item) % 2:  # from the disc over the vessels to the macula, then the rest
        shown.sort(key=lambda name: [bool(re.search(part, name)) for part in anatomy].index(True))
    about = {"modality": modality, "label": label, "decisive": _listed(decisive), "seen": _listed(shown)}
    if wording % 2 or not decisive or not met:  # findings first
        one_of = "one is enough" if len(known.any_of) == 1 and not known.all_of else "decisive"
        slots = ["findings" if shown else "nothing", *([one_of] if decisive and met else [])]
    else:
        slots = ["first", *(["others"] if others else [])]
    slots.append("unmet" if not met else "conclusion" if known.required else "unproven")
    *start, end = (_say(slot, item, others=_listed(others), **about) for slot in slots)
    further, depth = [], wording // 2 % 4  # (sentence, its sources)
    if depth and absent and met and not known.definitional & held:
        names, slot = [_noun(name, bare=True) for name in absent[:2]], "absent" if absent[1:] else "one absent"
        further.append((_say(slot, item, first=names[0], second=names[-1]), sources))
    for leads in (LOOK_ALIKES, FACTS)[:max(depth - 1, 0)]:
        fitting = [quote for quote in _quotes(label, modality, known)
                   if quote.lead in leads and quote.asserted <= held and not quote.denied & held]
        if fitting:
            chosen = min(fitting, key=lambda quote: _hash(quote.text, item))
            further.append((_say(chosen.lead, item, quote=chosen.text), [chosen.source]))
    for left in range(len(further), -1, -1):
        said = " ".join([*start, *(sentence for sentence, _ in further[:left]), end])
        text = f"<think> {said} </think> <answer> {answer} </answer>"
        if len(text.split()) <= max_words:
            break
    return Trace(text, list(dict.fromkeys(sum((used for _, used in further[:left]), sources))))


def write_simple_trace(modality: str, answer: str, seen: Collection[str] | None = None, *, wording: int = 0) -> str:
    """The trace of a question about modality or side or, with the findings seen, about one lesion."""
    shown = f"is a {modality} image" if seen is None else f"{modality} image shows {', '.join(seen) or 'no finding'}"
    said, slot = f"This {shown}.", "simple" if seen is None else "one lesion" if seen else "no lesion"
    said = _say(slot, (modality, answer, wording), modality=modality, seen=_listed(seen or ())) if wording else said
    return f"<think> {said} </think> <answer> {answer} </answer>"


def _hash(*key) -> int:
    return crc32(repr(key).encode())


def _say(slot: str, item: tuple, **words: str) -> str:
    """A phrase of the slot, always the same for an item, with a capital at its start."""
    text = PHRASES[slot][_hash(slot, item) % len(PHRASES[slot])].format(**words)
    return text[0].upper() + text[1:]


def _noun(name: str, bare: bool = False) -> str:
    """The finding as a sentence has it: microaneurysms; a macular star (bare: macular star); drusen."""
    many, counted = (re.search(PHRASES[kind], name) for kind in ("many", "counted"))
    article = "" if bare or many or not counted else "an " if re.match("[aeio]|ROP", name) else "a "
    return article + name + "s" * bool(many)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(_noun(name) for name in part) for part in (names[:-1], names[-1:]) if part)


def _evidence(label: str, modality: str, seen: Collection[str]) -> tuple[list[str], list[str], list[str]]:
    """(required, supportive) findings that are seen, and what contradicts the label and is not, rivals' signs first."""
    known, absent = vocabulary(label, modality), []
    decisive = [name for name in findings() if name in seen and name in known.required]
    others = [name for name in findings() if name in seen and name in known.supportive]
    rivals = Counter(name for pair in pairs() if pair[1] == modality for name in vocabulary(*pair).required)
    for name in sorted(findings(), key=lambda name: -rivals[name]):  # one of a family says enough
        if name in known.definitional - {*RULES["contradictions"]} - family(*seen) and not family(name) & {*absent}:
            absent.append(name)
    return decisive, others, absent


@cache
def _pages(label: str, modality: str) -> tuple[Passage, ...]:
    """The sections of our own pages in K; other sources are read for their facts, and never quoted."""
    known = acquire(label, modality).sources if (label, modality) in embedded().pairs else ()
    return tuple(page for page in embedded().passages if page.source in {source["source"] for source in known})


@cache
def _quotes(label: str, modality: str, known: Vocabulary) -> tuple[Quote, ...]:
    """Items of K's bullets that can stand in a trace: they do not give the label away, deny excluded findings at most,
    and add no problem to the trace of an image that has the whole vocabulary."""
    quotes, ideal = [], known.required | known.supportive
    about, plain = {"label": label, "modality": modality, "findings": ideal}, write_trace(label, modality, ideal)
    bullets = [(page.source, *bullet) for page in _pages(label, modality) for bullet in
               re.findall(rf"(?m)^- ({'|'.join(LOOK_ALIKES + FACTS)}): (.+)$", page.text.replace("\n  ", " "))]
    for source, lead, body in bullets:
        ends = r"[;.] " if lead in LOOK_ALIKES else r"\. "  # a look-alike each; the clauses of a fact belong together
        for item in re.split(ends, re.sub(r" ?\[\d+\]|\.$", "", body)):
            phrases = " ".join(phrase.format(quote=item) for phrase in PHRASES[lead])  # any of them may be chosen
            said = [(m.finding, m.status == "negated") for m in find_mentions(phrases)]
            asserted, denied = (frozenset(name for name, no in said if no == side) for side in (False, True))
            told = plain.replace(". ", f". {phrases} ", 1)
            if not (re.search(PHRASES["never quoted"], item) or label in [m.finding for m in find_labels(item)]
                    or denied - known.excluded or TraceReport(told, **about).problems):
                quotes.append(Quote(lead, item, source, asserted, denied))
    return tuple(quotes)


def leaks_answer(text: str, label: str, answer: str, options=None) -> bool:
    """The reasoning names the label or the answer (its text, "option B") before any finding or, without one, in its
    first sentence. A finding that has the label's name (drusen) is none of these."""
    thought = text.partition("</think>")[0].removeprefix("<think>")
    letters = "|".join(letter for letter, option in option_texts(options).items() if option == answer) or "(?!)"
    answered = rf"(?<!\w)(?i:{re.escape(answer)}|(?:option|choice|answer)(?: is)?:? \(?(?-i:{letters}))(?!\w)"
    labels = [(m.start, m.end, m.finding) for m in find_labels(thought)]
    named = [span[:2] for span in labels if span[2] == label] + [m.span() for m in re.finditer(answered, thought)]
    said = [m for m in find_mentions(thought)  # the finding inside "diabetic macular edema" is none
            if not any(s <= m.start and m.end <= e and e - s > m.end - m.start for s, e, _ in labels)]
    before = said[0].start if said else re.search(r"[.!?;](?:\s|$)|$", thought).start()
    return any(start < before and not any(m.start < end and start < m.end for m in said) for start, end in named)


def _row(row, trace: Trace, shown: Collection[str] | None, max_words: int, writer: str, wording: int | None = None,
         error: str = "") -> dict:
    """A row of traces.parquet; shown: V(I), or None for a question without a label. A failed request: not `written`."""
    problems, against, leaks = set(), (), False
    if shown is not None and not error:
        about = {"label": row.label, "modality": row.modality, "findings": shown, "options": row.options}
        problems = TraceReport(trace.text, **about).problems
        against = vocabulary(row.label, row.modality).definitional & family(*shown)
        leaks = leaks_answer(trace.text, row.label, row.answer_text, row.options)
    checks = {f"no_{name}": name not in problems for name in CATEGORIES} | {"no_contradicting_finding": not against}
    checks |= {"no_answer_leak": not leaks, "within_length": len(trace.text.split()) <= max_words, "written": not error}
    return {"question_id": row.id, "text": trace.text, "answer": row.answer_text, "writer": writer, "wording": wording,
            "sources": trace.sources, "error": error} | checks | {"kept": all(checks.values())}


def _ask(questions: pd.DataFrame, found: Mapping[str, Collection[str]], settings, client, writer: str,
         knowledge: Mapping[tuple, Mapping], image: Callable[[str], bytes] | None = None) -> list[dict]:
    """Rows of a model's replies about the training questions whose label has a vocabulary.
    found: record_id -> V(I); knowledge: (label, modality) -> {"text": K, ...}; image: see `free_form`. Else it is text
    alone and three steps, "conditioned on both VFs and K" (Fundus-R1, 3.2.3); the words and temperature 0 are ours. The
    trace starts at the last <think>; before it a model thought of the task."""
    from fundus_lib.client import Request
    asked, wanted, rows = [], [], []
    for row in questions[questions.split == "train"].itertuples():
        if (row.label, row.modality) in pairs():
            options = "".join(f"\n{letter}. {text}" for letter, text in option_texts(row.options).items())
            prompt = PROMPTS["free-form trace" if image else "trace"].format(
                modality=row.modality, question=row.question + options, answer=row.answer_text, label=row.label,
                seen=", ".join(found.get(row.record_id, ())) or "none", max_words=settings.max_words,
                knowledge="" if image else knowledge[row.label, row.modality]["text"])
            asked.append(row)
            wanted.append(Request(prompt, (image(row.path),) if image else ()))
    for row, reply in zip(asked, client.ask(wanted, f"{writer} traces"), strict=True):
        text, shown = "".join(reply.texts), found.get(row.record_id, [])
        used = [] if image else knowledge[row.label, row.modality]["sources"]
        trace = Trace(text[max(text.rfind("<think>"), 0):].strip(), [source["source"] for source in used])
        rows.append(_row(row, trace, shown, settings.max_words, writer, error=reply.error))
    return rows


def build(questions: pd.DataFrame, seen: pd.DataFrame, settings, client=None,
          knowledge: Iterable[Mapping] = ()) -> pd.DataFrame:
    """traces.parquet of the training questions (one column a check, True: passed; kept: all) from findings.parquet.
    settings: the section `traces`; with writer "llm", `client` is asked about those with a label, given `knowledge`
    (knowledge.jsonl; else K of the embedded pages); a failed request is a row with its `error`. A diagnosis without a
    page gets no trace; without a label only the length is checked. The wording is the id's hash modulo `wordings`."""
    found, words = seen[seen.kept].groupby("record_id").finding.agg(list).to_dict(), settings.max_words
    known = {pair: acquire(*pair)._asdict() for pair in embedded().pairs}
    known |= {(row["label"], row["modality"]): row for row in knowledge}
    rows = _ask(questions, found, settings, client, "llm", known) if settings.writer == "llm" else []
    left = (questions.split == "train") & ~questions.id.isin([row["question_id"] for row in rows])
    for row in questions[left].itertuples():
        pair, shown = (row.label, row.modality), found.get(row.record_id, [])
        wording = _hash(row.id) % settings.wordings
        if pair in pairs():
            trace = compose(*pair, shown, row.options, wording=wording, max_words=words)
            trace = trace if trace.sources else trace._replace(sources=[s["source"] for s in known[pair]["sources"]])
        elif isinstance(row.label, str) or row.level[:2] == "L4":  # a diagnosis without a page, or several
            continue
        else:
            there = row.level != "L3a" or row.answer_text == "Yes"  # place, size and number are asked of what is there
            lesion = [row.finding] * there if isinstance(row.finding, str) else None
            trace, shown = Trace(write_simple_trace(row.modality, row.answer_text, lesion, wording=wording), []), None
        rows.append(_row(row, trace, shown, words, "grammar", wording))
    return pd.DataFrame(rows)


def free_form(questions: pd.DataFrame, seen: pd.DataFrame, settings, client,
              image: Callable[[str], bytes]) -> pd.DataFrame:
    """The baseline of Fundus-R1's Tab. 3 for the training questions with a label and a page, as rows like `build`'s.
    Stated: a generic vision model (Qwen3-VL-Plus) writes the trace "directly from the image and label", without VFs and
    K. Our guess: its prompt, temperature 0, and that the same checks apply; V(I) of `seen` is only what they hold the
    trace against. image(path of a question): its PNG or JPEG bytes; all are held at once, so give it a sample."""
    found = seen[seen.kept].groupby("record_id").finding.agg(list).to_dict()
    return pd.DataFrame(_ask(questions, found, settings, client, "free-form", {}, image))


def compare_writers(traces: pd.DataFrame) -> pd.DataFrame:
    """Tab. 3 in numbers, on questions with most writers: traces, failures, share by check, kept (95 %: Wilson)."""
    writers = traces.groupby("question_id").writer.transform("nunique")  # fewer: no label, or not in a sample
    rows, checks = [], [name for name in traces if name.startswith(("no_", "within_"))]
    for writer, group in traces[writers == writers.max()].groupby("writer", sort=False):
        there = group[group.written]
        low, high = wilson_interval(there.kept) if len(there) else (float("nan"),) * 2
        rows.append({"writer": writer, "traces": len(there), "failed": len(group) - len(there)}
                    | there[[*checks, "kept"]].mean().to_dict() | {"low": low, "high": high})
    return pd.DataFrame(rows).set_index("writer")
