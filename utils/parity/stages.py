"""The stages of a parity check: each compares one part of a recorded case with what this code computes.

A measure is one compared quantity. Limits: ids, labels and words identical; pixels 1e-5; features, hidden states and
logits 1e-4 (norm of the difference over norm of the reference); losses 1e-5 and gradient norms 1e-3, relative; masks
with IoU of at least 0.999; merged weights 1e-6.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.errors import InputError
from model.files import is_file, read_json
from model.image import read_image
from model.losses import LossWeights, pixellm_loss
from model.predictor import PixelLMPredictor
from model.structures import Batch, PixelLMOutput
from model.text.conversation import IMAGE, IMAGE_MARK, Rendered, get_conversation
from model.text.tokenizer import add_codebook, decode_released, load_tokenizer
from model.text.tokens import IMAGE_TOKEN_ID, SegCodebook, encode_conversation, seg_strings
from model.weights.released import RELEASED_CONSTANTS
from model.weights.tensors import read_weights
from utils.cli.config import MergeConfig, Template
from utils.data.encode import Sample
from utils.data.prompts import EVAL_MASK_REQUEST
from utils.data.records import SEG_MARK, RawSample
from utils.data.registry import build_val_source
from utils.training.lora import is_trained
from utils.training.merge import merge

from .recording import Case, find_cases, released_ids, template_of

PIXELS, FEATURES, LOSSES, GRADIENTS, OVERLAP, WEIGHTS = 1e-5, 1e-4, 1e-5, 1e-3, 1e-3, 1e-6
SCORES = 1e-4
# A validation record has rounded numbers: centroids to 0.01 pixel, mean and std to 1e-5.
CENTROIDS, STATISTICS = 6e-3, 2e-5


@dataclass(frozen=True)
class Measure:
    """One compared quantity.

    Attributes:
        difference: how far this code is from the recording; nan is never within the limit.
        limit: what is allowed; 0 asks for the same.
    """

    what: str
    difference: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit

    @property
    def badness(self) -> tuple[bool, float]:
        """Orders measures: failed ones first, then by how much of the limit is used."""
        used = self.difference / self.limit if self.limit else self.difference
        return (not self.ok, float("inf") if used != used else used)


@dataclass(frozen=True)
class StageResult:
    """All measures of one stage of one case; ``error`` says why there is none."""

    case: str
    stage: str
    measures: tuple[Measure, ...]
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and bool(self.measures) and all(measure.ok for measure in self.measures)

    def line(self) -> str:
        """One line: the measure nearest to its limit, or the worst one beyond it."""
        head = f"{self.stage:12} {self.case:14}"
        if not self.measures or self.error:
            return f"{head} {self.error or 'nothing was recorded'}  FAIL"
        worst = max(self.measures, key=lambda measure: measure.badness)
        failed = sum(not measure.ok for measure in self.measures)
        count = f"{failed} of {len(self.measures)} failed" if failed else f"worst of {len(self.measures)}"
        figures = f"difference {worst.difference:.1e}  limit {worst.limit:.0e}"
        return f"{head} {figures}  ({count}: {worst.what})  {'ok' if self.ok else 'FAIL'}"


def run_stages(
    golden: Path, *, dataset_dir: Path, case: str = "", stage: str = "", cases: Sequence[Case] | None = None
) -> Iterator[StageResult]:
    """Compare what was recorded, a stage of a case at a time.

    Args:
        dataset_dir: the tree that val_datasets.json speaks about.
        case, stage: only this one (``STAGE_NAMES``); default all.
    Raises:
        InputError: if nothing is recorded under these names.
    """
    cases = list(cases or find_cases(golden))
    chosen = [found for found in cases if case in ("", found.name)]
    if not chosen:
        raise InputError(f"--case {case} is not in {golden}; it has {', '.join(found.name for found in cases)}")
    count = 0
    for name in [stage] if stage else STAGES:
        for found in _recorded_for(name, chosen):
            count += 1
            yield _run_stage(name, found, dataset_dir)
    if count == 0:
        raise InputError(f"{golden} holds no recording for --stage {stage or 'any'} --case {case or 'any'}")


def _recorded_for(stage: str, cases: Sequence[Case]) -> list[Case]:
    """The cases that have something to compare. Validation sets belong to none: the first of their size reads them."""
    if stage == "val_datasets":
        file = cases[0].golden / "val_datasets.json"
        recorded = read_json(file) if is_file(file) else {}
        sizes = {max(entry["resize"]) for entries in recorded.values() for entry in entries}
        fitting = [case for case in cases if sizes == {case.config.image_size}]
        return (fitting or list(cases))[:1] if recorded else []
    needed = {"merge": ("pytorch_model.bin", "hf_model"), "chat": ("chat.json", "hf_model")}
    computed = {"images": "images_clip", "vision": "clip_last", "train_step": "hidden"}
    return [
        case
        for case in cases
        if case.has(*needed.get(stage, ())) and (stage not in computed or computed[stage] in case.arrays)
    ]


def _run_stage(stage: str, case: Case, dataset_dir: Path) -> StageResult:
    try:
        compare = STAGES[stage]
        measures = compare(case, dataset_dir) if stage == "val_datasets" else compare(case)
        return StageResult(case.name, stage, tuple(measures))
    except InputError as err:
        return StageResult(case.name, stage, (), str(err))
    except (LookupError, OSError, ValueError) as err:
        return StageResult(case.name, stage, (), f"the recording cannot be compared: {err!r}")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over norm of the reference; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    norm = np.linalg.norm(expected)
    difference = np.linalg.norm(found.astype(np.float64) - expected)
    return float(difference / norm) if norm else float(difference)


def same(found: Any, expected: Any) -> float:
    """0 or 1."""
    return float(found != expected)


def compare_tokens(case: Case) -> Iterator[Measure]:
    """Rendered conversations, ids, labels and padding of the batch; prompts of the chats; both templates."""
    config, batch = case.config, case.batch
    dialogues = [
        (question, answer)
        for questions, answers in zip(case.dialogues["questions"], case.dialogues["answers"], strict=True)
        for question, answer in zip(questions, answers, strict=True)
    ]
    for number, recorded in enumerate(case.dialogues["conversations"]):
        rendered = _render(config.conv_type, [dialogues[number]], case.codebook)
        yield Measure(f"words of conversation {number}", same(rendered.text, recorded), 0)
    rows = zip(batch.input_ids, batch.labels, batch.attention_mask, strict=True)
    for number, (ids, labels, mask) in enumerate(rows):
        expected = {name: case.arrays[name][number].tolist() for name in ("input_ids", "labels", "attention_masks")}
        keep = _kept_by_release(ids)
        yield Measure(f"ids of conversation {number}", same(ids[keep].tolist(), expected["input_ids"]), 0)
        yield Measure(f"labels of conversation {number}", same(labels[keep].tolist(), expected["labels"]), 0)
        yield Measure(f"padding of conversation {number}", same(mask[keep].tolist(), expected["attention_masks"]), 0)
    if case.has("chat.json", "hf_model"):
        yield from _compare_chat_prompts(case)
    if (case.golden / "conversations.json").is_file():
        yield from _compare_templates(case)


def _render(conv_type: str, turns: Sequence[tuple[str, str | None]], codebook: SegCodebook) -> Rendered:
    """A recorded conversation about an image, whose answers hold the release's token groups."""
    marked = [(question, answer and answer.replace(codebook.group_text, SEG_MARK)) for question, answer in turns]
    group = seg_strings(codebook.scales, codebook.tokens)
    return get_conversation(conv_type).render(marked, image=IMAGE, group=group)


