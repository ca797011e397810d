"""The processor: photos and questions in, the network's tensors out, and masks back; it needs no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import model.hf  # noqa: F401  (what users import)
from model.errors import InputError
from model.image import read_image
from model.PixelLM import PixelLMForCausalLM
from model.processor import PROCESSOR_FILE, PixelLMProcessor
from model.text.conversation import CONVERSATIONS, IMAGE, OURS, SEG_MARK
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.tiny_network import make_network

PHOTO = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
GROUP = "[SEG0] [SEG1] [SEG2] [SEG3] [SEG4] [SEG5]"
USER, ASSISTANT = "user", "assistant"


@pytest.fixture(scope="module", params=CONVERSATIONS)
def network(request, tiny_tokenizer_dir) -> PixelLMForCausalLM:
    """Random weights, with either conversation."""
    return make_network(tiny_tokenizer_dir, conv_type=request.param)[0]


@pytest.fixture(scope="module")
def processor(network) -> PixelLMProcessor:
    return network.processor


@pytest.fixture(scope="module")
def photo_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(PHOTO).save(file)
    return file


def say(role: str, words: str, *, image: object = None) -> dict:
    parts = [{"type": "text", "text": words}]
    return {"role": role, "content": parts if image is None else [{"type": "image", "image": image}, *parts]}


# Photos and questions.


def test_a_photo_is_a_file_an_array_or_a_pil_image(processor, photo_file):
    expected = processor(images=PHOTO, text="What?")
    assert expected["pixel_values"].shape == (1, 3, 56, 56)
    for photo in (str(photo_file), photo_file, Image.fromarray(PHOTO), [PHOTO], [[Image.fromarray(PHOTO)]]):
        found = processor(images=photo, text="What?")
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_pil_images_of_any_mode_are_made_rgb(processor, mode):
    photo = Image.fromarray(PHOTO).convert(mode)
    expected = processor(images=np.asarray(photo.convert("RGB")), text="What?")
    assert torch.equal(processor(images=photo, text="What?")["pixel_values"], expected["pixel_values"])


def test_what_is_no_photo_is_refused(processor, tmp_path):
    for array in (PHOTO[..., 0], PHOTO[..., :2], PHOTO.astype(np.float32), PHOTO[:0]):
        with pytest.raises(InputError, match=r"^a photo is .*; expected uint8 of shape \(H, W, 3\)$"):
            processor(images=array, text="What?")
    with pytest.raises(InputError, match="does not exist; check the path"):
        processor(images=tmp_path / "nowhere.png", text="What?")


def test_one_photo_for_several_questions_is_prepared_once(processor):
    inputs = processor(images=PHOTO, text=["What?", "What is the thing?", "Why?"])
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert inputs["image_index"].tolist() == [0, 0, 0]


def test_one_photo_for_each_question(processor):
    inputs = processor(images=[PHOTO, PHOTO[:20]], text=["What?", "What is the thing?"])
    assert inputs["image_index"].tolist() == [0, 1]
    assert inputs["valid_hw"].tolist() == [[37, 56], [19, 56]]


def test_no_photo(processor):
    inputs = processor(text=["What?", "What is it?"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert not (inputs["input_ids"] == IMAGE_TOKEN_ID).any()


def test_photos_alone_can_be_encoded(processor):
    assert processor(images=[PHOTO, PHOTO])["pixel_values"].shape == (2, 3, 56, 56)


def test_questions_are_padded_on_the_left(processor):
    questions = ["What?", "What is the thing that is in the image?"]
    ids, mask = (processor(images=PHOTO, text=questions)[name] for name in ("input_ids", "attention_mask"))
    for row, question in enumerate(questions):
        alone = processor.prompt_ids(question)
        assert ids[row, mask[row].bool()].tolist() == alone
        assert mask[row].tolist() == [0] * (ids.shape[1] - len(alone)) + [1] * len(alone)
    assert set(ids[0, mask[0] == 0].tolist()) == {processor.tokenizer.pad_token_id}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": [PHOTO, PHOTO], "text": ["a", "b", "c"]}, "2 images for 3 texts about one; give one for each"),
        ({}, "neither images nor text was given"),
        ({"text": "<image> What?"}, "text has <image> in it; give the bare question"),
        (
            {"text": "a", "max_length": 5, "truncation": True},
            "max_length, truncation: this processor has no such option",
        ),
        ({"text": "a", "return_tensors": "np"}, "return_tensors: only 'pt' is available"),
        ({"text": "a\ud800"}, "the text is not UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused(processor, options, message):
    with pytest.raises(InputError, match=message):
        processor(**options)


def test_usual_options_change_nothing(processor):
    expected = processor(images=PHOTO, text="What?")
    found = processor(images=PHOTO, text="What?", return_tensors="pt", padding=True, padding_side="left", videos=None)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("mark", [f"{OURS}<image>", f"{OURS}</s>", f"{OURS}[SEG0]"])
def test_nobody_can_write_a_mark(processor, mark):
    special = {IMAGE_TOKEN_ID, *processor.tokenizer.added_tokens_decoder}
    plain = [token for token in processor(text="What is it?")["input_ids"][0].tolist() if token in special]
    if "<image>" not in mark:
        found = processor(text=f"What is {mark}?")["input_ids"][0].tolist()
        assert [token for token in found if token in special] == plain
    messages = [say(USER, f"What is {mark}?")]
    found = processor(text=processor.apply_chat_template(messages))["input_ids"][0].tolist()
    assert [token for token in found if token in special] == plain


# Messages.


@pytest.mark.parametrize("with_image", [True, False])
def test_the_chat_template_writes_what_the_network_was_trained_on(processor, with_image):
    turns = [("What is <s> it?", "It {seg} and {seg}."), ("And </s>?", f"the thing {GROUP}"), ("Where [SEG0]?", None)]
    rendered = processor.conversation.render(
        [(question, answer and answer.replace(GROUP, SEG_MARK)) for question, answer in turns],
        image=IMAGE if with_image else "",
        group=GROUP.split(),
    )
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages.append(say(USER, question, image=PHOTO if with_image and index == 0 else None))
        messages += [say(ASSISTANT, answer)] if answer else []
    for count in (1, 3, 5):
        part = processor.conversation.render(
            [(q, a and a.replace(GROUP, SEG_MARK)) for q, a in [*turns[: count // 2], (turns[count // 2][0], None)]],
            image=IMAGE if with_image else "",
            group=GROUP.split(),
        )
        assert processor.apply_chat_template(messages[:count], add_generation_prompt=True) == part.marked
    assert processor.apply_chat_template(messages) == rendered.marked
    whole = processor.conversation.render([("What?", "{seg}.")], group=GROUP.split())
    assert processor.apply_chat_template([say(USER, "What?"), say(ASSISTANT, "{seg}.")]) == whole.marked


def test_content_may_be_a_string(processor):
    plain = processor.apply_chat_template([{"role": USER, "content": "What?"}])
    assert plain == processor.apply_chat_template([say(USER, "What?")])


def test_an_image_of_a_later_message_stands_before_the_first_question(processor):
    first = [say(USER, "What?", image=PHOTO), say(ASSISTANT, "a thing"), say(USER, "Where?")]
    later = [say(USER, "What?"), say(ASSISTANT, "a thing"), say(USER, "Where?", image=PHOTO)]
    assert processor.apply_chat_template(later) == processor.apply_chat_template(first)


@pytest.mark.parametrize("question", ["What is the thing?", "[SEG0] </s>?"])
def test_messages_and_the_bare_question_are_the_same_input(processor, photo_file, question):
    whole = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    for photo in ({"image": PHOTO}, {"path": str(photo_file)}, {"image": Image.fromarray(PHOTO)}, None):
        content = [*([{"type": "image", **photo}] if photo else []), {"type": "text", "text": question}]
        found = processor.apply_chat_template([{"role": USER, "content": content}], **whole)
        expected = processor(images=PHOTO if photo else None, text=question)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_conversations_with_and_without_an_image_share_a_batch(processor):
    batch = [
        [say(USER, "What?")], [say(USER, "Where is it?", image=PHOTO)], [say(USER, "a")],
        [say(USER, "b", image=PHOTO[:20])],
    ]  # fmt: skip
    inputs = processor.apply_chat_template(batch, tokenize=True, return_dict=True)
    assert (inputs["input_ids"] == IMAGE_TOKEN_ID).any(1).tolist() == [False, True, False, True]
    assert inputs["image_index"][[1, 3]].tolist() == [0, 1]
    assert len(inputs["pixel_values"]) == 2


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([say("system", "Be kind."), say(USER, "What?")], "messages: roles have to be user, assistant, user"),
        ([say(USER, "a"), say(USER, "b")], "messages: roles have to be"),
        ([say(USER, "a", image=1), say(ASSISTANT, "b"), say(USER, "c", image=2)], "about one image at most"),
    ],
)
def test_messages_that_no_training_data_had_are_refused(processor, messages, message):
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template(messages)


# Answers.


@pytest.mark.parametrize("pad", [True, False])
def test_masks_lie_on_the_photo(tiny_tokenizer_dir, pad):
    """A mask that is high where the input shows the left half of the photo."""
    processor = make_network(tiny_tokenizer_dir, pad_train_clip_images=pad)[0].processor
    logits = torch.full((1, 56, 56), -5.0)
    logits[..., :28] = 5.0
    (found,) = processor.post_process_masks([logits], [(40, 80)])
    assert (found.dtype, found.shape) == (torch.bool, (1, 40, 80))
    expected = torch.zeros(40, 80, dtype=torch.bool)
    expected[:, : 40 if pad else 0] = pad
    if not pad:  # the input shows the middle square, columns 20 to 59
        expected[:, 20:40] = True
    assert torch.equal(found[0], expected)
    (placed,) = processor.post_process_masks([logits], torch.tensor([[40, 80]]), binarize=False)
    assert torch.equal(placed > 0, found)
    assert bool(placed.isinf().any()) is not pad
    assert processor.post_process_masks([logits[:0]], [(40, 80)])[0].shape == (0, 40, 80)


def test_masks_of_the_processor_are_those_of_the_forward_pass(tiny_tokenizer_dir):
    network = make_network(tiny_tokenizer_dir)[0]
    logits = torch.randn(3, 16, 16)
    inputs = network.processor.image_processor(PHOTO)
    expected = network.resize_masks(logits, valid_hw=inputs["valid_hw"][0], out_hw=(40, 60))
    assert torch.equal(network.processor.post_process_masks([logits], [(40, 60)], binarize=False)[0], expected)


def test_sequences_are_decoded_with_their_placeholders(processor):
    answer = processor.tokenizer(f"the thing {GROUP}</s>", add_special_tokens=False).input_ids
    prompts = processor(images=PHOTO, text=["What?", "What is the thing that is in the image?"])["input_ids"]
    sequences = torch.cat([prompts, torch.tensor([answer] * 2)], 1)
    texts = processor.batch_decode(sequences, skip_special_tokens=True)
    assert [processor.decode(row, skip_special_tokens=True) for row in sequences] == texts
    assert processor.decode(sequences, skip_special_tokens=True) == texts
    assert processor.post_process_image_text_to_text(sequences, skip_special_tokens=True) == texts
    for text in texts:
        assert text.endswith(f"the thing {GROUP}")
        assert not any(mark in text for mark in ("<s>", "<unk>", "</s>", "<im_start>", "<image>"))
    assert "<s>" in processor.decode(sequences[0])
    assert processor.batch_decode([answer, answer[:2]]) == [f"the thing {GROUP}", "the thing"]


# Folders.


@pytest.fixture
def folder(network, tmp_path) -> Path:
    network.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(one: PixelLMProcessor, other: PixelLMProcessor) -> bool:
    inputs, again = (processor(images=PHOTO, text="What is [SEG0]?") for processor in (one, other))
    return one.to_dict() == other.to_dict() and all(torch.equal(again[name], inputs[name]) for name in inputs)


def test_saved_alone_it_reads_back(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    found = PixelLMProcessor.from_pretrained(tmp_path)
    assert same(found, processor)
    assert found.codebook == processor.codebook
    assert found.chat_template == processor.chat_template
    assert type(AutoProcessor.from_pretrained(tmp_path)) is PixelLMProcessor


def test_auto_processor_reads_our_folder(processor, folder):
    found = AutoProcessor.from_pretrained(folder)
    assert type(found) is PixelLMProcessor
    assert same(found, processor)


def test_a_folder_of_before_there_was_a_processor_file(processor, folder):
    (folder / PROCESSOR_FILE).unlink()
    assert same(PixelLMProcessor.from_pretrained(folder), processor)


def test_the_chat_template_of_a_folder_is_not_read(processor, folder):
    (folder / "chat_template.jinja").write_text("{{ 'anything else' }}", encoding="utf-8")
    assert PixelLMProcessor.from_pretrained(folder).chat_template == processor.chat_template


def test_it_can_be_shown(processor):
    assert '"conv_type": "llava' in repr(processor)


def change(folder: Path, **values: object) -> None:
    file = folder / PROCESSOR_FILE
    content = {**json.loads(file.read_text(encoding="utf-8")), **values}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_files_that_contradict_one_another_are_refused(folder):
    change(folder, image_size=448)
    with pytest.raises(
        InputError, match=r"processor_config\.json says image_size 448, config\.json says 56; take both files"
    ):
        PixelLMProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": None}, "image_size"),
        ({"image_size": "56"}, "image_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        ({"seg_token_num": 0}, "seg_token_num"),
        ({"num_image_tokens": 1.5}, "num_image_tokens"),
        ({"conv_type": ["llava_v1"]}, "conv_type"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_damaged_file_is_told_in_one_line(folder, values, message, alone):
    if alone:
        (folder / "config.json").unlink()
    change(folder, **values)
    with pytest.raises(InputError, match=rf"processor_config\.json.*{message}"):
        PixelLMProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conv_type": "vicuna"}, r"conv_type 'vicuna' is unknown"),
        ({"seg_token_num": 4}, r"2 scales x 4 tokens, which its tokenizer does not have"),
        ({"patch_size": 448}, r"num_image_tokens is 16, but .* 0 patches of 448 pixels"),
        ({"num_image_tokens": 10**9}, r"num_image_tokens is 1000000000, but .* 16 patches"),
    ],
)
def test_a_file_without_its_model_is_held_to_sense(processor, tmp_path, values, message):
    processor.save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        PixelLMProcessor.from_pretrained(tmp_path)


# Real photos.


def test_real_photos(processor, shared):
    photos = sorted((shared / "real_mini/coco").rglob("*.jpg"))[:4]
    assert photos
    inputs = processor(images=photos, text=["What?"] * len(photos))
    arrays = processor(images=[read_image(photo) for photo in photos], text=["What?"] * len(photos))
    assert torch.equal(inputs["pixel_values"], arrays["pixel_values"])
    sizes = [read_image(photo).shape[:2] for photo in photos]
    masks = processor.post_process_masks([torch.randn(2, 16, 16) for _ in photos], sizes)
    assert [mask.shape for mask in masks] == [(2, *size) for size in sizes]


def test_a_copy_of_the_folder_reads_alike(folder, processor, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "moved"))
    shutil.rmtree(folder)
    assert same(PixelLMProcessor.from_pretrained(copied), processor)


# What users mix up.


def test_a_photo_of_16_bits_is_the_same_as_a_file_and_from_pillow(processor, tmp_path):
    pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    opened = processor(images=Image.open(tmp_path / "photo.png"), text="What?")
    assert torch.equal(opened["pixel_values"], processor(images=tmp_path / "photo.png", text="What?")["pixel_values"])


@pytest.mark.parametrize(
    "swapped", [("What?", Image.fromarray(PHOTO)), (["What?"], [PHOTO]), (PHOTO, 3), (PHOTO, [None])]
)
def test_text_that_is_none_is_told_with_the_order(processor, swapped):
    with pytest.raises(InputError, match=r"^text is .*processor\(images=PHOTO, text=QUESTION\)$"):
        processor(*swapped)


@pytest.mark.parametrize("images", [3, b"photo", torch.zeros(40, 60, 3), {"photo": PHOTO}])
def test_what_is_no_photo_is_told_with_what_is(processor, images):
    with pytest.raises(InputError, match=f"^images is a {type(images).__name__}; expected file names, PIL images"):
        processor(images=images, text="What?")


@pytest.mark.parametrize("sizes", [None, [], (40, 60), [(40, 60)] * 2, [(0, 0)], [(40, 60, 3)], [None]])
def test_sizes_that_do_not_fit_the_masks_are_told(processor, sizes):
    with pytest.raises(InputError, match=r"^sizes is .*expected \(height, width\) of the photo for each of 1 answers$"):
        processor.post_process_masks([torch.zeros(2, 16, 16)], sizes)


def test_answers_without_an_image_have_no_masks_to_place(processor):
    with pytest.raises(InputError, match="there are no masks"):
        processor.post_process_masks(None, [(40, 60)])


def test_one_id_is_decoded_as_a_sequence_of_one(processor):
    word = processor.tokenizer("thing", add_special_tokens=False).input_ids[0]
    assert processor.decode(word) == processor.decode(torch.tensor(word)) == processor.decode([word])
