"""Qwen2.5-VL or InternVL3, large or small: one way to build, load and save the model with its processor.

The small model of the embedded world has the real classes at about half a million parameters and its own small
tokenizer; everything downstream (TRL trainers, `generate`, PEFT) sees nothing but a Qwen2.5-VL or an InternVL3.
"""

import re
from collections.abc import Iterable
from importlib.util import find_spec
from math import isqrt
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import Qwen2_5_VLProcessor as StockProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)
REASONING_TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # ordinary text for the decoder, one token each

# Qwen2.5-VL's turn format without its default system prompt, which the small model would only have to read past.
CHAT_TEMPLATE = (Path(__file__).parent / "references/chat_template.jinja").read_text(encoding="utf-8")
MODEL_CARD = (Path(__file__).parent / "references/model_card.md").read_text(encoding="utf-8")
SEES = re.compile(r"\.(visual|vision_tower|multi_modal_projector)\.")  # weights up to the features the text model reads
PATCH, MERGE = 8, 2  # a merged image token of the small model covers 16 x 16 pixels


class ImageTextProcessor(StockProcessor):
    """Qwen2.5-VL's processor without the video branch, which needs a torchvision that a CPU torch cannot import."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class SquareProcessor(InternVLProcessor):
    """InternVL3's processor without the video branch and without tiles: an image is squeezed into one square, which is
    always `image_seq_length` tokens. It reads the small models' chat template and special tokens."""

    def __init__(self, image_processor=None, tokenizer=None, image_seq_length: int = 256, chat_template=None, **_):
        self.image_token, self.video_token, self.image_seq_length = IMAGE, VIDEO, image_seq_length
        self.start_image_token, self.end_image_token = VISION_START, VISION_END
        self.start_image_token_id, self.image_token_id, self.end_image_token_id = \
            tokenizer.convert_tokens_to_ids([VISION_START, IMAGE, VISION_END])
        self.multimodal_pattern = f"(?P<image>{re.escape(IMAGE)})"
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, **kwargs):
        return super().__call__(images, text, crop_to_patches=False, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **_) -> str:
        return IMAGE * self.image_seq_length


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer over `texts`; any other text still encodes, byte by byte, and decodes unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size - len(SPECIAL_TOKENS) - len(REASONING_TAGS),
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=TURN_END, padding_side="left",
                                   model_max_length=4096)
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in REASONING_TAGS])
    return fast


def small_processor(tokenizer: PreTrainedTokenizerFast, image_pixels: int,
                    architecture: str = "qwen2_5_vl") -> ProcessorMixin:
    """The small model's processor: every image is resized to about `image_pixels` pixels, its aspect ratio kept by
    qwen2_5_vl; internvl3 makes it a square."""
    if architecture == "internvl3":
        side = isqrt(image_pixels) // (PATCH * MERGE)
        size = dict.fromkeys(("height", "width"), side * PATCH * MERGE)
        return SquareProcessor(GotOcr2ImageProcessorPil(size=size), tokenizer, side**2, CHAT_TEMPLATE)
    size = {"shortest_edge": image_pixels, "longest_edge": image_pixels}
    image_processor = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=size)
    return ImageTextProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def small_model(tokenizer: PreTrainedTokenizerFast, *, text_hidden: int, text_layers: int, vision_hidden: int,
                vision_depth: int, architecture: str = "qwen2_5_vl", image_pixels: int = 0) -> PreTrainedModel:
    """A randomly initialised model of about half a million parameters (seed torch before calling). internvl3 has a
    learned place for every patch of its `image_pixels`."""
    third = text_hidden // 8 // 3  # rotary sections of time, height and width: half a head's width in all
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": text_hidden, "intermediate_size": 3 * text_hidden,
        "num_hidden_layers": text_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "use_sliding_window": False, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": text_hidden**-0.5,  # the usual 0.02 suits widths of thousands: attention starts flat
        "bos_token_id": None, "eos_token_id": ids[TURN_END], "pad_token_id": ids[PAD],
    }
    if architecture == "internvl3":
        side = isqrt(image_pixels) // (PATCH * MERGE)
        config = InternVLConfig(
            text_config=text | {"model_type": "qwen2"}, image_token_id=ids[IMAGE], image_seq_length=side**2,
            vision_config={
                "hidden_size": vision_hidden, "intermediate_size": 3 * vision_hidden, "num_attention_heads": 4,
                "num_hidden_layers": vision_depth, "image_size": side * PATCH * MERGE, "patch_size": PATCH,
                "attention_bias": True, "layer_scale_init_value": 1.0, "initializer_range": vision_hidden**-0.5},
            downsample_ratio=1 / MERGE, tie_word_embeddings=True)
        model = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    else:
        sections = {"mrope_section": [text_hidden // 8 - 2 * third, third, third]}
        config = Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": text["rope_parameters"] | sections},
            vision_config={
                "depth": vision_depth, "hidden_size": vision_hidden, "out_hidden_size": text_hidden,
                "intermediate_size": 3 * vision_hidden, "num_heads": 4, "patch_size": PATCH,
                "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 8 * PATCH,
                "fullatt_block_indexes": list(range(vision_depth))},
            image_token_id=ids[IMAGE], video_token_id=ids[VIDEO], vision_start_token_id=ids[VISION_START],
            vision_end_token_id=ids[VISION_END], tie_word_embeddings=True)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids[TURN_END], ids[PAD]
    # An image token outside the prompt has no pixels behind it and stops the forward pass: never sample one.
    model.generation_config.suppress_tokens = [i for name, i in ids.items() if name != TURN_END]
    return model


def load_processor(path: str | Path) -> ProcessorMixin:
    """The processor saved at `path` (a folder or a hub id).

    Raises RuntimeError when it cannot read images: AutoProcessor falls back to a bare tokenizer.
    """
    own = Path(path) / "processor_config.json"
    square = own.exists() and SquareProcessor.__name__ in own.read_text()
    stock = AutoProcessor if find_spec("torchvision") else ImageTextProcessor
    processor = (SquareProcessor if square else stock).from_pretrained(path)
    if not hasattr(processor, "image_processor"):
        raise RuntimeError(f"{path}: a tokenizer came back instead of an image processor; images would be dropped.")
    if isinstance(processor, ImageTextProcessor) and not hasattr(processor.image_processor, "merge_size"):
        raise RuntimeError(f"{path}: its processor needs torchvision; without it images would be dropped.")
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(path: str | Path, **kwargs) -> PreTrainedModel:
    """The model saved at `path` (a folder or a hub id); safetensors only, no remote code. It never says an image token,
    which has no pixels behind it outside the prompt and would stop the forward pass."""
    kind = AutoModelForImageTextToText
    model = kind.from_pretrained(path, attn_implementation="sdpa", use_safetensors=True, **kwargs)
    if not model.generation_config.suppress_tokens:  # a model from the hub; an InternVL3 has no video token
        ids = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
        model.generation_config.suppress_tokens = [i for i in ids if i is not None]
    return model


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """Model, processor and model card side by side, so that one path loads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (Path(folder) / "README.md").write_text(MODEL_CARD)
