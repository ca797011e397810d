"""Everything that reads what users give, each with sound input of its own; ``run.py`` damages it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import merge_lora_weights_and_save_hf_model
from model.errors import InputError
from model.files import write_json
from model.image import ImagePreprocessor, read_image
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.processor import PixelLMProcessor
from model.text.tokenizer import add_codebook, load_tokenizer, save_tokenizer
from scripts import convert_to_custom, evaluate, make_custom_sample, predict
from tests.support.launch import TRAIN_FLAGS
from tests.support.parrot import write_parrot
from tests.support.published import write_published
from tests.support.tiny_data import IMAGES, tiny_config
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld, write_tiny_world
from tests.support.whole_tree import write_whole_tree
from utils.cli.args import parse
from utils.cli.config import ChatConfig, MergeConfig, RunConfig
from utils.data import verify
from utils.data.encode import Encoder
from utils.data.flags import VerifyConfig
from utils.data.options import DataOptions
from utils.data.photos import photo_hw, read_label_map
from utils.data.registry import build_train_sources, build_val_source
from utils.data.small_tokenizer import write_tokenizer
from utils.data.sources import Source
from utils.data.sources.custom import CustomSource
from utils.evaluation.flags import EvaluateConfig
from utils.inference import folder as inference_folder
from utils.inference.answer import answer, describe, to_json
from utils.inference.dialogue import Dialogue
from utils.inference.formats import write_coco, write_labelme
from utils.inference.predictions import gather
from utils.inference.questions import read_questions
from utils.inference.released import converse
from utils.inference.sheet import write_sheet
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.merge import read_training_weights
from utils.training.run_description import RunDescription
from utils.training.start import build_for_training, read_normalization, resolve_run_flags

from .mutate import ODD, TEXTS
from .run import Case, Suite, Target, message_problem

# Folders of the input.
TREE, SAMPLE, PHOTOS, WORLD, ASKED = "tree", "sample", "photos", "world", "asked"
MODEL, PUBLISHED, RUN = "model", "world/published", "runs/pixellm"
SENTENCE = "the thing is [SEG0] [SEG1] </s>"


@dataclass
class Tools:
    """What cases share: slow to make, and not changed by them."""

    encoder: Encoder
    predictor: PixelLMPredictor
    photo: np.ndarray


def prepare(root: Path) -> Tools:
    tqdm.get_lock()  # made once here, it is not left over by every child
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    tokenizer = load_tokenizer(root / WORLD / "llava-tiny")
    codebook = add_codebook(tokenizer, scales=2, tokens=3)
    encoder = Encoder(tokenizer, codebook, tiny_config(codebook))
    predictor = PixelLMPredictor.from_pretrained(root / MODEL, precision="fp32", device="cpu")
    return Tools(encoder, predictor, read_image(root / PHOTOS / "photo.jpg"))


def write_inputs(root: Path) -> None:
    world = write_tiny_world(root / WORLD)
    write_tokenizer(world.llava, (world.llava / "tokenizer.model").read_bytes())  # with its settings files
    write_whole_tree(root / TREE)
    assert make_custom_sample.main(["--out", str(root / SAMPLE), "--num=4"]) == 0
    write_photos(root / PHOTOS)
    network, tokenizer = make_network(world.llava, scales=1, tokens=2)
    write_parrot(root / MODEL, network, tokenizer, SENTENCE, source=world.llava)
    write_published(root / PUBLISHED, world, scales=2, tokens=3)
    write_sharded(root / "sharded", network)
    write_run(root / RUN, world)
    write_asked(root / ASKED, root)
    (root / "configs").mkdir()
    for name in ("pixellm_7b", "tiny_cpu", "ds_zero2", "preprocessor_448"):
        source = Path(__file__).resolve().parents[2] / f"configs/{name}.json"
        (root / f"configs/{name}.json").write_bytes(source.read_bytes())


def write_photos(folder: Path) -> None:
    """A photo in every kind of file, one that lies on its side, and label maps."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "photo.jpg")
    picture.save(folder / "lying.jpg", exif=exif, progressive=True)
    for kind in ("png", "webp", "bmp", "gif", "tiff"):
        picture.save(folder / f"photo.{kind}")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("RGBA").save(folder / "clear.png")
    labels = Image.fromarray(rng.integers(0, 20, (40, 60), dtype=np.uint8))
    labels.save(folder / "labels.png")
    labels.convert("P").save(folder / "palette.png")
    labels.convert("1").save(folder / "bits.png")
    Image.fromarray(rng.integers(0, 2000, (40, 60), dtype=np.uint16)).save(folder / "deep.png")


