"""Put the weights of a checkpoint together: python zero_to_fp32.py CKPT_MODEL OUTPUT [--tag global_step10].

It lies in every checkpoint folder under the name that DeepSpeed and the release give it, and needs torch and
safetensors alone. OUTPUT becomes a pytorch_model.bin of float32 tensors: all that the checkpoint holds. What it leaves
to the base that the run started from, scripts and the merge of this project add.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class Damaged(Exception):
    """A checkpoint cannot be read; says why."""


def find_step(folder: Path, tag: str) -> Path:
    """The step of that name, or the one that ``latest`` names.

    Raises:
        Damaged: if there is none of this script's kind.
    """
    latest = folder / "latest"
    if not tag and not latest.is_file():
        raise Damaged(f"{latest} is missing; name a step with --tag")
    step = folder / (tag or latest.read_text(encoding="utf-8", errors="replace").strip())
    if not (step / "weights.json").is_file():
        raise Damaged(
            f"{step} is no checkpoint of this script's kind, a folder with weights.json; name another with --tag, or "
            f"merge it: merge_lora_weights_and_save_hf_model.py --weight {folder}"
        )
    return step


def check_parts(step: Path) -> list[Path]:
    """The files of tensors, known to have the bytes that were written.

    Raises:
        Damaged: if one has not, or is missing.
    """
    records = json.loads((step / "manifest.json").read_text(encoding="utf-8"))
    for name, record in records.items():
        with (step / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                raise Damaged(f"{step / name} has other bytes than were written")
    return [step / name for name in sorted(records) if name.startswith("state-")]


def read_weights(step: Path) -> dict[str, Tensor]:
    """Weights of one step by the names of the network, in float32.

    Raises:
        Damaged: if one is not whole.
    """
    parts = check_parts(step)
    record = json.loads((step / "weights.json").read_text(encoding="utf-8"))
    shapes = {**record["frozen"], **record["trained"]}
    weights: dict[str, Tensor] = {}
    missing = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    for path in parts:
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
        raise Damaged(f"{step} lacks {len(incomplete)} weights or parts of them, first {incomplete[0]}")
    return weights


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the weights of a checkpoint as one pytorch_model.bin.")
    parser.add_argument("checkpoint_dir", type=Path, help="ckpt_model, the folder that has a file named latest")
    parser.add_argument("output_file", type=Path, help="for example ../pytorch_model.bin")
    parser.add_argument("-t", "--tag", default="", help="a step, such as global_step10; default is the latest")
    flags = parser.parse_args(argv)
    try:
        step = find_step(flags.checkpoint_dir, flags.tag)
        weights = read_weights(step)
    except Damaged as err:
        return _refuse(str(err))
    except Exception as err:  # reading what is damaged can raise nearly anything
        return _refuse(f"{flags.checkpoint_dir} cannot be read ({err}); copy it again, or name another step with --tag")
    partial = flags.output_file.with_name(f".{flags.output_file.name}.partial")
    try:
        torch.save(weights, partial)
        os.replace(partial, flags.output_file)
    except (OSError, RuntimeError) as err:  # torch tells of a full disk by the latter
        partial.unlink(missing_ok=True)
        return _refuse(f"{flags.output_file} cannot be written ({err}); give another place, or make room")
    print(f"{len(weights)} weights of {step} written to {flags.output_file}")
    return 0


def _refuse(problem: str) -> int:
    print(f"error: {' '.join(problem.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
