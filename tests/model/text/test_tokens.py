"""Token strings, ids and groups: what a run, a merged folder and the release must agree on."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.text.conversation import CONVERSATIONS, IMAGE, get_conversation
from model.text.tokenizer import add_codebook, check_token_ids, decode_released, load_tokenizer, save_tokenizer
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, SegCodebook, encode_conversation, seg_strings, seg_text


@st.composite
def codebooks_and_ids(draw) -> tuple[SegCodebook, list[list[int]]]:
    """A codebook and rows of ids in which whole groups, parts of groups and other tokens stand in any order."""
    scales, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ids = tuple(range(50, 50 + scales * tokens))
    piece = st.one_of(
        st.just(list(ids)),
        st.lists(st.sampled_from(ids), max_size=4),
        st.lists(st.integers(0, 9), max_size=3),
        st.integers(0, len(ids)).map(lambda cut: list(ids[:cut])),
    )
    rows = draw(
        st.lists(
            st.lists(piece, max_size=6).map(lambda parts: list(chain.from_iterable(parts))), min_size=1, max_size=4
        )
    )
    length = max(map(len, rows))
    return SegCodebook(scales, tokens, ids), [row + [0] * (length - len(row)) for row in rows]


def scan(codebook: SegCodebook, rows: list[list[int]]) -> list[tuple[int, int]]:
    """Complete groups, read one id after another."""
    found = []
    for number, row in enumerate(rows):
        start = 0
        while start < len(row):
            if tuple(row[start : start + codebook.size]) == codebook.ids:
                found.append((number, start))
                start += codebook.size
            else:
                start += 1
    return found


@given(codebooks_and_ids())
@settings(max_examples=200, deadline=None)
def test_groups_are_found_in_reading_order_and_the_rest_is_stray(case):
    codebook, rows = case
    input_ids = torch.tensor(rows).reshape(len(rows), -1).long()
    query_index, start = codebook.find_groups(input_ids)
    expected = scan(codebook, rows)
    assert list(zip(query_index.tolist(), start.tolist(), strict=True)) == expected
    inside = codebook.size * len(expected)
    assert codebook.count_stray(input_ids) == sum(token in codebook.ids for row in rows for token in row) - inside


def test_a_row_shorter_than_a_group_has_none():
    codebook = SegCodebook(2, 2, (5, 6, 7, 8))
    query_index, start = codebook.find_groups(torch.tensor([[5, 6, 7]]))
    assert len(query_index) == len(start) == 0
    assert codebook.count_stray(torch.tensor([[5, 6, 7]])) == 3


def test_a_group_does_not_run_over_the_end_of_a_row():
    codebook = SegCodebook(1, 2, (5, 6))
    assert len(codebook.find_groups(torch.tensor([[0, 5], [6, 0]]))[0]) == 0


def test_one_token_is_called_seg():
    assert seg_strings(1, 1) == ("[SEG]",)
    assert seg_strings(2, 3) == ("[SEG0]", "[SEG1]", "[SEG2]", "[SEG3]", "[SEG4]", "[SEG5]")
    assert seg_text(1, 2) == "[SEG0] [SEG1]"


def test_the_number_of_ids_is_checked():
    with pytest.raises(InputError, match="2 scales x 3 tokens but 5 ids"):
        SegCodebook(2, 3, (1, 2, 3, 4, 5))


@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_tokens_are_added_in_the_released_order(tiny_tokenizer_dir, scales, tokens):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    first = len(tokenizer)
    codebook = add_codebook(tokenizer, scales=scales, tokens=tokens)
    size = scales * tokens
    assert codebook.ids == tuple(range(first, first + size))
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [first + size, first + size + 1]
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0
    group = tokenizer(seg_text(scales, tokens), add_special_tokens=False).input_ids
    assert tuple(group) == codebook.ids


def test_tokens_that_are_there_keep_their_ids(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    first = add_codebook(tokenizer, scales=2, tokens=2)
    assert add_codebook(tokenizer, scales=2, tokens=2) == first


@pytest.mark.parametrize("scales_tokens", [(1, 1), (2, 3)])
def test_a_saved_tokenizer_gives_the_same_ids(tiny_tokenizer_dir, tmp_path, scales_tokens):
    scales, tokens = scales_tokens
    tokenizer = load_tokenizer(tiny_tokenizer_dir, model_max_length=300)
    codebook = add_codebook(tokenizer, scales=scales, tokens=tokens)
    text = f"the thing is {seg_text(scales, tokens)}, {seg_text(scales, tokens)}. <im_start>x<im_end> Ähm 3"
    folders = [tmp_path / "once", tmp_path / "twice"]
    for folder, source in zip(folders, [tiny_tokenizer_dir, folders[0]], strict=True):
        folder.mkdir()
        save_tokenizer(tokenizer, folder, source=source)
        again = load_tokenizer(folder)
        assert again(text).input_ids == tokenizer(text).input_ids
        assert add_codebook(again, scales=scales, tokens=tokens) == codebook
        assert again(text).input_ids == tokenizer(text).input_ids
        assert len(again) == len(tokenizer)
        assert (folder / "tokenizer.model").read_bytes() == (tiny_tokenizer_dir / "tokenizer.model").read_bytes()
        tokenizer = again


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"[SEG0]": 360, "[SEG1]": 360}, r"added_tokens\.json gives \[SEG0\] the id 360"),
        ({"[SEG0]": 10, "[SEG1]": 11}, r"\[SEG0\] the id 10, but it is read as 360"),
        ({"[SEG0]": 900}, r"\[SEG0\] the id 900, but it is read as 360"),
    ],
)
def test_ids_that_collide_or_leave_a_gap_are_refused(tiny_tokenizer_dir, tmp_path, recorded, message):
    """transformers renumbers such tokens without a word: every mask would be made from another word's state."""
    shutil.copy(tiny_tokenizer_dir / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(recorded))
    with pytest.raises(InputError, match=rf"tokenizer {tmp_path}.*{message}.*copy the tokenizer files again"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("change", ["collide", "rename"])
def test_a_damaged_tokenizer_json_is_refused(tiny_tokenizer_dir, tmp_path, change):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    add_codebook(tokenizer, scales=2, tokens=2)
    save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    first, second = (token for token in content["added_tokens"] if token["content"] in ("[SEG0]", "[SEG1]"))
    if change == "collide":
        second["id"] = first["id"]
    else:
        second["content"] = "[SEG0]"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json gives \[SEG0\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (("[SEG0]",), r"\[SEG0\] is the unknown token"),
        (("<0x41>",), r"<0x41> splits into ids"),
        (("<s>", "<s>"), r"<s> and <s> share id 1"),
    ],
)
def test_every_token_must_be_one_id_of_its_own(tiny_tokenizer_dir, strings, message):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    with pytest.raises(InputError, match=rf"tokenizer {tiny_tokenizer_dir}: {message}.*LLaVA base"):
        check_token_ids(tokenizer, strings)


