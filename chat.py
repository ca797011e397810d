"""Ask a merged model about images: interactively, or once with ``--image PATH --prompt TEXT``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import ChatConfig


def chat(parsed: Parsed[ChatConfig]) -> None:
    """Answer the one question of ``--prompt``, or those that are typed."""
    from model.predictor import PixelLMPredictor
    from utils.inference.answer import check_outputs
    from utils.inference.terminal import answer_once, converse

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
        bits=config.bits,
        attn_implementation=config.attn_implementation,
        vision_tower=config.vision_tower if "vision_tower" in parsed.given else None,
        conv_type=config.conv_type,
    )
    if config.image:
        answer_once(predictor, config)
    else:
        converse(predictor, config)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ChatConfig, chat, "Chat with PixelLM about an image.", argv)


if __name__ == "__main__":
    sys.exit(main())
