"""The tokenizer of a LLaMA folder, with the ids and the spacing of the release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import Field
from transformers import AddedToken, LlamaTokenizer
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, read_object
from model.values import NonNegativeInt, Schema, Text

from .conversation import IMAGE_END, IMAGE_START
from .tokens import SegCodebook, seg_strings


class Token(TypedDict):
    """One entry of the tokenizer's files."""

    content: Text
    id: NotRequired[NonNegativeInt]
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    normalized: NotRequired[bool]
    single_word: NotRequired[bool]
    special: NotRequired[bool]


class NumberedToken(Token):
    """One entry of tokenizer.json."""

    id: NonNegativeInt  # pyright: ignore[reportIncompatibleVariableOverride]


class TokenizerSettings(TypedDict, total=False):
    """What is read of tokenizer_config.json, by this file and by transformers."""

    legacy: bool | None
    model_max_length: Annotated[float, Field(gt=0)] | None
    padding_side: Text | None
    bos_token: Text | Token | None
    eos_token: Text | Token | None
    unk_token: Text | Token | None
    pad_token: Text | Token | None
    added_tokens_decoder: dict[str, Token]


class TokenizerJson(TypedDict):
    """What is read of tokenizer.json."""

    added_tokens: list[NumberedToken]


_FILES: dict[str, Schema[Any]] = {
    "tokenizer_config.json": Schema(TokenizerSettings),
    "special_tokens_map.json": Schema(dict[str, Text | Token | list[Text | Token] | None]),
    "added_tokens.json": Schema(dict[Text, NonNegativeInt]),
    "tokenizer.json": Schema(TokenizerJson),
}


def _read_settings(folder: Path) -> dict[str, Any]:
    """Every settings file that the folder has, held to the types above."""
    remedy = "Copy the tokenizer files again from their source"
    return {
        name: schema.check(read_object(folder / name), where=str(folder / name), remedy=remedy)
        for name, schema in _FILES.items()
        if is_file(folder / name)
    }


def load_tokenizer(folder: str | Path, *, model_max_length: int | None = None) -> LlamaTokenizer:
    """Read a LLaMA tokenizer so that it gives the ids of the release.

    The release ran the slow sentencepiece tokenizer, whose default is legacy mode: every piece of text between added
    tokens gets a leading space symbol. The fast tokenizer has the other default, so ``legacy`` is always said: as
    tokenizer_config.json records it (Llama-2-chat says false), else true. The pad token is ``<unk>``.

    Raises:
        InputError: if the files are missing or damaged, or an added token has another id than they say.
    """
    folder = Path(folder)
    if not any(is_file(folder / name) for name in ("tokenizer.model", "tokenizer.json")):
        raise InputError(
            f"no tokenizer in {folder}: expected tokenizer.model or tokenizer.json. "
            "Copy the tokenizer of the LLaVA base there."
        )
    settings = _read_settings(folder)
    legacy = settings.get("tokenizer_config.json", {}).get("legacy")
    try:
        tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True if legacy is None else legacy)
        recorded = list(_recorded_ids(settings))
    except Exception as err:
        raise InputError(f"the tokenizer in {folder} cannot be read ({err}); copy it again from its source") from err
    for file, text, token_id in recorded:
        found = tokenizer.convert_tokens_to_ids(text)
        if found != token_id:
            raise InputError(
                f"tokenizer {folder}: {file} gives {text} the id {token_id}, but it is read as {found}: ids collide or "
                "leave a gap; copy the tokenizer files again from their source"
            )
    tokenizer.pad_token = tokenizer.unk_token
    if model_max_length is not None:
        tokenizer.model_max_length = model_max_length
    return tokenizer


