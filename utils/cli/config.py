"""What a run, a chat and a merge can be told: released flag names and defaults, plus a few of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from model.errors import InputError
from model.outputs import NAME_BYTES
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.values import (
    Attention,
    Count,
    DecoderWidth,
    InputSide,
    NonNegative,
    NonNegativeInt,
    Positive,
    Precision,
    Scales,
    Seed,
    Share,
    ShareBelowOne,
    Text,
    TokenGrid,
    TokensPerScale,
    Workers,
)

from .answering import AnswerFlags, InferenceFlags, PrecisionOrAuto, Template
from .args import flag, settings

# --release_recipe: what the release does where it differs from the paper (docs/paper_to_code.md).
RELEASE_RECIPE_FLAGS = {
    **RECIPE_OF_PUBLISHED_WEIGHTS,
    "vision_position_resize": "released",
    "image_normalization": "released",
    "shared_prefix": False,
}
_NO_SAM = "PixelLM uses no SAM image"
_FROM_FOLDER = "the model folder records it"

Optimizer = Literal["adamw", "muon"]
LossNormalization = Literal["global", "local"]
ReportTo = Literal["tensorboard", "wandb", "none"]
ActivationCheckpointing = Literal["auto", "always", "never"]


def _inside(name: str) -> str:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise PydanticCustomError("run_name", "a folder below --log_base_dir, such as my-run")
    if any(len(part.encode()) > NAME_BYTES for part in parts):
        raise PydanticCustomError("run_name", "names of at most {limit} bytes", {"limit": NAME_BYTES})
    return name


RunName = Annotated[Text, AfterValidator(_inside)]


def _share_or_none(value: float) -> float:
    if value != -1 and not 0 <= value <= 1:
        raise PydanticCustomError("share_or_none", "a share from 0 to 1, or -1 for none")
    return value


ShareOrNone = Annotated[float, AfterValidator(_share_or_none)]
LoraRank = Annotated[int, Field(ge=1, le=2**16)]
LocalRank = Annotated[int, Field(ge=-1, lt=2**31)]


@settings
class DataFlags:
    """What is read."""

    dataset_dir: str | Path = flag("./dataset", "dataset tree")
    dataset: str = flag("sem_seg||refer_seg||vqa||reason_seg", "datasets, joined with ||", fixed="samples")
    sample_rates: str = flag("9,3,3,1", "relative weight of each dataset; not used for a single one", fixed="samples")
    sem_seg_data: str = flag(
        "ade20k||cocostuff||pascal_part||paco_lvis||mapillary", "parts of sem_seg", fixed="samples"
    )
    refer_seg_data: str = flag("refclef||refcoco||refcoco+||refcocog", "parts of refer_seg", fixed="samples")
    vqa_data: str = flag("llava_instruct_150k", "file of vqa", fixed="samples")
    reason_seg_data: str = flag("ReasonSeg|train", "split of reason_seg", fixed="samples")
    custom_data: str = flag(
        "", "JSON-lines files of the dataset custom, joined with || (docs/custom_data.md)", fixed="samples"
    )
    explanatory: ShareOrNone = flag(0.1, "share of explanatory answers in reason_seg", fixed="samples")
    num_classes_per_sample: Count = flag(3, "questions per image", fixed="samples")
    num_classes_per_question: Count = flag(1, "targets per question", fixed="samples")
    use_expand_question_list: bool = flag(False, "more question wordings", fixed="samples")


@settings
class ArchitectureFlags:
    """The network and its input."""

    vision_tower: str = flag("openai/clip-vit-large-patch14", "CLIP tower", aliases=("--vision-tower",))
    seg_token_num: TokensPerScale = flag(1, "tokens per scale (paper: N)", fixed="checkpoint")
    image_feature_scale_num: Scales = flag(1, "scales (paper: L)", fixed="checkpoint")
    separate_mm_projector: bool = flag(False, "a projector of its own for the decoder", fixed="checkpoint")
    out_dim: DecoderWidth = flag(256, "width of the pixel decoder", fixed="checkpoint")
    image_token_grid: TokenGrid = flag(16, "image tokens per side for the language model, at most", fixed="checkpoint")
    resize_vision_tower: bool = flag(False, "run the tower at another input size", fixed="checkpoint")
    resize_vision_tower_size: InputSide = flag(224, "that input size, in pixels", fixed="checkpoint")
    vision_position_resize: Literal["correct", "released"] = flag(
        "correct",
        "rule that resizes the tower's position table",
        fixed="checkpoint",
    )
    pad_train_clip_images: bool = flag(False, "pad images to a square instead of center-cropping", fixed="checkpoint")
    preprocessor_config: str = flag("", "JSON with mean and std of the image normalization", fixed="checkpoint")
    image_normalization: Literal["file", "released"] = flag(
        "file",
        "of padded images: --preprocessor_config, or ImageNet's in any case",
        fixed="checkpoint",
    )
    conv_type: Template = flag("llava_v1", "conversation template", fixed="checkpoint")
    model_max_length: Count = flag(512, "token budget of a conversation, image included", fixed="checkpoint")


@settings
class TrainableFlags:
    """What is trained, and from where it starts."""

    lora_r: LoraRank = flag(8, "LoRA rank", fixed="checkpoint")
    lora_alpha: Count = flag(16, "LoRA alpha", fixed="checkpoint")
    lora_dropout: ShareBelowOne = flag(0.05, "LoRA dropout")
    lora_target_modules: str = flag("q_proj,v_proj", "layers of the language model that get LoRA", fixed="checkpoint")
    train_mask_decoder: bool = flag(True, "train the mask decoder", fixed="checkpoint")
    trained_set: Literal["paper", "released"] = flag(
        "paper",
        "train neck, no-mask embedding, fusion and scale weights too, or not",
        fixed="checkpoint",
    )
    projector_init: Literal["llava", "fresh"] = flag(
        "llava", "keep LLaVA's linear projector, or start afresh", fixed="checkpoint"
    )
    query_init: Literal["unit", "released"] = flag(
        "unit",
        "first queries as large as the decoder's own tokens, or of PyTorch's size",
        fixed="checkpoint",
    )
    load_in_8bit: bool = flag(False, "8-bit base weights; refused: for chat and evaluation only")
    load_in_4bit: bool = flag(
        False, "a 4-bit language model under LoRA (QLoRA); needs bitsandbytes (docs/training.md)", fixed="checkpoint"
    )


@settings
class LossFlags:
    """The loss."""

    ce_loss_weight: NonNegative = flag(1.0, "weight of the text loss")
    dice_loss_weight: NonNegative = flag(0.5, "weight of the DICE loss")
    bce_loss_weight: NonNegative = flag(2.0, "weight of the BCE loss")
    refine_alpha: Annotated[float, Field(ge=1, allow_inf_nan=False)] = flag(
        2.0,
        "alpha of the target refinement loss; 1.0 is plain BCE",
        fixed="checkpoint",
    )
    loss_normalization: LossNormalization = flag(
        "global",
        "means over the tokens and masks of the whole update, or of each forward pass (docs/training.md)",
    )


@settings
class OptimizerFlags:
    """The optimizer."""

    optimizer: Optimizer = flag(
        "adamw", "adamw, or muon: DeepSpeed's Muon for the layers that make masks", fixed="checkpoint"
    )
    lr: Positive = flag(0.0003, "peak learning rate")
    muon_lr: Positive = flag(0.02, "peak learning rate of --optimizer muon; --lr remains that of all other parameters")
    beta1: ShareBelowOne = flag(0.9, "AdamW beta1")
    beta2: ShareBelowOne = flag(0.95, "AdamW beta2")
    warmup_steps: NonNegativeInt = flag(100, "updates of linear warm-up, at most a tenth of the run")
    attn_implementation: Attention = flag("sdpa", "how the language model computes attention (docs/gpu.md)")
    shared_prefix: bool = flag(
        True, "read system words and image once for all conversations about an image (docs/training.md)"
    )
    activation_checkpointing: ActivationCheckpointing = flag(
        "auto", "recompute activations in the backward pass: as many as memory asks for, or all, or none"
    )
    gradient_checkpointing: bool = flag(
        True, "of the release; --no_gradient_checkpointing is --activation_checkpointing never"
    )
    compile: bool = flag(False, "compile the language model's blocks by torch.compile; needs a C++ compiler")
    deepspeed_config: str = flag("configs/ds_zero2.json", "ZeRO settings", aliases=("--deepspeed_config_file",))


@settings
class RunFlags:
    """The run."""

    local_rank: LocalRank = flag(0, "set by the launcher", aliases=("--local-rank",))
    version: str = flag("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "LLaVA base (docs/weights.md)")
    init_from: str = flag(
        "", "merged model, published or ours, to start from in place of --version", fixed="checkpoint"
    )
    release_recipe: bool = flag(
        False, "train as the release does, not as the paper says", implies=RELEASE_RECIPE_FLAGS, fixed="checkpoint"
    )
    log_base_dir: str = flag("./runs", "where runs are kept")
    exp_name: RunName = flag("pixellm", "name of the run directory")
    overwrite_run: bool = flag(
        False, "set an earlier run of that name aside as NAME.old-1 (or -2, ...), and start anew"
    )
    auto_resume: bool = flag(True, "continue the run directory's own checkpoint when there is one")
    resume: str = flag("", "checkpoint folder (ckpt_model) to continue from")
    keep_checkpoints: Count = flag(2, "keep the last so many checkpoints, and the best")
    best_metric: Literal["giou", "ciou"] = flag("giou", "what makes a checkpoint the best, as a mean of --val_dataset")
    save_frozen: bool = flag(False, "checkpoints hold frozen weights too, in place of taking them from the base")
    precision: PrecisionOrAuto = flag("bf16", "training precision; auto takes what the devices compute in")
    epochs: Count = flag(10, "epochs")
    steps_per_epoch: Count = flag(500, "updates per epoch")
    epoch_mode: Literal["rates", "all"] = flag(
        "rates",
        "what an epoch is: --steps_per_epoch updates drawn by --sample_rates, or every sample once",
        fixed="samples",
    )
    batch_size: Count = flag(2, "images per process and forward pass")
    grad_accumulation_steps: Count = flag(10, "forward passes per update")
    images_per_update: NonNegativeInt = flag(
        0, "refuse to train unless all processes together make so many images an update; 0 takes any number"
    )
    workers: Workers = flag(4, "loader processes per training process")
    seed: Seed = flag(0, "seed of weights, data and dropout", fixed="samples")
    overfit_one_batch: bool = flag(
        False, "a check, not a run: train on the first global batch only, into EXP_NAME-overfit (docs/training.md)"
    )
    max_bad_share: Share = flag(
        0.01, "stop when more than this share of the samples (counted as 1000 at least) cannot be used"
    )
    skip_nonfinite: NonNegativeInt = flag(
        0, "pass over this many updates whose loss or gradients are not finite; the next one stops the run"
    )
    print_freq: Count = flag(1, "updates between log lines")
    cache_vision_features: str = flag(
        "", "folder in which the tower's features of each photo are kept, for this run and others (docs/training.md)"
    )
    report_to: ReportTo = flag("tensorboard", "where curves and pictures are drawn (docs/training.md)")


@settings
class ValidationFlags:
    """Validation during training."""

    val_dataset: str = flag("ReasonSeg|val", "validation sets, joined with ||")
    val_batch_size: Count = flag(1, "images per process in validation")
    val_generate: NonNegativeInt = flag(0, "also answer questions about the first so many images of each set freely")
    no_eval: bool = flag(False, "no validation during training; --eval takes it back")
    eval_only: bool = flag(False, "validate the run's checkpoint and stop")


@settings
class ReleasedFlags:
    """Flags of the release that have no effect."""

    vis_save_path: str = flag("./vis_output", "pictures folder", unused="training writes no pictures")
    image_size: NonNegativeInt = flag(1024, "side of the SAM image", unused=_NO_SAM)
    exclude_val: bool = flag(False, "leave validation images out", unused="the release reads it nowhere")
    vision_pretrained: str = flag("PATH_TO_SAM_ViT-H", "SAM weights", unused=_NO_SAM)
    start_epoch: NonNegativeInt = flag(0, "first epoch", unused="the checkpoint knows it")
    use_mm_start_end: bool = flag(True, "image marks", unused="the image always stands between its marks")
    masks_process_with_clip: bool = flag(False, "crop masks like images", unused="masks always follow their image")
    vision_tower_for_mask: bool = flag(False, "masks from tower features", unused="there is no other source of masks")
    weight: str = flag(
        "", "trained weights", unused="use --init_from (a merged model) or --resume (a checkpoint of this code)"
    )


@settings
class RunConfig(
    ReleasedFlags, ValidationFlags, OptimizerFlags, LossFlags, TrainableFlags, ArchitectureFlags, DataFlags, RunFlags
):
    """Flags of train_ds.py; saved as run_config.json in the run directory. Each part belongs to what reads it."""

    def __post_init__(self) -> None:
        if self.load_in_8bit:
            raise InputError(
                "--load_in_8bit is for chat and evaluation; train with --load_in_4bit, or with --precision bf16, "
                "--activation_checkpointing always or a smaller --batch_size to save memory"
            )
        if self.load_in_4bit and self.save_frozen:
            raise InputError(
                "--save_frozen would save weights that --load_in_4bit has rounded; leave one of them out: steps take "
                "frozen weights from the 16-bit base"
            )
        for name in ("eval_only", "resume", "overwrite_run", "cache_vision_features"):
            if self.overfit_one_batch and getattr(self, name):
                raise InputError(
                    f"--overfit_one_batch starts from --version or --init_from and keeps nothing; leave --{name} out"
                )

        if self.activation_checkpointing == "always" and not self.gradient_checkpointing:
            raise InputError(
                "--activation_checkpointing=always contradicts --no_gradient_checkpointing, which is its value never; "
                "leave one of them out, or give --gradient_checkpointing"
            )

    @property
    def recomputation(self) -> ActivationCheckpointing:
        """Of activations, whichever flag says so."""
        return self.activation_checkpointing if self.gradient_checkpointing else "never"

    @property
    def run_dir(self) -> Path:
        """A check has a folder of its own, beside that of the run."""
        return Path(self.log_base_dir) / (self.exp_name + "-overfit" * self.overfit_one_batch)

    @property
    def total_updates(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def settled_precision(self) -> Precision:
        """Of a run whose devices are known (model/precision.py)."""
        assert self.precision != "auto"
        return self.precision


# What commands that show or check data accept, so that they take the flags of a run as they are.
TRAINING_ONLY = (ValidationFlags, OptimizerFlags, LossFlags, TrainableFlags)


@settings
class ChatConfig(AnswerFlags, InferenceFlags):
    """Flags of chat.py. What describes the model is read from its folder, whatever the flags say."""

    version: str = flag("maverickrzw/PixelLM-13B/hf_model", "merged model: folder or hub id (docs/weights.md)")
    vis_save_path: str = flag("./vis_output", "where masks and pictures are written")
    image_size: NonNegativeInt = flag(1024, "side of the SAM image", unused=_NO_SAM)
    model_max_length: Count = flag(512, "token budget", unused=_FROM_FOLDER)
    lora_r: LoraRank = flag(8, "LoRA rank", unused="merged weights have no LoRA")
    vision_tower: str = flag(
        "openai/clip-vit-large-patch14", "CLIP tower, when the model folder has none", aliases=("--vision-tower",)
    )
    local_rank: LocalRank = flag(0, "set by a launcher", aliases=("--local-rank",), unused="chat is one process")
    use_mm_start_end: bool = flag(True, "image marks", unused=_FROM_FOLDER)
    seg_token_num: TokensPerScale = flag(1, "tokens per scale", unused=_FROM_FOLDER)
    pad_train_clip_images: bool = flag(False, "padding", unused=_FROM_FOLDER)
    preprocessor_config: str = flag("", "normalization", unused=_FROM_FOLDER)
    resize_vision_tower: bool = flag(False, "other input size", unused=_FROM_FOLDER)
    resize_vision_tower_size: InputSide = flag(224, "input size", unused=_FROM_FOLDER)
    vision_tower_for_mask: bool = flag(False, "masks from tower features", unused=_FROM_FOLDER)
    separate_mm_projector: bool = flag(False, "decoder projector", unused=_FROM_FOLDER)
    image_feature_scale_num: Scales = flag(1, "scales", unused=_FROM_FOLDER)
    conv_type: Template = flag("llava_v1", "template of a published model; a folder of ours records its own")
    # Ours.
    image: str = flag("", "the image; with --prompt, answer about it and stop")
    prompt: str = flag("", "the question, with --image")
    output_json: str = flag("", "write answer and masks to this file, with --image and --prompt")
    compile: bool = flag(False, "compile the language model's passes, on a GPU to CUDA graphs (docs/huggingface.md)")
    preview: bool = flag(True, "show a small picture of image and masks at a terminal with colors")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt and not self.image:
            raise InputError("--image and --prompt belong together; give both, or neither for a conversation")
        if self.output_json and not (self.image and self.prompt):
            raise InputError("--output_json needs --image and --prompt")


@settings
class MergeConfig:
    """Flags of the merge script. What describes the model is taken from the run; flags only fill gaps."""

    version: str = flag("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "LLaVA base of the run")
    vis_save_path: str = flag("./vis_output", "pictures folder", unused="merging draws nothing")
    precision: PrecisionOrAuto = flag("bf16", "precision of the saved weights; auto takes that of the run")
    image_size: NonNegativeInt = flag(1024, "side of the SAM image", unused=_NO_SAM)
    model_max_length: Count = flag(512, "token budget")
    lora_r: LoraRank = flag(8, "LoRA rank", unused="the weights show it")
    vision_tower: str = flag("openai/clip-vit-large-patch14", "CLIP tower", aliases=("--vision-tower",))
    lora_alpha: Count = flag(16, "LoRA alpha")
    lora_dropout: ShareBelowOne = flag(0.05, "LoRA dropout", unused="there is no dropout at inference")
    lora_target_modules: str = flag("q_proj,v_proj", "layers with LoRA", unused="the weights show it")
    vision_pretrained: str = flag("PATH_TO_SAM_ViT-H", "SAM weights", unused=_NO_SAM)
    out_dim: DecoderWidth = flag(256, "width of the pixel decoder", unused="the weights show it")
    train_mask_decoder: bool = flag(True, "train the mask decoder", unused="merging trains nothing")
    use_mm_start_end: bool = flag(True, "image marks", unused="the image always stands between its marks")
    seg_token_num: TokensPerScale = flag(1, "tokens per scale", unused="the weights show it")
    pad_train_clip_images: bool = flag(False, "pad images to a square")
    preprocessor_config: str = flag("", "JSON with mean and std of the image normalization")
    resize_vision_tower: bool = flag(False, "other input size", unused="the weights show it")
    resize_vision_tower_size: InputSide = flag(224, "that input size", unused="the weights show it")
    vision_tower_for_mask: bool = flag(False, "masks from tower features", unused="there is no other source of masks")
    weight: str = flag("", "trained weights: a file, a folder of shards, or a checkpoint (ckpt_model, or a step of it)")
    separate_mm_projector: bool = flag(False, "decoder projector", unused="the weights show it")
    image_feature_scale_num: Scales = flag(1, "scales", unused="the weights show it")
    conv_type: Template = flag("llava_v1", "conversation template")
    local_rank: LocalRank = flag(0, "set by a launcher", aliases=("--local-rank",), unused="merging is one process")
    save_path: str = flag("./pixellm_model", "folder to write")
    # Ours.
    save_vision_tower: bool = flag(False, "store the tower inside, so that the folder stands alone")
