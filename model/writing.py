"""Questions to tokens, tokens to replies: all that answers need of a model, whoever asks and in whatever order.

Shapes: Q questions, T tokens of an answer, N masks, D language-model width, H, W size of a photo.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor
from transformers import LlamaTokenizer

from .asking import AnswerOptions
from .decoding import Answer, Begun, Rules, decode
from .errors import InputError
from .image import Photo
from .PixelLM import PixelLMForCausalLM
from .processor import PixelLMProcessor
from .replies import Reply, Target, make_reply
from .seen import Seen, decode_groups, group_states
from .text.tokenizer import answer_text
from .text.tokens import IMAGE_TOKEN_ID, name_groups

_LONGEST_TOKEN = 100  # characters; tokens of real vocabularies are far shorter


class Writer:
    """Reads questions about images, and writes the answers; it remembers nothing.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: with the codebook in it.
    Attributes:
        prefix_ids: what stands before the first question about an image, with the placeholders of the image.
        longest: tokens that the model reads at most.
        end_id: of the token that ends an answer.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        self.model = model
        self.processor = PixelLMProcessor.of(model.config, tokenizer)
        prompt = self.processor.prompt_ids("")
        self.prefix_ids = prompt[: len(prompt) - prompt[::-1].index(IMAGE_TOKEN_ID)]
        self.longest = cast(int, model.config.text_config.max_position_embeddings)
        self.end_id = cast(int, tokenizer.eos_token_id)

    def options(self, told: dict[str, Any]) -> AnswerOptions:
        """What a user told, and of the rest what is stored with the model."""
        return AnswerOptions.of(self.model.generation_config, **told)

    def look_at(self, photos: Sequence[Photo], *, keeps_prefix: bool = True) -> Seen:
        """Read photos; see ``Seen``."""
        return Seen(self.model, self.processor, photos, self.prefix_ids, keeps_prefix=keeps_prefix)

    def words(self, question: str) -> list[int]:
        """Of a first question, what follows the image.

        Raises:
            InputError: if it is too long, or not UTF-8.
        """
        prompt = self.processor.prompt_ids(self.text(question))
        self.check_length(len(prompt))
        return prompt[len(self.prefix_ids) :]

    def further_words(self, question: str) -> list[int]:
        """Of a further question, what follows the answer before it; the caller checks the length of them all."""
        return self.processor.follow_up_ids(self.text(question))

    def text(self, question: str) -> str:
        """The same, if it is not far too long.

        Raises:
            InputError: if it is.
        """
        if len(question) > _LONGEST_TOKEN * self.longest:  # pasted by mistake: a megabyte takes seconds to tokenize
            raise InputError(
                f"the question has {len(question)} characters, but the model reads at most {self.longest} tokens; "
                "shorten it"
            )
        return question

    def check_length(self, length: int) -> None:
        """Hold a dialogue to what the model reads, in tokens with those of the image.

        Raises:
            InputError: if it leaves no room for an answer.
        """
        if length >= self.longest:
            raise InputError(
                f"the question has {length} tokens with the image and what was said before it, but the model reads at "
                f"most {self.longest}; shorten it"
            )

    def blank(self, words: Sequence[int], options: AnswerOptions, *, row: int = 0, length: int | None = None) -> Answer:
        """An answer that is to be written.

        Args:
            words: what it answers.
            row: its number.
            length: tokens of the dialogue so far; by default those of the image and the words.
        """
        if length is None:
            length = len(self.prefix_ids) + len(words)
        return Answer(row, min(options.max_new_tokens, self.longest - length))

    def write(
        self, begun: Begun, options: AnswerOptions, *, arrivals: Callable[[], Begun | None] | None = None
    ) -> Iterator[Answer]:
        """Write answers; yields each whenever it has grown, see ``decode``."""
        model, tokenizer = self.model, self.processor.tokenizer

        def has_stop(answer: Answer) -> bool:
            text = answer_text(tokenizer, answer.ids)
            return any(stop in text for stop in options.stop)

        rules = Rules(
            group=model.codebook.ids,
            by_group=options.codebook_fast_path,
            max_groups=options.max_targets,
            end_ids=frozenset([self.end_id]),
            must_stop=has_stop if options.stop else None,
        )
        for answer, _ in decode(
            begun, rules, embed=model.model.embed_tokens, head=model.lm_head, pick=options.picker(model.codebook.ids),
            arrivals=arrivals,
        ):  # fmt: skip
            yield answer

    def with_end(self, ids: list[int]) -> list[int]:
        """An answer as a dialogue goes on from it: with its end mark, also if the model did not write it."""
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def read_answers(
        self, read: Sequence[tuple[list[int], list[int]]], images: Sequence[int], seen: Seen, asked: AnswerOptions
    ) -> list[Reply]:
        """The replies to questions whose answers are known, in one pass.

        Args:
            read: the ids of each prompt and of its answer.
            images: which of those seen each is about.
        Raises:
            InputError: if they are too long for the model.
        """
        length = max(len(prompt) + len(ids) for prompt, ids in read)
        if length > self.longest:
            raise InputError(
                f"question and answer have {length} tokens with the image; the model reads at most {self.longest}"
            )
        answers = seen.read_answers([(prompt[len(self.prefix_ids) :], ids) for prompt, ids in read], images)
        for answer in answers:
            answer.is_cut = answer.ids[-1:] != [self.end_id]
        return self.replies(answers, images, seen, asked)

    def read_names(self, names: Sequence[str], seen: Seen, asked: AnswerOptions) -> Reply:
        """The masks of named things in the one image: the answer that names them is read, nothing is generated.

        Raises:
            InputError: if there is no name, or they are too long for the model.
        """
        question, answer = self.processor.naming_texts(names)
        read = self.processor.answered_ids(self.text(question), self.text(answer))
        (reply,) = self.read_answers([read], [0], seen, asked)
        return called(reply, names)

    def replies(
        self, answers: Sequence[Answer], images: Sequence[int], seen: Seen, asked: AnswerOptions
    ) -> list[Reply]:
        """Decode the masks of written answers together."""
        masks = decode_groups(self.model, [group_states(self.model, one) for one in answers], images, seen.features)
        return [
            self._reply(answer, logits, seen.sizes[image], asked)
            for answer, logits, image in zip(answers, masks, images, strict=True)
        ]

    def grown_reply(self, answer: Answer, known: list[Target], seen: Seen, asked: AnswerOptions) -> Reply:
        """What there is of one answer about the first image; only masks that are not known are decoded."""
        states = group_states(self.model, answer)[len(known) :]
        (logits,) = decode_groups(self.model, [states], [0], seen.features)
        return self._reply(answer, logits, seen.sizes[0], asked, known=known)

    def _reply(
        self,
        answer: Answer,
        logits: Tensor,
        photo_hw: tuple[int, int],
        asked: AnswerOptions,
        known: Sequence[Target] = (),
    ) -> Reply:
        processor = self.processor
        return make_reply(
            answer.ids, processor.on_photo(logits, photo_hw), processor.codebook, processor.tokenizer,
            is_cut=answer.is_cut, asked=asked, known=known,
        )  # fmt: skip


