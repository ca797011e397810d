"""Names get the article and number that English wants; docs/custom_data.md has the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.english import has_common_names, make_noun, start_sentence


def words(name: str, *, several: bool = False, others: bool = True) -> str:
    noun = make_noun(name, several=several, has_common_names=others)
    return f"{noun.text} {'are' if noun.is_plural else 'is'}"


@pytest.mark.parametrize(
    ("name", "one", "several"),
    [
        ("cup", "the cup is", "the cups are"),
        ("wine glass", "the wine glass is", "the wine glasses are"),
        ("bus", "the bus is", "the buses are"),
        ("cherry", "the cherry is", "the cherries are"),
        ("person", "the person is", "the people are"),
        ("policeman", "the policeman is", "the policemen are"),
        ("human", "the human is", "the humans are"),
        ("ottoman", "the ottoman is", "the ottomans are"),
        ("knife", "the knife is", "the knives are"),
        ("sheep", "the sheep is", "the sheep are"),
        ("TV", "the TV is", "the TVs are"),
        ("bag of chips", "the bag of chips is", "the bags of chips are"),
    ],
)
def test_things_that_can_be_counted(name, one, several):
    assert (words(name), words(name, several=True)) == (one, several)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("water", "the water is"),
        ("dry grass", "the dry grass is"),
        ("trees", "the trees are"),
        ("scissors", "the scissors are"),
        ("people", "the people are"),
        ("the cups", "the cups are"),
        ("a cup", "a cup is"),
        ("two cups", "two cups are"),
        ("all water", "all water is"),
        ("Anna's bike", "Anna's bike is"),
        ("the man in red", "the man in red is"),
        ("player 7", "player 7 is"),
        ("杯子", "杯子 is"),
    ],
)
def test_names_whose_number_is_their_own(name, says, several):
    assert words(name, several=several) == says


def test_expressions_are_treated_as_classes_are():
    assert words("man on the left") == "the man on the left is"
    assert words("left guy") == "the left guy is"
    assert words("people who wave") == "the people who wave are"


def test_capitals_mean_a_proper_name_only_beside_common_names():
    assert words("Golden Gate Bridge") == "Golden Gate Bridge is"
    assert words("Person", others=False) == "the Person is"
    assert words("Christmas tree") == "the Christmas tree is"
    assert has_common_names(["Anna", "cup"])
    assert not has_common_names(["Person", "TV"])


def test_the_noun_alone_in_both_numbers():
    for name in ("cup", "cups", "the cup", "a cup"):
        noun = make_noun(name, several=False, has_common_names=True)
        assert (noun.singular, noun.plural, noun.given) == ("cup", "cups", name)
    pairs = {"houses": "house", "boxes": "box", "leaves": "leaf", "cookies": "cookie", "buses": "bus", "ties": "tie"}
    for name, one in pairs.items():
        noun = make_noun(name, several=False, has_common_names=True)
        assert (noun.singular, noun.plural) == (one, name)
        assert words(one, several=True) == f"the {name} are"


@given(st.text(min_size=1, max_size=12).filter(lambda name: name.split()), st.booleans(), st.booleans())
def test_every_name_has_its_forms(name, several, others):
    name = " ".join(name.split())
    noun = make_noun(name, several=several, has_common_names=others)
    assert noun.text
    assert noun.singular
    assert noun.plural
    assert not noun.text.startswith("the the ")


def test_sentences_start_with_a_capital():
    assert start_sentence("the cup is here") == "The cup is here"
    assert start_sentence("iPhone 7 is here") == "iPhone 7 is here"
