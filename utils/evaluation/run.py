"""Score a merged model on validation sets, in one process or several: tables, results.json and pictures."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

from model.drawing import write_image
from model.files import write_json
from model.outputs import check_output_file
from utils import dist
from utils.data.names import split_names
from utils.data.registry import build_val_source
from utils.inference.processes import join_processes, load_predictor
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
    device, precision = join_processes(config)
    config = replace(config, precision=precision)
    predictor = load_predictor(
        config, version=config.version, vision_tower=config.vision_tower, conv_type=config.conv_type,
        precision=precision, device=device,
    )  # fmt: skip
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