class Telling:
    """One answer about one image, told piece by piece while it is written."""

    def __init__(self, writer: Writer, seen: Seen, asked: AnswerOptions) -> None:
        self._writer, self._seen, self._asked = writer, seen, asked
        self._shown, self._targets = "", list[Target]()

    def news(self, answer: Answer) -> Iterator[str | Target]:
        """What has come since: text in which ``[0]`` stands for the first target, and behind its number a target."""
        text = answer_text(self._writer.processor.tokenizer, answer.ids)
        numbers = (f"[{number}]" for number in itertools.count())
        text = name_groups(text, self._writer.model.codebook.group_text, numbers)
        if text.startswith(self._shown) and not text.endswith("\ufffd"):  # a letter of several tokens is not whole yet
            yield text[len(self._shown) :]
            self._shown = text
        if answer.num_groups > len(self._targets):
            self._targets = self.reply(answer).targets
            yield self._targets[-1]

    def reply(self, answer: Answer) -> Reply:
        """All of it."""
        return self._writer.grown_reply(answer, self._targets, self._seen, self._asked)


def called(reply: Reply, names: Sequence[str]) -> Reply:
    """The reply to an answer that gives names, its targets called by them."""
    for target, name in zip(reply.targets, names, strict=True):
        target.phrase = name
    return reply
