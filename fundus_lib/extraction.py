"""Visual-finding extraction over a data set: ask a model about every image, count the votes, measure the finder.

The model is in this process (`client` None) or behind a server: then model and processor are not needed."""

import random
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from fundus_lib import generation, voting
from fundus_lib.data import ANNOTATED, image_path

MOST_ASKED = 12  # findings in one question when the finder is measured: about as many as a vocabulary holds


def image_file(source) -> bytes:
    """What a server is sent: the PNG or JPEG file as it lies there, anything else written as PNG."""
    if isinstance(source, str | Path) and Path(source).suffix.lower() in (".png", ".jpg", ".jpeg"):
        return Path(source).read_bytes()
    generation.open_image(source).save(file := BytesIO(), "PNG")
    return file.getvalue()


def complete(model, processor, client, images: Sequence, prompts: Sequence[str], *, rollouts: int, temperature: float,
             seed: int, desc: str, **in_process) -> list[list[str]]:
    """`generation.generate`, or the same from the server: all rollouts of an image in one request. The texts of a
    request that failed are empty: nobody voted."""
    sampling = {"temperature": temperature, "seed": seed}
    if not images:
        return []
    if client is None:
        return generation.generate(model, processor, images, prompts, rollouts=rollouts, desc=desc, **sampling,
                                   **in_process)
    from fundus_lib.client import Request
    requests = [Request(prompt, (image_file(image),), samples=rollouts, **sampling)
                for image, prompt in zip(images, prompts, strict=True)]
    return [list(reply.texts) or [""] * rollouts for reply in client.ask(requests, desc)]


def ask(model, processor, images: Sequence, asked: Sequence[tuple[str, Sequence[str]]], settings, seed: int,
        client=None, stop_early: bool = False) -> list[list[dict[str, bool]]]:
    """Rollouts of votes for each image: `settings.rollouts` dicts {finding: present} an image; {}: not to be read.
    asked: (modality, findings) of each image. settings: the section `voting`. stop_early: an image whose findings are
    all decided by its first rollouts gets no others (in this process; its verdicts are those of all of them)."""
    first = min(settings.min_votes, settings.rollouts + 1 - settings.min_votes)  # as few as could decide anything

    def decided(i: int, texts: Sequence[str]) -> bool:
        votes = [voting.parse_votes(text, asked[i][1]) for text in texts]
        return all(voting.verdict(votes, name, settings.rollouts, settings.min_votes) is not None
                   for name in asked[i][1])

    answers = [voting.format_votes(dict.fromkeys(names, False)) for _, names in asked]
    local = {} if client else {
        "batch_size": settings.batch_size, **({"first": first, "enough": decided} if stop_early else {}),
        "max_new_tokens": 8 + max((len(processor.tokenizer(text)["input_ids"]) for text in answers), default=0)}
    texts = complete(model, processor, client, images, [voting.prompt(*question) for question in asked],
                     rollouts=settings.rollouts, temperature=settings.temperature, seed=seed, desc="ask for findings",
                     **local)
    return [[voting.parse_votes(text, names) for text in rollouts]
            for rollouts, (_, names) in zip(texts, asked, strict=True)]


def to_ask(record: Mapping, vocabularies: Mapping[str, Mapping],
           finder: Mapping[str, Sequence[str]] | None) -> list[str]:
    """The findings to ask about one labelled image: Vocab[y, m] of its labels, as far as the finder knows the words.
    vocabularies: vocabulary.json of stage 02, by "label|modality"; a label without one asks for nothing."""
    words = [vocabularies.get(f"{label}|{record['modality']}", {}) for label in record["labels"]]
    names = {name for found in words for role in ("required", "supportive", "excluded") for name in found.get(role, ())}
    return sorted(names if finder is None else names & set(finder[record["modality"]]))


def drawn(root: Path, todo: Sequence[tuple[Mapping, Sequence[str]]], rollouts: int) -> list[list[dict[str, bool]]]:
    """What a finder that never errs would say in every rollout. ValueError: of real images nobody knows it."""
    if not (root / "truth.parquet").exists():
        raise ValueError(f"{root} has no truth.parquet: voting.finder 'truth' is for drawn images alone: set base")
    truth = pd.read_parquet(root / "truth.parquet").set_index("path").findings.map(set)
    return [[{name: name in truth[record["path"]] for name in names}] * rollouts for record, names in todo]


def find_findings(model, processor, records: pd.DataFrame, vocabularies: Mapping[str, Mapping],
                  finder: Mapping[str, Sequence[str]] | None, root: Path, settings, seed: int,
                  client=None) -> pd.DataFrame:
    """V(I) of every labelled training image: one row an image and finding asked.
    Pixel masks decide the findings that their data set annotates (source "mask", no votes); the model's votes decide
    the others. Source "undecided", and not kept: rollouts that could not be read could have turned the vote. Returns
    record_id, finding, kept, votes (for present), asked (rollouts), malformed (of them, without a verdict), source."""
    rows = []
    todo = [(record, names) for record in records[records.split == "train"].to_dict("records")
            if (names := to_ask(record, vocabularies, finder))]
    votes = drawn(root, todo, settings.rollouts) if settings.finder == "truth" else ask(
        model, processor, [image_path(root, record["path"]) for record, _ in todo],
        [(record["modality"], names) for record, names in todo], settings, seed, client, stop_early=True)
    for (record, names), rollouts in zip(todo, votes, strict=True):
        outlined = voting.from_masks(record["masks"], ANNOTATED.get(record["dataset"], ()))
        for name in names:
            row = {"record_id": record["id"], "finding": name}
            if name in outlined:
                rows.append(row | {"kept": outlined[name], "source": "mask"})
                continue
            kept = voting.verdict(rollouts, name, settings.rollouts, settings.min_votes)
            rows.append(row | {"kept": kept is True, "votes": sum(rollout.get(name, False) for rollout in rollouts),
                               "asked": len(rollouts), "malformed": rollouts.count({}),
                               "source": "undecided" if kept is None else
                               "truth" if settings.finder == "truth" else "votes"})
    columns = ["record_id", "finding", "kept", "votes", "asked", "malformed", "source"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(["votes", "asked", "malformed"], "Int64"))


