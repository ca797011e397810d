"""The toy world: exact masks, questions whose answers are right, and base weights that load.

Contracts: the data is a function of the seed; files have the released layout, parameters the released names.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from model.text.tokenizer import load_tokenizer
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID
from scripts.make_toy_world import main
from utils.data.paths import DatasetPaths
from utils.data.records import SEG_MARK
from utils.data.small_tokenizer import train_tokenizer, write_tokenizer
from utils.data.sources.refer import read_refs
from utils.masks.outlines import polygons, uncompressed_rle
from utils.toy_world.base.language import (
    LanguageTraining,
    ToyLlava,
    draw_dialogues,
    language_config,
    measure_language,
)
from utils.toy_world.base.pack import KEPT, pretrain, unpack
from utils.toy_world.base.tokenizer import toy_corpus
from utils.toy_world.base.tower import TowerTraining, ToyTower, tower_config
from utils.toy_world.base.views import TRAITS, Views
from utils.toy_world.painting import COLORS
from utils.toy_world.questions import SQUARES, Kind, referring_phrases, short_name, square_of, vocabulary_text
from utils.toy_world.scene import Scene, draw_scene
from utils.toy_world.shapes import SHAPES, coverage
from utils.toy_world.tree import MUSE_SPLITS, draw_muse_item

IMAGES = "refer_seg/images/mscoco/images"
SMALL = ["--num_train", "7", "--num_val", "2", "--num_test", "2", "--skip_base_weights"]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([3, index])) for index in range(30)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn by one process."""
    out = tmp_path_factory.mktemp("toy") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        assert main(["--out", str(out), *SMALL]) == 0
    return out


def decode(segmentation: dict | list, height: int, width: int) -> np.ndarray:
    masks = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
    return masks.astype(bool) if masks.ndim == 2 else masks.any(axis=2)


