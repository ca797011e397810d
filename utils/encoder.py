"""The encoder of a run without its weights: for looking at the data and for timing it."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from model.files import read_object, write_json
from model.text.tokenizer import add_codebook, load_tokenizer

from .build import make_config
from .cli.config import RunConfig
from .data.encode import Encoder
from .toy_world.tokenizer import train_tokenizer, write_tokenizer

logger = logging.getLogger(__name__)

# Stands in for a base that is not here; of its numbers the encoder uses none.
_SIDES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 24, "num_attention_heads": 4}


def build_encoder(run: RunConfig) -> Encoder:
    """What turns samples of this run into ids and pixels.

    Only the tokenizer of ``--version`` and the config.json of ``--vision-tower`` are read. Where one is no local
    folder, a stand-in takes its place: pictures, words and masks are the same, token counts are not.
    """
    with TemporaryDirectory() as temporary:
        base, tower = Path(run.version), Path(run.vision_tower)
        if not base.is_dir():
            logger.info("--version %s is no local folder: a small tokenizer stands in for its own", run.version)
            base = Path(temporary) / "base"
            base.mkdir()
            write_tokenizer(base, train_tokenizer())
            write_json(base / "config.json", {"vocab_size": 32000, **_SIDES})
        if not tower.is_dir():
            tower = Path(temporary) / "tower"
            size = 336 if run.vision_tower.endswith("336") else 224
            write_json(tower / "config.json", {"image_size": size, "patch_size": 14, **_SIDES})
        tokenizer = load_tokenizer(base, model_max_length=run.model_max_length)
        codebook = add_codebook(tokenizer, scales=run.image_feature_scale_num, tokens=run.seg_token_num)
        config = make_config(run, read_object(base / "config.json"), codebook, len(tokenizer), tower)
        return Encoder(tokenizer, codebook, config)
