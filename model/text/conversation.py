"""The two conversation templates of the release, as immutable data.

The strings are the protocol that the published weights were trained on; see Conversation.render.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import InputError

IMAGE_MARK = "<image>"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
SEG_MARK = "{seg}"  # stands in an answer for one token group

# Stands before every mark that we write ourselves, so that the same letters in what somebody says are letters. It is a
# Unicode noncharacter, which no text has any use for.
OURS = "\ufdd0"
IMAGE = f"{OURS}{IMAGE_START}{OURS}{IMAGE_MARK}{OURS}{IMAGE_END}\n"


@dataclass(frozen=True)
class Rendered:
    """A conversation as one string.

    Attributes:
        marked: what is tokenized: ``OURS`` stands before each mark.
        answer_spans: half-open ranges in ``marked`` of what the assistant says, end mark included.
    """

    marked: str
    answer_spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """The conversation as people read it."""
        return self.marked.replace(OURS, "")


@dataclass(frozen=True)
class Conversation:
    """A template: everything before a question, between question and answer, and after an answer."""

    name: str
    head: str
    before_question: str
    before_answer: str
    after_answer: str

    def render(
        self, turns: Sequence[tuple[str, str | None]], *, image: str = "", group: Sequence[str] = ()
    ) -> Rendered:
        """Write (question, answer) turns as one string.

        Whatever looks like a mark in a question or an answer is text, ``{seg}`` in an answer excepted. An empty or
        missing answer leaves the conversation open for the model to continue; only the last one may be.

        Args:
            image: stands before the first question: ``IMAGE`` when the conversation is about one.
            group: the tokens that stand for each ``{seg}``.
        Raises:
            ValueError: if an earlier turn has no answer.
        """
        text, spans = "", []
        tokens = " ".join(OURS + token for token in group)
        for index, (question, answer) in enumerate(turns):
            if index == 0:
                text += self.head + image
            else:
                text += self.before_question
            text += _said(question) + self.before_answer
            if not answer:
                if index != len(turns) - 1:
                    raise ValueError(f"turn {index} of {len(turns)} has no answer; only the last may be open")
                break
            start = len(text)
            answer = _said(answer)
            text += f" {answer.replace(SEG_MARK, tokens) if tokens else answer}{self.after_answer}"
            spans.append((start, len(text)))
        return Rendered(text, tuple(spans))


def _said(text: str) -> str:
    return text.replace(OURS, "\N{REPLACEMENT CHARACTER}")


_LLAVA_V1 = Conversation(
    name="llava_v1",
    head=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: "
    ),
    before_question="USER: ",
    before_answer=" ASSISTANT:",
    after_answer=f"{OURS}</s>",
)
_LLAVA_LLAMA_2 = Conversation(
    name="llava_llama_2",
    head=(
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    ),
    before_question=f"{OURS}<s>[INST] ",
    before_answer=" [/INST]",
    after_answer=f" {OURS}</s>",
)
CONVERSATIONS = {conversation.name: conversation for conversation in (_LLAVA_V1, _LLAVA_LLAMA_2)}


def get_conversation(name: str) -> Conversation:
    """The template of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in CONVERSATIONS:
        raise InputError(f"conv_type {name!r} is unknown; expected one of {', '.join(CONVERSATIONS)}")
    return CONVERSATIONS[name]