def test_a_folder_without_a_readable_tokenizer(tmp_path):
    with pytest.raises(InputError, match=rf"no tokenizer in {tmp_path}.*LLaVA base"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not sentencepiece")
    with pytest.raises(InputError, match=rf"the tokenizer in {tmp_path} cannot be read.*copy it again"):
        load_tokenizer(tmp_path)


TURNS = [("What is the thing?", "The thing is {seg}."), ("Why?", "It is human."), ("So?", "No.")]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    add_codebook(tokenizer, scales=1, tokens=2)
    return tokenizer


@pytest.mark.parametrize("template", CONVERSATIONS)
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_labels_are_what_the_assistant_says_and_nothing_else(tokenizer, template, rounds):
    """The release masks all turns of a batch after one odd turn, and labels llava_llama_2 wrongly."""
    rendered = get_conversation(template).render(TURNS[:rounds], image=IMAGE, group=seg_strings(1, 2))
    ids, labels = encode_conversation(tokenizer, rendered, num_image_tokens=4)
    assert len(ids) == len(labels)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    runs: list[list[int]] = []
    for before, label in zip([IGNORE_INDEX, *labels], labels, strict=False):
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
    said = ["".join(decode_released(tokenizer, run).split()) for run in runs]
    assert said == ["".join(f"{answer}</s>".replace("{seg}", seg_text(1, 2)).split()) for _, answer in TURNS[:rounds]]
    assert all(run[-1] == tokenizer.eos_token_id for run in runs)


def test_ids_beyond_the_vocabulary_say_nothing(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    ids = tokenizer("the thing", add_special_tokens=False).input_ids
    assert decode_released(tokenizer, [ids[0], len(tokenizer), *ids[1:], len(tokenizer) + 40]) == "the thing"


def test_the_image_stands_for_as_many_places_as_it_has_tokens(tokenizer):
    rendered = get_conversation("llava_v1").render(TURNS[:1], image=IMAGE)
    one, _ = encode_conversation(tokenizer, rendered, num_image_tokens=1)
    many, labels = encode_conversation(tokenizer, rendered, num_image_tokens=9)
    place = one.index(IMAGE_TOKEN_ID)
    assert many == one[:place] + [IMAGE_TOKEN_ID] * 9 + one[place + 1 :]
    assert labels[place : place + 9] == [IGNORE_INDEX] * 9
    marks = tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    assert [many[place - 1], many[place + 9]] == marks
    assert many[0] == tokenizer.bos_token_id
    assert many.count(tokenizer.bos_token_id) == 1


def test_text_without_an_image(tokenizer):
    ids, _ = encode_conversation(tokenizer, get_conversation("llava_v1").render(TURNS[1:]), num_image_tokens=9)
    assert IMAGE_TOKEN_ID not in ids


def with_settings(source, folder, settings):
    """A tokenizer folder whose tokenizer_config.json holds ``settings``; None writes none."""
    folder.mkdir()
    shutil.copy(source / "tokenizer.model", folder)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "LlamaTokenizer", **settings}), encoding="utf-8"
        )
    return folder


