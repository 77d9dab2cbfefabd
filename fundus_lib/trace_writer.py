"""Reasoning traces are written here from V(I) and K, and kept when `traces` finds no fault in them."""

from collections import Counter
from collections.abc import Collection

import pandas as pd

from fundus_lib.knowledge import pairs, vocabulary
from fundus_lib.lexicon import canonical_label, family, findings
from fundus_lib.questions import option_texts
from fundus_lib.traces import CATEGORIES, RULES, TraceReport


def write_trace(label: str, modality: str, seen: Collection[str], options=None) -> str:
    """V(I) = `seen` within the pair's vocabulary, required findings first; the rule that ties it to the label, with at
    most two signs of its rivals named as absent; the answer. Short enough for the small model to learn."""
    known, absent = vocabulary(label, modality), []
    decisive = [name for name in findings() if name in seen and name in known.required]
    others = [name for name in findings() if name in seen and name in known.supportive]
    rivals = Counter(name for pair in pairs() if pair[1] == modality for name in vocabulary(*pair).required)
    for name in sorted(findings(), key=lambda name: -rivals[name]):  # one of a family says enough
        if name in known.definitional - {*RULES["contradictions"]} - family(*seen) and not family(name) & {*absent}:
            absent.append(name)
    rule = ", ".join(decisive) + (" without " + " or ".join(absent[:2]) if absent and decisive else "")
    answer = next((text for text in option_texts(options).values() if canonical_label(text) == label), label)
    trace = write_simple_trace(modality, answer, decisive + others)
    return trace.replace(" </think>", f" {rule or 'This'} indicates {label}. </think>")


def write_simple_trace(modality: str, answer: str, seen: Collection[str] | None = None) -> str:
    """The trace of a question about modality or side or, with the findings seen, about one lesion."""
    shown = f"is a {modality} image" if seen is None else f"{modality} image shows {', '.join(seen) or 'no finding'}"
    return f"<think> This {shown}. </think> <answer> {answer} </answer>"


def build(questions: pd.DataFrame, seen: pd.DataFrame, max_words: int) -> pd.DataFrame:
    """traces.parquet of the training questions (one column a check, True: passed; kept: all) from findings.parquet.
    A diagnosis without a page gets no trace; where the question has no label, only the length is checked."""
    found, rows = seen[seen.kept].groupby("record_id").finding.agg(list).to_dict(), []
    for row in questions[questions.split == "train"].itertuples():
        pair, shown, problems = (row.label, row.modality), found.get(row.record_id, []), set()
        if pair in pairs():
            text = write_trace(*pair, shown, row.options)
            problems = TraceReport(text, label=pair[0], modality=pair[1], findings=shown, options=row.options).problems
        elif isinstance(row.label, str) or row.level[:2] == "L4":  # a diagnosis without a page, or several
            continue
        else:
            there = row.level != "L3a" or row.answer_text == "Yes"  # place, size and number are asked of what is there
            lesion = [row.finding] * there if isinstance(row.finding, str) else None
            text = write_simple_trace(row.modality, row.answer_text, lesion)
        against = vocabulary(*pair).definitional & family(*shown) if pair in pairs() else ()
        checks = {f"no_{name}": name not in problems for name in CATEGORIES} | {"no_contradicting_finding": not against}
        checks["within_length"] = len(text.split()) <= max_words
        kept = {"kept": all(checks.values())}
        rows.append({"question_id": row.id, "text": text, "answer": row.answer_text} | checks | kept)
    return pd.DataFrame(rows)
