"""The flags of evaluation, apart from its work: reading them imports no torch."""

from __future__ import annotations

from model.errors import InputError
from model.values import Count, NonNegativeInt
from utils.cli.answering import InferenceFlags, Template
from utils.cli.args import flag, settings
from utils.data.names import split_names


@settings
class EvaluateConfig(InferenceFlags):
    """Flags of scripts/evaluate.py."""

    version: str = flag("", "merged model: folder or hub id")
    vision_tower: str = flag("", "CLIP tower, when the model folder has none", aliases=("--vision-tower",))
    conv_type: Template = flag("llava_v1", "template of a published model; a folder of ours records its own")
    dataset_dir: str = flag("./dataset", "dataset tree")
    val_dataset: str = flag("MultiReasonSeg|val", "validation sets, joined with ||")
    limit: NonNegativeInt = flag(0, "images per set, from its start; 0 takes all")
    max_new_tokens: Count = flag(512, "longest answer, in tokens")
    batch_size: Count = flag(16, "questions that are answered together, per process; fewer take less memory")
    output_dir: str = flag("./eval_output", "where results.json and pictures.png are written")
    pictures: NonNegativeInt = flag(8, "questions per set in pictures.png; 0 writes none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.version:
            raise InputError("--version is missing; give the folder of a merged model")
        if not self.output_dir:
            raise InputError("--output_dir is empty; give the folder for results.json and pictures.png")
        if not split_names(self.val_dataset):
            raise InputError("--val_dataset names no set; expected names joined with ||, such as MultiReasonSeg|val")
