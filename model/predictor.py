"""PixelLMPredictor: an image is read once, questions about it cost their own words. Everything that answers goes here.

Shapes: B images, Q questions, L tokens, T tokens of an answer, N masks, D language-model width, H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import LlamaTokenizer

from . import cpu_products
from .asking import AnswerOptions
from .compiled import CompiledPasses
from .configuration import PRECISIONS
from .decoding import Answer, Begun, Reading, read_parts
from .errors import InputError
from .image import Photo
from .PixelLM import PixelLMForCausalLM
from .placement import DeviceMap, default_device, keep_tower_aside, main_device
from .precision import settle_precision
from .replies import Reply, Target
from .seen import Seen, batches_of_photos
from .weights.quantization import quantization
from .writing import Telling, Writer, called


@dataclass
class Dialogue:
    """What was said about an image so far.

    Attributes:
        context: what the language model has read of it.
        unread: the tokens of the last answer that it has not.
        length: tokens in all, with those of the image that show nothing.
    """

    context: Reading
    unread: list[int]
    length: int


class PixelLMPredictor:
    """Answers questions about images, with masks.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: with the codebook in it.
        compile: the passes of ``ask`` and ``stream`` are compiled, on a GPU to CUDA graphs. The first answer takes up
            to some minutes longer, and an answer that is begun ends the one before.
    Raises:
        InputError: if they cannot be compiled.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer, *, compile: bool = False) -> None:
        self.model = model
        if not model.training:
            cpu_products.use_in(model)
        self.writer = Writer(model, tokenizer)
        self.processor = self.writer.processor
        self._seen: Seen | None = None
        self._dialogue: Dialogue | None = None
        self.compiled = None
        if compile:
            self.compiled = CompiledPasses(
                model.model,
                group_size=model.codebook.size,
                attention=model.config._attn_implementation,
                device=model.device,
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        bits: int = 16,
        device: str | torch.device | None = None,
        compile: bool = False,
        device_map: DeviceMap | None = None,
        offload_vision: bool = False,
        **options: Any,
    ) -> Self:
        """Read a merged folder, ours or a published one.

        Args:
            precision: fp32, bf16 or fp16, or auto, which takes what the device computes in.
            bits: 8 or 4 quantize the language model.
            device: default is the first GPU, else the CPU.
            compile: as of the class.
            device_map: in place of one device, several: ``auto`` or a dictionary, as in transformers
                (docs/hardware.md).
            offload_vision: keep the vision tower on the CPU, and on the GPU only while an image is read.
            options: as of ``PixelLMForCausalLM.from_pretrained``, such as ``max_memory``.
        Raises:
            InputError: if the folder cannot be read, its files do not belong together, or it cannot be placed so.
        """
        if device is not None and device_map is not None:
            raise InputError("device and device_map exclude each other; give one of them")
        if compile and device_map is not None:
            raise InputError("compile and device_map exclude each other: a graph lies on one GPU; give one of them")
        placed = device_map or {"": device or default_device()}
        dtype = PRECISIONS[settle_precision(precision, main_device(placed), bits=bits)]
        model = PixelLMForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=placed,
            quantization_config=quantization(bits, dtype=dtype),
            **options,
        )
        if offload_vision:
            keep_tower_aside(model.model.vision_tower, placed)
        return cls(model, model.require_processor().tokenizer, compile=compile)

    @torch.inference_mode()
    def set_image(self, photo: Photo) -> None:
        """Read a photo; every later ``ask`` is about it, and no dialogue goes on.

        Args:
            photo: a file name, a PIL image or an (H, W, 3) uint8 RGB array.
        Raises:
            InputError: if it cannot be read.
        """
        self._seen, self._dialogue = self.writer.look_at([photo]), None

    @torch.inference_mode()
    def ask(self, question: str, *, follows: bool = False, **options: Any) -> Reply:
        """Answer a question about the current image.

        Args:
            follows: it goes on with the dialogue of the last question.
            options: of ``AnswerOptions``, such as ``max_new_tokens``; the rest is as stored with the model.
        Raises:
            InputError: if the question is too long for the model or is not UTF-8, or an option cannot be met.
            ValueError: before ``set_image``.
        """
        asked, seen = self.writer.options(options), self._require_seen()
        *_, answer = self._write(question, follows, asked, seen)
        return self.writer.replies([answer], [0], seen, asked)[0]

    @torch.inference_mode()
    def stream(self, question: str, *, follows: bool = False, **options: Any) -> Iterator[str | Target | Reply]:
        """The same, piece by piece.

        Yields:
            pieces of the text, in which ``[0]`` stands for the first target, as in ``Reply.numbered``; behind its
            number each target, as soon as its tokens are written; at last the whole reply.
        """
        asked, seen = self.writer.options(options), self._require_seen()
        telling, answer = Telling(self.writer, seen, asked), None
        for answer in self._write(question, follows, asked, seen):
            yield from telling.news(answer)
        assert answer is not None
        yield telling.reply(answer)

    @torch.inference_mode()
    def segment(self, photo: Photo, question: str | Sequence[str], **options: Any) -> Reply:
        """Answer one question about one photo, or give the masks of named things.

        Args:
            photo: a file name, a PIL image or an (H, W, 3) uint8 RGB array.
            question: or names, such as ``["the cat", "a red cup"]``. Then nothing is generated: the answer that names
                them is read in one pass, and there is one target for each name.
            options: as of ``ask``; with names, ``mask_threshold`` and ``keep_logits`` alone.
        Raises:
            InputError: if the photo cannot be read, there is no name, or as ``ask``.
        """
        if isinstance(question, str):
            self.set_image(photo)
            return self.ask(question, **options)
        asked = AnswerOptions.of_masks(options)
        self.set_image(photo)
        return self.writer.read_names(question, self._require_seen(), asked)

    @torch.inference_mode()
    def masks_for(self, photo: Photo, question: str, output_ids: Sequence[int], **options: Any) -> Reply:
        """The masks of an answer that was written before, by this model in whatever engine: one pass, no generation.

        Args:
            photo, question: what it answers.
            output_ids: its tokens, with the end mark if the model ended it.
            options: ``mask_threshold`` and ``keep_logits`` of ``AnswerOptions``.
        Raises:
            InputError: if the photo cannot be read, an id is none of the vocabulary, or an option cannot be met.
        """
        asked = AnswerOptions.of_masks(options)
        self.set_image(photo)
        size = len(self.processor.tokenizer)
        unknown = next((token for token in output_ids if not 0 <= token < size), None)
        if unknown is not None:
            raise InputError(f"output_ids has {unknown}; expected ids of the model's vocabulary, 0 to {size - 1}")
        read = self.processor.prompt_ids(self.writer.text(question)), list(output_ids)
        return self.writer.read_answers([read], [0], self._require_seen(), asked)[0]

    @torch.inference_mode()
    def ask_batch(self, requests: Sequence[tuple[Photo, str]], *, batch_size: int = 8, **options: Any) -> list[Reply]:
        """Answer questions about photos; the replies are those of ``segment`` for each of them alone.

        Args:
            requests: photos and questions in any mix; a photo that several name, by the same object or file name, is
                read once for a batch.
            batch_size: questions that are answered together.
            options: as of ``ask``.
        Returns:
            replies in the order of the requests.
        Raises:
            InputError: as ``segment``.
        """
        asked = self.writer.options(options)
        words = [self.writer.words(question) for _, question in requests]
        replies: dict[int, Reply] = {}
        for places, photos, images in batches_of_photos([photo for photo, _ in requests], batch_size):
            seen = self.writer.look_at(photos)
            mine = [words[place] for place in places]
            answers = [self.writer.blank(one, asked, row=row) for row, one in enumerate(mine)]
            context, states = seen.read(mine, images)
            for _ in self.writer.write(Begun(context, states[:, -1], answers), asked):
                pass
            replies |= dict(zip(places, self.writer.replies(answers, images, seen, asked), strict=True))
        return [replies[place] for place in range(len(requests))]

    @torch.inference_mode()
    def masks_batch(
        self, requests: Sequence[tuple[Photo, str, str]], *, batch_size: int = 8, **options: Any
    ) -> list[Reply]:
        """The masks of answers that are given: read in one pass with their questions, as in training.

        Args:
            requests: photo, question, and the answer with ``{seg}`` where a mask is asked for, in any mix.
            batch_size: answers that are read together.
            options: as of ``masks_for``.
        Returns:
            replies in the order of the requests, with a target for each ``{seg}``.
        Raises:
            InputError: if a photo cannot be read, a text is too long or not UTF-8, or an option cannot be met.
        """
        asked = AnswerOptions.of_masks(options)
        read = [
            self.processor.answered_ids(self.writer.text(question), self.writer.text(answer))
            for _, question, answer in requests
        ]
        replies: dict[int, Reply] = {}
        for places, photos, images in batches_of_photos([photo for photo, _, _ in requests], batch_size):
            seen = self.writer.look_at(photos)
            found = self.writer.read_answers([read[place] for place in places], images, seen, asked)
            replies |= dict(zip(places, found, strict=True))
        return [replies[place] for place in range(len(requests))]

    def segment_batch(self, requests: Sequence[tuple[Photo, Sequence[str]]], **options: Any) -> list[Reply]:
        """What ``segment`` gives for photos and names of things, in batches; arguments as of ``masks_batch``."""
        texts = [(photo, *self.processor.naming_texts(names)) for photo, names in requests]
        replies = self.masks_batch(texts, **options)
        return [called(reply, names) for reply, (_, names) in zip(replies, requests, strict=True)]

    def _require_seen(self) -> Seen:
        if self._seen is None:
            raise ValueError("call set_image before ask")
        return self._seen

    def _write(self, question: str, follows: bool, options: AnswerOptions, seen: Seen) -> Iterator[Answer]:
        """One answer, again whenever it has grown; at its end, the dialogue goes on from it."""
        writer, before = self.writer, self._dialogue if follows else None
        if before:
            words = [*before.unread, *writer.further_words(question)]
            context, length = before.context, before.length + len(words)
            writer.check_length(length)
            states = read_parts(context, [words], self.model.model.embed_tokens, device=self.model.device)
        else:
            words = writer.words(question)
            context, states = seen.read([words], [0])
            context, length = self.compiled.begin(context) if self.compiled else context, len(writer.prefix_ids + words)
        begun, answer = context.length, writer.blank(words, options, length=length)
        for _ in writer.write(Begun(context, states[:, -1], [answer]), options):
            self._dialogue = None  # a stream that is left half way has changed what was read
            yield answer
        unread = writer.with_end(answer.ids)[context.length - begun :]
        self._dialogue = Dialogue(context, unread, length + context.length - begun)
