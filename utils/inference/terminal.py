"""Chat at a terminal: one question of the flags, or the released loop of questions that are typed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from model.errors import InputError
from model.predictor import PixelLMPredictor
from utils.cli.config import ChatConfig
from utils.cli.log import report_input_error

from .answer import answer, describe


def answer_once(predictor: PixelLMPredictor, config: ChatConfig) -> None:
    """Answer ``--prompt`` about ``--image``.

    Raises:
        InputError: as ``answer``.
    """
    _accept_any_bytes()
    _print_answer(predictor, config, config.image, config.prompt)


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
            _print_answer(predictor, config, image_path, question)
        except InputError as err:
            report_input_error(err)


def _print_answer(predictor: PixelLMPredictor, config: ChatConfig, image_path: str, question: str) -> None:
    """Print the answer, and write its pictures and, with ``--output_json``, its masks."""
    reply, written = answer(
        predictor,
        image_path,
        question,
        output_dir=Path(config.vis_save_path),
        max_new_tokens=config.max_new_tokens,
        output_json=config.output_json,
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
