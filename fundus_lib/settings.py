"""Settings of a run: one YAML file a profile, frozen and strict. A field's tag says where the paper's value is from."""

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

PROFILES = Path(__file__).parent / "profiles"
STATED, DERIVED, GUESS, OURS = "stated", "derived", "not in the paper", "ours, no counterpart"
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class SettingsError(ValueError):
    """A profile that cannot be used; the message names the file, the key and the nearest right name."""


class Section(BaseModel):
    """Unknown and missing keys and wrong types are errors; nothing changes after loading."""
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    world_seed: Annotated[NonNegativeInt, OURS]               # of the drawn images, not of any training
    train_per_pair: Annotated[PositiveInt, OURS]              # images drawn for a (label, modality) pair
    test_per_pair: Annotated[PositiveInt, OURS]
    masked_share: Annotated[Fraction, OURS]                   # training photographs with pixel masks
    image_height: Annotated[PositiveInt, OURS]                # pixels of a drawn file
    difficulty: Annotated[Fraction, OURS]                     # of drawn photographs: paler, smaller lesions
    held_out_fraction: Annotated[Fraction, OURS]              # where a data set has no official test images
    drop_conflicts: Annotated[bool, OURS]                     # leave out copies with contradicting labels
    drop_leaks: Annotated[bool, OURS]                         # leave out training images that a benchmark shows
    complex_cases: Annotated[NonNegativeInt, OURS]            # drawn cases with a history, in train and in test
    modality_share: Annotated[Fraction, GUESS]                # questions of a kind per image
    laterality_share: Annotated[Fraction, GUESS]
    lesion_share: Annotated[Fraction, GUESS]
    mask_share: Annotated[Fraction, GUESS]                    # place, size and number of one outlined lesion
    open_share: Annotated[Fraction, GUESS]                    # the diagnosis again, without options
    wordings: Annotated[PositiveInt, GUESS]                   # of every task, up to 3; 1: the one the small model knows


class BaseModelSettings(Section):
    source: Annotated[Literal["train", "recorded", "hub"], STATED]
    hub_id: Annotated[str | None, STATED]
    architecture: Annotated[Literal["qwen2_5_vl", "internvl3"], STATED]   # of the model that is trained here
    image_pixels: Annotated[PositiveInt, GUESS]               # height x width after resizing, at most
    pool_images: Annotated[PositiveInt | None, OURS]          # drawn, without labels; null from here on: not trained
    vision_steps: Annotated[PositiveInt | None, OURS]
    vision_learning_rate: Annotated[PositiveFloat | None, OURS]
    vision_batch: Annotated[PositiveInt | None, OURS]
    language_steps: Annotated[PositiveInt | None, OURS]
    language_learning_rate: Annotated[PositiveFloat | None, OURS]
    language_batch: Annotated[PositiveInt | None, OURS]
    text_hidden: Annotated[PositiveInt | None, OURS]
    text_layers: Annotated[PositiveInt | None, OURS]
    vision_hidden: Annotated[PositiveInt | None, OURS]
    vision_depth: Annotated[PositiveInt | None, OURS]


class Server(Section):
    """An OpenAI-compatible endpoint, for whatever below is set to "llm" or "served"."""
    url: Annotated[str | None, OURS]                          # null: nothing may ask one
    key_variable: Annotated[str, OURS]                        # environment variable that holds the key; may be unset
    text_model: Annotated[str | None, STATED]                 # writes vocabularies and traces, judges
    vision_model: Annotated[str | None, STATED]               # finds visual findings
    in_flight: Annotated[PositiveInt, OURS]                   # requests at once
    timeout_seconds: Annotated[PositiveFloat, OURS]
    max_tokens: Annotated[PositiveInt, GUESS]                 # of one answer, its reasoning included
    price_in: Annotated[float, Field(ge=0), OURS]             # of a million prompt tokens, in your currency
    price_out: Annotated[float, Field(ge=0), OURS]
    budget: Annotated[float | None, OURS]                     # no request is sent that could exceed it; null: no limit


class Shards(Section):
    """How the work of 02-04 is cut up; a shard is the most that an interruption loses."""
    count: Annotated[PositiveInt, OURS]
    engine: Annotated[Literal["local", "ray"], OURS]          # ray: on every machine of a Ray cluster
    gpus_each: Annotated[float, Field(ge=0), OURS]            # for one shard at a time, with ray


class Knowledge(Section):
    passages: Annotated[PositiveInt, GUESS]                   # retrieved per query
    folder: Annotated[str | None, OURS]                       # of PDF, HTML, markdown or text files, as well
    online: Annotated[bool, STATED]                           # ask PubMed Central as well
    extractor: Annotated[Literal["rules", "llm"], STATED]     # reads the findings and their roles out of K

    @property
    def embedded_only(self) -> bool:
        """Are vocabularies those of the embedded pages?"""
        return self.extractor == "rules" and not self.folder and not self.online


