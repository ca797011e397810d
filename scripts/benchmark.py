"""Measure on this machine.

    python scripts/benchmark.py data --dataset_dir ./dataset
    python scripts/benchmark.py loading --version FOLDER --processes 8
    python scripts/benchmark.py quantization --version FOLDER --dataset_dir ./dataset
    python scripts/benchmark.py splits --config FILE --version BASE --vision_tower TOWER --dataset_dir ./dataset
    python scripts/benchmark.py four_bits --config FILE --version BASE --vision_tower TOWER --dataset_dir ./dataset
    python scripts/benchmark.py checkpoints
    python scripts/benchmark.py memory
    python scripts/benchmark.py train --size mid --compare
    python scripts/benchmark.py chat --compare
    python scripts/benchmark.py demo --version FOLDER

``data`` says how many samples per second one process makes, of every source and of their mixture, and what the time
goes into. ``loading`` says how long it takes to read a model, and what memory one process and several at once need for
it. ``quantization`` says what an 8-bit and a 4-bit language model save and change. ``splits`` says how far losses move
when the same batches are trained on by other numbers of processes and at other ZeRO stages, ``four_bits`` how far on a
4-bit language model, and what that saves. ``checkpoints`` computes how large a checkpoint of the published sizes is,
and ``memory`` what training them takes on a GPU, with each preset of configs/hardware/ or with flags that are given,
and with ``--answers`` what answering takes. ``train`` says what an update of training costs, part by part, and ``chat``
what answers cost, beside the least that they could; both take random weights. ``demo`` says how long several users at
once wait for their answers. ``data --help`` and the like list the flags. Other load on the machine is in all times:
compare those of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model.errors import InputError
from model.values import Attention, Count, InputSide, NonNegativeInt, Scales, ShareBelowOne, TokensPerScale
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_commands
from utils.cli.config import TRAINING_ONLY, LossNormalization, Optimizer, Precision, RunConfig, Template


@settings
class DataConfig(RunConfig):
    """Flags of training, by default those of the released command, and of this script."""

    dataset: str = flag("sem_seg||refer_seg||vqa||multi_reason_seg", "datasets, joined with ||")
    sample_rates: str = flag("2,9,2,4", "relative weight of each dataset")
    seg_token_num: TokensPerScale = flag(3, "tokens per scale")
    image_feature_scale_num: Scales = flag(2, "scales")
    num_classes_per_question: Count = flag(3, "targets per question")
    pad_train_clip_images: bool = flag(True, "pad images to a square instead of center-cropping")
    resize_vision_tower: bool = flag(True, "run the tower at another input size")
    resize_vision_tower_size: InputSide = flag(448, "that input size, in pixels")
    use_expand_question_list: bool = flag(True, "more question wordings")
    ignored: ClassVar = (TRAINING_ONLY, "nothing is trained")
    num: Count = flag(100, "samples per round and source")
    rounds: Count = flag(5, "rounds; the median counts")
    output_json: str = flag("", "file for the numbers")


def benchmark_data(parsed: Parsed[DataConfig]) -> None:
    """Time every source for itself, then their mixture."""
    from utils.benchmark.data import benchmark

    config = parsed.config
    benchmark(config, num=config.num, rounds=config.rounds, output_json=config.output_json)


@settings
class LoadingConfig:
    """Reading a model, in one process and in several at once."""

    version: str = flag("", "merged model: folder or hub id")
    precision: Precision = flag("bf16", "of the weights in memory")
    processes: Annotated[int, Field(ge=1, le=64)] = flag(2, "processes that read it at once")

    def __post_init__(self) -> None:
        if not self.version:
            raise InputError("--version is missing; give the folder of a merged model")


def benchmark_loading(parsed: Parsed[LoadingConfig]) -> None:
    """Read a model in fresh processes, and watch them."""
    from utils.benchmark.loading import benchmark

    config = parsed.config
    benchmark(config.version, config.precision, processes=config.processes)


@settings
class QuantizationConfig:
    """Memory and masks of a model whose language model has 16, 8 and 4 bits."""

    version: str = flag("", "merged model: folder or hub id")
    vision_tower: str = flag("", "CLIP tower, when the model folder has none", aliases=("--vision-tower",))
    conv_type: Template = flag("llava_v1", "template of a published model; a folder of ours records its own")
    precision: Literal["bf16", "fp16"] = flag("bf16", "of what is not quantized")
    dataset_dir: str = flag("./dataset", "dataset tree")
    val_dataset: str = flag("MultiReasonSeg|val", "validation sets, joined with ||")
    limit: NonNegativeInt = flag(0, "images per set, from its start; 0 takes all")
    max_new_tokens: Count = flag(512, "longest answer, in tokens")
    output_md: str = flag("", "Markdown file for the tables")

    def __post_init__(self) -> None:
        if not self.version:
            raise InputError("--version is missing; give the folder of a merged model")


def benchmark_quantization(parsed: Parsed[QuantizationConfig]) -> None:
    """Ask a validation set three times, and compare."""
    from utils.benchmark.quantization import benchmark

    benchmark(**vars(parsed.config))


_TRIED = "every one is tried"


@settings
class SplitsConfig(RunConfig):
    """Flags of training and of this script; ``--batch_size`` is that of a quarter of an update."""

    precision: Precision = flag("fp32", "training precision")
    lora_dropout: ShareBelowOne = flag(0.0, "LoRA dropout; each process draws its own")
    batch_size: Count = flag(1, "images per process and forward pass where an update is cut in four")
    grad_accumulation_steps: Count = flag(10, "forward passes per update", unused=_TRIED)
    optimizer: Optimizer = flag("adamw", "optimizer", unused=_TRIED)
    loss_normalization: LossNormalization = flag("global", "normalization", unused=_TRIED)
    updates: Count = flag(10, "updates of each run")
    output_md: str = flag("", "Markdown file for the tables")


def benchmark_splits(parsed: Parsed[SplitsConfig]) -> None:
    """Train on the same batches, divided in several ways."""
    from utils.benchmark.splits import benchmark

    config = parsed.config
    benchmark(config, parsed.given, updates=config.updates, output_md=config.output_md)


@settings
class FourBitsConfig(RunConfig):
    """Flags of training and of this script."""

    load_in_4bit: bool = flag(False, "a 4-bit language model", unused="both are tried")
    save_frozen: bool = flag(False, "checkpoints with frozen weights", unused="a 4-bit run saves none")
    updates: Annotated[int, Field(ge=4, lt=2**31)] = flag(40, "updates of each run")
    output_md: str = flag("", "Markdown file for the table")


def benchmark_four_bits(parsed: Parsed[FourBitsConfig]) -> None:
    """Train on the same batches with 16 and 4 bits, and merge."""
    from utils.benchmark.four_bits import benchmark

    config = parsed.config
    benchmark(config, parsed.given, updates=config.updates, output_md=config.output_md)


@settings
class CheckpointsConfig:
    """Bytes of a checkpoint of the published sizes, computed."""

    precision: Precision = flag("bf16", "training precision")
    output_md: str = flag("", "Markdown file for the table")


def benchmark_checkpoints(parsed: Parsed[CheckpointsConfig]) -> None:
    """Add up shapes; nothing is loaded."""
    from utils.benchmark.checkpoints import benchmark

    benchmark(**vars(parsed.config))


@settings
class MemoryConfig(RunConfig):
    """Bytes that training takes on each GPU, computed: of the presets, or of flags that are given."""

    size: Literal["7b", "13b"] = flag("7b", "of the model, with flags of training")
    answers: bool = flag(False, "what answering takes, in place of training")
    output_md: str = flag("", "Markdown file for the table")


def benchmark_memory(parsed: Parsed[MemoryConfig]) -> None:
    """Add up shapes; nothing is loaded."""
    from utils.benchmark.answer_memory import benchmark as benchmark_answers
    from utils.benchmark.memory import benchmark

    config = parsed.config
    of_run = parsed.given - {"size", "answers", "output_md"}
    if config.answers:
        if of_run or "size" in parsed.given:
            raise InputError("--answers is about the published sizes; leave out --size and flags of training")
        benchmark_answers(output_md=config.output_md)
        return
    benchmark(config if of_run else None, size=config.size, output_md=config.output_md)


@settings
class TrainConfig:
    """An update of training on random weights, by part; ``--compare`` adds the slower ways."""

    size: Literal["tiny", "mid", "7b", "13b"] = flag("mid", "of language model and tower")
    precision: Precision = flag("fp32", "training precision")
    images: Count = flag(2, "images of an update")
    conversations: Count = flag(3, "conversations about each image")
    masks: NonNegativeInt = flag(2, "masks of each conversation")
    photo: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] = flag(
        "640x480", "width x height of the photos, in pixels"
    )
    attn_implementation: Attention = flag("sdpa", "how the language model computes attention (docs/gpu.md)")
    steps: Count = flag(3, "updates of each way; the median counts")
    compare: bool = flag(False, "also without shared prefix, and with activations that are computed again")
    compile: bool = flag(False, "also with the language model's blocks compiled")
    output_md: str = flag("", "Markdown file for the table")


def benchmark_train(parsed: Parsed[TrainConfig]) -> None:
    """Time whole updates of a network with random weights."""
    from utils.benchmark.train import benchmark

    benchmark(**vars(parsed.config))


@settings
class ChatBenchConfig:
    """Answers on random weights: by number of targets, and in batches; ``--compare`` adds the slow ways."""

    size: Literal["tiny", "mid", "chat", "7b", "13b"] = flag("chat", "of language model and tower")
    precision: Precision = flag("fp32", "of weights and computation")
    photo: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] = flag(
        "448x448", "width x height of the photos, in pixels"
    )
    words: Annotated[int, Field(ge=1, le=500)] = flag(40, "of an answer, targets apart")
    targets: Annotated[str, Field(pattern=r"^\d{1,2}(,\d{1,2})*$")] = flag(
        "0,1,3,10", "of the answers that are measured"
    )
    batches: Annotated[str, Field(pattern=r"^[1-9]\d{0,2}(,[1-9]\d{0,2})*$")] = flag(
        "1,8,32", "questions that are asked together"
    )
    repeats: Count = flag(3, "of each way; the median counts")
    compare: bool = flag(False, "also the slow ways of getting an answer")
    attn_implementation: Attention = flag("sdpa", "how the language model computes attention (docs/gpu.md)")
    output_md: str = flag("", "Markdown file for the tables")


def benchmark_chat(parsed: Parsed[ChatBenchConfig]) -> None:
    """Time answers of a network with random weights."""
    from utils.benchmark.chat import benchmark

    benchmark(**vars(parsed.config))


@settings
class DemoBenchConfig:
    """Several users of one model at once, against one after the other; the answers are known."""

    size: Literal["tiny", "mid", "chat", "7b", "13b"] = flag("tiny", "of random weights")
    version: str = flag("", "merged model in their place: folder or hub id")
    precision: Precision = flag("fp32", "of weights and computation")
    photo: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] = flag(
        "448x448", "width x height of the photos, in pixels"
    )
    words: Annotated[int, Field(ge=1, le=500)] = flag(40, "of each answer, targets apart")
    targets: Annotated[int, Field(ge=0, le=99)] = flag(3, "of each answer")
    users: Annotated[str, Field(pattern=r"^[1-9]\d?(,[1-9]\d?)*$")] = flag("1,2,4,8", "users at once")
    repeats: Count = flag(3, "of each way; the median counts")
    output_md: str = flag("", "Markdown file for the table")


def benchmark_demo(parsed: Parsed[DemoBenchConfig]) -> None:
    """Let users come at once and one after the other."""
    from utils.benchmark.demo import benchmark

    if {"size", "version"} <= parsed.given:
        raise InputError("--size is of random weights, --version names a model; give one of them")
    benchmark(**vars(parsed.config))


COMMANDS = {
    "data": (DataConfig, benchmark_data),
    "loading": (LoadingConfig, benchmark_loading),
    "quantization": (QuantizationConfig, benchmark_quantization),
    "splits": (SplitsConfig, benchmark_splits),
    "four_bits": (FourBitsConfig, benchmark_four_bits),
    "checkpoints": (CheckpointsConfig, benchmark_checkpoints),
    "memory": (MemoryConfig, benchmark_memory),
    "train": (TrainConfig, benchmark_train),
    "chat": (ChatBenchConfig, benchmark_chat),
    "demo": (DemoBenchConfig, benchmark_demo),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