def _kept_by_release(ids: Tensor) -> Tensor:
    """(L,) bool: everything but the second and later placeholders of the image."""
    is_image = ids == IMAGE_TOKEN_ID
    first = torch.zeros_like(is_image)
    first[is_image.nonzero()[:1]] = True
    return ~is_image | first


def _compare_chat_prompts(case: Case) -> Iterator[Measure]:
    """With the tokenizer of the published folder, which the release wrote after adding its tokens."""
    tokenizer = load_tokenizer(case.published)
    add_codebook(tokenizer, scales=case.codebook.scales, tokens=case.codebook.tokens)
    for number, chat in enumerate(case.json("chat.json")):
        rendered = _render(template_of(chat["prompt"]), [(chat["question"], None)], case.codebook)
        ids, _ = encode_conversation(tokenizer, rendered, num_image_tokens=1)
        yield Measure(f"prompt of chat {number}", same(rendered.text, chat["prompt"]), 0)
        yield Measure(f"prompt ids of chat {number}", same(ids, chat["input_ids"]), 0)


def _compare_templates(case: Case) -> Iterator[Measure]:
    """conversations.json: the ids of the image marks tell how many tokens its codebook had."""
    recorded = read_json(case.golden / "conversations.json")
    tokenizer = load_tokenizer(case.base)
    rows = [entry["input_ids"] for entry in recorded if IMAGE_TOKEN_ID in entry["input_ids"]]
    first_marks = {row[row.index(IMAGE_TOKEN_ID) - 1] for row in rows} or {len(tokenizer) + case.codebook.size}
    codebook = add_codebook(tokenizer, scales=1, tokens=max(1, min(first_marks) - len(tokenizer)))
    for number, entry in enumerate(recorded):
        name = f"{entry['conv_type']} {number}"
        turns = [(question.removeprefix(f"{IMAGE_MARK}\n"), answer) for question, answer in entry["turns"]]
        rendered = _render(entry["conv_type"], turns, codebook)
        ids, labels = encode_conversation(tokenizer, rendered, num_image_tokens=1)
        yield Measure(f"words of {name}", same(rendered.text, entry["rendered_with_image_marks"]), 0)
        yield Measure(f"ids of {name}", same(ids, entry["input_ids"]), 0)
        if "labels" in entry:
            yield Measure(f"labels of {name}", same(labels, entry["labels"]), 0)