def _recorded_ids(settings: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(file, token, id) of every added token in the files; transformers renumbers what does not fit, silently."""
    layouts = {
        "added_tokens.json": lambda content: content.items(),
        "tokenizer.json": lambda content: [(token["content"], token["id"]) for token in content["added_tokens"]],
        "tokenizer_config.json": lambda content: [
            (token["content"], int(token_id)) for token_id, token in content.get("added_tokens_decoder", {}).items()
        ],
    }
    for name, read in layouts.items():
        if name in settings:
            yield from ((name, text, token_id) for text, token_id in read(settings[name]))


def add_codebook(tokenizer: LlamaTokenizer, *, scales: int, tokens: int, image_marks: bool = True) -> SegCodebook:
    """Add the released tokens, in the released order, and check every id.

    Tokens that the tokenizer already has keep their ids; their white-space rule is set again, because a folder
    saved by the release does not record it (spaces next to an added token vanish).

    Raises:
        InputError: if an id collides, splits, or is the unknown token.
    """
    strings = seg_strings(scales, tokens)
    tokenizer.add_tokens([_added(text, special=False) for text in strings])
    marks = (IMAGE_START, IMAGE_END) if image_marks else ()
    tokenizer.add_tokens([_added(text, special=True) for text in marks], special_tokens=True)
    check_token_ids(tokenizer, (*strings, *marks))
    return SegCodebook(scales, tokens, tuple(_ids(tokenizer, strings)))


def _ids(tokenizer: LlamaTokenizer, strings: Sequence[str]) -> list[int]:
    # A list of tokens gives a list of ids.
    return cast(list[int], tokenizer.convert_tokens_to_ids(list(strings)))


def _added(text: str, *, special: bool) -> AddedToken:
    return AddedToken(text, lstrip=True, rstrip=True, normalized=False, special=special)


def check_token_ids(tokenizer: LlamaTokenizer, strings: tuple[str, ...]) -> None:
    """Every string must be one token with an id of its own, and come back from it.

    Raises:
        InputError: for the first string that does not.
    """
    where = f"tokenizer {tokenizer.name_or_path or '(in memory)'}"
    remedy = "use the tokenizer files of the LLaVA base that the run started from"
    ids = _ids(tokenizer, strings)
    owner: dict[int, str] = {}
    for text, token_id in zip(strings, ids, strict=True):
        if token_id is None or token_id == tokenizer.unk_token_id:
            raise InputError(f"{where}: {text} is the unknown token; {remedy}")
        if token_id in owner:
            raise InputError(f"{where}: {owner[token_id]} and {text} share id {token_id}; {remedy}")
        owner[token_id] = text
        if token_id >= len(tokenizer):
            raise InputError(f"{where}: {text} has id {token_id} but the vocabulary ends at {len(tokenizer)}; {remedy}")
        pieces = tokenizer(text, add_special_tokens=False).input_ids
        if pieces != [token_id]:
            raise InputError(f"{where}: {text} splits into ids {pieces}, expected [{token_id}]; {remedy}")
        if tokenizer.convert_ids_to_tokens(token_id) != text:
            found = tokenizer.convert_ids_to_tokens(token_id)
            raise InputError(f"{where}: id {token_id} of {text} reads back as {found!r}; {remedy}")


def save_tokenizer(tokenizer: LlamaTokenizer, folder: Path, *, source: Path | None = None) -> None:
    """Write the tokenizer so that a later load gives the same ids.

    Args:
        source: a folder whose ``tokenizer.model`` is copied along, for programs that read only that.
    """
    tokenizer.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["legacy"] = tokenizer.legacy
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    if source is not None and is_file(source / "tokenizer.model"):
        with suppress(shutil.SameFileError):  # it is written where it was read
            shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")


def decode_released(tokenizer: LlamaTokenizer, ids: list[int]) -> str:
    """Ids -> text with the spacing of the release's slow tokenizer.

    Added tokens are separated by spaces from what stands beside them; ``<s>`` and ``</s>`` belong to the text piece
    they stand in.
    """
    added = {
        token_id
        for text, token_id in tokenizer.get_added_vocab().items()
        if text not in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    }
    pieces: list[str] = []
    pending: list[str] = []
    for token_id in ids:
        token = cast("str | None", tokenizer.convert_ids_to_tokens(token_id))  # one id gives one string
        if token is None:  # tables of weights are often larger than the vocabulary
            continue
        if token_id in added:
            if pending:
                pieces.append(_join_piece(tokenizer, pending))
                pending = []
            pieces.append(token)
        else:
            pending.append(token)
    if pending:
        pieces.append(_join_piece(tokenizer, pending))
    return " ".join(pieces)


def answer_text(tokenizer: LlamaTokenizer, ids: Sequence[int]) -> str:
    """The words of an answer without its end mark, single-spaced."""
    kept = [token_id for token_id in ids if token_id != tokenizer.eos_token_id]
    return " ".join(decode_released(tokenizer, kept).split())


def _join_piece(tokenizer: LlamaTokenizer, tokens: list[str]) -> str:
    """Text of tokens without added ones; a special token is preceded by a space unless it follows another."""
    text, words, after_special = "", [], False
    specials = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    for index, token in enumerate(tokens):
        if token not in specials:
            words.append(token)
            after_special = False
            continue
        if not after_special and index > 0:
            text += " "
        text += tokenizer.convert_tokens_to_string(words) + token if words else token
        words, after_special = [], True
    return text + (tokenizer.convert_tokens_to_string(words) if words else "")
