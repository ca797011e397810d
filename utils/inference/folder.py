"""Questions about many images: answered in batches by one process or several, written down, and taken up again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from model.asking import AnswerOptions
from model.drawing import fit
from model.errors import InputError
from model.image import read_image
from model.predictor import PixelLMPredictor
from model.replies import Reply
from utils import dist
from utils.cli.answering import ANSWER_FLAGS

from .flags import PredictConfig
from .formats import write_coco, write_labelme
from .predictions import FOUND, FoundTarget, Prediction, append, digest, gather, numbers_done, output_of
from .processes import join_processes, load_predictor, model_files
from .questions import Question, read_questions
from .sheet import write_sheet

logger = logging.getLogger(__name__)

_THUMBNAIL_SIDE = 480  # pixels


def predict(config: PredictConfig, given: frozenset[str] = frozenset()) -> None:
    """Answer what is not answered yet, and write the output folder.

    Args:
        given: names of the flags that the user gave; how answers are written is else as stored with the model.
    Raises:
        InputError: for a bad input, output or model.
    """
    questions = read_questions(config.input, config.prompts)
    output = Path(config.output)
    device, precision = join_processes(config)
    with ExitStack() as held:
        with dist.stop_together():
            if dist.is_main():
                settings = _settings(config, questions, precision=precision)
                held.enter_context(
                    output_of(
                        output,
                        settings,
                        questions=questions,
                        inputs=_inputs(config, questions),
                        overwrite=config.overwrite,
                    )
                )
        done = numbers_done(output, questions)
        own = [question for question in questions if question.photo % dist.world_size() == dist.rank()]
        with dist.stop_together():
            is_left = any(question.number not in done for question in own)
            predictor = load_predictor(config, precision=precision, device=device) if is_left else None
        if predictor:
            config = config.settled(AnswerOptions.of(predictor.model.generation_config), given)
        begun = time.monotonic()
        with dist.stop_together():
            if predictor:
                _answer_rest(predictor, own, done, config=config, output=output)
        if dist.is_main():
            predictions = gather(output, questions)
            _write_formats(config, predictions, questions, output)
            if failed := [one for one in predictions if "error" in one]:
                logger.warning("%d failed, the first so: %s", len(failed), failed[0].get("error"))
            print(_summary(predictions, questions, answered=len(questions) - len(done), begun=begun), flush=True)
            print(f"{output} holds {', '.join(sorted(path.name for path in output.iterdir()))}")


def _settings(config: PredictConfig, questions: Sequence[Question], *, precision: str) -> dict[str, Any]:
    """All that answers and files depend on."""
    names = ("version", "vision_tower", "conv_type", "load_in_8bit", "load_in_4bit", "format", "seed")
    return {
        **{name: getattr(config, name) for name in (*names, *ANSWER_FLAGS)},
        "input": os.path.abspath(os.path.expanduser(config.input)),
        "precision": precision,
        "model_files": model_files(config.version),
        "questions": digest(questions),
    }


def _inputs(config: PredictConfig, questions: Sequence[Question]) -> list[Path]:
    """What is read: the photos, and the folder or the file that names them."""
    named = [Path(config.input).expanduser(), *(question.path for question in questions)]
    return [path for path in named if os.path.exists(path)]


def _answer_rest(
    predictor: PixelLMPredictor, own: Sequence[Question], done: set[int], *, config: PredictConfig, output: Path
) -> None:
    """Of a process's own questions, those that are not done."""
    num_done = sum(question.number in done for question in own)
    with tqdm(total=len(own), initial=num_done, unit="question", disable=not dist.is_main()) as bar:
        # Batches do not depend on where a run was stopped, so the same numbers come out.
        for start in range(0, len(own), config.batch_size):
            batch = [one for one in own[start : start + config.batch_size] if one.number not in done]
            if batch:
                append(output, _answer(predictor, batch, config, output), rank=dist.rank())
                bar.update(len(batch))