class Voting(Section):
    finder: Annotated[Literal["base", "served", "truth"], STATED]     # base: the base model, in this process; truth: an
    #                                                 ablation, what was drawn
    rollouts: Annotated[PositiveInt, STATED]                  # per image
    min_votes: Annotated[PositiveInt, STATED]                 # a finding is kept from this many votes on
    temperature: Annotated[PositiveFloat, GUESS]
    batch_size: Annotated[PositiveInt, OURS]                  # images at once


class Traces(Section):
    writer: Annotated[Literal["grammar", "llm"], STATED]
    wordings: Annotated[PositiveInt, OURS]                    # ways the grammar says one thing
    opinion: Annotated[bool, OURS]                            # ask the text model for its verdict beside the rules'
    max_words: Annotated[PositiveInt, GUESS]


class SFT(Section):
    epochs: Annotated[PositiveInt, STATED]
    learning_rate: Annotated[PositiveFloat, GUESS]
    batch_size: Annotated[PositiveInt, GUESS]
    micro_batch: Annotated[PositiveInt, OURS]                 # sequences a device takes at once; the rest accumulates
    lora_rank: Annotated[NonNegativeInt, GUESS]               # 0: every weight is trained
    train_vision: Annotated[bool, STATED]


class GRPO(Section):
    prompts_per_step: Annotated[PositiveInt, GUESS]
    rollouts: Annotated[PositiveInt, STATED]                  # per prompt: the group of an advantage
    steps: Annotated[PositiveInt, DERIVED]
    candidates: Annotated[PositiveInt, OURS]                  # drawn for each question asked, see curriculum; 1: as TRL
    learning_rate: Annotated[PositiveFloat, GUESS]
    warmup_steps: Annotated[NonNegativeInt, GUESS]
    kl_beta: Annotated[float, Field(ge=0), GUESS]             # 0: no KL term, no reference model
    temperature: Annotated[PositiveFloat, STATED]
    max_new_tokens: Annotated[PositiveInt, GUESS]
    micro_batch: Annotated[PositiveInt, OURS]
    lora_rank: Annotated[NonNegativeInt, GUESS]


class OphthaReason(Section):
    """What its three stages do not share with E and F, whose sections hold the rest."""
    alignment_epochs: Annotated[PositiveInt, GUESS]           # of the image-caption pairs; the language part is frozen
    alignment_learning_rate: Annotated[PositiveFloat, GUESS]
    alignment_batch_size: Annotated[PositiveInt, GUESS]
    alignment_micro_batch: Annotated[PositiveInt, OURS]
    sft_epochs: Annotated[PositiveInt, GUESS]
    rl_steps: Annotated[PositiveInt, GUESS]
    kl_beta: Annotated[float, Field(ge=0), GUESS]             # a KL term is stated, its weight is not


class UADT(Section):
    form: Annotated[Literal["uadt", "cheng", "seed", "ucas", "edge"], GUESS]  # the reconstruction, or a relative
    update: Annotated[Literal["before", "after"], GUESS]      # when the threshold moves: before it is used, or after
    strength: Annotated[BelowOne, GUESS]                      # lambda; 0 is plain GRPO
    temperature: Annotated[PositiveFloat, GUESS]              # T inside the tanh
    decay: Annotated[Fraction, GUESS]                         # rho of the moving threshold
    granularity: Annotated[Literal["rollout", "prompt"], GUESS]


class Rewards(Section):
    judge: Annotated[Literal["rules", "llm"], STATED]         # of the process reward
    right_tenuous: Annotated[Fraction, GUESS]                 # process reward of a right answer, tenuous trace
    wrong_plausible: Annotated[Fraction, GUESS]               # process reward of a wrong answer, plausible trace
    answer_weight: Annotated[PositiveFloat, GUESS]            # of each reward in their sum
    format_weight: Annotated[float, Field(ge=0), GUESS]
    process_weight: Annotated[float, Field(ge=0), GUESS]

    @model_validator(mode="after")
    def _right_outranks_wrong(self):
        """The most of a wrong rollout is format + process * wrong_plausible (G to J alike), the least of a right one
        answer + format: see `rewards`."""
        if (most := self.process_weight * self.wrong_plausible) >= self.answer_weight:
            raise ValueError(
                f"rewards.wrong_plausible {self.wrong_plausible:g} x process_weight {self.process_weight:g} = {most:g} "
                f"must be below answer_weight {self.answer_weight:g}: a wrong answer could earn as much as a right one")
        return self