def known_truth(records: pd.DataFrame, root: Path, finder: Mapping[str, Sequence[str]] | None) -> pd.DataFrame:
    """Findings that are known to be there or not: of drawn test images all, of real ones what their masks annotate.
    Of a drawn image all that is there counts, and as many drawn by lot that are not, to `MOST_ASKED` in all. Returns
    record_id, finding, present."""
    def chosen(record, seen: set[str]) -> list[str]:
        lot = random.Random(record.id)
        there = [name for name in finder[record.modality] if name in seen][:MOST_ASKED]
        absent = [name for name in finder[record.modality] if name not in seen]
        return sorted(there + lot.sample(absent, min(len(absent), MOST_ASKED - len(there))))

    if (root / "truth.parquet").exists():
        truth = pd.read_parquet(root / "truth.parquet").set_index("path").findings
        held_out = records[(records.split == "test") & (records.camera == "clinic") & records.path.isin(truth.index)]
        pairs = ((r.id, name, name in set(truth[r.path])) for r in held_out.itertuples()
                 for name in chosen(r, set(truth[r.path])))
    else:
        pairs = ((r.id, name, there) for r in records.itertuples()
                 for name, there in voting.from_masks(r.masks, ANNOTATED.get(r.dataset, ())).items()
                 if finder is None or name in finder[r.modality])
    return pd.DataFrame(pairs, columns=["record_id", "finding", "present"])


def trial(model, processor, records: pd.DataFrame, truth: pd.DataFrame, root: Path, settings, seed: int,
          client=None) -> pd.DataFrame:
    """What each method makes of the images of `truth` (of `known_truth`): its rows, and a column an answer, 1: kept.
    `rollout 1`... are single answers, `vote` their majority; `free-form` asks once, greedily, what there is, and keeps
    what the text asserts. An answer that cannot be read keeps nothing."""
    by_image = truth.groupby("record_id", sort=False).finding.agg(list)
    known = records.set_index("id").loc[by_image.index]
    images = [image_path(root, path) for path in known.path]
    votes = ask(model, processor, images, list(zip(known.modality, by_image, strict=True)), settings, seed, client)
    texts = complete(model, processor, client, images, [voting.FREE_FORM] * len(images), rollouts=1, temperature=0.0,
                     seed=seed, desc="describe the findings", batch_size=settings.batch_size, max_new_tokens=256)
    rows = []
    for record, names, rollouts, (text, *_) in zip(by_image.index, by_image, votes, texts, strict=True):
        kept, (described, _) = voting.majority_vote(rollouts, settings.min_votes), voting.read(text)
        rows += [(record, name, *(rollout.get(name, False) for rollout in rollouts), name in kept, name in described)
                 for name in names]
    columns = [*(f"rollout {k + 1}" for k in range(settings.rollouts)), "vote", "free-form"]
    said = pd.DataFrame(rows, columns=["record_id", "finding", *columns]).astype(dict.fromkeys(columns, float))
    return truth.merge(said, on=["record_id", "finding"], validate="one_to_one")


def method_scores(said: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
    """`voting.s2_scores` of each method on the answers of `trial`; one rollout: the mean of the scores of each."""
    single = [voting.s2_scores(said, column, times) for column in said if column.startswith("rollout ")]
    return {"one rollout": np.mean(single, axis=0)} | {method: voting.s2_scores(said, method, times)
                                                       for method in ("vote", "free-form")}


def measure(said: pd.DataFrame) -> pd.DataFrame:
    """Table 6: n_pos, n_neg, sensitivity, specificity and S2 of each finding by each method of `trial`."""
    present = said.groupby("finding", sort=False).present
    counts = pd.DataFrame({"n_pos": present.sum(), "n_neg": present.count() - present.sum()}).reset_index()
    names, every = ["sensitivity", "specificity", "s2"], np.ones((1, said.record_id.nunique()))
    return pd.concat([counts.assign(**dict(zip(names, scores[:, 0], strict=True)), method=method)
                      for method, scores in method_scores(said, every).items()], ignore_index=True)


def s2_intervals(said: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean S2 over findings of each method, and the vote's lead over the others, with 95 % bootstrap intervals.
    Whole images are drawn anew, the same ones for all methods. Returns what, s2, low, high."""
    if said.empty:
        return pd.DataFrame(columns=["what", "s2", "low", "high"])
    images = said.record_id.nunique()
    times = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    times = np.concatenate([np.ones((1, images)), times])  # first, the images as they are
    means = {method: np.nanmean(scores[2], axis=1) for method, scores in method_scores(said, times).items()}
    means |= {f"vote - {method}": means["vote"] - means[method] for method in list(means) if method != "vote"}
    return pd.DataFrame([(what, mean[0], *np.percentile(mean[1:], [2.5, 97.5])) for what, mean in means.items()],
                        columns=["what", "s2", "low", "high"])
