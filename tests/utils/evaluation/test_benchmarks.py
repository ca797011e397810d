"""Names -> benchmarks: what is asked, how, once; and no question of a set is lost or asked twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from tests.support.evaluation_tree import write_evaluation_tree
from utils.data import registry
from utils.data.family import Family, ValSets
from utils.data.paths import DatasetPaths, MissingData
from utils.data.records import RawSample, Turn
from utils.data.registry import build_val_source, val_names
from utils.data.sources.muse import MuseTrain
from utils.data.sources.refer import in_split, read_refs
from utils.evaluation.benchmarks import Benchmark, expand


def names(*given: str) -> list[str]:
    return [benchmark.name for benchmark in expand(given)]


def samples(root: Path, name: str) -> list[RawSample]:
    source = build_val_source(root, name)
    return [source.get(index, np.random.default_rng(0)) for index in range(len(source))]


def turns(root: Path, name: str) -> list[tuple[str, Turn]]:
    """Every question of a set, with its photo."""
    return [
        (sample.image_path.name if sample.image_path else "", turn)
        for sample in samples(root, name)
        for (turn,) in sample.conversations
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation_tree(tmp_path_factory.mktemp("evaluation"))


MUSE = ["MultiReasonSeg|val", "MultiReasonSeg|test_less", "MultiReasonSeg|test_many", "MultiReasonSeg|test"]
REFERRING = [
    "refcoco|unc|val", "refcoco|unc|testA", "refcoco|unc|testB",
    "refcoco+|unc|val", "refcoco+|unc|testA", "refcoco+|unc|testB",
    "refcocog|umd|val", "refcocog|umd|test",
]  # fmt: skip
REASON_SEG = ["ReasonSeg|val", "ReasonSeg|test"]
PAPER = [*MUSE, *REFERRING, *(f"multi{name}" for name in REFERRING), *REASON_SEG]
EVERY = [
    *PAPER, "refclef|unc|val", "refclef|unc|testA", "refclef|unc|testB", "refclef|unc|testC",
    "grefcoco|unc|val", "grefcoco|unc|testA", "grefcoco|unc|testB",
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("MUSE|val", ["MultiReasonSeg|val"]),
        ("MultiReasonSeg|test", MUSE[1:]),
        ("MUSE|test", MUSE[1:]),
        ("MUSE|test_less", ["MultiReasonSeg|test_less"]),
        ("MUSE", MUSE),
        ("MultiReasonSeg", MUSE),
        ("refcoco|val", ["refcoco|unc|val"]),
        ("refcoco+|testB", ["refcoco+|unc|testB"]),
        ("refcocog|test", ["refcocog|umd|test"]),
        ("multirefcocog|val", ["multirefcocog|umd|val"]),
        ("gref|val", ["grefcoco|unc|val"]),
        ("refcoco", REFERRING[:3]),
        ("refcoco+", REFERRING[3:6]),
        ("refcocog", REFERRING[6:]),
        ("refclef", EVERY[-7:-3]),
        ("multirefcoco", ["multirefcoco|unc|val", "multirefcoco|unc|testA", "multirefcoco|unc|testB"]),
        ("grefcoco", EVERY[-3:]),
        ("ReasonSeg", REASON_SEG),
        (" refcoco | unc | val ", ["refcoco|unc|val"]),
        ("custom|some where/a|b.jsonl", ["custom|some where/a|b.jsonl"]),
        ("paper", PAPER),
    ],
)
def test_a_name_stands_for_benchmarks(given: str, expected: list[str]):
    assert names(given) == expected


def test_several_names_give_each_benchmark_once_in_their_order():
    given = ["refcocog|val", "MUSE|test_many", "MUSE", "refcocog", "refcocog|umd|val"]
    order = ["refcocog|umd|val", "MultiReasonSeg|test_many", MUSE[0], MUSE[1], MUSE[3], "refcocog|umd|test"]
    assert names(*given) == order
    assert names() == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        "muse",
        "refcoco|dev",
        "refcoco|google|val",
        "refcocog|unc|val",
        "MUSE|all",
        "ReasonSeg|train",
        "ReasonSeg|a|b",
    ],
)
def test_an_unknown_name_lists_what_there_is(given: str):
    with pytest.raises(InputError) as caught:
        expand(["MUSE|val", given])
    message = str(caught.value)
    assert f"--benchmark: {given!r} is unknown; available are paper, custom|FILE" in message
    assert "\n" not in message
    for shown in ("MUSE (val, test_less, test_many, test)", "refcocog (val, test)", "ReasonSeg (val, test)"):
        assert shown in message


def test_every_validation_set_is_a_benchmark():
    """Whatever --val_dataset knew goes on being known."""
    known = val_names()
    assert names(*known, "custom|x.jsonl")[-1] == "custom|x.jsonl"
    assert set(known) <= set(names(*known))
    sets = {name for benchmark in expand([*EVERY, *known]) for name in benchmark.sets}
    assert sets <= set(known), "every set can be opened"


def test_a_set_of_a_new_family_is_a_benchmark(monkeypatch: pytest.MonkeyPatch):
    sets = ValSets(lambda paths, name: build_val_source(paths.root, "ReasonSeg|val"), lambda name: [], ("Squares|val",))
    family = Family("squares", lambda options, part: MuseTrain(options.paths, expand=False), lambda part: [])
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, replace(family, val_sets=sets)))
    (benchmark,) = expand(["Squares|val"])
    assert (benchmark.sets, benchmark.rule, benchmark.protocols[0]) == (("Squares|val",), "matched", "generate")


def test_how_a_benchmark_is_asked_and_scored():
    ways = {name: (benchmark.rule, benchmark.protocols) for name in EVERY for benchmark in expand([name])}
    free = ("generate", "teacher_forced", "named")
    forced = ("teacher_forced", "generate", "named")
    for name, way in ways.items():
        if name in MUSE:
            assert way == ("matched", free)
        elif name.startswith("gref"):
            assert way == ("generalized", ("generate", "named"))
        else:
            assert way == ("referring", forced)
    (custom,) = expand(["custom|x.jsonl"])
    assert (custom.rule, custom.protocols, custom.sets) == ("matched", free, ("custom|x.jsonl",))


def test_published_figures_are_shares_that_say_where_they_come_from():
    for benchmark in expand(EVERY):
        for figure in benchmark.published:
            assert figure.metric in ("giou", "ciou")
            assert 0 < figure.value < 1
            assert figure.model
            assert figure.source
            assert figure.group in ("all", "kind short", "kind long")
        keys = [(figure.model, figure.source, figure.metric, figure.group) for figure in benchmark.published]
        assert len(keys) == len(set(keys))


def test_unverified_figures_are_not_shown_as_verified():
    """Nothing of the PixelLM paper was read in the paper itself."""
    figures = {name: benchmark.published for name in PAPER for benchmark in expand([name])}
    for name in MUSE:
        assert figures[name]
        assert not any(figure.is_verified for figure in figures[name])
    for name in [*REFERRING, *REASON_SEG]:
        assert {figure.model: figure.is_verified for figure in figures[name]}["PixelLM-7B"] is False
        assert {figure.model: figure.is_verified for figure in figures[name]}["LISA-7B"] is True
    testA = {figure.model: figure.value for figure in figures["refcoco+|unc|testA"]}
    assert testA == {"PixelLM-7B": 0.717, "LISA-7B": 0.674}


@pytest.mark.parametrize("name", EVERY)
def test_every_benchmark_opens_and_every_question_is_complete(tree: Path, name: str):
    benchmark = expand([name])[-1]
    assert benchmark.name == name
    check_questions(tree, benchmark)


def check_questions(root: Path, benchmark: Benchmark) -> None:
    for name in benchmark.sets:
        found = turns(root, name)
        assert found
        for _, turn in found:
            assert turn.question.strip()
            assert len(turn.names) == len(turn.targets)
            assert all(text.strip() and "{seg}" not in text for text in turn.names)
            if benchmark.rule != "matched":
                assert turn.targets, "an expression has a mask, be it empty"


def test_the_joined_set_of_muse_has_the_questions_of_both_files(tree: Path):
    (*parts, joined) = expand(["MUSE|test"])
    assert joined.sets == tuple(name for part in parts for name in part.sets)
    for split in ("less", "many"):
        records = json.loads((tree / f"muse/muse_test_{split}.json").read_text())
        texts = Counter(text for record in records for text in record["questions"])
        suffix = " Please output segmentation mask."
        found = turns(tree, f"MultiReasonSeg|test_{split}")
        assert Counter(turn.question.removesuffix(suffix) for _, turn in found) == texts


def test_a_muse_question_has_the_names_of_its_objects_and_may_have_none(tree: Path):
    by_question = {turn.question: turn for _, turn in turns(tree, "MultiReasonSeg|test_less")}
    (none,) = [turn for turn in by_question.values() if not turn.has_target]
    assert (none.targets, none.names, none.answer) == ((), (), "There is no such thing in the image.")
    (several,) = [turn for question, turn in by_question.items() if question.startswith("What is on the table?")]
    assert several.names == ("the cup", "the plate")
    assert several.has_target


@pytest.mark.parametrize("dataset", ["refclef|unc", "refcoco|unc", "refcoco+|unc", "refcocog|umd"])
def test_each_expression_of_a_split_is_asked_once(tree: Path, dataset: str):
    """Alone, and again within the questions of the multi-referring sets; a {seg} in one of them is no mark."""
    refs = read_refs(DatasetPaths(tree).refer_refs(dataset.partition("|")[0], asked_by="a test"))
    for split in ("val", "test") if dataset == "refcocog|umd" else ("val", "test", "testA", "testB"):
        of_split = [ref for ref in refs if in_split(ref["split"], split)]
        texts = [sentence["sent"].strip().lower() for ref in of_split for sentence in ref["sentences"]]
        wanted = Counter(text.replace("{seg}", "(seg)") for text in texts)
        alone = [turn for _, turn in turns(tree, f"{dataset}|{split}")]
        assert Counter(name for turn in alone for name in turn.names) == wanted
        assert all(len(turn.names) == 1 and turn.has_target and not turn.kind for turn in alone)
        together = [turn for _, turn in turns(tree, f"multi{dataset}|{split}")]
        assert Counter(name for turn in together for name in turn.names) == wanted
        assert len(together) < len(alone)


def test_grefcoco_takes_what_has_no_target_from_the_annotation(tree: Path):
    """Not from pixels: an annotated object without a pixel is a target."""
    found = {turn.names[0]: turn for _, turn in turns(tree, "grefcoco|unc|val")}
    ways = {name: (turn.has_target, turn.kind) for name, turn in found.items()}
    assert ways == {
        "both of them": (True, "several-objects"),
        "the upper one": (True, "one-object"),
        "a purple elephant": (False, ""),
        "nothing at all": (False, ""),
        "a speck": (True, "one-object"),
    }
    (sample,) = samples(tree, "grefcoco|unc|val")
    empty = {turn.names[0] for (turn,) in sample.conversations if not sample.masks[turn.targets[0]].any()}
    assert empty == {"a purple elephant", "nothing at all", "a speck"}


def test_reason_seg_asks_every_text_of_the_test_split(tree: Path):
    """Each is a question of its own, in the group of its kind; val and the release's test take the first one."""
    (test,) = expand(["ReasonSeg|test"])
    (name,) = test.sets
    files = sorted((tree / "reason_seg/ReasonSeg/test").glob("*.json"))
    records = {file.with_suffix(".jpg").name: json.loads(file.read_text()) for file in files}
    found = turns(tree, name)
    expected = [(photo, text) for photo, record in records.items() for text in record["text"]]
    assert [(photo, turn.names[0]) for photo, turn in found] == expected
    for photo, turn in found:
        assert turn.kind == ("long" if records[photo]["is_sentence"] else "short")
    assert {photo for photo, turn in found if not turn.has_target} == {"3.jpg"}
    first = [(photo, record["text"][0]) for photo, record in records.items()]
    assert [(photo, turn.names[0]) for photo, turn in turns(tree, "ReasonSeg|test")] == first
    assert len(turns(tree, "ReasonSeg|val")) == len(list((tree / "reason_seg/ReasonSeg/val").glob("*.jpg")))


def test_missing_files_photos_and_splits_say_so_before_anything_is_asked(tree: Path, tmp_path: Path):
    """Whoever evaluates many sets can go on with the others."""
    for benchmark in expand(EVERY):
        for name in benchmark.sets:
            with pytest.raises(MissingData):
                build_val_source(tmp_path, name)
    with pytest.raises(MissingData, match=r"has no expression of split testA \(its splits: test, train, val\), but"):
        build_val_source(tree, "refcocog|umd|testA")
    (tmp_path / "refer_seg").mkdir()
    (tmp_path / "refer_seg/refcoco").symlink_to(tree / "refer_seg/refcoco")
    with pytest.raises(MissingData, match=r"train2014 does not exist, but --val_dataset refcoco\|unc\|val needs it"):
        build_val_source(tmp_path, "refcoco|unc|val")


def test_real_files_open(shared: Path):
    """Splits that the small real set lacks are missing data, and no error of another kind."""
    missing = []
    for benchmark in expand(EVERY):
        try:
            check_questions(shared / "real_mini", benchmark)
        except MissingData:
            missing.append(benchmark.name)
    assert missing == [name for name in names(*EVERY) if "|test" in name and name not in MUSE]