PIECES = ["the thing is", "[SEG0]", "[SEG1]", ", what is", "<im_end>", "image what", "</s>", "human"]


@pytest.mark.parametrize("settings", [None, {}, {"legacy": None}, {"legacy": True}])
def test_ids_are_those_of_the_slow_tokenizer(tiny_tokenizer_dir, tmp_path, settings):
    """Each piece between added tokens goes through sentencepiece on its own, which puts a space symbol in front."""
    folder = with_settings(tiny_tokenizer_dir, tmp_path / "t", settings)
    tokenizer = load_tokenizer(folder)
    add_codebook(tokenizer, scales=1, tokens=2)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    added = {text: tokenizer.convert_tokens_to_ids(text) for text in ("[SEG0]", "[SEG1]", "<im_end>", "</s>")}
    expected = [token for piece in PIECES for token in ([added[piece]] if piece in added else slow.encode(piece))]
    assert tokenizer(" ".join(PIECES[:4]) + "".join(PIECES[4:]), add_special_tokens=False).input_ids == expected


def test_a_recorded_legacy_false_is_kept(tiny_tokenizer_dir, tmp_path):
    """Llama-2-chat records it, and the release then reads no space symbol after an added token."""
    folder = with_settings(tiny_tokenizer_dir, tmp_path / "t", {"legacy": False})
    for number in range(2):
        tokenizer = load_tokenizer(folder)
        add_codebook(tokenizer, scales=1, tokens=2)
        found = tokenizer.convert_ids_to_tokens(tokenizer("what [SEG0] human what", add_special_tokens=False).input_ids)
        assert found[0].startswith("▁")
        assert not found[found.index("[SEG0]") + 1].startswith("▁")
        assert "▁what" in found
        folder = tmp_path / f"saved {number}"
        folder.mkdir()
        save_tokenizer(tokenizer, folder)
        assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["legacy"] is False


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length is 'long'; expected a number"),
        ("tokenizer_config.json", {"legacy": "no"}, "legacy is 'no'; expected true or false"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"3": {"lstrip": 1}}},
            "added_tokens_decoder.3.content is missing",
        ),
        ("tokenizer_config.json", [], "holds a list; expected a JSON object"),
        ("added_tokens.json", {"[SEG0]": "360"}, r"\[SEG0\] is '360'; expected a whole number"),
        ("added_tokens.json", {"[SEG0]": -1}, r"\[SEG0\] is -1; expected 0 or more"),
        ("special_tokens_map.json", {"unk_token": 3}, "unk_token.* is 3; expected"),
        ("tokenizer.json", {"added_tokens": [{"content": "a", "id": None}]}, r"added_tokens\[0\].id is None; expected"),
    ],
)
def test_tokenizer_files_of_nonsense_are_named(tiny_tokenizer_dir, tmp_path, file, content, message):
    shutil.copy(tiny_tokenizer_dir / "tokenizer.model", tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{tmp_path}/{file}:? {message}"):
        load_tokenizer(tmp_path)
