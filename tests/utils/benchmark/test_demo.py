"""What ``benchmark.py demo`` measures: whole answers of several users, who come at once or one after the other."""

from __future__ import annotations

import pytest

from model.errors import InputError
from scripts.benchmark import main
from tests.support.tiny_network import make_network
from utils.benchmark.chat_bench import QUESTION
from utils.benchmark.chat_forced import ForcedPredictor
from utils.benchmark.demo import check_room

pytestmark = pytest.mark.slow  # some seconds
FLAGS = ["--words=4", "--photo=40x30", "--repeats=1", "--users=1,2"]


def cells(out: str) -> list[list[str]]:
    """The rows below the titles."""
    return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]


def test_every_user_waits_for_words_and_a_mask(tmp_path, capsys):
    file = tmp_path / "demo.md"
    assert main(["demo", "--size=tiny", "--targets=2", *FLAGS, f"--output_md={file}"]) == 0
    out = capsys.readouterr().out
    assert "tiny, fp32: answers of 4 words, photos of 40x30" in out
    rows = cells(out)
    assert [row[0] for row in rows] == ["1", "2"]
    for _, after, at_once, ratio, piece, piece_at_once, mask, mask_at_once in rows:
        assert 0 < float(piece) < float(mask) < float(after)
        assert 0 < float(piece_at_once) < float(mask_at_once) < float(at_once)
        assert float(ratio) == pytest.approx(float(at_once) / float(after), abs=0.02)
    assert out.strip() in file.read_text(encoding="utf-8")


def test_a_model_that_is_stored_is_measured_as_well(parrot, capsys):
    assert main(["demo", f"--version={parrot}", "--targets=0", *FLAGS]) == 0
    assert [row[-2:] for row in cells(capsys.readouterr().out)] == [["-", "-"]] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size=tiny", "--version=x"], "give one of them"),
        (["--users=0"], "--users"),
    ],
)
def test_work_that_cannot_be_done_is_refused(capsys, flags, message):
    assert main(["demo", *flags]) == 2
    assert message in capsys.readouterr().err


def test_answers_that_are_too_long_for_the_model_are_refused(tiny_tokenizer_dir):
    predictor = ForcedPredictor(*make_network(tiny_tokenizer_dir))
    predictor.writer.longest = len(predictor.processor.prompt_ids(QUESTION)) + 4 + 2 * predictor.model.codebook.size + 1
    check_room(predictor, words=4, targets=2)
    with pytest.raises(InputError, match="take fewer --words or --targets"):
        check_room(predictor, words=5, targets=2)