def write_sharded(folder: Path, network: PixelLMForCausalLM) -> None:
    """A folder of ours whose weights are two safetensors files with an index."""
    from huggingface_hub import save_torch_state_dict

    network.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(network.state_dict(), folder, max_shard_size=300_000)


def write_asked(folder: Path, root: Path) -> None:
    """Questions about photos as JSON lines, and their answers."""
    folder.mkdir()
    photo = str(Path("..") / PHOTOS / "photo.jpg")
    asked = [{"image": photo, "prompt": "What?", "id": "a"}, {"image": photo, "prompt": ["a cat"], "id": 2}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
    assert ask_many(folder / "questions.jsonl", model=root / MODEL, output=folder / "answers")


def ask_many(questions: Path, *, model: Path, output: Path) -> bool:
    flags = ("--precision=fp32", "--max_new_tokens=4", "--format=labelme")
    return command(predict.main, f"--version={model}", f"--input={questions}", f"--output={output}", *flags)


def run_flags(root: Path) -> list[str]:
    world = root / WORLD
    return [
        f"--version={world / 'llava-tiny'}", f"--vision-tower={world / 'clip-tiny'}", *TRAIN_FLAGS, "--lora_r=4",
        f"--dataset_dir={root / TREE}", f"--log_base_dir={root / 'runs'}", "--exp_name=pixellm",
    ]  # fmt: skip


def write_run(folder: Path, world: TinyWorld) -> None:
    """A run directory, and training weights with LoRA in both kinds of file, without a checkpoint."""
    root = folder.parents[1]
    run = parse(RunConfig, run_flags(root), "").config
    training = build_for_training(run)
    (folder / "model_config").mkdir(parents=True)
    training.config.save_pretrained(folder / "model_config")
    save_tokenizer(training.tokenizer, folder / "model_config", source=training.base_folder)
    write_json(folder / "run_config.json", asdict(run))
    state = {name: tensor.contiguous() for name, tensor in training.wrapped.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")


# Sources of training and validation.


def draw(case: Case, open_source: Callable[[], Source], *, truncate: bool) -> None:
    """Every sample of a source, twice, through the encoder."""
    source = case.attempt(open_source)
    for index in sorted([*range(len(source))][:8] * 2) if source is not None else ():
        case.attempt(lambda index=index: case.tools.encoder(source.get(index, case.rng), truncate=truncate))


def read_tree(flags: dict[str, Any], val_names: Sequence[str] = ()) -> Callable[[Case], None]:
    """Use of a dataset tree: train sources of some flags, and validation sets."""

    def use(case: Case) -> None:
        tree = case.root / TREE
        options = {"sample_rates": "1", "num_classes_per_sample": 9, "num_classes_per_question": 2, **flags}
        draw(case, lambda: build_train_sources(DataOptions(tree, **options))[0][0], truncate=True)
        for name in val_names:
            draw(case, lambda name=name: build_val_source(tree, name), truncate=False)

    return use


def source_targets() -> dict[str, Target]:
    ade, coco = "ade20k/{}/training/ADE_train_00000001.{}", "coco/train2017/{:012d}.jpg"
    mapillary, voc = "mapillary/training", "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000007.jpg"
    muse_photo = f"{IMAGES}/train2017/11.jpg"
    muse_val = [f"MultiReasonSeg|{split}" for split in ("train", "val")]

    def of(files: Sequence[str], *val: str, weight: float = 1.0, **flags: Any) -> Target:
        return Target(read_tree(flags, val), tuple(f"{TREE}/{file}" for file in files), weight)

    targets = {
        "ade20k": of([ade.format("annotations", "png"), ade.format("images", "jpg")],
                     dataset="sem_seg", sem_seg_data="ade20k"),
        "cocostuff": of(["cocostuff/train2017/000000000001.png", coco.format(1)],
                        dataset="sem_seg", sem_seg_data="cocostuff"),
        "mapillary": of(["mapillary/config_v2.0.json"] * 3 + [f"{mapillary}/v2.0/labels/abc.png"],
                        dataset="sem_seg", sem_seg_data="mapillary"),
        "paco_lvis": of(["vlpart/paco/annotations/paco_lvis_v1_train.json"] * 5 + [coco.format(7)],
                        dataset="sem_seg", sem_seg_data="paco_lvis", weight=3),
        "pascal_part": of(["vlpart/pascal_part/train.json"] * 5 + [voc],
                          dataset="sem_seg", sem_seg_data="pascal_part", weight=2),
        "vqa": of(["llava_dataset/llava_instruct_150k.json"] * 5 + [coco.format(1)], dataset="vqa", weight=2),
        "reason_seg": of(["reason_seg/ReasonSeg/train/1.json", "reason_seg/ReasonSeg/train/2.json"] * 3
                         + ["reason_seg/ReasonSeg/explanatory/train.json", "reason_seg/ReasonSeg/train/1.jpg"],
                         dataset="reason_seg", weight=3),
        "reason_seg_val": of(["reason_seg/ReasonSeg/val/1.json"] * 4 + ["reason_seg/ReasonSeg/val/1.jpg"],
                             "ReasonSeg|val", dataset="reason_seg"),
        "muse": of(["muse/muse_train.json"] * 8 + [muse_photo], *muse_val[:1], dataset="multi_reason_seg", weight=5),
        "muse_val": of(["muse/muse_val.json"] * 8 + [muse_photo], *muse_val[1:], dataset="multi_reason_seg", weight=2),
    }  # fmt: skip
    for name, split_by in (("refcoco", "unc"), ("refcocog", "umd"), ("grefcoco", "unc"), ("refclef", "unc")):
        refs = "grefs(unc).json" if name == "grefcoco" else f"refs({split_by}).p"
        files = [f"refer_seg/{name}/{refs}", f"refer_seg/{name}/instances.json"]
        val = [f"{name}|{split_by}|val", f"multi{name}|{split_by}|val"]
        targets[name] = of(files, *val, dataset="refer_seg", refer_seg_data=name, weight=2)
    return targets


def read_custom(case: Case) -> None:
    file = str(case.root / SAMPLE / "handwritten.jsonl")
    options = DataOptions(case.root / TREE, "custom", "1", custom_data=file)
    draw(case, lambda: build_train_sources(options)[0][0], truncate=True)
    draw(case, lambda: build_val_source(case.root / TREE, f"custom|{file}"), truncate=False)


# Commands.


def command(main: Callable[[Sequence[str]], int], *arguments: str | Path) -> bool:
    """Run a command in this process; whether it accepts its input. What it refuses, it has to tell in one line."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert code in (0, 2), f"exit code {code}"
    assert len(errors) == (code == 2), errors
    assert not any(map(message_problem, errors)), errors
    assert not errors or err.getvalue().splitlines()[-1] == errors[0], err.getvalue()
    return code == 0


def verify_deep(*flags: str) -> Callable[[Case], None]:
    def use(case: Case) -> None:
        custom = f"--custom_data={case.root / SAMPLE / 'handwritten.jsonl'}"
        arguments = [f"--dataset_dir={case.root / TREE}", custom, "--deep", "--workers=0", *flags]
        command(verify.main, *arguments, f"--report={case.scratch / 'report'}")

    return use


def convert(kind: str, **flags: str) -> Callable[[Case], None]:
    """Convert, then read what was written: all of it can be trained on, unless the photo itself is damaged."""

    def use(case: Case) -> None:
        sample, out = case.root / SAMPLE, case.scratch / "out.jsonl"
        arguments = [f"--{name}={sample / value}" for name, value in flags.items()]
        if not command(convert_to_custom.main, kind, *arguments, f"--out={out}"):
            raise InputError(f"{kind} refused")
        source = CustomSource(out, asked_by="the converter")
        for index in range(len(source)):
            case.attempt(lambda index=index: case.tools.encoder(source.get(index, case.rng)))
        unusable = [err for err in case.refusals if err.reason not in ("too long", "image unreadable")]
        assert not unusable, f"written, but cannot be used: {unusable[0]}"

    return use


# Photos and label maps.


def read_photo_file(case: Case) -> None:
    """Whichever file is damaged, as a photo and as a label map."""
    path = case.root / PHOTOS / case.mutator.notes[0].split()[0]
    photos = [case.attempt(lambda stored=stored: read_image(path, as_stored=stored)) for stored in (True, False)]
    sizes = [case.attempt(lambda upright=upright: photo_hw(path, upright=upright)) for upright in (False, True)]
    case.attempt(lambda: read_label_map(path))
    for photo, size in zip(photos, sizes, strict=True):
        if photo is not None:
            case.tools.encoder.config.preprocessor(photo)
        if photo is not None and size is not None:
            assert photo.shape[:2] == size, f"decoded {photo.shape[:2]}, header {size}"


# Models.


def load_and_ask(folder: str) -> Callable[[Case], None]:
    """Load a model, and ask it something."""

    def use(case: Case) -> None:
        predictor = PixelLMPredictor.from_pretrained(case.root / folder, precision="fp32", device="cpu")
        predictor.set_image(case.tools.photo)
        predictor.ask("What is it?", max_new_tokens=3)

    return use


def read_processor(case: Case) -> None:
    """With its model, and as if it had been saved alone."""
    photo = case.tools.photo
    case.attempt(lambda: PixelLMProcessor.from_pretrained(case.root / MODEL)(images=photo, text="What is it?"))
    alone = case.scratch / "alone"
    alone.mkdir()
    for file in model_files(MODEL, "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (case.root / file).exists():
            (alone / Path(file).name).symlink_to(case.root / file)
    case.attempt(lambda: PixelLMProcessor.from_pretrained(alone)(images=photo, text="What is it?"))


def start_run(case: Case) -> None:
    build_for_training(parse(RunConfig, run_flags(case.root), "").config)


def start_from_model(case: Case) -> None:
    flags = [f"--init_from={case.root / MODEL}", "--precision=fp32", f"--dataset_dir={case.root / TREE}"]
    build_for_training(resolve_run_flags(parse(RunConfig, flags, "")))


def read_run(case: Case) -> None:
    run = RunDescription(case.root / RUN)
    case.attempt(run.read_flags)
    case.attempt(run.read_model)


def merge_run(case: Case) -> None:
    weight = case.root / RUN / "pytorch_model.bin"
    case.attempt(lambda: read_training_weights(weight))
    world = case.root / WORLD
    bases = [f"--version={world / 'llava-tiny'}", f"--vision-tower={world / 'clip-tiny'}"]
    flags = [f"--weight={weight}", f"--save_path={case.scratch / 'merged'}", "--precision=fp32"]
    if not command(merge_lora_weights_and_save_hf_model.main, *bases, *flags):
        assert not list(case.scratch.iterdir()), "something was left behind"
        raise InputError("merge refused")


# Settings files and command lines.


def read_settings(case: Case) -> None:
    for name in ("pixellm_7b", "tiny_cpu"):
        case.attempt(lambda name=name: parse(RunConfig, [f"--config={case.root / f'configs/{name}.json'}"], ""))


def read_ds_config(case: Case) -> None:
    deepspeed_settings(parse(RunConfig, [f"--deepspeed_config={case.root / 'configs/ds_zero2.json'}"], "").config)


def read_preprocessor(case: Case) -> None:
    mean, std = read_normalization(str(case.root / "configs/preprocessor_448.json"), image_size=448)
    prepared = ImagePreprocessor(448, True, mean, std)(case.tools.photo)
    assert prepared.pixel_values.isfinite().all(), f"normalized by {mean}, {std}"


CONFIGS = {"run": RunConfig, "chat": ChatConfig, "merge": MergeConfig, "evaluate": EvaluateConfig,
           "verify": VerifyConfig}  # fmt: skip


def give_flags(case: Case) -> None:
    """A command line with odd values; it is parsed, nothing more."""
    config = CONFIGS[case.mutator.pick(list(CONFIGS))]
    names = ["config", *(field.name for field in fields(config))]
    arguments = []
    for _ in range(int(case.rng.integers(1, 4))):
        value = case.mutator.pick(ODD)
        text = value if isinstance(value, str) else repr(value)[:2000]
        arguments += case.mutator.pick(
            [[f"--{case.mutator.pick(names)}={text}"], [f"--{case.mutator.pick(names)}", text]]
        )
    case.mutator.note(f"{config.__name__} {shlex.join(arguments)!r}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        parse(config, [argument.replace("\0", "") for argument in arguments], "")


def ask_anything(case: Case) -> None:
    """A question of odd words about a sound photo."""
    parts = [
        case.mutator.pick([*TEXTS, "Where is the thing?", "the thing"]) for _ in range(int(case.rng.integers(1, 4)))
    ]
    question = " ".join(parts)
    case.mutator.note(f"question {question!r}")
    photo = case.root / PHOTOS / "photo.jpg"
    reply, written = answer(case.tools.predictor, str(photo), question, output_dir=case.scratch, max_new_tokens=4)
    describe(reply, written)
    to_json(reply, image_path=str(photo), question=question)


def ask_about_anything(case: Case) -> None:
    """A photo of an odd name, or a damaged one."""
    name = case.mutator.text("photo.jpg")
    case.mutator.note(f"photo {name!r}")
    answer(case.tools.predictor, str(case.root / PHOTOS / name), "What?", output_dir=case.scratch, max_new_tokens=2)


def talk(case: Case) -> None:
    """Interactive chat, whose input is damaged as bytes."""
    typed = f"Where is the thing?\n{case.root / PHOTOS / 'photo.jpg'}\n".encode() * 2
    stdin = io.TextIOWrapper(io.BytesIO(case.mutator.file("stdin", typed)), encoding="utf-8")
    settings = ChatConfig(vis_save_path=str(case.scratch), max_new_tokens=2)
    with mock.patch("sys.stdin", stdin), contextlib.redirect_stdout(io.StringIO()):
        converse(case.tools.predictor, settings)


def answer_many(case: Case) -> None:
    with mock.patch.object(inference_folder, "load_predictor", return_value=case.tools.predictor):
        if not ask_many(case.root / ASKED / "questions.jsonl", model=case.root / MODEL, output=case.scratch / "out"):
            raise InputError("questions refused")


def go_on_with_answers(case: Case) -> None:
    """What a run that goes on reads, and all that it makes of it."""
    output = case.root / ASKED / "answers"
    questions = read_questions(str(case.root / ASKED / "questions.jsonl"), [])
    predictions = gather(output, questions)
    write_coco(case.scratch / "coco.json", predictions, questions)
    write_labelme(case.scratch / "labelme", predictions, questions)
    write_sheet(case.scratch / "index.html", predictions, questions, model="model")


def type_a_line(case: Case) -> None:
    """A path, a command or a question of odd words, as at a terminal. ``/save`` would write wherever they say."""
    dialogue = Dialogue(case.tools.predictor, ChatConfig(vis_save_path=str(case.scratch), max_new_tokens=2))
    photo = str(case.root / PHOTOS / "photo.jpg")
    line = case.mutator.pick(["", "/", "/image ", "/set ", "/set alpha ", "Where is "]) + case.mutator.text(photo)
    case.mutator.note(f"line {line!r}")
    dialogue.look_at(photo)
    if dialogue.is_photo(line):
        dialogue.look_at(line)
    elif line.startswith("/"):
        dialogue.command(line)
    else:
        list(dialogue.ask(line))


def evaluate_model(case: Case) -> None:
    accepted = command(
        evaluate.main, f"--version={case.root / MODEL}", f"--dataset_dir={case.root / TREE}", "--precision=fp32",
        "--val_dataset=MultiReasonSeg|val", "--max_new_tokens=3", "--limit=20",  # 600 sound photos are work, no damage
        f"--output_dir={case.scratch / 'out'}",
    )  # fmt: skip
    if not accepted:
        raise InputError("evaluation refused")


def model_files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


TARGETS = {
    **source_targets(),
    "custom": Target(
        read_custom,
        (*[f"{SAMPLE}/handwritten.jsonl"] * 6, f"{SAMPLE}/masks/0002.png", f"{SAMPLE}/images/0000.jpg"),
        weight=5,
    ),
    "verify_refer": Target(
        verify_deep("--dataset=refer_seg||custom", "--refer_seg_data=refcoco"),
        (f"{TREE}/refer_seg/refcoco/instances.json", f"{SAMPLE}/handwritten.jsonl"),
    ),
    "verify_muse": Target(
        verify_deep("--dataset=multi_reason_seg||vqa", "--val_dataset=MultiReasonSeg|val"),
        (f"{TREE}/muse/muse_train.json", f"{TREE}/muse/muse_val.json",
         f"{TREE}/llava_dataset/llava_instruct_150k.json"),
    ),
    "convert_masks": Target(
        convert("masks", images="images", masks="masks", classes="classes.json"),
        (f"{SAMPLE}/masks/0001.png", f"{SAMPLE}/classes.json", f"{SAMPLE}/classes.json", f"{SAMPLE}/images/0001.jpg"),
    ),
    "convert_coco": Target(
        convert("coco", annotations="instances.json", images="images"), (f"{SAMPLE}/instances.json",), weight=2
    ),
    "convert_templates": Target(
        convert("coco", annotations="instances.json", images="images", templates="templates.json"),
        (f"{SAMPLE}/templates.json",),
    ),
    "convert_labelme": Target(convert("labelme", annotations="labelme"), (f"{SAMPLE}/labelme/0001.json",), weight=2),
    "photos": Target(
        read_photo_file,
        tuple(f"{PHOTOS}/{name}" for name in (
            "photo.jpg", "lying.jpg", "photo.png", "photo.webp", "photo.bmp", "photo.gif", "photo.tiff", "cmyk.jpg",
            "clear.png", "labels.png", "palette.png", "bits.png", "deep.png",
        )),
        weight=5,
    ),
    "model_config": Target(load_and_ask(MODEL), model_files(MODEL, "config.json"), weight=3),
    "model_tokenizer": Target(
        load_and_ask(MODEL), model_files(MODEL, "tokenizer_config.json", "tokenizer.json", "tokenizer.model"), weight=2
    ),
    "model_processor": Target(
        read_processor,
        model_files(MODEL, *["processor_config.json"] * 4, "tokenizer_config.json", "chat_template.jinja"),
        weight=2,
    ),
    "model_generation": Target(load_and_ask(MODEL), model_files(MODEL, "generation_config.json"), weight=2),
    "model_weights": Target(load_and_ask(MODEL), model_files(MODEL, "model.safetensors"), weight=2),
    "sharded_weights": Target(
        load_and_ask("sharded"),
        model_files("sharded", "model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    ),
    "published_config": Target(load_and_ask(PUBLISHED), model_files(PUBLISHED, "config.json"), weight=2),
    "published_rest": Target(
        load_and_ask(PUBLISHED),
        model_files(PUBLISHED, "added_tokens.json", "tokenizer.model", "pytorch_model.bin.index.json",
                    "pytorch_model-00001-of-00002.bin") + model_files("world/clip-tiny", "config.json"),
    ),
    "base": Target(
        start_run,
        (*model_files("world/llava-tiny", "config.json", "config.json", "tokenizer.model", "tokenizer_config.json",
                       "special_tokens_map.json", "pytorch_model.bin"),
         *model_files("world/clip-tiny", "config.json", "config.json", "pytorch_model.bin")),
        weight=2,
    ),
    "init_from": Target(start_from_model, model_files(MODEL, "config.json", "tokenizer_config.json"), weight=0.5),
    "run_directory": Target(
        read_run,
        model_files(RUN, *["run_config.json"] * 3, "model_config/config.json", "model_config/tokenizer_config.json"),
        weight=3,
    ),
    "merge": Target(
        merge_run, model_files(RUN, "run_config.json", "model_config/config.json", "pytorch_model.bin"), weight=0.5
    ),
    "settings_file": Target(read_settings, ("configs/pixellm_7b.json", "configs/tiny_cpu.json"), weight=2),
    "deepspeed_config": Target(read_ds_config, ("configs/ds_zero2.json",), weight=0.5),
    "preprocessor_config": Target(read_preprocessor, ("configs/preprocessor_448.json",)),
    "flags": Target(give_flags, weight=3),
    "question": Target(ask_anything, weight=2),
    "conversation": Target(talk, weight=0.5),
    "typed_line": Target(type_a_line, weight=0.5),
    "evaluate": Target(evaluate_model, (f"{TREE}/muse/muse_val.json",), weight=0.5),
    "questions": Target(answer_many, (f"{ASKED}/questions.jsonl",)),
    "predictions": Target(go_on_with_answers, (f"{ASKED}/answers/predictions.jsonl",)),
    "photo_name": Target(ask_about_anything, weight=0.5),
}  # fmt: skip

SUITE = Suite(TARGETS, write_inputs, prepare)
