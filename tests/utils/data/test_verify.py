"""What is missing is named with its flag and its source, all at once; what is damaged is named with its reason."""

import json
import shutil

import pytest

import train_ds
from model.errors import InputError
from tests.support.bad_input import refused
from tests.support.tiny_data import IMAGES, SHARED, box, write_json
from utils.data import verify
from utils.data.downloads import look_up, needs, require_data
from utils.data.registry import FAMILIES, DataOptions, val_names

REAL_MINI = SHARED / "real_mini"
ALL = "sem_seg||refer_seg||vqa||reason_seg||multi_reason_seg"
TINY = ("--dataset=multi_reason_seg||refer_seg", "--refer_seg_data=refcoco||refcoco+", "--workers=0")


def options(root, dataset=ALL, **changes) -> DataOptions:
    rates = ",".join("1" for _ in dataset.split("||"))
    return DataOptions(root, dataset, rates, **changes)


def arguments(root, *flags) -> list[str]:
    return [f"--dataset_dir={root}", *TINY, *flags]


@pytest.mark.skipif(not REAL_MINI.is_dir(), reason=f"{REAL_MINI} is not here")
def test_the_whole_tree_is_found_and_sound(capsys, tmp_path):
    val = "ReasonSeg|val||MultiReasonSeg|test_less||refcoco|unc|val||multirefcocog|umd|val"
    report = tmp_path / "report.txt"
    flags = [f"--dataset_dir={REAL_MINI}", "--deep", f"--val_dataset={val}", f"--report={report}", "--workers=0"]
    assert verify.main(flags) == 0
    text = capsys.readouterr().out
    assert "MISSING" not in text
    assert text.count(" samples, 0 bad\n") == 13 + 4
    assert "ade20k/images/training/*.jpg   3 files of 20,210\n" in text
    assert "needed by  --dataset sem_seg with --sem_seg_data ade20k\n" in text
    assert report.read_text(encoding="utf-8") == ""


def test_nothing_is_missing_from_what_a_run_reads(shared_dataset, capsys):
    assert verify.main(arguments(shared_dataset, "--deep", "--val_dataset=MultiReasonSeg|val")) == 0
    text = capsys.readouterr().out
    assert "refcoco: 2 samples, 0 bad\n" in text
    require_data(options(shared_dataset, "multi_reason_seg"), ["refcoco|unc|val"])


def test_everything_that_is_missing_is_named_at_once(shared_dataset, capsys):
    flags = [f"--dataset_dir={shared_dataset}"]
    refused(
        verify.main, flags, capsys, "ADE20K, scene parsing edition", "ReasonSeg explanations", "refcocog annotations"
    )
    verify.main(flags)
    text = capsys.readouterr().out
    block = text[text.index("MISSING Mapillary") :].split("\nMISSING")[0]
    for part in ("config_v2.0.json does not exist", "--sem_seg_data mapillary", "mapillary.com", "license"):
        assert part in block
    assert "ok      refcoco annotations" in text


def test_training_names_everything_before_it_reads_a_weight(shared_dataset, capsys):
    flags = [f"--dataset_dir={shared_dataset}", "--version=/nowhere", "--dataset=vqa||reason_seg||multi_reason_seg"]
    says = [
        "--vqa_data llava_instruct_150k: llava_dataset/llava",
        "--explanatory 0.1: reason_seg/",
        "utils.data.verify",
    ]
    refused(train_ds.main, [*flags, "--sample_rates=1,1,1", "--val_dataset=ReasonSeg|test"], capsys, *says)


def test_a_default_validation_set_may_be_absent(dataset_dir, capsys):
    """Nobody asked for it; the next thing that is wrong is the file itself."""
    (dataset_dir / "muse/muse_train.json").write_text("{", encoding="utf-8")
    flags = [f"--dataset_dir={dataset_dir}", "--dataset=multi_reason_seg", "--sample_rates=1"]
    refused(train_ds.main, flags, capsys, "muse_train.json is not valid JSON")
    refused(train_ds.main, [*flags, "--val_dataset=ReasonSeg|test"], capsys, "ReasonSeg/test does not exist")