class Evaluation(Section):
    engine: Annotated[Literal["transformers", "vllm"], OURS]  # that answers for the models trained here, and `models`
    batch_size: Annotated[PositiveInt, OURS]
    max_new_tokens: Annotated[PositiveInt, STATED]
    bootstrap: Annotated[PositiveInt, OURS]                   # resamples of an interval
    models: Annotated[tuple[str, ...], Field(strict=False), STATED]   # others: a name in references/models.yaml, a
    #                                                 folder, a hub id, or "served": server.vision_model at server.url
    remote_code: Annotated[bool, OURS]                        # may a model bring code of its own?
    predictions: Annotated[str | None, OURS]                  # folder of answers made elsewhere, one entry a model


class Settings(Section):
    """Everything a profile decides. Pass whole sections on: sft.train(..., stage.settings.sft)."""
    profile: Annotated[str, OURS]
    data: Data
    base_model: BaseModelSettings
    server: Server
    shards: Shards
    knowledge: Knowledge
    voting: Voting
    traces: Traces
    sft: SFT
    grpo: GRPO
    ophthareason: OphthaReason
    uadt: UADT
    rewards: Rewards
    evaluation: Evaluation
    setups: Annotated[tuple[Literal["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "F_uadt", "G_uadt",
                                     "ophthareason_sft", "ophthareason_rl", "ophthareason_uadt"], ...],
                      Field(min_length=1, strict=False), STATED]
    seeds: Annotated[PositiveInt, GUESS]                      # training runs of each setup
    zero_stage: Annotated[Literal[0, 2, 3], GUESS]            # DeepSpeed ZeRO on several devices; 0: without
    workers: Annotated[PositiveInt, OURS]                     # training processes side by side, one thread each


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean x?' for a mistyped word, '' when nothing is near."""
    return f"; did you mean {match[0]}?" if (match := difflib.get_close_matches(word, known, n=1)) else ""


def _content(profile: str, folder: Path) -> dict:
    """What a profile's file says; one that is `like` another holds only what differs from it."""
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if profile not in known:
        raise SettingsError(f"there is no profile {profile!r}{nearest(profile, known)}\n  profiles: {', '.join(known)}")
    content = yaml.safe_load((folder / f"{profile}.yaml").read_text(encoding="utf-8"))
    if "like" not in content:
        return content
    whole = _content(content.pop("like"), folder)
    return whole | {key: whole[key] | value if isinstance(value, dict) and key in whole else value
                    for key, value in content.items()}


@cache
def load(profile: str, *, seeds: int | None = None, folder: Path = PROFILES) -> Settings:
    """Read <folder>/<profile>.yaml; `seeds` replaces the profile's number. SettingsError says what is wrong where."""
    file = folder / f"{profile}.yaml"
    try:
        content = _content(profile, folder)
        return Settings(**content | {"profile": profile, "seeds": content.get("seeds") if seeds is None else seeds})
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise SettingsError(f"{file} is not a YAML mapping of sections: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n  ".join([f"{file} cannot be used:", *map(_explain, error.errors())])) from None


def _explain(error: dict) -> str:
    """One pydantic error as 'section.key: what is wrong'."""
    section = Settings.model_fields[error["loc"][0]].annotation if len(error["loc"]) > 1 else Settings
    detail = nearest(str(error["loc"][-1]), list(section.model_fields)) if error["type"] == "extra_forbidden" else \
        f" (is {error['input']!r}; write 1.0e-5, not 1e-5)" if error["type"] == "float_type" else ""
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}{detail}"


def flat(settings: Settings, sections: set[str] | None = None) -> dict[str, tuple[object, str]]:
    """{"voting.rollouts": (5, "stated"), ...} of the named sections (None: all), in the order of the profile."""
    rows = {}
    for name in [n for n in Settings.model_fields if n != "profile" and (sections is None or n in sections)]:
        part = getattr(settings, name)
        owner, keys = (part, type(part).model_fields) if isinstance(part, Section) else (settings, [name])
        for key in keys:
            tag = next(m for m in type(owner).model_fields[key].metadata if isinstance(m, str))
            rows[key if owner is settings else f"{name}.{key}"] = (getattr(owner, key), tag)
    return rows


def table(settings: Settings, sections: set[str] | None = None):
    """pandas Styler 'setting | this run | paper': differences bold, guesses marked "not in the paper"."""
    import pandas as pd

    paper, rows, bold = flat(load("paper"), sections), [], []
    for key, (value, tag) in flat(settings, sections).items():
        theirs = "-" if tag == OURS else paper[key][0]
        source = "" if tag == STATED else f" ({tag})"
        rows.append({"setting": key, "this run": f"{value}", "paper": f"{theirs}{source}"})
        bold.append("font-weight: bold" if theirs not in ("-", value) else "")
    return pd.DataFrame(rows).style.hide(axis="index").apply(lambda _: bold, subset=["this run"])
