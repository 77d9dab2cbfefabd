"""The rewards of the reinforcement stage, r = answer + format + process (Fundus-R1); the judge of the last is rules.

The paper does not give the levels of the process reward; our guesses: right and plausible 1, tenuous 0.5, flawed 0;
wrong but plausible 0.5 (under 1: a right answer outranks it), else 0. None: the question has no such reward.
"""

from collections.abc import Collection

from fundus_lib.answers import parse_strict
from fundus_lib.knowledge import pairs, vocabulary
from fundus_lib.lexicon import canonical_label
from fundus_lib.questions import option_texts
from fundus_lib.traces import RULES, SHAPE, TraceReport


def _texts(completions) -> list[str]:
    """Completions as TRL gives them: strings, or lists of messages."""
    return [c if isinstance(c, str) else "".join(message["content"] for message in c) for c in completions]


def answer_reward(prompts, completions, *, answer, options=None, kind=None, **columns) -> list[float]:
    """1 where the strictly parsed answer is the right one ("A,C": exactly these options), else 0."""
    options, kind = options or [None] * len(answer), kind or ["single"] * len(answer)
    rewards = []
    for text, right, choices, how in zip(_texts(completions), answer, options, kind, strict=True):
        value = parse_strict(text, option_texts(choices) or None, how).value
        rewards.append(float((",".join(value) if isinstance(value, list) else value) == right))
    return rewards


def format_reward(prompts, completions, **columns) -> list[float]:
    """1 for one filled <think> block, one filled <answer> block, and nothing else."""
    return [float(bool(SHAPE.fullmatch(text))) for text in _texts(completions)]


def _verdict(report: TraceReport) -> str:
    known, modality = report.known, report.modality
    if report.answer != report.label:
        if (report.answer, modality) not in pairs():
            return "not_plausible"
        alone = TraceReport(report.trace, label=report.answer, modality=modality, findings=(), options=report.options)
        spoilt = {"modality_inconsistency", "self_contradiction", "answer_mismatch", "knowledge_missing_or_mismatch"}
        proven = alone.known.satisfied_by(alone.asserted)
        return "plausible" if proven and not alone.problems & spoilt else "not_plausible"
    grades = [(grade, modality) for grade in RULES["higher_grades"].get(report.label, [])]
    higher = [vocabulary(*pair).required for pair in grades if pair in pairs()]
    fabricated = len(report.made_up) > 2 or report.made_up & (known.excluded.union(*higher) - known.required)
    denied = "missing_required_vf" in report.problems and report.denied & report.seen
    contradicts = report.problems & {"self_contradiction", "answer_mismatch"}
    if not report.asserted or report.addresses_judge or fabricated or denied or contradicts:
        return "flawed"
    return "tenuous" if report.problems - {"format_error"} else "plausible"


def judge_by_rules(trace: str, *, label: str, modality: str, findings: Collection[str], options=None) -> str:
    """Right answer, against V(I): plausible | tenuous | flawed. Wrong answer, against K[its label, modality] alone:
    plausible | not_plausible. KeyError when no page covers (label, modality)."""
    return _verdict(TraceReport(trace, label=label, modality=modality, findings=findings, options=options))


def process_reward(prompts, completions, *, label, modality, findings, options=None, right_tenuous=0.5,
                   wrong_plausible=0.5, **columns) -> list[float | None]:
    """The judgement as a number; 0 where no answer can be read strictly, None where no page covers the question."""
    rewards: list[float | None] = [None] * len(label)
    rows = zip(_texts(completions), label, modality, findings, options or [None] * len(label), strict=True)
    for i, (text, y, m, seen, choices) in enumerate(rows):
        if isinstance(y, str) and (canonical_label(y), m) in pairs():
            report = TraceReport(text, label=y, modality=m, findings=seen, options=choices)
            levels = {"plausible": 1.0 if report.answer == report.label else wrong_plausible, "tenuous": right_tenuous}
            rewards[i] = levels.get(_verdict(report), 0.0) if report.well_formed else 0.0
    return rewards
