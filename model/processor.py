"""PixelLMProcessor: photos and questions -> what the network reads; what it wrote -> answers with masks of the photo.

Shapes: Q conversations, B images, L tokens, N masks, R input side; H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature, LlamaTokenizer, ProcessorMixin
from typing_extensions import TypedDict

from .asking import AnswerOptions
from .configuration import PixelLMConfig
from .errors import InputError
from .files import is_file, read_object, write_json, write_text
from .hub import resolve_folder, take_hub_options, upload_folder
from .image import ImagePreprocessor, Photo, resize_logits
from .image_processor import PixelLMImageProcessor, refuse_options
from .outputs import output_files
from .part_configs import REMEDY
from .replies import Reply, make_reply
from .structures import PixelLMGenerateOutput
from .text.chat_template import chat_template
from .text.conversation import IMAGE, IMAGE_MARK, SEG_MARK, Rendered, get_conversation
from .text.tokenizer import add_codebook, answer_text, load_tokenizer, save_tokenizer
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, SegCodebook, encode_conversation, seg_strings
from .values import Count, Finite, InputSide, Positive, Scales, Schema, Text, TokensPerScale, shorten
from .weights.checkpoint import read_model

PROCESSOR_FILE = "processor_config.json"
_PREPROCESSOR_FILE = "preprocessor_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_MASK_REQUEST = "Please output segmentation mask."  # as the release asks in evaluation
_ORDER = "processor(images=PHOTO, text=QUESTION)"


class ProcessorKeys(TypedDict):
    """What is read of processor_config.json."""

    image_size: InputSide
    patch_size: InputSide
    pad_train_clip_images: bool
    image_mean: tuple[Finite, Finite, Finite]
    image_std: tuple[Positive, Positive, Positive]
    num_image_tokens: Count
    seg_token_num: TokensPerScale
    image_feature_scale_num: Scales
    conv_type: Text


_KEYS = Schema(ProcessorKeys)


class PixelLMProcessor(ProcessorMixin):
    """Everything between a user's photos and words and the network's tensors; it needs no weights.

    Args:
        image_processor: photos -> pixel values.
        tokenizer: with the codebook in it.
        num_image_tokens: P, what an image takes of the language model's input.
        codebook: the segmentation tokens of ``tokenizer``.
        conv_type: conversation template.
    """

    def __init__(
        self,
        image_processor: PixelLMImageProcessor,
        tokenizer: LlamaTokenizer,
        *,
        num_image_tokens: int,
        codebook: SegCodebook,
        conv_type: str,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.num_image_tokens = num_image_tokens
        self.codebook = codebook
        self.conversation = get_conversation(conv_type)
        self.chat_template = chat_template(self.conversation, codebook)

    @classmethod
    def of(cls, config: PixelLMConfig, tokenizer: LlamaTokenizer) -> Self:
        """The processor of a model.

        Args:
            tokenizer: with the codebook in it.
        """
        return cls(
            PixelLMImageProcessor(config.preprocessor, config.patch_size),
            tokenizer,
            num_image_tokens=config.num_image_tokens,
            codebook=config.codebook,
            conv_type=config.conv_type,
        )

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, name: str | Path, *, vision_tower: str | None = None, conv_type: str | None = None, **options: Any
    ) -> Self:
        """Read what a model folder, ours or a published one, says about its inputs; weights are not touched.

        Args:
            vision_tower, conv_type: as of ``PixelLMForCausalLM.from_pretrained``, for published folders.
            options: ``subfolder``, ``revision``, ``token``, ``cache_dir``, as in transformers.
        Raises:
            InputError: if a file is missing or damaged, or files contradict one another.
        """
        folder = resolve_folder(str(name), **take_hub_options(options))
        if not is_file(folder / "config.json"):
            return cls._of_settings(folder, _read_settings(folder))
        found = read_model(folder, vision_tower=vision_tower, conv_type=conv_type)
        processor = cls.of(found.config, found.tokenizer or load_tokenizer(folder))
        if is_file(folder / PROCESSOR_FILE):
            _check_agreement(processor.settings(), _read_settings(folder), folder)
        return processor

    @classmethod
    def _of_settings(cls, folder: Path, keys: ProcessorKeys) -> Self:
        """A processor that was saved without its model."""
        tokenizer = load_tokenizer(folder)
        words = len(tokenizer)
        codebook = add_codebook(tokenizer, scales=keys["image_feature_scale_num"], tokens=keys["seg_token_num"])
        if len(tokenizer) != words:
            raise InputError(
                f"{folder}: {PROCESSOR_FILE} says {codebook.scales} scales x {codebook.tokens} tokens, which its "
                "tokenizer does not have; take both from the same folder"
            )
        _check_tokens(keys, folder)
        preprocess = ImagePreprocessor(
            keys["image_size"], keys["pad_train_clip_images"], keys["image_mean"], keys["image_std"]
        )
        return cls(
            PixelLMImageProcessor(preprocess, keys["patch_size"]),
            tokenizer,
            num_image_tokens=keys["num_image_tokens"],
            codebook=codebook,
            conv_type=keys["conv_type"],
        )

    def settings(self) -> ProcessorKeys:
        """What processor_config.json holds."""
        preprocess = self.image_processor.preprocess
        return {
            "image_size": preprocess.size,
            "patch_size": self.image_processor.patch_size,
            "pad_train_clip_images": preprocess.pad,
            "image_mean": preprocess.mean,
            "image_std": preprocess.std,
            "num_image_tokens": self.num_image_tokens,
            "seg_token_num": self.codebook.tokens,
            "image_feature_scale_num": self.codebook.scales,
            "conv_type": self.conversation.name,
        }

    def to_dict(self) -> dict[str, Any]:
        """The settings, and the class that reads them."""
        return {"processor_class": type(self).__name__, **self.settings()}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> None:
        """Write tokenizer, settings and chat template into a folder; what it replaces is lost.

        Args:
            push_to_hub: upload the folder, too; then ``repo_id`` and the like as in transformers.
        """
        folder = Path(save_directory)
        with output_files(folder, replaces=lambda name: False) as partial:
            save_tokenizer(self.tokenizer, partial, source=Path(self.tokenizer.name_or_path))
            write_json(partial / PROCESSOR_FILE, self.to_dict())
            write_json(partial / _PREPROCESSOR_FILE, self.image_processor.to_dict())
            write_text(partial / _TEMPLATE_FILE, chat_template(self.conversation, self.codebook))
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", folder.name), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Upload what ``save_pretrained`` writes; options and result as of the model's ``push_to_hub``."""
        return upload_folder(repo_id, self.save_pretrained, **options)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Photo | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Photos and questions -> inputs of the network, padded on the left.

        Args:
            images: one for each text, one for all texts, or none; arrays (H, W, 3) uint8 RGB, PIL images, file names.
                A file is turned as its EXIF data ask for; PIL images are taken as they are.
            text: a question, which gets the model's conversation around it, or what ``apply_chat_template`` gives.
        Returns:
            input_ids and attention_mask (Q, L); with images also pixel_values (B, 3, R, R), valid_hw (B, 2) and
            image_index (Q,).
        Raises:
            InputError: if a photo cannot be read, a question holds an image mark, or counts do not fit.
        """
        refuse_options(options)
        texts, photos = _questions(text), _flatten(images)
        if not texts and not photos:
            raise InputError(
                "neither images nor text was given; give text=QUESTION, with images=PHOTO if it is about one"
            )
        rows = [self._encode(question, has_image=bool(photos)) for question in texts]
        length = max(map(len, rows), default=0)
        pad = self.tokenizer.pad_token_id
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.long),
            "attention_mask": torch.tensor(
                [[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.long
            ),
        }
        if photos:
            inputs |= self.image_processor(photos)
            inputs["image_index"] = _image_index([IMAGE_TOKEN_ID in row for row in rows], len(photos))
        return BatchFeature(inputs)

    def prompt_ids(self, question: str, *, has_image: bool = True) -> list[int]:
        """The open conversation of a question, image placeholder expanded.

        Raises:
            InputError: if it cannot be written as UTF-8.
        """
        return self._ids(self.conversation.render([(question, None)], image=IMAGE if has_image else ""))

    def follow_up_ids(self, question: str) -> list[int]:
        """What follows the end mark of an answer when the dialogue goes on with a question."""
        ids = self._ids(self.conversation.render([("", "x"), (question, None)]))
        return ids[ids.index(self.tokenizer.eos_token_id) + 1 :]

    def answered_ids(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """A question and its answer, as training reads them.

        Args:
            answer: with ``{seg}`` where a mask is.
        Returns:
            ids of the prompt, image placeholder expanded, and of the answer with its end mark.
        Raises:
            InputError: if they cannot be written as UTF-8.
        """
        group = seg_strings(self.codebook.scales, self.codebook.tokens)
        rendered = self.conversation.render([(question, answer)], image=IMAGE, group=group)
        ids, labels = encode_conversation(self.tokenizer, rendered, num_image_tokens=self.num_image_tokens)
        begin = next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
        return ids[:begin], ids[begin:]

    def naming_texts(self, names: Sequence[str]) -> tuple[str, str]:
        """A question for the masks of named things, and the answer that has ``{seg}`` behind each name.

        Raises:
            InputError: if there is no name, or one is empty.
        """
        if not names or any(not name.strip() or SEG_MARK in name for name in names):
            raise InputError(
                f"names are {shorten(list(names))}; expected one or more, such as ['the cat', 'a red cup']"
            )
        question = f"What is {', '.join(names)} in this image? {_MASK_REQUEST}"
        return question, ", ".join(f"{name} {SEG_MARK}" for name in names) + "."

    def _encode(self, text: str, *, has_image: bool) -> list[int]:
        if text.startswith(self.conversation.head):  # apply_chat_template has rendered it
            return self._ids(Rendered(text, ()))
        if IMAGE_MARK in text:
            raise InputError(
                f"text has {IMAGE_MARK} in it; give the bare question, which gets the conversation and the image mark "
                "around it, or what apply_chat_template renders"
            )
        return self.prompt_ids(text, has_image=has_image)

    def _ids(self, rendered: Rendered) -> list[int]:
        ids, _ = encode_conversation(self.tokenizer, rendered, num_image_tokens=self.num_image_tokens)
        return ids

    def post_process_masks(
        self, mask_logits: Sequence[Tensor] | None, sizes: Sequence[tuple[int, int]] | Tensor, *, binarize: bool = True
    ) -> list[Tensor]:
        """Masks of the padded input -> masks of the photos.

        Args:
            mask_logits: (N, h, w) for each photo or conversation, as ``generate`` and the forward pass give them.
            sizes: (H, W) of each one's photo.
            binarize: give (N, H, W) bool; else the logits, minus infinity where the network does not see the photo.
        Raises:
            InputError: if there are no masks, or ``sizes`` does not fit them.
        """
        if mask_logits is None:
            raise InputError("there are no masks: no question was about an image")
        pairs = _sizes_for(sizes, len(mask_logits))
        placed = [self.on_photo(logits, size) for logits, size in zip(mask_logits, pairs, strict=True)]
        return [logits > 0 for logits in placed] if binarize else placed

    def on_photo(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, h, w) logits of the padded input -> (N, H, W), minus infinity where the network does not see the photo.

        Args:
            size: (H, W) of the photo.
        """
        place = self.image_processor.preprocess.place(size)
        _, _, height, width = place.region
        shown = resize_logits(
            logits, size=self.image_processor.covered_size, valid_hw=place.valid_hw, out_hw=(height, width)
        )
        return place.put_back(shown, outside=float("-inf"))

    def replies(
        self,
        generated: PixelLMGenerateOutput,
        sizes: Sequence[tuple[int, int]] | Tensor,
        *,
        prompt_length: int,
        **options: Any,
    ) -> list[Reply]:
        """What ``generate`` returned, as text and targets.

        Args:
            sizes: (H, W) of each conversation's photo; not read where there is none.
            prompt_length: L, of the ``input_ids`` that were given.
            options: ``mask_threshold`` and ``keep_logits`` of ``AnswerOptions``.
        Raises:
            InputError: if there is another option, or a value cannot be met.
        """
        asked = AnswerOptions.of_masks(options)
        prompts, answers = generated.sequences.tensor_split([prompt_length], dim=1)
        sees_image = (prompts == IMAGE_TOKEN_ID).any(1).tolist()
        replies = []
        for row, (ids, (height, width)) in enumerate(zip(answers.tolist(), sizes, strict=True)):
            logits = None
            if generated.mask_logits is not None and sees_image[row]:
                logits = self.on_photo(generated.mask_logits[row], (int(height), int(width)))
            # What follows an end mark is padding.
            length = next((place + 1 for place, token in enumerate(ids) if token in generated.end_ids), None)
            is_cut = length is None
            replies.append(make_reply(ids[:length], logits, self.codebook, self.tokenizer, is_cut=is_cut, asked=asked))
        return replies

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        """Messages -> the text of their conversation, or with ``tokenize=True, return_dict=True`` the network's inputs.

        Args:
            conversation: messages of "user" and "assistant" in turn, or a list of such lists. Content is a string, or
                a list of ``{"type": "text", "text": ...}`` and ``{"type": "image", "path": ...}`` ("image" in place of
                "path" for a PIL image or an array). ``{seg}``, or a token group as a model wrote it, stands for a mask.
            options: as in transformers.
        Raises:
            InputError: for other roles, or more than one image in a conversation.
        """
        try:
            return super().apply_chat_template(conversation, *args, **options)
        except TemplateError as err:
            raise InputError(f"messages: {err}") from err

    def decode(self, ids: Any, *, skip_special_tokens: bool = False, **options: Any) -> Any:
        """The words of a sequence, image placeholders and end mark left out, with the spacing of the release.

        Args:
            ids: of one sequence, or of several, which gives a list.
            skip_special_tokens: leave out padding and the other marks, too; token groups stay.
        """
        del options  # there is nothing to clean up: spaces are those of the release
        listed = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
        listed = [listed] if isinstance(listed, int) else listed
        if listed and not isinstance(listed[0], int):
            return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in listed]
        left_out = {IMAGE_TOKEN_ID}
        if skip_special_tokens:
            left_out |= {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        kept = [token_id for token_id in listed if token_id not in left_out]
        return answer_text(self.tokenizer, kept)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """``decode`` of every row."""
        return [self.decode(row, **options) for row in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The same without the marks, under transformers' name for models that read images."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)


def _questions(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else [] if text is None else text
    if not isinstance(texts, list | tuple) or not all(isinstance(question, str) for question in texts):
        raise InputError(f"text is {shorten(text)}; expected a question or a list of questions: {_ORDER}")
    return list(texts)


def _flatten(images: Any) -> list[Photo]:
    """One photo or nested lists of photos, as chat templates give them."""
    if images is None:
        return []
    if isinstance(images, Photo):
        return [images]
    if not isinstance(images, list | tuple):
        raise InputError(f"images is a {type(images).__name__}; expected file names, PIL images or arrays: {_ORDER}")
    return [photo for entry in images for photo in _flatten(entry)]


def _sizes_for(sizes: Any, count: int) -> list[tuple[int, int]]:
    """(H, W) of as many photos as there are answers."""
    listed = sizes.tolist() if isinstance(sizes, Tensor | np.ndarray) else sizes
    try:
        pairs = [(int(height), int(width)) for height, width in listed]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != count or any(side < 1 for pair in pairs for side in pair):
        raise InputError(
            f"sizes is {shorten(listed)}; expected (height, width) of the photo for each of {count} answers"
        )
    return pairs


def _image_index(shows_image: Sequence[bool], num_photos: int) -> Tensor:
    """(Q,) photo of each conversation: one for all, or one for each that shows an image; 0 where there is none."""
    needed = sum(shows_image)
    if num_photos == 1 or not shows_image:
        return torch.zeros(len(shows_image), dtype=torch.long)
    if num_photos != needed:
        raise InputError(f"{num_photos} images for {needed} texts about one; give one for each of them, or one for all")
    return (torch.tensor(shows_image).cumsum(0) - 1).clamp(min=0)


def _read_settings(folder: Path) -> ProcessorKeys:
    file = folder / PROCESSOR_FILE
    content = {key: tuple(v) if isinstance(v, list) else v for key, v in read_object(file).items()}
    return _KEYS.check(content, where=str(file), remedy=REMEDY)


def _check_tokens(keys: ProcessorKeys, folder: Path) -> None:
    """Without config.json, what the language model reads of an image is held to the input itself."""
    patches = (keys["image_size"] // keys["patch_size"]) ** 2
    if keys["num_image_tokens"] > patches:
        raise InputError(
            f"{folder / PROCESSOR_FILE}: num_image_tokens is {keys['num_image_tokens']}, but an image of "
            f"{keys['image_size']} pixels has {patches} patches of {keys['patch_size']} pixels. {REMEDY}"
        )


def _check_agreement(ours: ProcessorKeys, theirs: ProcessorKeys, folder: Path) -> None:
    for key, value in ours.items():
        if value != theirs[key]:
            raise InputError(
                f"{folder}: {PROCESSOR_FILE} says {key} {theirs[key]}, config.json says {value}; take both files from "
                "the same folder"
            )
