"""Reading the model, case by case: where it looked, what its trace claims and whether the image has it, and why its
answer is read as it is. HTML comes as text for IPython.display.HTML; whatever a model wrote stands there escaped."""

import base64
import html
from collections.abc import Collection, Iterable, Mapping
from io import BytesIO
from itertools import pairwise, product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from fundus_lib import plots
from fundus_lib.answers import explain_answer
from fundus_lib.generation import log_probabilities, open_image
from fundus_lib.lexicon import family, find_labels, find_mentions
from fundus_lib.questions import option_texts
from fundus_lib.traces import RULES

# How a mention is coloured (Okabe and Ito's colours) and underlined, by its verdict; first the one that outranks.
VERDICTS = {"unsupported": ("#D55E00", "wavy", "asserted, not in V(I)"),
            "supported": ("#009E73", "solid", "asserted, in V(I)"),
            "denied": ("#0072B2", "dotted", "denied"), "open": ("#CC79A7", "dashed", "hedged or hypothetical")}


def _patches(height: int, width: int, rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Where the patches of a grid lie in an image, row by row."""
    edges = [np.linspace(0, n, k + 1).round().astype(int) for n, k in ((height, rows), (width, columns))]
    return [*product(*(map(slice, e[:-1], e[1:]) for e in edges))]


def occlusion_map(model, processor, image, prompt: str, answer: str, patch: float = 1 / 8,
                  batch_size: int = 64) -> np.ndarray:
    """By how much ln p(answer) drops, in nats, when a patch is greyed out by its own mean colour (after Zeiler and
    Fergus 2014): (rows, columns). Above 0, what it shows speaks for the answer (text as the model writes it, with its
    trace). patch: its side in shorter sides of the image. Reads 1 + rows * columns images, `batch_size` a pass."""
    pixels = np.asarray(open_image(image))
    grid = [round(n / min(pixels.shape[:2]) / patch) for n in pixels.shape[:2]]
    cells = [None, *_patches(*pixels.shape[:2], *grid)]

    def greyed(cell: tuple[slice, slice] | None) -> list[Image.Image]:
        shown = pixels.copy()
        if cell:
            shown[cell] = shown[cell].mean((0, 1)).round()
        return [Image.fromarray(shown)]

    parts = (cells[i:i + batch_size] for i in range(0, len(cells), batch_size))
    scores = np.concatenate([log_probabilities(model, processor, [*map(greyed, part)], prompt, [answer] * len(part))[
        0].cpu().numpy() for part in parts])
    return (scores[0] - scores[1:]).reshape(grid)


def heat_on_mask(heat: np.ndarray, mask: np.ndarray, image) -> dict[str, float]:
    """Does the heat fall on a lesion? {hit, chance, inside, outside}: whether the hottest patch touches it (the
    pointing game of Zhang et al. 2018), what a random patch would score, and the mean heat of patches on and off it.
    mask: bool (height, width). Patches of the black surround do not count, on neither side. NaN where one is empty."""
    bright, cells, heats = np.asarray(image.convert("L")) > 20, _patches(*mask.shape, *heat.shape), heat.ravel()
    eye = np.array([bright[cell].mean() > 0.5 for cell in cells])
    lesion = np.array([mask[cell].any() for cell in cells])
    if not (on := eye & lesion).any() or not (off := eye & ~lesion).any():
        return dict.fromkeys(("hit", "chance", "inside", "outside"), float("nan"))
    return {"hit": float(on[np.where(eye, heats, -np.inf).argmax()]), "chance": on.sum() / eye.sum(),
            "inside": heats[on].mean(), "outside": heats[off].mean()}


def mention_table(trace: str, findings: Collection[str], modality: str) -> pd.DataFrame:
    """The findings that a trace's reasoning names, in order: words, finding, status, in_image, verdict, start, end.
    findings: V(I). verdict: supported (asserted, and in V(I) or a parent of what is), unsupported, denied, or open
    (hedged, hypothetical). As in `traces`, a sign in the name of a disease, and the answer, are no mentions."""
    seen, renamed = family(*findings), RULES["reads_as"].get(modality, {})
    reasons = len(trace) if (answer := trace.lower().rfind("<answer>")) < 0 else answer
    names, rows = [n[1:3] for n in find_labels(trace)], []
    for finding, start, end, status in find_mentions(trace):
        if start < reasons and not any(a <= start and end <= b and (a, b) != (start, end) for a, b in names):
            finding = renamed.get(finding, finding)
            held = "supported" if finding in seen else "unsupported"
            verdict = {"asserted": held, "negated": "denied"}.get(status, "open")
            rows.append((trace[start:end], finding, status, finding in seen, verdict, start, end))
    return pd.DataFrame(rows, columns=["words", "finding", "status", "in_image", "verdict", "start", "end"])


def _mark(verdict: str, text: str, title: str = "") -> str:
    colour, line, _ = VERDICTS[verdict]
    return (f'<span title="{html.escape(title)}" style="background:{colour}2b;text-decoration:underline {line} {colour}'
            f' 2px;text-underline-offset:3px">{html.escape(text)}</span>')


LEGEND = " &nbsp; ".join(f"{_mark(verdict, verdict)} {meaning}" for verdict, (*_, meaning) in VERDICTS.items())


def mention_html(trace: str, findings: Collection[str], modality: str) -> str:
    """The trace as HTML with the findings it names coloured by verdict (LEGEND); the text is unchanged."""
    table, order, parts = mention_table(trace, findings, modality), list(VERDICTS), []
    for start, end in pairwise(sorted({0, len(trace), *table["start"], *table["end"]})):
        here = table[(table["start"] <= start) & (end <= table["end"])]
        title = "; ".join(f"{m.finding}: {m.status}, {'' if m.in_image else 'not '}in V(I)" for m in here.itertuples())
        parts.append(_mark(min(here["verdict"], key=order.index), trace[start:end], title) if len(here)
                     else html.escape(trace[start:end]))
    return f'<div style="white-space:pre-wrap">{"".join(parts)}</div>'


def _picture(image, side: int = 220) -> str:
    """An image no larger than `side`, as HTML that carries it."""
    ImageOps.contain(open_image(image), (side, side)).save(file := BytesIO(), "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _page(parts: Iterable[str]) -> str:
    """Blocks below each other, black on white whatever the notebook's theme."""
    blocks = "".join(f'<div style="margin:6px 0">{part}</div>' for part in parts)
    return f'<div style="color:#000;background:#fff;padding:8px;line-height:1.6">{blocks}</div>'


def rollout_html(rows: pd.DataFrame) -> str:
    """A group's rollouts, four beside each other, coloured, under image and question. rows: one a rollout, columns
    image, prompt, findings (V(I)), modality, text, advantage, and any of shaped_advantage (after UADT),
    uncertainty (nats), omega, judgement, objections and *_reward, which stand above the text."""
    first, cards = rows.iloc[0], []
    for row in rows.to_dict("records"):
        numbers = [f"{name.replace('_', ' ')} {row[name]:{form}}" for name, form in (
            ("advantage", "+.2f"), ("shaped_advantage", "+.2f"), ("uncertainty", ".2f"), ("omega", "+.2f"))
            if name in row]
        rewards = [f"{name.removesuffix('_reward')} {'none' if pd.isna(value) else f'{value:g}'}"
                   for name, value in row.items() if name.endswith("_reward")]
        words = [str(row[name]) for name in ("judgement", "objections") if not pd.isna(row.get(name)) and row[name]]
        cards.append('<td style="vertical-align:top;text-align:left;border:1px solid #999;padding:6px">'
                     f"<b>{', '.join(numbers)}</b><br>{html.escape('; '.join([', '.join(rewards), *words]))}"
                     f'{mention_html(row["text"], row["findings"], row["modality"])}</td>')
    table = "".join(f"<tr>{''.join(cards[i:i + 4])}</tr>" for i in range(0, len(cards), 4))
    return _page([_picture(first["image"]), f"<b>{html.escape(first['prompt'])}</b>",
                  f"V(I): {html.escape(', '.join(first['findings']) or 'nothing')}",
                  f'<table style="width:100%;table-layout:fixed">{table}</table>', LEGEND])


def case_page(case, response: str, findings: Collection[str], modality: str, heat: np.ndarray,
              masks: Mapping[str, np.ndarray]) -> tuple[Figure, str]:
    """One answered question as (Figure, HTML): the image with lesions and occlusion map, the coloured trace, the
    answer and why. case: a row of questions; findings: V(I); heat: `occlusion_map`; masks: {finding: bool (h, w)}."""
    image, options = open_image(case.image), option_texts(case.options)
    figure = plots.case_reading(image, heat, masks, "The image with its lesions, and what the response rests on")
    answer, rule, words, marked = explain_answer(response, options, case.kind)
    said = ",".join(answer.value) if isinstance(answer.value, list) else answer.value or "no answer"
    marked = marked.replace("«»", "another disease").replace("‹?›", "another letter") or "none"
    texts = [" ".join([case.question, *(f"{letter}. {text}" for letter, text in options.items())]),
             f"Right answer: {case.answer} ({case.answer_text}). V(I): {', '.join(findings) or 'nothing'}",
             f"Read from the {rule}: {words}; options named there: {marked}. The answer: {said} ({answer.status}), "
             f"{'right' if said == case.answer else 'wrong'}."]
    asked, truth, read = map(html.escape, texts)
    return figure, _page([f"<b>{asked}</b>", truth, mention_html(response, findings, modality), read, LEGEND])