def muse(world: Path, split: str) -> list[dict]:
    return json.loads((world / "dataset" / "muse" / f"muse_{split}.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestScene:
    def test_equal_generators_draw_equal_scenes(self) -> None:
        first, second = (draw_scene(np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert [short_name(item) for item in first.objects] == [short_name(item) for item in second.objects]

    def test_masks_are_disjoint_and_large_enough(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            assert sum(item.mask.astype(int) for item in scene.objects).max() == 1
            assert all(item.area >= 90 and item.visible_share >= 0.6 for item in scene.objects)
            assert 120 <= min(scene.image.shape[:2]) <= max(scene.image.shape[:2]) <= 192

    def test_names_in_answers_belong_to_one_object(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            names = [short_name(item) for item in scene.objects]
            assert len(set(names)) == len(names) >= 2

    def test_objects_are_in_the_order_of_colors_and_shapes(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            looks = [(COLORS.index(item.color), SHAPES.index(item.shape)) for item in scene.objects]
            assert looks == sorted(looks)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_equal_radius_covers_similar_area(self, shape: str) -> None:
        area = coverage(shape, (100, 100), center=(50, 50), radius=25, rotation=0.2).sum()
        assert 0.75 < area / (np.pi * 25**2) < 1.05

    def test_an_object_looks_unlike_what_surrounds_it(self, scenes: list[Scene]) -> None:
        """Would catch a mask that is shifted against the picture, or paint that never arrived."""
        for scene in scenes:
            free = ~np.any([item.mask for item in scene.objects], axis=0)
            saturation = np.ptp(scene.image.astype(int), axis=2)
            for item in scene.objects:
                assert np.percentile(saturation[item.mask], 75) > np.median(saturation[free]) + 20


class TestEncoding:
    def test_both_codes_are_exact(self, scenes: list[Scene]) -> None:
        for item in (item for scene in scenes for item in scene.objects):
            assert np.array_equal(decode(uncompressed_rle(item.mask), *item.mask.shape), item.mask)
            assert np.array_equal(decode(polygons(item.mask), *item.mask.shape), item.mask)

    def test_a_hole_survives_polygons(self) -> None:
        ring = coverage("ring", (80, 90), center=(40, 41), radius=25, rotation=0) >= 0.5
        outlines = polygons(ring)
        assert len(outlines) > 1
        assert np.array_equal(decode(outlines, 80, 90), ring)

    def test_mask_at_the_first_pixel(self) -> None:
        mask = np.zeros((6, 5), bool)
        mask[:4, :3] = True
        assert uncompressed_rle(mask)["counts"][0] == 0
        assert np.array_equal(decode(uncompressed_rle(mask), 6, 5), mask)
        assert np.array_equal(decode(polygons(mask), 6, 5), mask)


class TestQuestions:
    def test_answers_name_their_targets_in_order(self) -> None:
        for split in MUSE_SPLITS:
            for index in range(6):
                scene, turns = draw_muse_item(split, index, seed=1)
                assert len({turn.targets for turn in turns}) == len(turns) >= 2
                for turn in turns:
                    assert list(turn.targets) == sorted(turn.targets)
                    clauses = ", ".join(f"{short_name(scene.objects[i])} {SEG_MARK}" for i in turn.targets)
                    assert turn.answer.lower().removeprefix("sure, ") == f"{clauses}."
                    assert len(turn.targets) in split.count_weights

    def test_every_wording_of_a_kind_has_all_its_objects(self) -> None:
        """The answer is worked out a second way: by reading the question."""
        read = 0
        for index in range(60):
            scene, turns = draw_muse_item(MUSE_SPLITS[0], index, seed=2)
            for turn in turns:
                words = turn.question.rstrip(".?").split()
                if words[:2] != ["Segment", "every"] or "and" in words or "in" in words:
                    continue
                wanted = set(words[2:]) - {"object"}
                looks = [{item.size, item.texture, item.color, item.shape} for item in scene.objects]
                assert turn.targets == tuple(i for i, look in enumerate(looks) if wanted <= look)
                read += 1
        assert read >= 10

    def test_halves_and_extremes(self) -> None:
        read = 0
        for index in range(120):
            scene, turns = draw_muse_item(MUSE_SPLITS[0], index, seed=4)
            x, y = np.array([item.center for item in scene.objects]).T
            extremes = {"leftmost": x, "rightmost": -x, "topmost": y, "lowest": -y}
            for turn in turns:
                words = turn.question.rstrip(".?").split()
                if " is the " in turn.question and words[-1] in extremes:
                    assert int(extremes[words[-1]].argmin()) in turn.targets
                    read += 1
                halves = {"left": x < 0.5, "right": x > 0.5, "upper": y < 0.5, "lower": y > 0.5}
                if "half" in words:
                    half = words[words.index("half") - 1]
                    assert set(turn.targets) == set(np.flatnonzero(halves[half]))
                    read += 1
        assert read >= 10

    def test_size_is_not_asked_where_all_are_alike(self) -> None:
        seen = 0
        for index in range(80):
            scene, turns = draw_muse_item(MUSE_SPLITS[0], index, seed=6)
            if len({item.size for item in scene.objects}) == 1:
                seen += 1
                assert not any(word in turn.question.split() for turn in turns for word in ("small", "large"))
        assert seen > 0

    def test_referring_phrases_fit_one_object(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            phrases = [referring_phrases(scene, index) for index in range(len(scene.objects))]
            assert all(set(a).isdisjoint(b) for a, b in combinations(phrases, 2))
            for index, own in enumerate(phrases):
                for phrase in own:
                    if set(phrase.split()) <= looks_of(scene.objects[index]):
                        fits = [i for i, o in enumerate(scene.objects) if set(phrase.split()) <= looks_of(o)]
                        assert fits == [index]

    def test_kind_words(self) -> None:
        assert Kind(size="large", color="red").many == "large red objects"
        assert Kind(texture="striped", shape="cross").many == "striped crosses"

    def test_squares_say_where_objects_are(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            for item in scene.objects:
                side = max(item.mask.shape) / 6
                ys, xs = np.nonzero(item.mask)
                column, row = ("ABCDEF".index(letter) for letter in square_of(item))
                assert abs(column + 0.5 - xs.mean() / side) <= 0.6
                assert abs(row + 0.5 - ys.mean() / side) <= 0.6


def looks_of(item: object) -> set[str]:
    return {getattr(item, trait) for trait in TRAITS}


class TestDataset:
    def test_muse_files(self, world: Path) -> None:
        paths = DatasetPaths(world / "dataset")
        records = muse(world, "train")
        assert len(records) == 7
        assert ["text_answers" in record for record in records] == [True] * 5 + [False, True]
        assert {"file_name" in record for record in records} == {True, False}
        for record in (record for split in MUSE_SPLITS for record in muse(world, split.name)):
            assert paths.muse_image(record).is_file()
            assert len(record["questions"]) == len(record["answers"])
            for position, answer in enumerate(record["answers"]):
                if "text_answers" in record:
                    assert record["text_answers"][position].count(SEG_MARK) == len(answer)
                for item in answer:
                    mask = decode(item["segmentation"], record["height"], record["width"])
                    ys, xs = np.nonzero(mask)
                    x, y, width, height = item["bbox"]
                    assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                    assert item["area"] == mask.sum()
                    assert {"category_name", "rephrased_name", "category_id"} <= set(item)

    def test_few_and_many(self, world: Path) -> None:
        few = [len(answer) for record in muse(world, "test_less") for answer in record["answers"]]
        many = [len(answer) for record in muse(world, "test_many") for answer in record["answers"]]
        assert max(few) <= 3 < min(many)

    def test_both_mask_formats_occur(self, world: Path) -> None:
        kinds = {type(item["segmentation"]) for record in muse(world, "train") for item in record["ann_list"]}
        assert kinds == {list, dict}

    def test_refcoco_files(self, world: Path) -> None:
        folder = world / "dataset" / "refer_seg" / "refcoco"
        refs = read_refs(folder / "refs(unc).p")  # refuses everything but plain data
        assert (folder / "refs(unc).p").read_bytes()[:2] == b"\x80\x02"
        assert pickle.loads((folder / "refs(unc).p").read_bytes()) == refs
        instances = json.loads((folder / "instances.json").read_text())
        annotations = {item["id"]: item for item in instances["annotations"]}
        images = {item["id"]: item for item in instances["images"]}
        assert {ref["split"] for ref in refs} == {"train", "val", "testA", "testB"}
        for ref in refs:
            image = images[ref["image_id"]]
            assert (world / "dataset" / IMAGES / "train2014" / image["file_name"]).is_file()
            assert 2 <= len(ref["sentences"]) <= 3
            item = annotations[ref["ann_id"]]
            assert item["area"] == decode(item["segmentation"], image["height"], image["width"]).sum()

    @pytest.mark.slow
    def test_same_bytes_again_and_a_larger_world_begins_alike(self, world: Path, tmp_path: Path) -> None:
        assert main(["--out", str(tmp_path / "again"), *SMALL]) == 0
        assert files(tmp_path / "again") == files(world)
        assert main(["--out", str(tmp_path / "larger"), "--num_train", "8", *SMALL[2:]]) == 0
        assert muse(tmp_path / "larger", "train")[:7] == muse(world, "train")

    def test_a_finished_world_is_left_alone(self, world: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
        assert main(["--out", str(world), *SMALL]) == 0
        assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before

    def test_other_settings_are_refused(self, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--out", str(world), *SMALL, "--seed", "1"]) == 2
        assert "seed 0 instead of 1" in capsys.readouterr().err

    def test_foreign_data_is_never_touched(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--out .` in a repository meets its dataset folder."""
        (tmp_path / "dataset").mkdir()
        (tmp_path / "dataset" / "mine.txt").write_text("keep")
        assert main(["--out", str(tmp_path), *SMALL]) == 2
        assert "holds mine.txt, but no .pixellm.json" in capsys.readouterr().err
        assert [path.name for path in tmp_path.rglob("*")] == ["dataset", "mine.txt"]

    @pytest.mark.parametrize("flags", [[], ["--out", "x", "--num_val", "0"], ["--out", "x", "--seed", "-1"]])
    def test_bad_flags(self, flags: list[str]) -> None:
        assert main(flags) == 2


class TestBaseWeights:
    def test_tokenizer_knows_every_word(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path, train_tokenizer(toy_corpus()))
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert 600 <= len(tokenizer) <= 900
        words = {word.strip(".,?") for line in vocabulary_text() for word in line.split() if "{" not in word}
        assert len(words) > 80
        assert max(len(tokenizer(word, add_special_tokens=False).input_ids) for word in words) <= 2
        strange = "žluťoučký 画"  # falls back to bytes
        assert tokenizer.decode(tokenizer(strange, add_special_tokens=False).input_ids).strip() == strange

    def test_views_mirror_picture_and_truth_alike(self) -> None:
        views = Views(4, seed=0, stream=9, image_size=112, ordered_map=map)
        index = torch.arange(4)
        plain, truth = views.batch(index, mirror=torch.zeros(4, dtype=torch.bool))
        mirrored, mirrored_truth = views.batch(index, mirror=torch.ones(4, dtype=torch.bool))
        for number in range(4):
            width = int(views.valid_hw[number, 1])
            assert torch.equal(mirrored[number, :, :, :width], plain[number, :, :, :width].flip(-1))
            assert torch.equal(mirrored[number, :, :, width:], plain[number, :, :, width:])
        assert truth.on_object.any()
        x, mirrored_x = (t.centers[t.on_object][:, 2].mean() for t in (truth, mirrored_truth))
        assert 0.9 < x + mirrored_x < 1.1

    @pytest.mark.slow
    def test_pretraining_makes_a_file_that_unpacks_to_folders_of_the_released_layout(self, tmp_path: Path) -> None:
        language, tower = folders(tmp_path)
        pretrain(
            tmp_path / "pack.safetensors",
            image_size=56,
            seed=0,
            ordered_map=map,
            scratch=language,
            tower_training=TowerTraining(num_scenes=6, num_held_out=3, steps=2, batch_size=3),
            language_training=LanguageTraining(num_dialogues=6, num_held_out=3, steps=2, batch_size=4),
        )
        measured = unpack(tmp_path / "pack.safetensors", language, tower, image_size=56)
        assert set(measured["tower"]) == {"deep", "shallow"}
        assert measured["language"]["loss_per_token"] < 7
        state = torch.load(tower / "pytorch_model.bin", weights_only=True)
        assert state["vision_model.embeddings.position_embedding.weight"].shape == (17, 128)
        assert "vision_model.encoder.layers.5.self_attn.out_proj.bias" in state
        parts = {"embeddings", "pre_layrnorm", "encoder", "post_layernorm"}
        assert {name.split(".")[1] for name in state} == parts
        assert json.loads((tower / "config.json").read_text())["model_type"] == "clip_vision_model"
        state = torch.load(language / "pytorch_model.bin", weights_only=True)
        config = json.loads((language / "config.json").read_text())
        assert config["model_type"] == "llava"
        assert state["lm_head.weight"].shape == (config["vocab_size"], 128)
        assert state["model.mm_projector.weight"].shape == (128, 128)
        assert state["model.layers.3.self_attn.rotary_emb.inv_freq"].shape == (16,)
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}

    @pytest.mark.slow
    def test_kept_weights_know_the_toy_world(self, tmp_path: Path) -> None:
        """Would catch a file that is older than the questions, the tokenizer or the network."""
        language, tower_folder = folders(tmp_path)
        unpack(KEPT, language, tower_folder, image_size=168)
        tokenizer = load_tokenizer(language)
        words = {word.strip(".,?") for line in vocabulary_text() for word in line.split() if "{" not in word}
        assert max(len(tokenizer(word, add_special_tokens=False).input_ids) for word in words) <= 2
        tower = ToyTower(tower_config(168))
        state = torch.load(tower_folder / "pytorch_model.bin", weights_only=True)
        tower.clip.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in state.items()})
        state = torch.load(language / "pytorch_model.bin", weights_only=True)
        llava = ToyLlava(language_config(len(tokenizer)), tower_width=128)
        llava.projector.load_state_dict({name: state[f"model.mm_projector.{name}"] for name in ("weight", "bias")})
        own = llava.llama.state_dict()
        llava.llama.load_state_dict({name: state[name] for name in own})
        dialogues = draw_dialogues(12, tower, tokenizer, seed=77, stream=13, image_size=168, ordered_map=map)
        assert measure_language(llava, dialogues) < 0.2

    @pytest.mark.slow
    def test_another_image_size_than_that_of_the_kept_weights_is_refused_at_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--out", str(tmp_path / "world"), "--image_size", "56"]) == 2
        assert "168 px, not 56 px" in capsys.readouterr().err
        assert not list((tmp_path / "world").iterdir())

    def test_dialogues_label_answers_only_and_say_where_objects_are(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path, train_tokenizer(toy_corpus()))
        tokenizer = load_tokenizer(tmp_path)
        drawn = draw_dialogues(
            5, ToyTower(tower_config(56)), tokenizer, seed=0, stream=13, image_size=56, ordered_map=map
        )
        assert len(drawn) == 5
        for ids, labels in zip(drawn.input_ids, drawn.labels, strict=True):
            assert int((ids == IMAGE_TOKEN_ID).sum()) == drawn.features.shape[1] == 16
            said = tokenizer.decode(labels[labels != IGNORE_INDEX])
            assert said.strip().startswith(("The", "Sure"))
            assert "ASSISTANT" not in said
            assert sum(word.strip(",.<>/s") in SQUARES for word in said.split()) >= said.count(",") / 2
            assert SEG_MARK not in tokenizer.decode(ids[ids != IMAGE_TOKEN_ID])


def folders(root: Path) -> tuple[Path, Path]:
    """Empty folders for a language base and a tower."""
    made = root / "llava", root / "clip"
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("module", ["world", "custom_sample"])
def test_drawing_needs_no_torch(module: str) -> None:
    """Every worker process imports it, and whoever wants the dataset alone may have no torch."""
    check = f"import sys; import utils.toy_world.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
