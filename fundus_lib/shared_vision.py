"""GRPO that looks at an image once for all its rollouts: TRL's GRPOTrainer with the repeated work taken out.

TRL repeats every prompt once a rollout before anything else, so that each image is decoded, processed, encoded and
its prompt read again for every rollout, in every phase. Here the batch carries *places* in a table of distinct images
instead of pixels, the vision tower sees the distinct images only, and a group's prompt is read once before its rollouts
are sampled and once when they are scored (`packing`). What is optimised does not change. Everything that leans on TRL's
private interface is here.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from itertools import accumulate, groupby
from math import gcd
from pathlib import Path

import datasets
import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BatchFeature, DynamicCache
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad, split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from fundus_lib.curriculum import Curriculum
from fundus_lib.generation import Prefilled, decode
from fundus_lib.packing import pack, sequences


class Pictures:
    """The distinct images of a batch: their pixels as the processor makes them and what the tower made of them.

    A row of `pixel_values` is replaced by the place of its image, so shuffling, splitting and slicing a batch by image
    work as they did, on eight bytes a row.
    """

    def __init__(self):
        self.places: dict[int, int] = {}  # id of an image object -> its place
        self.contents: dict[tuple, int] = {}
        self.objects: list[Image.Image] = []  # kept, so that an id is not given to another image
        self.pixels: list[Tensor] = []  # (patches, values a patch) each
        self.grids: list[Tensor] = []  # (3,) patches in time, height, width
        self.encoded: dict[tuple, dict[int, Tensor]] = {}  # tower and its adapters -> place -> embeddings, no gradient

    def place(self, image: Image.Image, process: Callable) -> int:
        """Where this image stands in the table; a new one is processed. Equal pixels are the same image."""
        if id(image) not in self.places:
            content = (image.mode, image.size, image.tobytes())
            if content not in self.contents:
                made = process(image)
                self.contents[content] = len(self.pixels)
                self.pixels.append(made["pixel_values"])
                self.grids.append(made["image_grid_thw"][0])
            self.places[id(image)] = self.contents[content]
            self.objects.append(image)
        return self.places[id(image)]

    def encode(self, model: nn.Module, look: Callable, places: list[int], device: torch.device) -> list[Tensor]:
        """Embeddings of the images at these places, each encoded once; gradients of all uses meet in it."""
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in model.visual.parameters())
        known = {} if learning else self.encoded.setdefault((id(model), *adapters(model.visual)), {})
        wanted = dict.fromkeys(places) if learning else range(len(self.pixels))  # all at once: a resumed run's last bit
        if new := [place for place in wanted if place not in known]:
            with torch.set_grad_enabled(learning):
                seen = look(torch.cat([self.pixels[place] for place in new]).to(device),
                            torch.stack([self.grids[place] for place in new]).to(device))
            known.update(zip(new, seen.pooler_output, strict=True))
        return [known[place] for place in places]


def seers(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, under whatever wraps it, that hold a vision tower."""
    return [module for module in model.modules() if "visual" in module._modules]


def adapters(tower: nn.Module) -> tuple:
    """Which adapters act in the tower: a reference model that is the policy without them sees images differently."""
    layers = (layer for layer in tower.modules() if isinstance(layer, BaseTunerLayer))
    return next(((layer.disable_adapters, *layer.active_adapters) for layer in layers), ())


class OncePerImage:
    """Stands in for an image processor of the Qwen-VL family: a new image goes to it, a known one to its place."""

    def __init__(self, image_processor, pictures: Pictures):
        self.image_processor, self.pictures = image_processor, pictures

    def __getattr__(self, name):
        return getattr(self.image_processor, name)

    def __call__(self, images, return_tensors=None, **kwargs) -> BatchFeature:
        places = [self.pictures.place(image, lambda image: self.image_processor([image], return_tensors="pt", **kwargs))
                  for image in make_flat_list_of_images(images)]
        grids = torch.stack([self.pictures.grids[place] for place in places])
        rows = torch.tensor(places).repeat_interleave(grids.prod(-1))[:, None]
        return BatchFeature({"pixel_values": rows, "image_grid_thw": grids})


class Followed(DynamicCache):
    """A cache that knows which pairs of the batch its rows belong to: `decode` goes on without those that are done."""

    def __init__(self, config, batch: int):
        super().__init__(config=config)
        self.pairs = torch.arange(batch)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.pairs = self.pairs[indices.cpu()]


