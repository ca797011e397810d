"""Chat that programs speak with: one question of the flags, or the released loop of questions on standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from model.errors import InputError
from model.predictor import PixelLMPredictor
from utils.cli.config import ChatConfig
from utils.cli.log import report_input_error

from .answer import answer, describe
from .photos import photo_path


def answer_once(predictor: PixelLMPredictor, config: ChatConfig, image_path: str) -> None:
    """Answer ``--prompt``.

    Raises:
        InputError: as ``answer``.
    """
    _accept_any_bytes()
    _print_answer(predictor, config, image_path, config.prompt)


def converse(predictor: PixelLMPredictor, config: ChatConfig) -> None:
    """The released loop: a prompt, then an image path, until the input ends."""
    _accept_any_bytes()
    while True:
        try:
            question = input("Please input your prompt: ")
            image_path = input("Please input the image path: ")
        except EOFError:
            return
        try:
            _print_answer(predictor, config, str(photo_path(image_path)), question)
        except InputError as err:
            report_input_error(err)


def _print_answer(predictor: PixelLMPredictor, config: ChatConfig, image_path: str, question: str) -> None:
    """Print the answer, and write its pictures and, with ``--output_json``, its masks."""
    reply, written = answer(
        predictor,
        image_path,
        question,
        output_dir=Path(config.vis_save_path),
        output_json=config.output_json,
        alpha=config.alpha,
        **config.answer_options,
    )
    print(describe(reply, written), flush=True)
    if config.output_json:
        print(f"{config.output_json} has been saved.")


def _accept_any_bytes() -> None:
    """File names need not be UTF-8: what is typed is taken, and shown, whatever its bytes are."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
