"""Validation sets as the released code reads them: photos, words, masks and pixels (recorded in ../shared)."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.configuration import PixelLMConfig
from model.conversation import get_conversation
from model.tokens import add_codebook, load_tokenizer, seg_text
from utils.data.encode import Encoder
from utils.data.records import SEG_MARK
from utils.data.registry import DataOptions, build_train_sources, build_val_source

from .tiny_data import SHARED

GOLDEN, REAL_MINI = SHARED / "golden", SHARED / "real_mini"
MUSE = "MultiReasonSeg|val"
SETS = (
    "ReasonSeg|val",
    "refcoco|unc|val",
    "refcoco+|unc|val",
    "refcocog|umd|val",
    "refclef|unc|val",
    "multirefcoco|unc|val",
    MUSE,
)
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "val_datasets.json").is_file() or not REAL_MINI.is_dir(),
    reason=f"{SHARED} with golden/ and real_mini/ is not here",
)


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "val_datasets.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def released_encoder() -> Encoder:
    tokenizer = load_tokenizer(GOLDEN / "llava-tiny")
    codebook = add_codebook(tokenizer, scales=2, tokens=3)
    config = PixelLMConfig.from_released(
        json.loads((GOLDEN / "pixellm-tiny/hf_model/config.json").read_text()),
        vision=json.loads((GOLDEN / "clip-vit-tiny-patch14-336/config.json").read_text()),
        vision_tower="none",
        seg_token_ids=codebook.ids,
    )
    return Encoder(tokenizer, codebook, config)


def place(path: str | Path) -> str:
    """COCO 2017 may stand in two places of the tree."""
    return "/".join(Path(path).parts[-2:])


def read(name: str) -> dict:
    """Samples of a set by folder and name of their photo; the release goes through a set in no fixed order."""
    source = build_val_source(REAL_MINI, name)
    samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
    return {place(raw.image_path): raw for raw in samples}


def test_every_recorded_set_is_compared(golden):
    assert set(golden) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_same_photos_and_masks(golden, released_encoder, name):
    samples = read(name)
    assert len(samples) == len(golden[name]) > 0
    for entry in golden[name]:
        raw = samples[place(entry["image"])]
        assert list(raw.masks.shape[1:]) == entry["mask_size"]
        sample = released_encoder(raw, truncate=False)
        assert sample.masks.sum(dim=(1, 2)).tolist() == entry["target_pixels"]
        ignored = 0 if sample.ignore is None else int(sample.ignore.sum())
        assert [ignored] * len(sample.masks) == entry["ignore_pixels"]
        centroids = [mask.nonzero().double().mean(0).tolist() for mask in sample.masks]
        assert np.allclose(centroids, entry["target_centroids"], atol=0.006)
        assert list(sample.valid_hw) == entry["resize"]
        assert sample.pixel_values.mean().item() == pytest.approx(entry["clip_mean"], abs=2e-5)
        assert sample.pixel_values.std().item() == pytest.approx(entry["clip_std"], abs=2e-5)


def rendered(raw) -> list[str]:
    conversation = get_conversation("llava_v1")
    texts = []
    for (turn,) in raw.conversations:
        answer = turn.answer.replace(SEG_MARK, seg_text(2, 3))
        text = conversation.render([(f"<image>\n{turn.question}", answer)]).text
        texts.append(text.replace("<im_start><image><im_end>", "<image>"))
    return texts


@pytest.mark.parametrize("name", [name for name in SETS if name != MUSE])
def test_same_words(golden, name):
    samples = read(name)
    for entry in golden[name]:
        assert rendered(samples[place(entry["image"])]) == entry["conversations"]


def test_muse_asks_the_same_questions(golden):
    """The request for masks is drawn at random in the release; the question before it is the same."""
    samples = read(MUSE)
    request = " Please output segmentation mask."
    for entry in golden[MUSE]:
        questions = [turn.question.removesuffix(request) for (turn,) in samples[place(entry["image"])].conversations]
        released = entry["conversations"]
        assert len(questions) == len(released)
        assert all(f"USER: <image>\n{mine} " in text for mine, text in zip(questions, released, strict=True))


FULL_MIX = "sem_seg||refer_seg||vqa||multi_reason_seg||reason_seg"


def test_training_reads_everything(released_encoder):
    """The mix of the README with every part of every family, and reason_seg."""
    options = DataOptions(
        REAL_MINI,
        FULL_MIX,
        "2,9,2,4,1",
        refer_seg_data="refclef||refcoco||refcoco+||refcocog||grefcoco",
        num_classes_per_question=3,
        use_expand_question_list=True,
    )
    sources, _ = build_train_sources(options)
    assert [source.name for source in sources] == [
        "ade20k", "cocostuff", "pascal_part", "paco_lvis", "mapillary",
        "refclef", "refcoco", "refcoco+", "refcocog", "grefcoco",
        "llava_instruct_150k", "multi_reason_seg", "ReasonSeg|train",
    ]  # fmt: skip
    for source in sources:
        for index in range(len(source)):
            sample = released_encoder(source.get(index, np.random.default_rng(index)))
            assert (len(sample.masks) == 0) == (
                source.name == "llava_instruct_150k"
            ) or source.name == "ReasonSeg|train"
            assert len(sample.input_ids) > 0
