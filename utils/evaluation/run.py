"""Score a merged model on validation sets, in one process or several: tables, results.json and pictures."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import torch

from model.drawing import write_image
from model.errors import InputError
from model.files import write_json
from model.outputs import check_output_file
from model.precision import settle_precision
from model.predictor import PixelLMPredictor
from utils import dist
from utils.data.names import split_names
from utils.data.registry import build_val_source
from utils.pictures import contact_sheet

from .flags import EvaluateConfig
from .generative import evaluate_generative, gather
from .guards import no_token_group
from .pictures import picture_panels

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> None:
    """Print a table per set and write the output folder."""
    output_dir = Path(config.output_dir)
    results_file, pictures_file = output_dir / "results.json", output_dir / "pictures.png"
    for file in (results_file, pictures_file):
        check_output_file(file, flag="--output_dir")
    # Every set is opened before the first one costs hours.
    sources = [build_val_source(config.dataset_dir, name) for name in split_names(config.val_dataset)]
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if config.device_map and dist.world_size() > 1:
        raise InputError("--device_map is for one process, which has all GPUs; start without torchrun, or leave it out")
    # Bad input up to here is met by every process, bad input after it by some.
    if dist.world_size() > 1:
        dist.join("gloo", timeout=timedelta(days=1))
    precision = settle_precision(config.precision, device, bits=config.bits, agree=dist.gather_objects)
    config = replace(config, precision=precision)
    predictor = PixelLMPredictor.from_pretrained(
        config.version,
        precision=config.precision,
        bits=config.bits,
        attn_implementation=config.attn_implementation,
        device=None if config.device_map else device,
        **config.placement,
        vision_tower=config.vision_tower or None,
        conv_type=config.conv_type,
    )
    results, panels = [], []
    for source in sources:
        with dist.stop_together():
            part = evaluate_generative(
                predictor,
                source,
                limit=config.limit or None,
                progress=dist.is_main(),
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                shard=(dist.rank(), dist.world_size()),
            )
        result = gather(part)
        if dist.is_main():
            print(result.table(), flush=True)
            if warning := no_token_group(result, version=config.version, results_file=str(results_file)):
                logger.warning("%s", warning)
            results.append(result.to_dict())
            panels += picture_panels(result, source, num_questions=config.pictures)
    if dist.is_main():
        write_json(results_file, {"settings": asdict(config), "results": results})
        if panels:
            images, captions = zip(*panels, strict=True)
            write_image(pictures_file, contact_sheet(images, columns=2, captions=captions))
        print(f"{output_dir} holds {', '.join(sorted(path.name for path in output_dir.iterdir()))}")
