"""Put the weights of a checkpoint together: python zero_to_fp32.py CKPT_MODEL OUTPUT [--tag global_step10].

It lies in every checkpoint folder under the name that DeepSpeed and the release give it, and needs torch and
safetensors alone. OUTPUT becomes a pytorch_model.bin of float32 tensors: all that the checkpoint holds. What it leaves
to the base that the run started from, scripts and the merge of this project add.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def read_weights(step: Path) -> dict[str, Tensor]:
    """Weights of one step by the names of the network, in float32."""
    record = json.loads((step / "weights.json").read_text(encoding="utf-8"))
    shapes = {**record["frozen"], **record["trained"]}
    weights: dict[str, Tensor] = {}
    missing = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    for path in sorted(step.glob("state-*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                kind, start, name = key.split("/", 2)
                if kind not in ("master", "frozen"):
                    continue
                piece = file.get_tensor(key)
                if name not in weights:
                    dtype = torch.float32 if piece.is_floating_point() else piece.dtype
                    weights[name] = torch.zeros(torch.Size(shapes[name]), dtype=dtype)
                weights[name].view(-1)[int(start) : int(start) + len(piece)] = piece
                missing[name] -= len(piece)
    incomplete = [name for name, count in missing.items() if count]
    if incomplete:
        sys.exit(f"error: {step} lacks {len(incomplete)} weights or parts of them, first {incomplete[0]}")
    return weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the weights of a checkpoint as one pytorch_model.bin.")
    parser.add_argument("checkpoint_dir", type=Path, help="ckpt_model, the folder that has a file named latest")
    parser.add_argument("output_file", type=Path, help="for example ../pytorch_model.bin")
    parser.add_argument("-t", "--tag", default="", help="a step, such as global_step10; default is the latest")
    flags = parser.parse_args(argv)
    tag = flags.tag or (flags.checkpoint_dir / "latest").read_text(encoding="utf-8").strip()
    step = flags.checkpoint_dir / tag
    if not (step / "weights.json").is_file():
        sys.exit(f"error: {step} is no checkpoint of this script's kind; expected a folder with weights.json")
    weights = read_weights(step)
    partial = flags.output_file.with_name(f".{flags.output_file.name}.partial")
    torch.save(weights, partial)
    os.replace(partial, flags.output_file)
    print(f"{len(weights)} weights of {step} written to {flags.output_file}")


if __name__ == "__main__":
    main()
