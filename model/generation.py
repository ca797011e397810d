"""Answers with masks: transformers' ``generate``, and the masks of the token groups that it wrote.

Shapes: Q conversations, B images, L prompt tokens, T new tokens, D language-model width, N masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.utils.generic import ModelOutput
from typing_extensions import TypedDict

from .codebook import gather_seg_states
from .context import Context
from .decoding import Answer, Begun, Rules, decode
from .errors import InputError
from .files import read_object
from .rows import rows_of_conversations
from .structures import PixelLMGenerateOutput, SegQueries, TokenRows, VisionFeatures
from .text.tokens import IMAGE_TOKEN_ID, SegCodebook
from .values import Count, NonEmptyText, NonNegativeInt, Positive, Schema, ShareAboveZero

MAX_NEW_TOKENS = 512  # where neither the caller nor generation_config.json says it
# They run the network once for each token, so that each has its state.
_STRATEGIES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
_REMEDY = "Copy it again from its source, or remove it: then answers are greedy"


class GenerationKeys(TypedDict, total=False):
    """What generation_config.json may say; transformers checks the rest.

    Two are ours, ``max_targets`` and ``codebook_fast_path``; transformers keeps what it does not know.
    """

    bos_token_id: NonNegativeInt | None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None
    pad_token_id: NonNegativeInt | None
    max_new_tokens: Count | None
    num_beams: Count | None
    num_return_sequences: Count | None
    max_targets: NonNegativeInt | None
    codebook_fast_path: bool | None
    do_sample: bool | None
    temperature: Positive | None
    top_p: ShareAboveZero | None
    repetition_penalty: Positive | None
    stop_strings: list[NonEmptyText] | None


_KEYS = Schema(GenerationKeys)
_OF_TRANSFORMERS = (  # options that its own loop alone knows
    "output_scores", "output_logits", "output_attentions", "output_hidden_states", "cache_implementation",
)  # fmt: skip


@dataclass
class Writing:
    """What the loop is told beside transformers' options, and what it keeps.

    Attributes:
        by_group: the first token of a group brings the others along.
        max_groups: of an answer.
        states: T tensors (rows, D) that predicted the new tokens.
    """

    by_group: bool
    max_groups: int | None
    states: list[Tensor] = field(default_factory=list)


class AnswersWithMasks(GenerationMixin):
    """The generating half of PixelLMForCausalLM, which has what is declared here."""

    codebook: SegCodebook
    encode_images: Callable[[Tensor, Tensor | None], VisionFeatures]
    embed: Callable[[TokenRows, VisionFeatures | None], Tensor]
    fuse: Callable[[Tensor], Tensor]
    decode_masks: Callable[[VisionFeatures, SegQueries], Tensor]
    config: Any
    model: Any
    lm_head: Callable[[Tensor], Tensor]
    generation_config: GenerationConfig
    processor: Any

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        valid_hw: Tensor | None = None,
        image_index: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_features: VisionFeatures | None = None,
        codebook_fast_path: bool | None = None,
        max_targets: int | None = None,
        **options: Any,
    ) -> PixelLMGenerateOutput:
        """Answer conversations, and decode a mask for every token group.

        What the caller leaves out is taken from ``generation_config``, which is stored with the model; what that leaves
        out, too, is greedy search without a cap on targets.

        Args:
            input_ids: (Q, L), image placeholders expanded, padded on the left; what ``PixelLMProcessor`` gives.
            pixel_values: (B, 3, R, R); valid_hw: (B, 2); image_index: (Q,), the image of each conversation.
            attention_mask: (Q, L), zero on padding.
            vision_features: of ``encode_images``, in place of the images, to ask again without encoding again.
            codebook_fast_path: the first token of a group brings the others along, and all are read in one pass.
                Otherwise each is chosen by itself, and a group may break off. On unless the settings say otherwise.
            max_targets: complete groups of an answer, at most; then it goes on in words.
            options: as of transformers' ``generate``, such as ``max_new_tokens`` or ``streamer``.
                ``return_dict_in_generate=False`` gives the sequences alone, as transformers' pipelines ask for.
        Raises:
            InputError: if a way of decoding was asked for that keeps no state of each token, such as assisted
                generation, or the prompt was to be read in chunks.
            ValueError: if the placeholders do not fit the images, or ``valid_hw`` is missing.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if image_index is None:
            image_index = torch.arange(len(input_ids), device=input_ids.device)
        if vision_features is None and pixel_values is not None:
            vision_features = self.encode_images(pixel_values, valid_hw)
        patch_mask = None if vision_features is None else vision_features.patch_mask
        rows = rows_of_conversations(
            input_ids, attention_mask, image_index, codebook=self.codebook, patch_mask=patch_mask
        )
        settings = options.get("generation_config"), self.generation_config
        by_group = _first_given(codebook_fast_path, "codebook_fast_path", settings)
        writing = Writing(by_group is not False, _first_given(max_targets, "max_targets", settings))
        if self.processor is not None:
            options.setdefault("tokenizer", self.processor.tokenizer)  # stop strings are looked for in text
        text_alone = options.get("return_dict_in_generate") is False
        output = super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=input_ids.masked_fill(input_ids == IMAGE_TOKEN_ID, 0),  # penalties look ids up in a table
            inputs_embeds=self.embed(rows, vision_features),
            attention_mask=rows.visible.long(),
            position_ids=rows.position_ids,
            writing=writing,
            **{**options, "return_dict_in_generate": True},
        )
        found = self._with_masks(cast(ModelOutput, output), writing.states, input_ids, image_index, vision_features)
        found["end_ids"] = _end_ids(options, self.generation_config)
        return cast(Any, found.sequences) if text_alone else found

    def _validate_generation_mode(
        self, generation_mode: GenerationMode, generation_config: GenerationConfig, *args: Any, **options: Any
    ) -> None:
        if generation_mode not in _STRATEGIES:
            raise InputError(
                f"{generation_mode.value.replace('_', ' ')} gives no masks, which are decoded from the state of each "
                "token; use greedy search, sampling or beam search"
            )
        if generation_config.prefill_chunk_size is not None:
            raise InputError("prefill_chunk_size: a prompt with an image in it is read at once; leave it out")
        super()._validate_generation_mode(  # pyright: ignore[reportAttributeAccessIssue]
            generation_mode, generation_config, *args, **options
        )

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        *,
        writing: Writing,
        **prepared: Any,
    ) -> ModelOutput:
        """Greedy search and sampling, as transformers asks for them once it has read all options; see ``decode``.

        What only transformers' own loop has is left to it: scores and the like of every token, its kinds of cache, and
        processes that wait for one another. Then each token is chosen by itself.
        """
        if synced_gpus or any(getattr(generation_config, name) for name in _OF_TRANSFORMERS):
            sample = super()._sample  # pyright: ignore[reportAttributeAccessIssue]
            return sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer,
                writing=writing, **prepared,
            )  # fmt: skip
        context = Context(self.model, num_layers=self.config.text_config.num_hidden_layers)
        prompt = without_gaps(prepared["inputs_embeds"], prepared["attention_mask"], prepared["position_ids"])
        first = context.read(*prompt)[:, -1]
        ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        processors = [_of_row(logits_processor, row) for row in range(len(input_ids))]
        others = [one for one in stopping_criteria if not isinstance(one, (MaxLengthCriteria, EosTokenCriteria))]

        def written(answer: Answer) -> Tensor:
            new = torch.tensor(answer.ids, dtype=input_ids.dtype, device=input_ids.device)
            return torch.cat([input_ids[answer.row], new])[None]

        def pick(logits: Tensor, answers: Sequence[Answer]) -> list[int]:
            scores = logits.to(input_ids.device, torch.float32)
            if logits_processor:
                of_answers = zip(answers, scores.split(1), strict=True)
                scores = torch.cat(
                    [processors[one.row](cast(Any, written(one)), cast(Any, mine)) for one, mine in of_answers]
                )
            if generation_config.do_sample:
                return torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist()
            return scores.argmax(-1).tolist()

        rules = Rules(
            group=self.codebook.ids,
            by_group=writing.by_group,
            max_groups=writing.max_groups,
            end_ids=frozenset(() if ends is None else ends.tolist()),
            must_stop=(lambda answer: any(bool(one(written(answer), None)) for one in others)) if others else None,
        )
        room = generation_config.max_length - input_ids.shape[1]
        answers = [Answer(row, room) for row in range(len(input_ids))]
        for _, part in decode(
            Begun(context, first, answers), rules, embed=self.model.embed_tokens, head=self.lm_head, pick=pick
        ):
            for token in part if streamer else ():
                streamer.put(torch.tensor([token]))
        if streamer:
            streamer.end()
        new_ids = pad_sequence(
            [torch.tensor(answer.ids, dtype=input_ids.dtype) for answer in answers],
            batch_first=True,
            padding_value=0 if pad is None else int(pad),
        )
        writing.states.extend(pad_sequence([torch.cat([first[:0], *answer.states]) for answer in answers]))
        sequences = torch.cat([input_ids, new_ids.to(input_ids.device)], 1)
        return GenerateDecoderOnlyOutput(sequences=cast(Any, sequences))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, writing: Any = None, **kwargs: Any
    ) -> Any:
        """transformers' own, which looks at the names above; ``writing`` goes to the next method alone."""
        del writing
        prepare = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        return prepare(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs: ModelOutput, model_kwargs: Any, **options: Any) -> Any:
        """Once for each new token: keep the one state that masks are decoded from, not those of every layer."""
        state = outputs["last_hidden_state"][:, -1]
        model_kwargs["writing"].states.append(state.clone())  # a view would keep those of the prompt
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **options)

    def _with_masks(
        self,
        output: ModelOutput,
        new_states: list[Tensor],
        input_ids: Tensor,
        image_index: Tensor,
        features: VisionFeatures | None,
    ) -> PixelLMGenerateOutput:
        others = dict(output)
        sequences: Tensor = others.pop("sequences")
        prompts = input_ids.repeat_interleave(len(sequences) // len(input_ids), 0)
        new_ids = sequences[:, input_ids.shape[1] :]
        states = _states_of_sequences(new_states, new_ids, others.get("beam_indices"))
        masks = None
        if features is not None:
            rows, starts = self.codebook.find_groups(new_ids)  # (N,)
            sees_image = (prompts == IMAGE_TOKEN_ID).any(1)[rows]
            rows, starts = rows[sees_image], starts[sees_image]
            after = rows * states.shape[1] + starts + 1  # states[i] predicted ids[i]
            grouped = gather_seg_states(states, after, codebook=self.codebook)
            images = image_index.repeat_interleave(len(sequences) // len(input_ids))[rows]
            low_res = self.decode_masks(features, SegQueries(self.fuse(grouped), rows, images))
            masks = [low_res[rows == row] for row in range(len(sequences))]
        return PixelLMGenerateOutput(
            sequences=torch.cat([prompts, new_ids], 1), mask_logits=masks, states=states, others=others
        )


def _of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """For one answer alone: answers have unlike lengths. A penalty for repetition knows where each prompt begins."""
    mine = LogitsProcessorList()
    for processor in processors:
        begins = getattr(processor, "prompt_ignore_length", None)
        if isinstance(begins, Tensor):
            processor = copy.copy(processor)
            cast(Any, processor).prompt_ignore_length = begins[row : row + 1]
        mine.append(processor)
    return mine


def without_gaps(embeds: Tensor, visible: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Prompts without what nothing sees, each at the end of its row; what ``Context.read`` takes.

    Args:
        embeds: (Q, L, D); visible: (Q, L), None if all are; positions: (Q, L).
    """
    if visible is None:
        return embeds, None, positions
    visible, positions = visible.to(embeds.device, torch.bool), positions.to(embeds.device)
    width = int(visible.sum(1).max())
    kept = visible.long().argsort(dim=1, stable=True)[:, -width:]
    is_token = visible.gather(1, kept)
    embeds = embeds.gather(1, kept[..., None].expand(-1, -1, embeds.shape[-1]))
    return embeds, None if bool(is_token.all()) else is_token, positions.gather(1, kept)


def read_generation_config(file: Path) -> GenerationConfig:
    """How a model is to answer, where the caller does not say it.

    Raises:
        InputError: if the file is damaged.
    """
    content = read_object(file, remedy=_REMEDY)
    _KEYS.check(content, where=str(file), remedy=_REMEDY)
    try:
        return GenerationConfig.from_dict(content)
    except (ValueError, TypeError) as err:
        raise InputError(f"{file} is not valid ({err}). {_REMEDY}") from err


def check_settings(settings: GenerationConfig) -> None:
    """Hold settings that are to be stored to what will be read again.

    Raises:
        InputError: with the setting that is wrong, or has no effect.
    """
    remedy = "Set it to another value, or to None, before the model is saved"
    _KEYS.check(settings.to_dict(), where="generation_config", remedy=remedy)
    try:
        settings.validate(strict=True)
    except ValueError as err:
        raise InputError(f"generation_config: {' '.join(str(err).split())}") from err


def _first_given(told: Any, name: str, settings: Sequence[GenerationConfig | None]) -> Any:
    """What the caller says, or the first of the settings that says something."""
    values = (told, *(getattr(one, name, None) for one in settings))
    return next((value for value in values if value is not None), None)


def _end_ids(options: dict[str, Any], of_model: GenerationConfig) -> tuple[int, ...]:
    """Which tokens end an answer, as transformers takes it from the options of ``generate``."""
    settings = options.get("generation_config") or of_model
    ends = options.get("eos_token_id", settings.eos_token_id)
    return () if ends is None else tuple(torch.as_tensor(ends).flatten().tolist())


def _states_of_sequences(new_states: list[Tensor], new_ids: Tensor, beam_indices: Tensor | None) -> Tensor:
    """T tensors (rows, D) -> (Q, T, D): the states that predicted each token of each sequence."""
    count = new_ids.shape[1]
    states = torch.stack(new_states[:count])  # (T, rows, D)
    if beam_indices is None:
        return rearrange(states, "t q d -> q t d")
    beams = beam_indices[:, :count].to(states.device).clamp(min=0)  # that each token came from; -1 behind the end
    return states[torch.arange(count, device=beams.device), beams]
