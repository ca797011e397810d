"""What converters write reads like English and names every mask; a user's own templates are held to their rules."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from utils.data.english import make_noun
from utils.data.records import SEG_MARK
from utils.data.templates import Template, Templates, read_templates
from utils.toy_world.custom_sample import TEMPLATES

OURS = read_templates("", most_names=3)
GOOD = {"questions": ["Segment {names}."], "answers": ["Sure: [{name} {seg}]."]}


def nouns(*names, several=False):
    return [make_noun(name, several=several, has_common_names=True) for name in names]


def drawn(templates, asked, *, times=300) -> tuple[set[str], set[str]]:
    """Every question and every answer."""
    rng = np.random.default_rng(0)
    pairs = [templates.word(rng, asked) for _ in range(times)]
    return {question for question, _ in pairs}, {answer for _, answer in pairs}


def own(tmp_path, most_names=3, **keys):
    file = tmp_path / "templates.json"
    file.write_text(json.dumps(GOOD | keys), encoding="utf-8")
    return read_templates(str(file), most_names=most_names)


names = st.lists(st.text(alphabet="ab {}|[]seg", min_size=1).filter(str.strip), min_size=1, max_size=4)


@given(names, st.integers(0, 1000), st.booleans())
def test_every_name_has_its_mask(names, seed, several):
    """Nothing in a name is taken for a slot."""
    asked = nouns(*(" ".join(name.replace(SEG_MARK, "").split()) or "x" for name in names), several=several)
    question, answer = OURS.word(np.random.default_rng(seed), asked)
    assert answer.count(SEG_MARK) == len(asked)
    for noun in asked:
        assert noun.text.lower() in question.lower()
        assert noun.text.lower() in answer.lower()


def test_no_answer_is_masks_alone():
    for asked in (nouns("ring"), nouns("ring", "laptop"), nouns("ring", several=True)):
        _, answers = drawn(OURS, asked)
        assert all(re.search(r"\bthe rings? (is |are )?\{seg\}", answer.lower()) for answer in answers)


def test_names_follow_an_article_and_verbs_agree():
    questions, answers = drawn(OURS, nouns("laptop", "book"))
    assert "Where are the laptop and the book? Please show me the exact pixels." in questions
    assert "Here are the laptop {seg} and the book {seg}." in answers
    assert "The laptop is {seg} and the book is {seg}." in answers
    questions, answers = drawn(OURS, nouns("ring"))
    assert "Segment the ring." in questions
    assert {"Here is the ring {seg}.", "The ring is {seg}."} <= answers
    _, answers = drawn(OURS, nouns("ring", several=True))
    assert {"Here are the rings {seg}.", "Sure, the rings are {seg}."} <= answers


def test_the_order_of_masks_is_that_of_the_names():
    _, answers = drawn(OURS, nouns("a", "b", "c d"))
    assert all(answer.index("c d") > answer.rindex(SEG_MARK, 0, answer.index("c d")) for answer in answers)


def test_own_templates_are_used_as_they_are(tmp_path):
    templates = own(
        tmp_path,
        questions=["[Every {singular}]?", "Is this {name}?"],
        answers=["Yes: [all {plural} {is|are} {seg}]!", "Just here: {seg}"],
    )
    questions, answers = drawn(templates, nouns("cup"))
    assert questions == {"Every cup?", "Is this the cup?"}
    assert answers == {"Yes: all cups is {seg}!", "Just here: {seg}"}
    questions, answers = drawn(templates, nouns("cup", "the keys"))
    assert questions == {"Every cup and Every key?"}
    assert answers == {"Yes: all cups is {seg} and all keys are {seg}!"}, "what takes one name is left out"


def test_the_class_as_it_was_given(tmp_path):
    templates = own(tmp_path, questions=["Wo: {class}?"], answers=["Hier, {class}: {seg}."], most_names=1)
    assert drawn(templates, nouns("Haus")) == ({"Wo: Haus?"}, {"Hier, Haus: {seg}."})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"questions": []}, "questions is []; expected 1 entries or more"),
        ({"answers": None}, "answers is None; expected a list"),
        ({"answers": [5]}, "answers[0] is 5; expected text"),
        ({"questions": [""]}, "questions[0] is ''; expected text of 1 characters or more"),
        ({"questions": ["Segment {names}.", " "]}, "questions[1] is ' ': it is blank"),
        ({"questions": ["<image> {names}"]}, "contains <image>"),
        ({"questions": ["Segment {thing}."]}, "{thing} is no slot; expected {name}, {singular}, {plural}, {class}"),
        ({"questions": ["Segment {is|are|were} {names}."]}, "{is|are|were} is no slot"),
        ({"questions": ["Segment {names."]}, "a brace has no partner"),
        ({"questions": ["Segment it."]}, "it does not say what is asked for; expected {names} or {name}"),
        ({"questions": ["Segment {names} {seg}."]}, "{seg} belongs in answers only"),
        ({"questions": ["Segment {names} and {names}."]}, "expected one part in [brackets] at most"),
        ({"questions": ["Segment [[{name}]]."]}, "expected one part in [brackets] at most"),
        ({"questions": ["Segment {name}: {names}."]}, "{name} stands outside of the part that is said for each name"),
        ({"answers": ["Here: {names}."]}, "{seg} occurs 0 times; expected once, in the part that is said for each"),
        ({"answers": ["{names} {seg}."]}, "{seg} occurs 1 times; expected once, in the part"),
        ({"answers": ["[{name} {seg} {seg}]."]}, "{seg} occurs 2 times; expected once, in the part"),
        ({"answers": ["[{name} {seg}] {seg}."]}, "{seg} occurs 2 times; expected once, in the part"),
        ({"answers": ["{name}."]}, "{seg} occurs 0 times; expected once, in it"),
        ({"answers": ["Here: [{seg}]."]}, "the part in [brackets] holds no name"),
        ({"answers": ["It is {seg}."]}, "none of its answers takes several names; give one with a part in [brackets]"),
        ({"questions": ["Where is {name}?"]}, "none of its questions takes several names"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, keys, says):
    with pytest.raises(InputError) as refused:
        own(tmp_path, **keys)
    assert says in str(refused.value)
    assert str(tmp_path / "templates.json") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff{}", "is not valid JSON"),
        (b'{"questions": ["\\ud800 {name}"], "answers": ["{name} {seg}"]}', "expected text that can be written"),
        (b"[]", "it is []; expected a JSON object"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path, content, says):
    file = tmp_path / "templates.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)):
        read_templates(str(file), most_names=1)


def test_the_page_shows_what_is_written(repository):
    """docs/custom_data.md: its three examples, and its own templates, which are those of the drawn sample."""
    page = (repository / "docs/custom_data.md").read_text(encoding="utf-8")
    laptop, cups = nouns("laptop") + nouns("cup", several=True)
    rows = page.split("| Names in the photo | Question | Answer |")[1].splitlines()[2:5]
    for row, asked in zip(rows, ([laptop], [cups], [laptop, cups]), strict=True):
        _, question, answer = (cell.strip() for cell in row.strip("|").split("|"))
        questions, answers = drawn(OURS, asked)
        assert question in questions
        assert answer in answers
    (block,) = re.findall(r"^```text\n(\{.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert json.loads(block) == TEMPLATES
    question, answer = re.search(r'This asks "(.*?)" and answers "(.*?)"', page).groups()
    own = Templates(*(tuple(map(Template.read, TEMPLATES[key])) for key in ("questions", "answers")))
    questions, answers = drawn(own, nouns("circle", several=True) + nouns("ring"))
    assert question in questions
    assert answer in answers


def test_the_number_of_wordings_is_the_one_described(repository):
    page = (repository / "docs/custom_data.md").read_text(encoding="utf-8")
    assert "ask in ten ways and answer in five" in page
    assert (len(OURS.questions), len(OURS.answers)) == (10, 5)