def compare_images(case: Case) -> Iterator[Measure]:
    """Pixels after resizing, normalizing and padding, and the size of the valid part."""
    found, expected = case.thin("images_clip", case.batch.pixel_values), case.arrays["images_clip"]
    yield Measure("valid sizes", same(case.batch.valid_hw.tolist(), case.arrays["resize"].tolist()), 0)
    yield Measure("shape", same(found.shape, expected.shape), 0)
    if found.shape == expected.shape:
        for name, ours, theirs in zip(case.dialogues["images"], found, expected, strict=True):
            yield Measure(f"pixels of {name}", float(np.abs(ours - theirs).max()), PIXELS)


def compare_vision(case: Case) -> Iterator[Measure]:
    """Tower features with padding hidden, and the decoder's projection of every scale."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tower = case.network.model.vision_tower(case.batch.pixel_values, case.batch.valid_hw)
        features = case.network.encode_images(case.batch.pixel_values, case.batch.valid_hw)
    yield Measure("tower features", relative(case.thin("clip_last", tower[0]), case.arrays["clip_last"]), FEATURES)
    pyramid = features.pyramid.flatten(3).transpose(2, 3)  # (S, B, g*g, D)
    yield Measure("scales", same(len(pyramid), sum(name.startswith("multi_") for name in case.arrays)), 0)
    for scale, projected in enumerate(pyramid):
        name = f"multi_{scale}"
        if name in case.arrays:
            difference = relative(case.thin(name, projected), case.arrays[name])
            yield Measure(f"projection of scale {scale}", difference, FEATURES)


def compare_training_step(case: Case) -> Iterator[Measure]:
    """Hidden states, logits, low-resolution masks, losses, and the gradient norm of every trained parameter.

    All but the first two are compared a second time, with conversations that share the prefix of their image.
    """
    recorded = case.json("train_step.json")
    norms = recorded["grad_norms"]
    case.network.requires_grad_(False)
    for name in norms:
        case.parameter(name).requires_grad = True
    output = _run(case, case.batch)
    yield Measure(
        "hidden states", relative(case.thin("hidden", output.last_hidden_state), case.arrays["hidden"]), FEATURES
    )
    with torch.no_grad():
        logits = case.thin("logits", case.network.lm_head(output.last_hidden_state))
    yield Measure("logits", relative(logits, case.arrays["logits"]), FEATURES)
    yield from _compare_masks_and_losses(case, output, recorded, layout="")
    yield from _compare_gradients(case, norms, layout="")
    yield from _compare_trained_set(case, norms)
    output = _run(case, case.shared_batch)
    yield from _compare_masks_and_losses(case, output, recorded, layout=", shared prefix")
    yield from _compare_gradients(case, norms, layout=", shared prefix")


def _run(case: Case, batch: Batch) -> PixelLMOutput:
    case.network.zero_grad()
    with sdpa_kernel(SDPBackend.MATH):
        return case.network(**batch.inputs())


def _compare_masks_and_losses(
    case: Case, output: PixelLMOutput, recorded: dict[str, Any], *, layout: str
) -> Iterator[Measure]:
    """The backward pass is made, too."""
    for image, low_res in enumerate(output.mask_logits):
        name = f"low_res_masks_{image}"
        if name in case.arrays or len(low_res):
            expected = case.arrays.get(name, np.zeros(0))
            difference = relative(case.thin(name, low_res[:, None]), expected)
            yield Measure(f"masks of image {image}{layout}", difference, FEATURES)
    terms = pixellm_loss(
        output.loss, output.photo_logits, case.batch.masks, output.query_index, LossWeights(refine_alpha=1.0)
    )
    ours = {"loss": terms.total, "ce_loss": terms.ce, "mask_bce_loss": terms.bce, "mask_dice_loss": terms.dice}
    for name, value in ours.items():
        yield Measure(f"{name}{layout}", _relative_number(value.item(), recorded["losses"][name]), LOSSES)
    terms.total.backward()


def _compare_gradients(case: Case, norms: dict[str, float], *, layout: str) -> Iterator[Measure]:
    largest = max(norms.values())
    for name, expected in norms.items():
        gradient = case.parameter(name).grad
        found = 0.0 if gradient is None else float(gradient.norm())
        # A key bias cannot change a softmax: its true gradient is zero and both sides hold rounding noise.
        noise = 1e-7 * largest if name.endswith("k_proj.bias") else 0.0
        difference = 0.0 if abs(found - expected) <= noise else _relative_number(found, expected)
        yield Measure(f"gradient of {name}{layout}", difference, GRADIENTS)


def _compare_trained_set(case: Case, norms: dict[str, float]) -> Iterator[Measure]:
    if any("lora_" in name for name in norms):
        trained = {name for name, _ in case.network.named_parameters() if is_trained(name, released_set=True)}
        # No loss reads the head that predicts IoUs, so the release has no gradient for it.
        trained = {name for name in trained if ".iou_prediction_head." not in name}
        recorded = {name for name, _ in case.network.named_parameters() if case.parameter(name).requires_grad}
        yield Measure("names of the trained parameters", float(len(trained ^ recorded)), 0)


def _relative_number(found: float, expected: float) -> float:
    if found == expected:
        return 0.0
    return abs(found - expected) / abs(expected) if expected else float("inf")


def compare_merge(case: Case) -> Iterator[Measure]:
    """``pytorch_model.bin`` merged into the base by the merge command, against the published folder."""
    with tempfile.TemporaryDirectory() as scratch:
        flags = MergeConfig(
            version=str(case.base),
            vision_tower=str(case.tower),
            weight=str(case.folder / "pytorch_model.bin"),
            save_path=str(Path(scratch) / "merged"),
            precision="fp32",
            conv_type=cast(Template, case.config.conv_type),
        )
        merge(flags)
        ours = read_weights(Path(flags.save_path))
    published = {name: t for name, t in read_weights(case.published).items() if not name.endswith("inv_freq")}
    different = (set(ours) ^ set(published)) - set(RELEASED_CONSTANTS)
    yield Measure(f"names {', '.join(sorted(different)[:2])}".strip(), float(len(different)), 0)
    for name in sorted(set(ours) & set(published)):
        found, expected = ours[name].float().numpy(), published[name].float().numpy()
        apart = float("inf") if found.shape != expected.shape else float(np.abs(found - expected).max(initial=0))
        yield Measure(name, apart, WEIGHTS)


def compare_chat(case: Case) -> Iterator[Measure]:
    """Greedy answers of the published folder: ids, text, masks, their logits and scores."""
    arrays = case.npz("chat.npz")
    predictors: dict[str, PixelLMPredictor] = {}
    for number, chat in enumerate(case.json("chat.json")):
        conv_type = template_of(chat["prompt"])
        if conv_type not in predictors:
            predictors[conv_type] = PixelLMPredictor.from_pretrained(
                case.published, device="cpu", vision_tower=str(case.tower), conv_type=conv_type
            )
        predictor = predictors[conv_type]
        predictor.set_image(read_image(case.photo(chat["image"])))
        reply = predictor.ask(chat["question"], keep_logits=True)
        ids = released_ids([*predictor.processor.prompt_ids(chat["question"]), *reply.output_ids])
        yield Measure(f"ids of answer {number}", same(ids, chat["output_ids"]), 0)
        shown = [token for token in ids if token != IMAGE_TOKEN_ID]
        text = decode_released(predictor.processor.tokenizer, shown).replace(
            "\n", ""
        )  # the release prints no line breaks
        yield Measure(f"text of answer {number}", same(text, chat["text"]), 0)
        yield Measure(f"number of masks of answer {number}", same(len(reply.targets), chat["num_masks"]), 0)
        for index, target in enumerate(reply.targets[: chat["num_masks"]]):
            what = f"of mask {index} of answer {number}"
            mask, expected = target.mask.numpy(), arrays[f"masks_{number}"][index]
            yield Measure(f"1 - IoU {what}", 1 - _iou(mask, expected), OVERLAP)
            assert target.logits is not None
            logits = target.logits.numpy()[::8, ::8]
            yield Measure(f"logits {what}", relative(logits, arrays[f"logits_{number}"][index]), FEATURES)
            score = float(arrays[f"scores_{number}"][index])
            yield Measure(f"score {what}", abs(target.score - score), SCORES)


def _iou(mask: np.ndarray, expected: np.ndarray) -> float:
    if mask.shape != expected.shape:
        return 0.0
    union = (mask | expected).sum()
    return float((mask & expected).sum() / union) if union else 1.0


def compare_validation_sets(case: Case, dataset_dir: Path) -> Iterator[Measure]:
    """Every recorded set: photos, words, masks, valid sizes and pixel statistics."""
    recorded = read_json(case.golden / "val_datasets.json")
    for name, entries in recorded.items():
        try:
            source = build_val_source(dataset_dir, name)
        except InputError as err:
            yield Measure(f"{name}: {err}", float("inf"), 0)
            continue
        samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
        yield Measure(f"{name}: number of samples", abs(len(samples) - len(entries)), 0)
        for entry in entries:
            # The release goes through a set in no fixed order; the samples of one photo keep that of the file.
            raw = next((raw for raw in samples if _names_photo(entry["image"], raw.image_path)), None)
            if raw is None:
                yield Measure(f"{name}: no sample of {entry['image']}", float("inf"), 0)
                continue
            samples.remove(raw)
            photo = entry["image"].split("/")[-1]
            for measure in _compare_validation_sample(case, raw, entry):
                yield Measure(f"{name}, {photo}: {measure.what}", measure.difference, measure.limit)


def _names_photo(recorded: str, path: Path | None) -> bool:
    """The last folder and the file name: a tree may serve one folder through another."""
    return path is not None and recorded.split("/")[-2:] == [path.parent.name, path.name]


def _compare_validation_sample(case: Case, raw: RawSample, entry: dict[str, Any]) -> Iterator[Measure]:
    questions = [turn for (turn,) in raw.conversations]
    yield Measure("number of conversations", same(len(questions), len(entry["conversations"])), 0)
    for turn, recorded in zip(questions, entry["conversations"], strict=False):
        yield Measure("words", same(*_comparable_words(case, turn.question, turn.answer, recorded)), 0)
    sample: Sample = case.encoder(raw, truncate=False)
    yield Measure("size of the masks", same(list(sample.masks.shape[1:]), entry["mask_size"]), 0)
    pixels = sample.masks.sum(dim=(1, 2)).tolist()
    yield Measure("pixels of the masks", same(pixels, entry["target_pixels"]), 0)
    ignored = 0 if sample.ignore is None else int(sample.ignore.sum())
    yield Measure("ignored pixels", same([ignored] * len(pixels), entry["ignore_pixels"]), 0)
    if len(pixels) == len(entry["target_centroids"]):
        for mask, expected in zip(sample.masks, entry["target_centroids"], strict=True):
            found = mask.nonzero().double().mean(0).tolist() if mask.any() else expected
            yield Measure("centroid", max(abs(a - b) for a, b in zip(found, expected, strict=True)), CENTROIDS)
    yield Measure("valid size", same(list(sample.valid_hw), entry["resize"]), 0)
    yield Measure("pixel mean", abs(sample.pixel_values.mean().item() - entry["clip_mean"]), STATISTICS)
    yield Measure("pixel std", abs(sample.pixel_values.std().item() - entry["clip_std"]), STATISTICS)


def _comparable_words(case: Case, question: str, answer: str, recorded: str) -> tuple[str, str]:
    """Our conversation and the recorded one, as far as both are determined.

    An open recording ends in a request for masks that the release draws at random; what comes before it counts. A
    recording shows the codebook that it was made with.
    """
    conversation = get_conversation(case.config.conv_type)
    opened = conversation.render([(question, None)], image=IMAGE).text
    if recorded.endswith(opened[-len(conversation.before_answer) :]):
        ours = _without_marks(opened).removesuffix(f"{EVAL_MASK_REQUEST}{conversation.before_answer}")
        return ours, recorded[: len(ours)]
    size = max(1, sum(text in recorded for text in seg_strings(1, 64)))
    closed = conversation.render([(question, answer)], image=IMAGE, group=seg_strings(1, size))
    return _without_marks(closed.text), recorded


def _without_marks(text: str) -> str:
    return text.replace(f"<im_start>{IMAGE_MARK}<im_end>", IMAGE_MARK)


STAGES: dict[str, Callable[..., Iterator[Measure]]] = {
    "tokenizer": compare_tokens,
    "images": compare_images,
    "vision": compare_vision,
    "train_step": compare_training_step,
    "merge": compare_merge,
    "chat": compare_chat,
    "val_datasets": compare_validation_sets,
}
