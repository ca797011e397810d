"""Validation sets as the released code reads them: photos, words, masks and pixels (recorded in ../shared)."""

import json

import numpy as np
import pytest

from model.configuration import PixelLMConfig
from model.conversation import get_conversation
from model.tokens import add_codebook, load_tokenizer, seg_text
from utils.data.encode import Encoder
from utils.data.mixture import Mixture
from utils.data.records import SEG_MARK
from utils.data.registry import DataOptions, build_train_sources, build_val_source

from .tiny_data import SHARED

GOLDEN, REAL_MINI = SHARED / "golden", SHARED / "real_mini"
REFERRING = ("refcoco|unc|val", "refcoco+|unc|val", "refcocog|umd|val")
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


@pytest.mark.parametrize("name", [*REFERRING, "MultiReasonSeg|val"])
def test_same_photos_and_masks(golden, released_encoder, name):
    source = build_val_source(REAL_MINI, name)
    samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
    expected = {entry["image"].rsplit("/", 1)[-1]: entry for entry in golden[name]}
    assert len(samples) == len(expected) > 0
    for raw in samples:
        entry = expected[raw.image_path.name]
        assert raw.image_path.parent.name == entry["image"].split("/")[-2]
        assert list(raw.masks.shape[1:]) == entry["mask_size"]
        sample = released_encoder(raw, truncate=False)
        assert sample.masks.sum(dim=(1, 2)).tolist() == entry["target_pixels"]
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


@pytest.mark.parametrize("name", REFERRING)
def test_same_words(golden, name):
    source = build_val_source(REAL_MINI, name)
    samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
    assert [rendered(raw) for raw in samples] == [entry["conversations"] for entry in golden[name]]


def test_muse_asks_the_same_questions(golden):
    """The request for masks is drawn at random in the release; the question before it is the same."""
    source = build_val_source(REAL_MINI, "MultiReasonSeg|val")
    expected = {entry["image"].rsplit("/", 1)[-1]: entry["conversations"] for entry in golden["MultiReasonSeg|val"]}
    request = " Please output segmentation mask."
    for index in range(len(source)):
        raw = source.get(index, np.random.default_rng(0))
        questions = [turn.question.removesuffix(request) for (turn,) in raw.conversations]
        released = expected[raw.image_path.name]
        assert len(questions) == len(released)
        assert all(f"USER: <image>\n{mine} " in text for mine, text in zip(questions, released, strict=True))


def test_training_reads_everything(released_encoder):
    options = DataOptions(REAL_MINI, "multi_reason_seg||refer_seg", "4,9", num_classes_per_question=3)
    sources, rates = build_train_sources(options)
    assert [source.name for source in sources] == ["multi_reason_seg", "refcoco", "refcoco+", "refcocog"]
    mixture = Mixture(sources, rates, released_encoder, seed=0)
    assert all(len(mixture[index].masks) > 0 for index in range(12))