def prompt_by_prompt(batches: list[dict]) -> list[dict]:
    """The same rollouts in as many batches, those of an image and of a prompt side by side."""
    parts = [split_pixel_values_by_grid(batch) for batch in batches]
    if not isinstance(parts[0].get("pixel_values"), list):  # no image
        return batches
    where = [(rows.flatten().tolist(), ids.tolist()) for part in parts
             for rows, ids in zip(part["pixel_values"], part["prompt_ids"], strict=True)]
    order = sorted(range(len(where)), key=where.__getitem__)

    def joined(name):
        values = [part[name] for part in parts]
        if isinstance(values[0], list):
            flat = [one for several in values for one in several]
            return [flat[i] for i in order]
        return values[0] if values[0] is None or values[0].dim() == 0 else torch.cat(values)[order]

    whole = {name: joined(name) for name in parts[0]}
    return [unsplit_pixel_values_by_grid(batch) for batch in split_tensor_dict(whole, len(batches))]


class SharedVisionGRPOTrainer(GRPOTrainer):
    """GRPOTrainer for models of the Qwen-VL family that processes, encodes and reads an image once for its group.

    Per distinct image of a generation batch: one decoding, one pass of the image processor, one encoding without
    gradient for sampling and old log-probabilities, one for a reference model, and one in the loss; a frozen tower
    sees it once in all. A group's prompt is read once a phase. Completions are sampled with `generation.decode`, from
    numbers that the seed and the generation's number give: a resumed run and one in more processes say the same.

    Args, besides GRPOTrainer's: share; False is TRL's own trainer, bit for bit. candidates: of the `Curriculum` that
    chooses what is asked; 1 leaves it to TRL. Questions with the same `topic`, a column of the data set, speak for each
    other.

    Raises:
        ValueError: sampling settings that `generation.decode` does not know.
    """

    def __init__(self, model, *args, share: bool = True, candidates: int = 1, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.share = share and bool(seers(self.model))  # InternVL3 counts image tokens by tile and not by grid
        self.lessons = Curriculum(self.train_dataset["topic"], candidates) if candidates > 1 else None
        self.pictures = {True: Pictures(), False: Pictures()}  # of training, of evaluation
        if not self.share:
            return
        if not self.use_vllm and (self.top_k or self.top_p != 1.0 or self.min_p):
            raise ValueError("rollouts are sampled from the whole distribution: set top_k=0, top_p=1.0 and min_p=None")
        features, raw = self.train_dataset.features, datasets.Image(decode=False)
        self._undecoded = {name: features[name] for name in ("image", "images") if name in features}
        for name, feature in self._undecoded.items():
            self.train_dataset = self.train_dataset.cast_column(
                name, raw if isinstance(feature, datasets.Image) else datasets.List(raw))
        for seeing in seers(self.model) + (seers(self.ref_model) if self.ref_model is not None else []):
            self._share_tower(seeing)

    def _share_tower(self, model: nn.Module) -> None:
        look = model.get_image_features

        def get_image_features(pixel_values, image_grid_thw=None, **kwargs):
            if pixel_values.is_floating_point():
                return look(pixel_values, image_grid_thw, **kwargs)
            rows = image_grid_thw.prod(-1)
            places = pixel_values[rows.cumsum(0) - rows, 0].tolist()
            embeddings = self.pictures[self.model.training].encode(model, look, places, pixel_values.device)
            return BaseModelOutputWithPooling(pooler_output=tuple(embeddings))

        model.get_image_features = get_image_features

    @contextmanager
    def _one_pass(self):
        processor, pictures = self.processing_class, Pictures()
        plain, self.pictures[self.model.training] = processor.image_processor, pictures
        processor.image_processor = OncePerImage(plain, pictures)
        try:
            yield
        finally:
            processor.image_processor = plain
            if self._learns_to_see():
                pictures.encoded.clear()  # the next step moves the tower

    def _opened(self, inputs: list[dict]) -> list[dict]:
        """The rows with every distinct image file opened once."""
        opened = {}

        def once(feature, value):
            if isinstance(value, list):
                return [once(feature.feature, each) for each in value]
            if not isinstance(value, dict):  # no image, or one already open
                return value
            key = value["bytes"] or value["path"]
            if key not in opened:
                opened[key] = feature.decode_example(value)
            return opened[key]

        return [row | {name: once(feature, row[name]) for name, feature in self._undecoded.items()} for row in inputs]

    def _generate_and_score_completions(self, inputs):
        asked = self._choose(inputs) if self.lessons and self.model.training else []
        if asked:
            rows, first = {i: self.train_dataset[i] for i in {*asked}}, self.accelerator.process_index * len(inputs)
            inputs = [rows[i] for i in asked for _ in range(self.num_generations)][first:first + len(inputs)]
        with self._one_pass() if self.share else nullcontext():
            batch = super()._generate_and_score_completions(self._opened(inputs) if self.share else inputs)
        if asked:
            every = self.accelerator.gather(batch["advantages"])
            self.lessons.note(asked, every.view(-1, self.num_generations).any(1).tolist())
        self.scored(batch)
        return batch

    def _generation(self) -> int:
        """The number of this generation, the first is 0: the same in any number of processes."""
        return self._step // (self.args.steps_per_generation * self.num_iterations)

    def _choose(self, inputs: list) -> list[int]:
        """Rows of the data set to ask in place of these, of all processes: the same list in each."""
        groups = len(inputs) * self.accelerator.num_processes // self.num_generations
        return self.lessons.choose(groups, np.random.default_rng([self.args.seed, self._generation(), 2]))

    def _prepare_inputs(self, generation_batch):
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        window, held = self.args.gradient_accumulation_steps, self.args.steps_per_generation
        if (not self.share or self._buffered_inputs is buffered or window == 1
                or self.loss_type == "bnpo" or (window % held and held % window)):
            return inputs
        batches = self._buffered_inputs  # an optimiser step's rollouts change places, so that a prompt stays in one
        self._buffered_inputs = [batch for start in range(0, held, window)
                                 for batch in prompt_by_prompt(batches[start:start + window])]
        return self._buffered_inputs[self._step % held]

    def _learns_to_see(self) -> bool:
        return any(p.requires_grad for seeing in seers(self.model) for p in seeing.visual.parameters())

    def scored(self, batch: dict) -> None:
        """Called with each batch of scored completions before it is cut up; a subclass may change it."""

    def listening(self, model: nn.Module, first: Tensor, rollouts: int) -> Callable:
        """What decodes the rollouts of a batch whose first token has these logits (B, V); a subclass may listen in."""
        return model

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        if not self.share or self.use_vllm or images is None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations,
                                                 has_tool_images)
        device, grids = self.accelerator.device, multimodal_fields["image_grid_thw"]
        pixels = multimodal_fields["pixel_values"].split(grids.prod(-1).tolist())
        counts = [len(several or ()) for several in images]
        spans = [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        asked = [(tuple(ids), *(int(pixels[i][0, 0]) for i in span))
                 for ids, span in zip(prompt_ids, spans, strict=True)]
        # one run of equal prompts is a group; one that processes divide among them may be shorter
        rollouts = gcd(*(len(list(run)) for _, run in groupby(asked)))
        firsts = range(0, len(asked), rollouts)
        which = [i for first in firsts for i in spans[first]]

        def left(rows, value):
            return pad([torch.as_tensor(row) for row in rows], padding_value=value, padding_side="left").to(device)

        inputs = {
            "input_ids": left([prompt_ids[i] for i in firsts], self._tokenizer.pad_token_id),
            "attention_mask": left([torch.ones(len(prompt_ids[i]), dtype=torch.long) for i in firsts], 0),
            "mm_token_type_ids": left([multimodal_fields["mm_token_type_ids"][i] for i in firsts], 0),
            "image_grid_thw": grids[which].to(device),
        }
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs) as model,
            torch.no_grad(), self.accelerator.autocast(),
        ):
            draws = self._draws(len(firsts), rollouts).to(device)
            positions, _ = seers(model)[0].get_rope_index(**inputs)
            out = model(**inputs, pixel_values=torch.cat([pixels[i] for i in which]).to(device),
                        position_ids=positions, logits_to_keep=1, use_cache=True,
                        past_key_values=Followed(model.config.get_text_config(), len(firsts)))
            start = Prefilled(inputs["input_ids"], inputs["attention_mask"].bool(), positions[:, :, -1:] + 1,
                              out.logits[:, -1].float(), out.past_key_values)
            tokens = decode(self.listening(model, start.logits, rollouts), start, draws, self.temperature,
                            config=self.generation_config).flatten(0, 1)  # a penalty of the model's own is off-policy
        ended = torch.isin(tokens, torch.tensor(self.eos_token_ids, device=device))
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, tokens.shape[1]).tolist()
        return [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)], None

    def _draws(self, prompts: int, rollouts: int) -> Tensor:
        """Uniform numbers (prompts, rollouts, tokens) of this process: the seed, the generation's number and the place
        in the whole batch decide them, so that neither a restart nor the number of processes changes a rollout."""
        rng = np.random.default_rng([self.args.seed, self._generation(), self.model.training])
        first, every = self.accelerator.process_index * prompts, self.accelerator.num_processes * prompts
        return torch.from_numpy(rng.random((every, rollouts, self.max_completion_length))[first:first + prompts])

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
                                           compute_entropy=False, compute_aux_loss=False, pixel_values=None,
                                           image_grid_thw=None, num_images=None, **others):
        if not self.share or pixel_values is None or compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                pixel_values, image_grid_thw, num_images, **others)
        images = [range(end - count, end) for count, end in zip(num_images, accumulate(num_images), strict=True)]
        pixels = pixel_values.split(image_grid_thw.prod(-1).tolist())
        kinds, size = others["mm_token_type_ids"], batch_size or len(input_ids)
        scored = []
        for start in range(0, len(input_ids), size):
            rows = range(start, min(start + size, len(input_ids)))
            scored.append(self._packed_scores(
                model, *(tensor[rows.start:rows.stop] for tensor in (input_ids, attention_mask, kinds)),
                logits_to_keep, [[(pixels[i], image_grid_thw[i]) for i in images[row]] for row in rows]))
        logps, entropies = (torch.cat(parts) if parts[0] is not None else None for parts in zip(*scored, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _packed_scores(self, model, ids, mask, kinds, width, images) -> list[Tensor | None]:
        """Log-probability and entropy (None of a reference model) of the last `width` tokens, (B, width) each.
        images: of each row, (places, grid) of every image."""
        prompts, lengths = ids[:, :-width], mask[:, :-width].sum(1).tolist()
        keys = [(*row[-length:].tolist(), *(int(places[0, 0]) for places, _ in shown))
                for row, length, shown in zip(prompts, lengths, images, strict=True)]
        together = sequences(keys, lengths, mask[:, -width:].sum(1).tolist())
        firsts = [members[0] for members in together]
        shown = [image for row in firsts for image in images[row]]
        grids = torch.stack([grid for _, grid in shown])
        positions, _ = seers(model)[0].get_rope_index(
            prompts[firsts], mm_token_type_ids=kinds[firsts, :-width], image_grid_thw=grids,
            attention_mask=mask[firsts, :-width])
        packed = pack(together, prompts, mask[:, :-width], positions, ids[:, -width:], mask[:, -width:])
        with self.accelerator.autocast():
            out = model(input_ids=packed.ids, attention_mask=packed.mask, position_ids=packed.positions,
                        pixel_values=torch.cat([places for places, _ in shown]), image_grid_thw=grids,
                        shift_labels=packed.labels, fused_lm_head=True)
        return [values if values is None else torch.cat([values.flatten(), values.new_zeros(1)])[packed.where]
                for values in (out.log_probs, out.entropy)]

    @torch.no_grad()
    def forward_entropy(self, batch: dict) -> Tensor:
        """(B, T) entropy of every completion token of a scored batch, in nats: one more forward pass."""
        ids, mask = (torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], 1) for what in ("ids", "mask"))
        images = {"pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"} & set(batch)
        return self._get_per_token_logps_and_entropies(
            self.model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True,
            batch_size=self.args.per_device_train_batch_size, **{name: batch[name] for name in images})[1]

    def extra_state(self) -> dict:
        """What a subclass needs to resume, as JSON."""
        return {}

    def restore(self, state: dict) -> None:
        """Takes back what `extra_state` gave."""

    def _state_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"rollouts_{self.accelerator.process_index}.safetensors"

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        tensors, values, pictures = {}, [], self.pictures[True]
        if self._step % (self.args.steps_per_generation * self.num_iterations):  # rollouts are left to learn from
            for i, batch in enumerate(self._buffered_inputs):
                values.append({name: value for name, value in batch.items() if not isinstance(value, Tensor)})
                tensors |= {f"batch/{i}/{name}": value for name, value in batch.items() if isinstance(value, Tensor)}
            for kind in ("pixels", "grids"):
                tensors |= {f"{kind}/{i}": value for i, value in enumerate(getattr(pictures, kind))}
        state = {"step": self._step, "batches": values, "extra": self.extra_state()}
        if self.lessons:
            state["lessons"] = [self.lessons.asked.tolist(), self.lessons.informative.tolist()]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, self._state_file(folder),
                  metadata={"state": json.dumps(state)})
        super()._save_checkpoint(model, trial)  # ends with trainer_state.json: a checkpoint that has it is whole

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if not (path := self._state_file(checkpoint)).exists():
            raise FileNotFoundError(f"{path}: the run began with another version or number of processes; delete "
                                    f"{path.parent.parent} to start it again")
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118   no mapping
        self._step = state["step"]
        self.restore(state["extra"])
        if self.lessons:
            self.lessons.asked, self.lessons.informative = map(np.array, state["lessons"])
        self._buffered_inputs = state["batches"] or None
        for i, batch in enumerate(state["batches"]):
            prefix = f"batch/{i}/"
            batch |= {name.removeprefix(prefix): value.to(self.accelerator.device)
                      for name, value in tensors.items() if name.startswith(prefix)}
        for kind in ("pixels", "grids"):
            count = sum(name.startswith(kind) for name in tensors)
            getattr(self.pictures[True], kind)[:] = [tensors[f"{kind}/{i}"] for i in range(count)]