def _answer(
    predictor: PixelLMPredictor, batch: Sequence[Question], config: PredictConfig, output: Path
) -> list[Prediction]:
    """Answer a batch and write its pictures; a photo that cannot be read does not disturb the others.

    Raises:
        InputError: if the memory of the GPU does not suffice.
    """
    photos: dict[Path, np.ndarray | InputError] = {}
    for question in batch:
        if question.path not in photos:
            try:
                photos[question.path] = read_image(question.path)
            except InputError as err:
                photos[question.path] = err
    readable = [(one, photo) for one in batch if not isinstance(photo := photos[one.path], InputError)]
    if config.temperature:
        torch.manual_seed((config.seed << 31) + batch[0].number)  # a batch draws the same whenever it is asked
    try:
        replies = dict(zip((one.number for one, _ in readable), _replies(predictor, readable, config), strict=True))
    except torch.OutOfMemoryError as err:
        raise InputError(
            f"the memory of the GPU does not suffice for --batch_size {config.batch_size}; give the command again with "
            "a smaller one, or with --load_in_8bit or --load_in_4bit into another --output"
        ) from err
    found = []
    for question in batch:
        photo = photos[question.path]
        reply = photo if isinstance(photo, InputError) else replies[question.number]
        found.append(_prediction(question, photo, reply, config=config, output=output))
    return found


def _replies(
    predictor: PixelLMPredictor, asked: Sequence[tuple[Question, np.ndarray]], config: PredictConfig
) -> list[Reply | InputError]:
    """One for each question, or why it cannot be answered."""
    requests = [(photo, one.prompt) for one, photo in asked if isinstance(one.prompt, str)]
    try:
        answers = iter(predictor.ask_batch(requests, batch_size=config.batch_size, **config.answer_options))
        return [
            next(answers) if isinstance(one.prompt, str) else _alone(predictor, one, photo, config)
            for one, photo in asked
        ]
    except InputError:  # such as one question that is too long
        return [_alone(predictor, one, photo, config) for one, photo in asked]


def _alone(
    predictor: PixelLMPredictor, question: Question, photo: np.ndarray, config: PredictConfig
) -> Reply | InputError:
    is_question = isinstance(question.prompt, str)
    options = config.answer_options if is_question else {"mask_threshold": config.mask_threshold}
    try:
        return predictor.segment(photo, question.prompt, **options)
    except InputError as err:
        return err


def _prediction(
    question: Question,
    photo: np.ndarray | InputError,
    reply: Reply | InputError,
    *,
    config: PredictConfig,
    output: Path,
) -> Prediction:
    """Write the pictures of an answer; returns its line."""
    line: dict[str, Any] = {"number": question.number}
    if question.id is not None:
        line["id"] = question.id
    line |= {"image": question.image, "prompt": question.prompt}
    if isinstance(photo, InputError) or isinstance(reply, InputError):
        return Prediction(**line, error=str(reply))
    pictures = [Path(folder, f"{question.stem}.jpg") for folder in ("overlays", "thumbnails")]
    overview = reply.draw(photo, alpha=config.alpha)
    thumbnail = overview
    if max(overview.shape) > _THUMBNAIL_SIDE:
        thumbnail = fit(overview, np.zeros((0, *overview.shape[:2]), dtype=bool), side=_THUMBNAIL_SIDE)[0]
    for path, picture in zip(pictures, (overview, thumbnail), strict=True):
        _write_picture(output / path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if config.format == "png":
        line["masks"] = [f"masks/{question.stem}_mask_{number}.png" for number in range(len(reply.targets))]
        for name, mask in zip(line["masks"], reply.masks(photo.shape[:2]), strict=True):
            _write_picture(output / name, mask.astype(np.uint8) * 255)
    return Prediction(
        **line,
        size=list(photo.shape[:2]),
        text=reply.text,
        numbered=reply.numbered(),
        reason=reply.reason,
        targets=[FoundTarget(**{name: target[name] for name in FOUND}) for target in reply.to_coco()],
        overlay=pictures[0].as_posix(),
        thumbnail=pictures[1].as_posix(),
    )


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    """In place: its line is written later, and what a killed process left half is written again.

    To write it aside would list its folder each time, which may hold a hundred thousand others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def _write_formats(
    config: PredictConfig, predictions: Sequence[Prediction], questions: Sequence[Question], output: Path
) -> None:
    if config.format == "coco":
        write_coco(output / "annotations.json", predictions, questions)
    elif config.format == "labelme":
        write_labelme(output / "labelme", predictions, questions)
    write_sheet(output / "index.html", predictions, questions, model=config.version)


def _summary(predictions: Sequence[Prediction], questions: Sequence[Question], *, answered: int, begun: float) -> str:
    seconds = time.monotonic() - begun
    failed = sum("error" in one for one in predictions)
    targets = sum(len(one.get("targets", [])) for one in predictions)
    return (
        f"{questions[-1].photo + 1} images, {len(questions)} questions, {targets} targets, {failed} failed; "
        f"{answered} questions in {seconds:.1f} s, {answered / max(seconds, 1e-9):.2f} questions/s"
    )