def test_one_missing_place_keeps_its_own_message(dataset_dir):
    shutil.copytree(dataset_dir / "refer_seg/refcoco", dataset_dir / "refer_seg/refcocog")
    wanted = options(dataset_dir, "refer_seg", refer_seg_data="refcoco||refcocog")
    with pytest.raises(InputError, match=r"refs\(umd\).p does not exist, but --dataset refer_seg with .* refcocog"):
        require_data(wanted, [])


def test_the_flags_of_a_run_are_taken_as_they_are(dataset_dir, repository, capsys):
    """What training says is missing can be looked up with the same command line."""
    config = repository / "configs/pixellm_7b.json"
    some = ["--dataset=refer_seg||multi_reason_seg", "--sample_rates=9,4"]
    some.append("--refer_seg_data=refcoco||refcoco+||refcocog")
    flags = [f"--config={config}", *some, f"--dataset_dir={dataset_dir}", "--lr=1", "--val_dataset=refcoco|unc|val"]
    refused(verify.main, flags, capsys, "1 of 6 downloads is missing or incomplete: refcocog annotations.")


def test_photos_are_looked_for_too(dataset_dir):
    shutil.rmtree(dataset_dir / IMAGES / "train2014")
    (dataset_dir / IMAGES / "train2014").mkdir()
    with pytest.raises(InputError, match=r"train2014 holds no \*\.jpg, but --dataset refer_seg"):
        require_data(options(dataset_dir, "refer_seg", refer_seg_data="refcoco"), [])


def test_deep_names_every_bad_record_with_its_reason(dataset_dir, tmp_path, capsys):
    photo = dataset_dir / IMAGES / "train2014/1.jpg"
    photo.write_bytes(photo.read_bytes()[:100])
    (dataset_dir / IMAGES / "train2014/13.jpg").unlink()
    muse = json.loads((dataset_dir / "muse/muse_train.json").read_text(encoding="utf-8"))
    muse[1]["answers"][0][0]["segmentation"] = [[1, 1, 5, 5, 3, 3]]
    write_json(dataset_dir / "muse/muse_train.json", muse)
    instances = json.loads((dataset_dir / "refer_seg/refcoco/instances.json").read_text(encoding="utf-8"))
    for image in instances["images"]:
        image["height"] += 5
    write_json(dataset_dir / "refer_seg/refcoco/instances.json", instances)
    report = tmp_path / "report.txt"
    refused(verify.main, arguments(dataset_dir, "--deep", f"--report={report}"), capsys, "5 records are bad")
    lines = report.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    for part in ("encloses no area", "13.jpg does not exist", "another version of the photo", "cannot be decoded"):
        assert any(part in line for line in lines), part
    verify.main(arguments(dataset_dir, "--deep"))
    text = capsys.readouterr().out
    assert "multi_reason_seg: 3 samples, 2 bad (" in text
    assert "image missing 1" in text


def test_deep_draws_every_expression(dataset_dir, capsys):
    """Training asks for a few per photo; a bad one may hide behind them."""
    file = dataset_dir / "refer_seg/refcoco/instances.json"
    instances = json.loads(file.read_text(encoding="utf-8"))
    for annotation in instances["annotations"]:
        annotation["segmentation"] = [[1, 1, 5, 5, 3, 3]] if annotation["id"] == 11 else box(5, 5, 9, 9)
    write_json(file, instances)
    refused(verify.main, arguments(dataset_dir, "--deep"), capsys, "1 record is bad")


def test_deep_lists_the_questions_that_training_leaves_out(dataset_dir, capsys):
    muse = json.loads((dataset_dir / "muse/muse_train.json").read_text(encoding="utf-8"))
    muse[0]["text_answers"][0] = "Two {seg} {seg} for one."
    muse[1]["text_answers"][0] = None
    muse[1]["answers"][0] = []
    write_json(dataset_dir / "muse/muse_train.json", muse)
    flags = [f"--dataset_dir={dataset_dir}", "--dataset=multi_reason_seg", "--deep", "--workers=0"]
    refused(verify.main, flags, capsys, "2 records are bad")
    verify.main(flags)
    text = capsys.readouterr().out
    assert "multi_reason_seg: 2 samples, 2 bad (left out 2)" in text
    assert "question 0 of record 0 has 2 {seg} in its answer for 1 objects" in text


