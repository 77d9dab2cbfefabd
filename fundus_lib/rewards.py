"""The three rewards of the reinforcement stage, r = answer + format + process, each 0 to 1 (Fundus-R1, section 3).

The process reward is judged by rules. Its five levels are not in the paper: right and plausible 1, tenuous 0.5, flawed
0; wrong but plausible 0.5 (under 1, so that a right answer outranks it), not plausible 0. TRL hands over the columns of
the data set as lists; None means "this question has no such reward" and leaves it out of the mean.
"""

from collections.abc import Collection, Sequence

from fundus_lib.answers import parse_strict
from fundus_lib.knowledge import pairs, vocabulary
from fundus_lib.lexicon import canonical_label, label_kind
from fundus_lib.questions import option_texts
from fundus_lib.traces import (
    CHECKS, SHAPE, Case, addressed_to_judge, as_case, false_rule, proves, read, unsupported,
)


def _text(completion) -> str:
    """A completion as TRL gives it: a string, or a list of messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def answer_reward(prompts, completions, *, answer, options=None, kind=None, **columns) -> list[float]:
    """1 where the strictly parsed answer is the right one, else 0."""
    rows = zip(completions, answer, options or [None] * len(answer), kind or ["single"] * len(answer), strict=True)
    return [float(parse_strict(_text(text), option_texts(choices) or None, how).value == right)
            for text, right, choices, how in rows]


def format_reward(prompts, completions, **columns) -> list[float]:
    """1 for one <think> block with something in it, one <answer> block, and nothing else."""
    return [float(bool((shaped := SHAPE.fullmatch(_text(text))) and shaped[1].strip() and shaped[2].strip()))
            for text in completions]


def _fabricates(case: Case) -> bool:
    """Asserts three signs that are not there, or one that excludes the label or decides for a higher grade."""
    made_up, own = unsupported(case), case.known.required
    grades = [vocabulary(*pair) for pair in pairs() if pair[1] == case.modality and label_kind(pair[0]) == "grade"
              and label_kind(case.label) == "grade"]
    higher = [grade.required for grade in grades if own < grade.required | grade.supportive]
    return len(made_up) > 2 or bool(made_up & (case.known.excluded.union(*higher) - own))


def judge_by_rules(trace: str, *, label: str, modality: str, findings: Collection[str], options=None) -> str:
    """Right answer, against V(I): plausible | tenuous | flawed. Wrong answer, against K[its label, modality] alone:
    plausible | not_plausible."""
    reading = read(trace, tuple(option_texts(options).items()))
    right = as_case(reading, label, modality, findings)
    if reading.answer != right.label:
        if (reading.answer, modality) not in pairs():
            return "not_plausible"
        case = as_case(reading, reading.answer, modality, ())
        spoilt = ("modality_inconsistency", "self_contradiction", "answer_mismatch", "knowledge_missing_or_mismatch")
        sound = proves(case.known, case.asserted) and not any(CHECKS[name](case) for name in spoilt)
        return "plausible" if sound else "not_plausible"
    problems = {name for name, check in CHECKS.items() if check(right)}
    flawed = (not right.asserted or addressed_to_judge(right) or _fabricates(right)
              or problems & {"self_contradiction", "answer_mismatch"}
              or "missing_required_vf" in problems and right.denied & right.seen)
    return "flawed" if flawed else "tenuous" if problems - {"format_error"} else "plausible"


def process_reward(prompts, completions, *, label, modality, findings, options=None, kind=None, right_tenuous=0.5,
                   wrong_plausible=0.5, **columns) -> list[float | None]:
    """The judgement as a number; 0 for a completion without a readable answer, None where no K[label, modality] is."""
    levels = {"plausible": 1.0, "tenuous": right_tenuous, "flawed": 0.0, "not_plausible": 0.0}
    rewards = []
    for text, name, mode, seen, choices in zip(map(_text, completions), label, modality, findings,
                                               options or [None] * len(label), strict=True):
        if name is None or (canonical_label(name), mode) not in pairs():
            rewards.append(None)
            continue
        choices = option_texts(choices)
        reading = read(text, tuple(choices.items()))
        if not reading.well_formed or reading.answer is None:
            rewards.append(0.0)
            continue
        verdict = judge_by_rules(text, label=name, modality=mode, findings=seen, options=choices)
        wrong = reading.answer != canonical_label(name)
        rewards.append(wrong_plausible if wrong and verdict == "plausible" else levels[verdict])
    return rewards
