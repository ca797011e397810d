"""Ask a merged model about images: interactively, or once with ``--image PATH --prompt TEXT``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from model.files import write_json
from model.predictor import PixelLMPredictor
from utils.cli.args import parse
from utils.cli.config import ChatConfig
from utils.cli.log import exit_code, report_input_error, setup_logging
from utils.inference.answer import answer, describe, to_json


def converse(predictor: PixelLMPredictor, config: ChatConfig) -> None:
    """The released loop: a prompt, then an image path, until the input ends."""
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
    output_dir = Path(config.vis_save_path)
    reply, written = answer(
        predictor, image_path, question, output_dir=output_dir, max_new_tokens=config.max_new_tokens
    )
    print(describe(reply, written), flush=True)
    if config.output_json:
        write_json(Path(config.output_json), to_json(reply, image_path=image_path, question=question))
        print(f"{config.output_json} has been saved.")


def main(argv: Sequence[str]) -> int:
    setup_logging()

    def run() -> None:
        parsed = parse(ChatConfig, argv, "Chat with PixelLM about an image.")
        for notice in parsed.notices():
            logging.getLogger("utils").info("%s", notice)
        config = parsed.config
        tower = config.vision_tower if "vision_tower" in parsed.given else None
        predictor = PixelLMPredictor.from_pretrained(
            config.version, precision=config.precision, vision_tower=tower, conv_type=config.conv_type
        )
        if config.image:
            print_answer(predictor, config, config.image, config.prompt)
        else:
            converse(predictor, config)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
