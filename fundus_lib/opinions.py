"""A language model's opinion of reasoning traces, and how far it agrees with the rules (Cohen's kappa).

A trace is written to be judged well: it is data here, never instructions. Rules read it first, and what talks to its
judge, hides text or copies the reference is never sent. No verdict is None (missing in a table), never 0."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, create_model

from fundus_lib.client import Request
from fundus_lib.knowledge import PROMPTS, acquire, pairs
from fundus_lib.rewards import Row, by_findings
from fundus_lib.traces import CATEGORIES, TraceReport

LONGEST = 6000  # characters of a trace that are sent (a guess)
UNSEEN = r"[\u00ad\u200b-\u200f\u2060\ufeff]"  # soft hyphens, zero-width characters
_MARKUP = re.compile(r"(?i)<\||\[/?INST|[=#]{3}|(?:\b[a-z][-._ ]){6}")  # of chat templates; words spelt out


def _schema(name: str, **fields) -> type[BaseModel]:
    """An answer's schema; the reason comes first, so that the verdict follows from it."""
    return create_model(name, reason=(str, ...), **{field: (kind, ...) for field, kind in fields.items()})


OnImage = _schema("OnImage", verdict=Literal["plausible", "tenuous", "flawed"] | None)
OnKnowledge = _schema("OnKnowledge", verdict=Literal["plausible", "not_plausible"] | None)
OnFaults = _schema("OnFaults", **dict.fromkeys(CATEGORIES, bool | None))


def shown(trace: str) -> str:
    """The trace as it looks: NFKC, single blanks, without the invisible characters that split a word."""
    return " ".join(re.sub(UNSEEN, "", unicodedata.normalize("NFKC", trace)).split())


def tampered(report: TraceReport) -> bool:
    """Is the trace made for its judge: what the rules call a hack, a chat template's markup, text that nobody sees or
    that the rules cannot read (runs of invisible characters, marks on characters, neither Latin nor Greek letters)?"""
    text = shown(report.trace)
    return bool(report.hacks or _MARKUP.search(text) or re.search(f"{UNSEEN}{{3}}", report.trace)) or not all(
        c.isprintable() if c.isascii() else unicodedata.category(c)[0] in "NPSZ"
        or unicodedata.name(c, "").startswith(("LATIN", "GREEK")) for c in text)


def _request(kind: str, schema: type[BaseModel], report: TraceReport, answer: str) -> Request | None:
    """A question about a trace, between two lines that hold its own hash, which it cannot contain; None where it is
    tampered with. What a prompt does not name is not in it: questions that ask the same are equal."""
    trace, known = shown(report.trace), acquire(answer, report.modality).text
    about = {"modality": report.modality, "answer": answer, "seen": ", ".join(sorted(report.seen)) or "none"}
    about["trace"] = trace if len(trace) <= LONGEST else trace[:LONGEST] + " [cut]"
    about["fence"] = f"=== {hashlib.sha256(report.trace.encode(errors='replace')).hexdigest()} ==="
    return None if tampered(report) else Request(PROMPTS[kind].format(knowledge=known, **about), schema=schema)


def _ask(client, requests: Sequence[Request | None], desc: str) -> tuple[list[BaseModel | None], list[str]]:
    """(validated answers, None where there is none; their reasons, or why there is none). Equal ones are asked once."""
    distinct = list(dict.fromkeys(request for request in requests if request))
    replies = dict(zip(distinct, client.ask(distinct, desc), strict=True))
    said = [replies[r].values[0] if r and replies[r].values else None for r in requests]
    return said, [s.reason if s else replies[r].error if r else "not sent" for s, r in zip(said, requests, strict=True)]


class LLMJudge:
    """The judge of the process reward as a language model (Fundus-R1): a right answer's trace against V(I), a wrong
    one's against K[its label, modality] alone; or as the row's item says."""

    def __init__(self, client):
        self.client = client

    def __call__(self, rows: Sequence[Row]) -> list[str | None]:
        """A `rewards.Judge`; None where the model abstains or fails. The lowest, unasked: broken format, tampering,
        an answer without a page. KeyError when no page covers a row's label."""
        requests, lowest = [], []
        for row in rows:
            report = TraceReport(row.trace, label=row.label, modality=row.modality, findings=row.findings,
                                 options=dict(row.options))
            kind = "on image" if report.answer == report.label else "on findings"
            asked = (kind, OnImage) if by_findings(row, report) else ("on knowledge", OnKnowledge)
            there = report.well_formed and (report.answer, report.modality) in pairs()
            requests.append(_request(*asked, report, report.answer) if there else None)
            lowest.append("flawed" if asked[1] is OnImage else "not_plausible")
        answers, _ = _ask(self.client, requests, "judging traces")
        return [getattr(answer, "verdict", None) if request else worst
                for answer, request, worst in zip(answers, requests, lowest, strict=True)]


def opinions(client, table: pd.DataFrame) -> pd.DataFrame:
    """The table (text, label, modality, findings: V(I); one row a trace) with llm_<category> (True: passed; missing:
    abstained, failed, no page, or not sent) and llm_reason, the model's sentence or why there is none."""
    requests = []
    for text, y, m, seen in table[["text", "label", "modality", "findings"]].itertuples(index=False):
        report = TraceReport(text, label=y, modality=m, findings=seen) if (y, m) in pairs() else None
        requests.append(_request("on faults", OnFaults, report, y) if report else None)
    answers, reasons = _ask(client, requests, "opinions on traces")
    faults = {name: [getattr(answer, name, None) for answer in answers] for name in CATEGORIES}
    columns = {f"llm_{name}": ~pd.array(has, dtype="boolean") for name, has in faults.items()}
    return table.assign(**columns, llm_reason=reasons)


def cohens_kappa(counts: np.ndarray) -> np.ndarray:
    """(observed - chance agreement) / (1 - chance agreement). counts: (..., 4), how often both pass, only the first,
    only the second, neither. NaN where a rater is constant: it tells nothing apart."""
    both, first, second, neither = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    passed, failed = (both + first, both + second), (second + neither, first + neither)  # by each rater
    scale, varied = passed[0] * failed[1] + passed[1] * failed[0], np.prod([*passed, *failed], axis=0) > 0
    return np.divide(2 * (both * neither - first * second), scale, out=np.full(scale.shape, np.nan), where=varied)


def agreement(table: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Rules (no_<category>) against the model (llm_<category>), a row a category: n judged by both, abstained, share
    that agrees, kappa with its 95 % percentile bootstrap interval over traces, and the four counts behind it."""
    rows = []
    for name in CATEGORIES:
        rules, llm = (table[f"{rater}_{name}"].astype("boolean") for rater in ("no", "llm"))
        a, b = (rater[rules.notna() & llm.notna()].to_numpy(dtype=bool) for rater in (rules, llm))
        n, cells = len(a), np.bincount(2 * ~a + ~b, minlength=4)
        drawn = np.random.default_rng(seed).multinomial(n, cells / max(n, 1), resamples)  # n traces, put back each time
        kappa, draws = cohens_kappa(cells), cohens_kappa(drawn)
        low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(kappa) else (np.nan, np.nan)
        rows.append({"category": name, "n": n, "abstained": int((rules.notna() & llm.isna()).sum()),
                     "agree": cells[[0, 3]].sum() / n if n else np.nan, "kappa": float(kappa), "low": low, "high": high}
                    | dict(zip(("both_pass", "rules_pass", "llm_pass", "both_fail"), cells, strict=True)))
    return pd.DataFrame(rows)
