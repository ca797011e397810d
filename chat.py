"""Ask a merged model about images: at a terminal, from standard input, or once with ``--image`` and ``--prompt``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from model.errors import InputError
from utils.cli.args import Parsed
from utils.cli.command import INTERRUPTED, ending_at_an_interrupt, run_command
from utils.cli.config import ChatConfig


def chat(parsed: Parsed[ChatConfig]) -> None:
    """Answer the one question of ``--prompt``, or those that are typed."""
    with ending_at_an_interrupt():
        answer_by = load(parsed)
    answer_by()


def load(parsed: Parsed[ChatConfig]) -> Callable[[], None]:
    """Check what the flags name, and load the model; returns what talks with the user.

    Raises:
        InputError: if a file cannot be read, or an answer could not be written.
    """
    from utils.inference.photos import check_photo

    config = parsed.config
    # Without a terminal at both ends, the released dialogue is spoken.
    typed = not config.prompt and all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))
    if config.image and not config.prompt and not typed:
        raise InputError("--image and --prompt belong together; give both, or neither for a conversation")
    photo = str(check_photo(config.image)) if config.image else ""
    if typed:
        print(f"Loading {config.version} ...", flush=True)

    from model.asking import AnswerOptions
    from model.predictor import PixelLMPredictor
    from utils.inference.answer import check_outputs
    from utils.inference.released import answer_once, converse

    folder = Path(config.vis_save_path)
    check_outputs(config.version, photo or "photo.jpg", output_dir=folder, output_json=config.output_json)
    predictor = PixelLMPredictor.from_pretrained(
        config.version,
        precision=config.precision, bits=config.bits,
        attn_implementation=config.attn_implementation,
        **config.placement,
        compile=config.compile,
        vision_tower=config.vision_tower if "vision_tower" in parsed.given else None, conv_type=config.conv_type,
    )  # fmt: skip
    config = config.settled(AnswerOptions.of(predictor.model.generation_config), parsed.given)
    if typed:
        from utils.inference.terminal import chat_at_terminal

        return partial(chat_at_terminal, predictor, config)
    return partial(answer_once, predictor, config, photo) if photo else partial(converse, predictor, config)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run_command(ChatConfig, chat, "Chat with PixelLM about an image.", argv)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
