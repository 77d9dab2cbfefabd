"""Visual-finding extraction over a data set: ask a model about every image, count the votes, measure the finder."""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fundus_lib import generation, voting
from fundus_lib.data import ANNOTATED, image_path

MOST_ASKED = 12  # findings in one question when the finder is measured: about as many as a vocabulary holds


def ask(model, processor, images: Sequence, asked: Sequence[tuple[str, Sequence[str]]], settings,
        seed: int) -> list[list[dict[str, bool]]]:
    """Rollouts of votes for each image: `settings.rollouts` dicts {finding: present} an image.

    asked: (modality, findings) of each image. settings: the section `voting`.
    """
    if not asked:
        return []
    longest = max(len(processor.tokenizer(voting.format_votes(dict.fromkeys(names, False)))["input_ids"])
                  for _, names in asked)
    texts = generation.generate(
        model, processor, images, [voting.prompt(modality, names) for modality, names in asked],
        max_new_tokens=longest + 8, batch_size=settings.batch_size, temperature=settings.temperature,
        rollouts=settings.rollouts, seed=seed, desc="ask for findings")
    return [[voting.parse_votes(text, names) for text in rollouts]
            for rollouts, (_, names) in zip(texts, asked, strict=True)]


def to_ask(record: Mapping, vocabularies: Mapping[str, Mapping],
           finder: Mapping[str, Sequence[str]] | None) -> list[str]:
    """The findings to ask about one labelled image: Vocab[y, m] of its labels, as far as the finder knows the words.

    vocabularies: vocabulary.json of stage 02, by "label|modality"; a label without one asks for nothing.
    """
    words = [vocabularies.get(f"{label}|{record['modality']}", {}) for label in record["labels"]]
    names = {name for found in words for role in ("required", "supportive", "excluded") for name in found.get(role, ())}
    return sorted(names if finder is None else names & set(finder[record["modality"]]))


def find_findings(model, processor, records: pd.DataFrame, vocabularies: Mapping[str, Mapping],
                  finder: Mapping[str, Sequence[str]] | None, root: Path, settings, seed: int) -> pd.DataFrame:
    """V(I) of every labelled training image: one row an image and finding asked.

    Pixel masks decide the findings that their data set annotates (source "mask", no votes); the model's votes decide
    the others. Returns record_id, finding, votes, kept, source.
    """
    rows = []
    todo = [(record, names) for record in records[records.split == "train"].to_dict("records")
            if (names := to_ask(record, vocabularies, finder))]
    images = [image_path(root, record["path"]) for record, _ in todo]
    votes = ask(model, processor, images, [(record["modality"], names) for record, names in todo], settings, seed)
    for (record, names), rollouts in zip(todo, votes, strict=True):
        outlined = voting.from_masks(record["masks"], ANNOTATED.get(record["dataset"], ()))
        kept = voting.majority_vote(rollouts, settings.min_votes)
        for name in names:
            masked = name in outlined
            rows.append({"record_id": record["id"], "finding": name, "kept": outlined[name] if masked else name in kept,
                         "votes": None if masked else sum(rollout[name] for rollout in rollouts),
                         "source": "mask" if masked else "votes"})
    return pd.DataFrame(rows, columns=["record_id", "finding", "votes", "kept", "source"]).astype({"votes": "Int64"})


def known_truth(records: pd.DataFrame, root: Path, finder: Mapping[str, Sequence[str]] | None) -> pd.DataFrame:
    """Findings that are known to be there or not: of drawn test images all, of real ones what their masks annotate.

    Of a drawn image all that is there counts, and as many drawn by lot that are not, to `MOST_ASKED` in all. Returns
    record_id, finding, present.
    """
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


def measure(model, processor, records: pd.DataFrame, truth: pd.DataFrame, root: Path, settings,
            seed: int) -> pd.DataFrame:
    """Table 6: sensitivity, specificity and S2 of each finding, of one rollout (mean of all) and of the vote."""
    if truth.empty:
        return pd.DataFrame(columns=["finding", "n_pos", "n_neg", "sensitivity", "specificity", "s2", "method"])
    by_image = truth.groupby("record_id").finding.agg(list)
    known = records.set_index("id").loc[by_image.index]
    votes = ask(model, processor, [image_path(root, path) for path in known.path],
                list(zip(known.modality, by_image, strict=True)), settings, seed + 1)
    present = truth[truth.present].groupby("record_id").finding.agg(set).reindex(by_image.index)
    present = {record: names if isinstance(names, set) else set() for record, names in present.items()}

    def table(choose) -> pd.DataFrame:
        kept = pd.DataFrame([(record, name, name in choose(rollouts))
                             for record, names, rollouts in zip(by_image.index, by_image, votes, strict=True)
                             for name in names], columns=["record_id", "finding", "kept"])
        return voting.s2_table(kept, present)

    single = pd.concat(table(lambda rollouts, k=k: _present(rollouts[k])) for k in range(settings.rollouts))
    return pd.concat([
        single.groupby("finding", as_index=False).mean().assign(method="one rollout"),
        table(lambda rollouts: voting.majority_vote(rollouts, settings.min_votes)).assign(method="vote"),
    ], ignore_index=True)


def _present(rollout: Mapping[str, bool]) -> Iterable[str]:
    return {finding for finding, seen in rollout.items() if seen}