def test_deep_lists_every_bad_line_of_custom_data(tmp_path, capsys):
    file = tmp_path / "data.jsonl"
    file.write_text("{\n" * 30, encoding="utf-8")
    flags = ["--dataset=custom", f"--custom_data={file}", f"--dataset_dir={tmp_path}", "--deep"]
    refused(verify.main, flags, capsys, "30 records are bad")
    verify.main(flags)
    text = capsys.readouterr().out
    assert f"{file}, line 20: it is not valid JSON" in text
    assert "line 21" not in text
    assert "... and 10 more; --report FILE takes all" in text


@pytest.mark.parametrize("flags", [["--custom_data={}"], ["--custom_data={}", "--val_dataset=custom|{}"]])
def test_custom_data_that_is_not_there(tmp_path, capsys, flags):
    missing = tmp_path / "missing.jsonl"
    flags = [flag.format(missing) for flag in flags]
    arguments = ["--dataset=custom", f"--dataset_dir={tmp_path}", "--deep", *flags]
    refused(verify.main, arguments, capsys, f"1 of 1 downloads is missing or incomplete: your own {missing}.")
    verify.main(arguments)
    assert f"{missing}: not opened, {missing} does not exist" in capsys.readouterr().out


def test_deep_goes_on_behind_a_source_that_cannot_be_opened(dataset_dir, capsys):
    (dataset_dir / "muse/muse_train.json").write_text("{", encoding="utf-8")
    refused(verify.main, arguments(dataset_dir, "--deep"), capsys, "1 record is bad")
    verify.main(arguments(dataset_dir, "--deep"))
    text = capsys.readouterr().out
    assert "multi_reason_seg: not opened, 1 bad" in text
    assert "refcoco+: 2 samples, 0 bad" in text


@pytest.mark.parametrize(
    ("changes", "val", "says"),
    [
        ({"dataset": "muse"}, [], "--dataset: 'muse' is unknown; available are sem_seg, "),
        ({"sem_seg_data": "ade"}, [], "--sem_seg_data: 'ade' is unknown; available are ade20k"),
        ({"refer_seg_data": "ref"}, [], "--refer_seg_data: 'ref' is unknown; available are refclef"),
        ({"reason_seg_data": "train"}, [], "--reason_seg_data: 'train' is unknown; available are ReasonSeg.train"),
        ({}, ["refcoco|val"], "--val_dataset: 'refcoco.val' is unknown; available are .*custom.FILE"),
    ],
)
def test_unknown_names_are_refused(tmp_path, changes, val, says):
    with pytest.raises(InputError, match=says):
        look_up(options(tmp_path, **changes), val)


def test_every_family_and_validation_set_says_what_it_needs(tmp_path, repository):
    readme = (repository / "dataset/README.md").read_text(encoding="utf-8")
    assert set(ALL.split("||")) | {"custom"} == {family.name for family in FAMILIES}
    for family in [family.name for family in FAMILIES]:
        found = list(needs(options(tmp_path, family, custom_data="data.jsonl"), []))
        assert found
        assert all(flag.startswith(f"--dataset {family}") for _, flag in found)
        for download, _ in found:
            row = f"| {download.title} | {download.source} | {download.license} |"
            assert family == "custom" or row in readme
    assert len(val_names()) > 40
    for name in (*val_names(), "custom|data.jsonl"):
        assert len(list(needs(options(tmp_path, "multi_reason_seg"), [name]))) > 2, name


def test_what_no_terminal_can_show_is_escaped(tmp_path, capsys):
    """File names in annotations may be no UTF-8, and hold line breaks."""
    file = tmp_path / "mine.jsonl"
    turn = {"question": "Where?", "answer": "{seg}", "targets": [{"polygon": [0, 0, 9, 0, 9, 9]}]}
    file.write_text(json.dumps({"image": "a\n\ud800.jpg", "turns": [turn]}))
    flags = ["--dataset=custom", f"--custom_data={file}", f"--dataset_dir={tmp_path}", "--deep"]
    assert verify.main(flags) == 2
    assert r"a\n\ud800.jpg does not exist" in capsys.readouterr().out
