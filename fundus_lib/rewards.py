"""The rewards of the reinforcement stage, r = answer + format + process (Fundus-R1); the judge of the last is rules
or any callable with the same four words.

The paper does not give the levels of the process reward; our guesses: right and plausible 1, tenuous 0.5, flawed 0;
wrong but plausible 0.5, else 0. Levels and weights are settings, refused where a wrong answer could reach a right one.
None: the question has no such reward. Nor does it say how its ablations read a rollout (Tab. 5: H the findings alone,
I the knowledge alone, J both): here each rollout is judged by the items of its setup, which add up for a right answer,
while a wrong one gets wrong_plausible times their mean.
"""

import re
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from fundus_lib.answers import parse_strict
from fundus_lib.knowledge import pairs, vocabulary
from fundus_lib.lexicon import canonical_label
from fundus_lib.questions import option_texts
from fundus_lib.traces import RULES, SHAPE, TraceReport, read_answer


def _texts(completions) -> list[str]:
    """Completions as TRL gives them: strings, or lists of messages."""
    return [c if isinstance(c, str) else "".join(message["content"] for message in c) for c in completions]


def _shaped(text: str, reasoned: bool) -> re.Match | None:
    """Exactly one filled <think> and one filled <answer> block. A policy that was never shown reasoning (reasoned
    False) may leave the first out; how the paper reads those setups is not stated."""
    return SHAPE.fullmatch(text if reasoned or "<think>" in text else f"<think> - </think> {text}")


def answer_reward(prompts, completions, *, answer, options=None, kind=None, reasoned=True, **columns) -> list[float]:
    """1 where the strictly parsed answer is the right one ("A,C": exactly these options), else 0; 0 without reasoning,
    so that no right answer lacks the format and falls behind a wrong one that has it. reasoned: see `_shaped`."""
    options, kind = options or [None] * len(answer), kind or ["single"] * len(answer)
    rewards = []
    for text, right, choices, how in zip(_texts(completions), answer, options, kind, strict=True):
        shaped = _shaped(text, reasoned)
        value = parse_strict(shaped.string, option_texts(choices) or None, how).value if shaped else None
        rewards.append(float((",".join(value) if isinstance(value, list) else value) == right))
    return rewards


def format_reward(prompts, completions, *, reasoned=True, **columns) -> list[float]:
    """1 for one filled <think> block, one filled <answer> block, and nothing else. reasoned: see `_shaped`."""
    return [float(bool(_shaped(text, reasoned))) for text in _texts(completions)]


def _on_findings(report: TraceReport) -> tuple[str, list[str]]:
    """Against V(I): (plausible | tenuous | flawed, the objections). A wrong answer, or its rule, is no fault here."""
    known, modality, right = report.known, report.modality, report.answer == report.label
    grades = [(grade, modality) for grade in RULES["higher_grades"].get(report.label, [])]
    higher = (vocabulary(*pair).required for pair in grades if pair in pairs())
    fabricated = report.made_up and (
        len(report.made_up) > 2 or report.made_up & (known.excluded.union(*higher) - known.required))
    missing, denied = report.missing_required_vf(), report.denied & report.seen
    fatal = {"nothing_reported": not report.asserted, "fabricated": fabricated, "hack": report.hacks,
             "self_contradiction": report.self_contradiction(), "required_denied": missing and denied,
             "answer_mismatch": right and report.answer_mismatch()}
    faults = [name for name, holds in (fatal | {
        "missing_required_vf": missing, "made_up": report.made_up, "denied": denied,
        "hedged": not (report.made_up or denied) and report.redundant_or_incorrect_vf(),
        "modality_inconsistency": report.modality_inconsistency()}).items() if holds]
    if right and not faults and report.knowledge_missing_or_mismatch():
        faults = ["knowledge_missing_or_mismatch"]
    return "flawed" if any(fatal.values()) else "tenuous" if faults else "plausible", faults


def _on_knowledge(report: TraceReport) -> tuple[str, list[str]]:
    """Against K of the label that is answered, without the image: (plausible | not_plausible, the objections)."""
    if (report.answer, report.modality) not in pairs():
        return "not_plausible", ["no_page_on_the_answer" if report.answer else "not_an_option"]
    alone = TraceReport(report.trace, label=report.answer, modality=report.modality, findings=(),
                        options=report.options)
    faults = [] if alone.known.satisfied_by(alone.asserted) else ["missing_required_vf"]
    faults += [name for name in ("modality_inconsistency", "self_contradiction", "answer_mismatch") + (
        ("knowledge_missing_or_mismatch",) if not faults else ()) if getattr(alone, name)()]
    return "not_plausible" if faults else "plausible", faults


