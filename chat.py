"""Ask a merged model about images: interactively, or once with ``--image PATH --prompt TEXT``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from model.predictor import PixelLMPredictor
from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import ChatConfig
from utils.cli.log import report_input_error
from utils.inference.answer import answer, check_outputs, describe


def chat(parsed: Parsed[ChatConfig]) -> None:
    """Answer the one question of ``--prompt``, or those that are typed."""
    config = parsed.config
    check_outputs(
        config.version,
        config.image or "photo.jpg",
        output_dir=Path(config.vis_save_path),
        output_json=config.output_json,
    )
    predictor = PixelLMPredictor.from_pretrained(
        config.version,
        precision=config.precision,
        vision_tower=config.vision_tower if "vision_tower" in parsed.given else None,
        conv_type=config.conv_type,
    )
    if config.image:
        _accept_any_bytes()
        print_answer(predictor, config, config.image, config.prompt)
    else:
        converse(predictor, config)


def _accept_any_bytes() -> None:
    """File names need not be UTF-8: what is typed is taken, and shown, whatever its bytes are."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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
            print_answer(predictor, config, image_path, question)
        except InputError as err:
            report_input_error(err)


def print_answer(predictor: PixelLMPredictor, config: ChatConfig, image_path: str, question: str) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ChatConfig, chat, "Chat with PixelLM about an image.", argv)


if __name__ == "__main__":
    sys.exit(main())
