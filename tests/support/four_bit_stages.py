"""A program for two processes: updates on a 4-bit base under the ZeRO stages that take one, in both precisions.

four_bit_stages.py FOLDER FLAGS...    FLAGS are those of training; FOLDER takes the settings of DeepSpeed
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.configuration import PRECISIONS
from model.files import write_json
from model.losses import LossWeights, pixellm_loss
from model.weights.quantization import quantized_weights
from tests.support.tiny_network import make_batch
from utils import dist
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.engine import build_engine, init_distributed
from utils.training.start import TrainingModel, build_for_training

STAGES, UPDATES = (0, 1, 2), 3
TALKS = [(0, "Which thing?", "The thing is {seg}."), (1, "What is it?", "It is human {seg}.")]


def check(stage: int, precision: str, folder: Path, flags: list[str]) -> list[float]:
    """Some updates on the same batch: LoRA learns, and the base stays as it was quantized. Returns their losses."""
    file = folder / f"{stage}-{precision}-{dist.rank()}.json"
    write_json(file, {"zero_optimization": {"stage": stage}, "gradient_clipping": 1.0})
    own = ["--load_in_4bit", f"--precision={precision}", f"--deepspeed_config={file}", "--grad_accumulation_steps=1"]
    run = parse(RunConfig, [*flags, *own, "--lr=0.003", "--warmup_steps=0"], "").config
    training = build_for_training(run, device=DEVICE)
    before = base_of(training)
    engine = build_engine(run, training, deepspeed_settings(run))
    batch = make_batch(training.network, training.tokenizer, TALKS).to(DEVICE, PRECISIONS[precision])
    losses = []
    for _ in range(UPDATES):
        output = engine(**batch.inputs())
        terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, batch.image_index.cpu(), LossWeights())
        engine.backward(terms.total)
        engine.step()
        losses.append(float(terms.total.detach()))
    assert losses[-1] < losses[0], losses
    own = {name: tensor.detach().cpu() for name, tensor in training.wrapped.named_parameters()}
    ups = [name for name in own if ".lora_B." in name]
    assert ups
    assert all(own[name].any() for name in ups), "LoRA begins at zero, and has moved"
    after = base_of(training)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    sums = dist.gather_objects({name: float(tensor.double().sum()) for name, tensor in own.items()})
    assert all(found == sums[0] for found in sums), "processes hold the same weights"
    return losses


def base_of(training: TrainingModel) -> dict[str, Tensor]:
    """What 4-bit weights stand for."""
    state = dict(training.wrapped.named_parameters())
    return {name: dequantize(state[name]) for name in quantized_weights(training.wrapped)}


def dequantize(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).cpu()


if __name__ == "__main__":
    folder, flags = Path(sys.argv[1]), sys.argv[2:]
    DEVICE = init_distributed()
    logging.disable(logging.WARNING)
    for precision in ("fp32", "bf16"):
        found = [check(stage, precision, folder, flags) for stage in STAGES]
        if precision == "fp32":
            for losses in found:
                assert max(abs(own - other) for own, other in zip(losses, found[0], strict=True)) < 1e-3, found
    if dist.is_main():
        sys.stdout.write(f"passed: {len(STAGES)} stages in 2 precisions\n")
    dist.leave()