def judge_by_rules(trace: str, *, label: str, modality: str, findings: Collection[str], options=None) -> str:
    """Right answer, against V(I): plausible | tenuous | flawed. Wrong answer, against K[its label, modality] alone:
    plausible | not_plausible. KeyError when no page covers (label, modality)."""
    return verdicts([Row(trace, label, modality, tuple(findings), tuple(option_texts(options).items()))])[0][0]


class Row(NamedTuple):
    """What a judge sees of one rollout: `findings` is V(I), `options` {letter: text} (empty for an open question).
    item: VF (against V(I)), DK (against K of the answer), by answer (VF of a right one, DK of a wrong one; Eq. 4)."""
    trace: str
    label: str
    modality: str
    findings: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    item: Literal["by answer", "VF", "DK"] = "by answer"


def by_findings(row: Row, report: TraceReport) -> bool:
    """Is the rollout held against V(I), and not against K?"""
    return row.item == "VF" or (row.item == "by answer" and report.answer == report.label)


Judge = Callable[[list[Row]], list[str | None]]  # one word for each row; the rules' are in `verdicts`


def verdicts(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """The rules' word for each row, and the criteria that they object to."""
    reports = [TraceReport(row.trace, label=row.label, modality=row.modality, findings=row.findings,
                           options=dict(row.options)) for row in rows]
    return [_on_findings(report) if by_findings(row, report) else _on_knowledge(report)
            for row, report in zip(rows, reports, strict=True)]


def process_reward(prompts, completions, *, label, modality, findings, options=None, right_tenuous=0.5,
                   wrong_plausible=0.5, items=("by answer",), judge: Judge | None = None,
                   log_extra: Callable | None = None, **columns) -> list[float | None]:
    """The judgement as a number; 0 where no answer can be read strictly, None (no reward: TRL leaves it out) where no
    page covers the question or the judge abstains.

    items: of `Row`; by answer is Eq. 4 (setup G), VF alone H, DK alone I, both J. judge: None for the rules, else a
    callable that judges a whole batch at once: it gets the distinct rows to judge, in order, and gives back as many of
    plausible | tenuous | flawed | not_plausible, or None where it abstains. Rollouts without a strict answer are not
    sent. log_extra: TRL's, gets the columns judgement (the judge's words) and objections (the rules' criteria, whoever
    judges). ValueError names a word that is none of these, or another number of them."""
    texts, rewards = _texts(completions), [None] * len(label)
    asked: dict[Row, str | None] = {}
    held: dict[int, list[Row]] = {}
    for i, (text, y, m, seen, choices) in enumerate(
            zip(texts, label, modality, findings, options or [None] * len(label), strict=True)):
        if isinstance(y, str) and (canonical_label(y), m) in pairs():
            rewards[i] = 0.0
            if SHAPE.fullmatch(text):
                held[i] = [Row(text, canonical_label(y), m, tuple(sorted(seen)), tuple(option_texts(choices).items()),
                               item) for item in items]
                asked |= dict.fromkeys(held[i])
    read = verdicts(list(asked)) if log_extra or not judge else []
    words = judge(list(asked)) if judge and asked else [word for word, _ in read]
    if len(words) != len(asked) or not {*words} <= {None, "plausible", "tenuous", "flawed", "not_plausible"}:
        raise ValueError(f"the judge gave {len(words)} words for {len(asked)} rollouts: {sorted(map(str, {*words}))}; "
                         "wanted is plausible, tenuous, flawed, not_plausible or None for each.")
    said, levels = dict(zip(asked, words, strict=True)), {"plausible": 1.0, "tenuous": right_tenuous}
    for i, rows in held.items():
        right = read_answer(rows[0].trace, rows[0].options) == rows[0].label
        total = sum(levels.get(said[row], 0.0) for row in rows)
        rewards[i] = None if None in map(said.get, rows) else total if right else wrong_plausible * total / len(rows)
    if log_extra:
        against = {row: faults for row, (_, faults) in zip(asked, read, strict=True)}
        log_extra("judgement", [None if reward is None and i not in held else "+".join(
            said[row] or "abstained" for row in held.get(i, ())) or "no answer" for i, reward in enumerate(rewards)])
        log_extra("objections", [", ".join(dict.fromkeys(fault for row in held.get(i, ()) for fault in against[row]))
                                 for i in range(len(texts))])
    return rewards
