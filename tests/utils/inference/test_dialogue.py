"""What chat's commands do, with a real tiny model, and without a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.asking import AnswerOptions
from model.drawing import FILL
from model.errors import InputError
from model.predictor import PixelLMPredictor
from model.replies import Reply, Target
from tests.support.parrot import teach
from tests.support.tiny_data import draw_photo
from tests.support.tiny_network import make_network
from utils.cli.answering import ANSWER_FLAGS
from utils.cli.config import ChatConfig
from utils.inference.dialogue import COMMANDS, Dialogue
from utils.masks.rle import decode_rles

HW = (40, 60)


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer_dir) -> PixelLMPredictor:
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    ids = tokenizer("the thing is [SEG0] [SEG1] </s>", add_special_tokens=False).input_ids
    teach(network, tokenizer, ids)
    return PixelLMPredictor(network, tokenizer)


@pytest.fixture
def follows(predictor, monkeypatch) -> list[bool]:
    """Whether each question went on with what was said."""
    asked: list[bool] = []
    stream = predictor.stream

    def noted(question: str, *, follows: bool, **options: object) -> Iterator[str | Target | Reply]:
        asked.append(follows)
        return stream(question, follows=follows, **options)

    monkeypatch.setattr(predictor, "stream", noted)
    return asked


@pytest.fixture
def dialogue(predictor, tmp_path) -> Dialogue:
    draw_photo(tmp_path / "a.jpg", HW)
    draw_photo(tmp_path / "b.jpg", HW)
    dialogue = Dialogue(predictor, ChatConfig(version=str(tmp_path / "m"), vis_save_path=str(tmp_path / "vis")))
    dialogue.look_at(str(tmp_path / "a.jpg"))
    return dialogue


def ask(dialogue: Dialogue, question: str = "What?") -> str:
    """A whole answer with its files; what they are called."""
    assert list(dialogue.ask(question))
    return dialogue.write(dialogue.turns[-1])


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*_targets.png")}


def test_further_answers_have_files_of_their_own(dialogue, tmp_path):
    vis = tmp_path / "vis"
    assert ask(dialogue) == str(vis / "a_*")
    assert ask(dialogue) == str(vis / "a_2_*")
    dialogue.command(f"/image {tmp_path / 'b.jpg'}")
    assert ask(dialogue) == str(vis / "b_*")
    dialogue.command(f"/image {tmp_path / 'a.jpg'}")
    dialogue.command("/reset")
    assert ask(dialogue) == str(vis / "a_3_*")
    assert pictures(vis) == {"a_targets.png", "a_2_targets.png", "b_targets.png", "a_3_targets.png"}
    assert (vis / "a_mask_0.jpg").is_file(), "the released name"


def test_a_question_goes_on_with_the_dialogue_until_it_is_forgotten(dialogue, follows, tmp_path):
    for line in ("", "", "/reset", "", f"/image {tmp_path / 'a.jpg'}", ""):
        if line:
            dialogue.command(line)
        else:
            ask(dialogue)
    assert follows == [False, True, False, False]


def test_an_answer_that_is_left_half_way_ends_the_dialogue_and_writes_nothing(dialogue, follows, tmp_path):
    ask(dialogue)
    whole = dialogue.turns[-1].reply
    before = sorted((tmp_path / "vis").iterdir())
    pieces = dialogue.ask("Again?")
    next(pieces)
    pieces.close()
    assert dialogue.turns == []
    ask(dialogue)
    assert follows == [False, True, False]
    assert dialogue.turns[-1].reply.output_ids == whole.output_ids
    assert len(sorted((tmp_path / "vis").iterdir())) == 2 * len(before)


def test_a_question_that_is_too_long_leaves_the_dialogue_as_it_is(dialogue, follows):
    with pytest.raises(InputError, match=r"shorten it$"):
        ask(dialogue, "thing " * 3000)
    ask(dialogue)
    with pytest.raises(InputError, match=r"shorten it; /reset makes room$"):
        ask(dialogue, "thing " * 3000)
    assert len(dialogue.turns) == 1
    ask(dialogue)
    assert follows[-1]


def test_a_picture_that_cannot_be_read_leaves_the_one_before_it(dialogue, tmp_path):
    (tmp_path / "c.jpg").write_text("no picture")
    ask(dialogue)
    for name in ("c.jpg", "nowhere.jpg"):
        with pytest.raises(InputError):
            dialogue.command(f"/image {tmp_path / name}")
    assert dialogue.photo == tmp_path / "a.jpg"
    assert len(dialogue.turns) == 1


def test_the_path_of_a_picture_is_a_picture_and_anything_else_a_question(dialogue, predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dialogue.is_photo(str(tmp_path / "b.jpg"))
    assert dialogue.is_photo("'b.jpg'")
    assert not dialogue.is_photo("What is in b.jpg?")
    assert not dialogue.is_photo("nowhere.jpg")
    fresh = Dialogue(predictor, dialogue.config)
    assert fresh.is_photo("nowhere.jpg"), "the first line names one"
    assert not fresh.is_photo("/help")
    with pytest.raises(InputError, match="/image PATH"):
        list(fresh.ask("What?"))


def test_a_saved_dialogue_holds_questions_masks_and_files(dialogue, tmp_path):
    with pytest.raises(InputError, match="ask something first"):
        dialogue.command("/save")
    ask(dialogue, "What?")
    ask(dialogue, "And where?")
    (tmp_path / "kept").mkdir()
    for line, path in (
        ("/save", "vis/a_dialogue.json"),
        (f"/save {tmp_path / 'deep/d.json'}", "deep/d.json"),
        (f"/save {tmp_path / 'kept'}", "kept/a_dialogue.json"),
    ):
        assert dialogue.command(line) == f"saved 2 questions with masks: {tmp_path / path}"
        saved = json.loads((tmp_path / path).read_text(encoding="utf-8"))
        assert saved["image"] == str(tmp_path / "a.jpg")
        assert [turn["prompt"] for turn in saved["turns"]] == ["What?", "And where?"]
        for turn, said in zip(saved["turns"], dialogue.turns, strict=True):
            assert all(Path(file).is_file() for file in turn["files"])
            (mask,) = decode_rles([target["segmentation"] for target in turn["targets"]], hw=HW)
            assert (mask == said.reply.masks(HW)[0]).all()
    with pytest.raises(InputError, match=r"a\.jpg"):
        dialogue.command(f"/save {tmp_path / 'a.jpg'}")


def test_flags_have_the_defaults_of_what_they_set():
    assert AnswerOptions(**ChatConfig().answer_options) == AnswerOptions()
    assert ChatConfig().alpha == FILL
    assert ChatConfig(max_targets=0).answer_options["max_targets"] == 0


def test_what_is_not_given_is_as_stored_with_the_model():
    stored = AnswerOptions(max_new_tokens=64, max_targets=2, temperature=0.5, top_p=0.9, repetition_penalty=1.5)
    settled = ChatConfig(temperature=0.1).settled(stored, frozenset({"temperature"}))
    assert settled.answer_options == {
        "max_new_tokens": 64, "max_targets": 2, "temperature": 0.1, "top_p": 0.9, "repetition_penalty": 1.5,
        "mask_threshold": 0.5,
    }  # fmt: skip
    assert ChatConfig().settled(AnswerOptions(), frozenset()) == ChatConfig()


def test_settings_hold_from_the_next_answer_on(dialogue):
    ask(dialogue)
    assert dialogue.command("/set max_new_tokens 2") == "max_new_tokens is 2 from the next answer on"
    assert dialogue.command("/set temperature 1") == "temperature is 1.0 from the next answer on"
    ask(dialogue)
    assert len(dialogue.turns[-1].reply.output_ids) == 2
    assert {line.split()[0] for line in dialogue.command("/set").splitlines()} == set(ANSWER_FLAGS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/quid", "/quid is no command; /help lists them"),
        ("/", "/ is no command"),
        ("/reset now", "/reset takes nothing behind it"),
        ("/image", "no image was named"),
        ("/set alpha", "alpha is ''; expected a number"),
        ("/set alpha 1.5", "--alpha is 1.5; expected 1.0 or less"),
        ("/set mask_threshold 0", "--mask_threshold is 0.0; expected more than 0"),
        ("/set mask_threshold nan", "--mask_threshold is nan"),
        ("/set max_targets many", "max_targets is 'many'; expected a whole number"),
        ("/set version x", "version cannot be set; there are max_new_tokens, max_targets"),
        ("/set alpha 0.5 0.6", "found '0.6' behind them"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_and_changes_nothing(dialogue, line, says):
    before = dialogue.config
    with pytest.raises(InputError) as caught:
        dialogue.command(line)
    assert says in str(caught.value)
    assert dialogue.config == before


def test_help_has_a_line_for_each_command_that_fits_a_terminal(dialogue):
    lines = dialogue.command("/help").splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert max(map(len, lines)) < 80
