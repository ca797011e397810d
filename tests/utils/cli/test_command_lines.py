"""The released command lines work unchanged: every flag, every default, and the lines of the README.

Also ours: every switch can be turned off, and what a flag says is never silently lost.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import train_ds
from model.errors import InputError
from scripts.preview_data import PreviewConfig
from tests.support.bad_input import refused
from tests.support.released_flags import CHAT_LINE, CHOICES, DEFAULTS, MERGE_LINE, TRAIN_LINE
from utils.cli.args import Parsed, build_parser, parse
from utils.cli.command import run_command, run_commands
from utils.cli.config import ChatConfig, MergeConfig, RunConfig
from utils.evaluation.flags import EvaluateConfig
from utils.inference.flags import PredictConfig

SCRIPTS = {"train_ds.py": RunConfig, "chat.py": ChatConfig, "merge_lora_weights_and_save_hf_model.py": MergeConfig}
COLUMN = {RunConfig: 0, ChatConfig: 1, MergeConfig: 2}
FLAGS = [
    pytest.param(config_type, flag, row[column], id=f"{config_type.__name__}{flag}")
    for flag, row in DEFAULTS.items()
    for config_type, column in COLUMN.items()
    if row[column] is not ...
]


def field_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def arguments(line: str) -> tuple[str, list[str]]:
    """A shell line -> the script it runs and that script's arguments."""
    words = shlex.split(line.replace("\\\n", " "))
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return Path(words[place]).name, words[place + 1 :]


def test_the_table_is_whole():
    """64 rows: 62 flags of training, 20 of chat and 26 of the merge script."""
    counts = [sum(row[column] is not ... for row in DEFAULTS.values()) for column in range(3)]
    assert (len(DEFAULTS), counts) == (64, [62, 20, 26])
    assert len(FLAGS) == sum(counts)


@pytest.mark.parametrize(("config_type", "flag", "default"), FLAGS)
def test_released_flag_and_default(config_type, flag, default):
    name = field_name(flag)
    found = getattr(parse(config_type, [], "").config, name)
    assert found == default
    assert type(found) is type(default)
    if isinstance(default, bool):
        assert getattr(parse(config_type, [f"--no_{name}"], "").config, name) is False
        if config_type is ChatConfig or name != "load_in_8bit":  # training refuses it
            assert getattr(parse(config_type, [flag], "").config, name) is True
        return
    value = {str: CHOICES.get(flag, ("a",))[0], int: "32" if flag == "--out_dim" else "1", float: "0.5"}[type(default)]
    for spelling in ([flag, value], [f"{flag}={value}"]):
        parsed = parse(config_type, spelling, "")
        assert getattr(parsed.config, name) == type(default)(value)
        assert parsed.given == {name}


@pytest.mark.parametrize("config_type", SCRIPTS.values())
@pytest.mark.parametrize("flag", CHOICES)
def test_choices(config_type, flag):
    for value in CHOICES[flag]:
        assert getattr(parse(config_type, [flag, value], "").config, field_name(flag)) == value
    with pytest.raises(InputError, match=rf"{flag}.*'other'.*{CHOICES[flag][0]}"):
        parse(config_type, [flag, "other"], "")


@pytest.mark.parametrize("config_type", SCRIPTS.values())
@pytest.mark.parametrize("spelling", ["--local_rank=1", "--local-rank=1", "--vision-tower=T", "--vision_tower=T"])
def test_both_spellings(config_type, spelling):
    name, value = spelling.removeprefix("--").split("=")
    found = getattr(parse(config_type, [spelling], "").config, name.replace("-", "_"))
    assert str(found) == value


@pytest.mark.parametrize("config_type", SCRIPTS.values())
def test_every_switch_can_be_turned_off(config_type):
    switches = [field.name for field in dataclasses.fields(config_type) if isinstance(field.default, bool)]
    assert len(switches) >= 6
    for name in switches:
        assert getattr(parse(config_type, [f"--no_{name}"], "").config, name) is False


def test_training_does_not_round_to_8_bits():
    with pytest.raises(InputError, match=r"is for chat and evaluation; train with --load_in_4bit, or with --precision"):
        parse(RunConfig, ["--load_in_8bit"], "")


@pytest.mark.parametrize("config_type", [ChatConfig, EvaluateConfig])
def test_bits_of_the_language_model(config_type):
    flags = ["--version=model"]
    for bits, given in ((16, []), (8, ["--load_in_8bit"]), (4, ["--load_in_4bit", "--precision=fp16"])):
        assert parse(config_type, [*flags, *given], "").config.bits == bits
    with pytest.raises(InputError, match="--load_in_8bit and --load_in_4bit exclude each other; give one of them"):
        parse(config_type, [*flags, "--load_in_8bit", "--load_in_4bit"], "")
    with pytest.raises(InputError, match=r"--load_in_8bit keeps .* in 16 bits; give --precision bf16 or fp16"):
        parse(config_type, [*flags, "--load_in_8bit", "--precision=fp32"], "")


@pytest.mark.parametrize("config_type", [RunConfig, ChatConfig, EvaluateConfig])
def test_attention_implementations(config_type):
    flags = ["--version=model"]
    assert parse(config_type, flags, "").config.attn_implementation == "sdpa"
    for name in ("sdpa", "eager", "flash_attention_2", "flex_attention"):
        assert parse(config_type, [*flags, "--attn_implementation", name], "").config.attn_implementation == name
    with pytest.raises(InputError, match=r"'kernels-community/flash-attn2' \(choose from"):
        parse(config_type, [*flags, "--attn_implementation=kernels-community/flash-attn2"], "")


@pytest.mark.parametrize("line", [TRAIN_LINE, MERGE_LINE, CHAT_LINE])
def test_lines_of_the_readme(line):
    script, argv = arguments(line)
    parsed = parse(SCRIPTS[script], argv, "")
    assert len(parsed.given) == len(argv)
    expected: dict[str, Any] = {}
    for word in argv:
        flag, _, value = word.partition("=")
        expected[field_name(flag)] = value or True
    for name, value in expected.items():
        assert str(getattr(parsed.config, name)) == str(value)


def test_the_launcher_adds_the_rank_in_front():
    script, argv = arguments(TRAIN_LINE)
    assert parse(SCRIPTS[script], ["--local_rank=1", *argv], "").config.local_rank == 1


@pytest.mark.parametrize("config_type", SCRIPTS.values())
def test_a_flag_without_effect_gives_one_notice(config_type):
    unused = [field for field in dataclasses.fields(config_type) if field.metadata["unused"]]
    assert len(unused) >= 5
    for field in unused:
        value = [] if isinstance(field.default, bool) else [str(field.default) or "x"]
        (notice,) = parse(config_type, [f"--{field.name}", *value], "").notices()
        assert notice == f"--{field.name} has no effect here: {field.metadata['unused']}"
    assert parse(config_type, [], "").notices() == []


def test_a_flag_with_effect_gives_no_notice():
    assert parse(RunConfig, ["--seg_token_num=3", "--pad_train_clip_images"], "").notices() == []


@pytest.mark.parametrize("config_type", SCRIPTS.values())
@pytest.mark.parametrize("flag", ["--unheard_of", "--seg_token", "--batch_size=two"])
def test_unknown_shortened_and_malformed_flags_stop(config_type, flag):
    """A shortened flag is refused too: a new flag would change what it means."""
    with pytest.raises(InputError, match=rf"{flag.split('=')[0]}.*; --help lists what there is"):
        parse(config_type, [flag], "")


@pytest.mark.parametrize("config_type", SCRIPTS.values())
def test_help_names_every_flag(config_type):
    text = build_parser(config_type, "").format_help()
    for field in dataclasses.fields(config_type):
        assert f"--{field.name}" in text


@pytest.fixture
def config_file(tmp_path):
    def write(content: Any) -> str:
        path = tmp_path / "flags.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return f"--config={path}"

    return write


def test_defaults_then_file_then_command_line(config_file):
    argv = [config_file({"batch_size": 7, "lr": 1, "workers": 3}), "--workers=0"]
    parsed: Parsed[RunConfig] = parse(RunConfig, argv, "")
    assert (parsed.config.batch_size, parsed.config.lr, parsed.config.workers) == (7, 1.0, 0)
    assert parsed.config.epochs == 10
    assert parsed.given == {"batch_size", "lr", "workers"}


def test_a_switch_of_the_file_can_be_turned_off(config_file):
    argv = [config_file({"pad_train_clip_images": True}), "--no_pad_train_clip_images"]
    assert parse(RunConfig, argv, "").config.pad_train_clip_images is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"batchsize": 2}, r"flags\.json: unknown key 'batchsize'"),
        ({"batch_size": "2"}, r"batch_size is '2'; expected a whole number"),
        ({"batch_size": True}, r"batch_size is True"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"no_eval": 1}, r"no_eval is 1; expected true or false"),
        ({"precision": "fp8"}, r"precision is 'fp8'; expected 'fp32'"),
        ("{", r"flags\.json is not valid JSON"),
        ("[1]", r"flags\.json holds a list"),
        (
            '{"exp_name": "x", "dataset_dir": "a\\u0000b"}',
            r"--dataset_dir is 'a\\x00b'; expected text without a zero byte",
        ),
    ],
)
def test_bad_files_name_the_file_and_the_key(config_file, content, message):
    with pytest.raises(InputError, match=message):
        parse(RunConfig, [config_file(content)], "")


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json does not exist; give a JSON object"):
        parse(RunConfig, [f"--config={tmp_path / 'nowhere.json'}"], "")


def test_shipped_configurations_parse(repository):
    flags = {field.name for field in dataclasses.fields(RunConfig)}
    parsed = []
    for path in sorted((repository / "configs").glob("*.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if path.stem.startswith(("ds_", "preprocessor_")):
            assert not set(settings) & flags, f"{path} is not a file of flags"
            continue
        config = parse(RunConfig, ["--config", str(path)], "").config
        assert all(getattr(config, name) == value for name, value in settings.items())
        parsed.append(path.stem)
    assert "tiny_cpu" in parsed


@pytest.mark.parametrize("model", ["pixellm_7b", "pixellm_13b"])
@pytest.mark.parametrize("hardware", ["8x80gb", "8x24gb", "1x80gb", "1x24gb"])
def test_a_model_and_a_hardware_preset_make_the_released_batch(repository, hardware, model):
    """2 images x 10 passes x 8 GPUs."""
    from utils.training.deepspeed_config import deepspeed_settings

    files = [f"--config={repository / f'configs/{name}.json'}" for name in (model, f"hardware/{hardware}")]
    run = parse(RunConfig, files, "").config
    processes = int(hardware.split("x")[0])
    assert processes * run.batch_size * run.grad_accumulation_steps == run.images_per_update == 160
    assert run.exp_name == model.replace("_", "-")
    assert run.load_in_4bit == (hardware == "1x24gb")
    assert deepspeed_settings(run)["train_micro_batch_size_per_gpu"] == run.batch_size


@pytest.fixture
def two_files(tmp_path):
    def write(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
        for name, content in (("first", first), ("second", second)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return [f"--config={tmp_path / name}.json" for name in ("first", "second")]

    return write


def test_of_several_files_the_later_one_wins_and_then_the_command_line(two_files):
    files = two_files({"batch_size": 1, "epochs": 2, "workers": 3}, {"batch_size": 4, "epochs": 5})
    parsed = parse(RunConfig, [*files, "--epochs=6"], "")
    assert (parsed.config.batch_size, parsed.config.epochs, parsed.config.workers) == (4, 6, 3)
    assert parsed.given == {"batch_size", "epochs", "workers"}
    assert parsed.typed == {"epochs"}


def test_an_unknown_key_names_its_file(two_files):
    with pytest.raises(InputError, match=r"second\.json: unknown key 'epoch'"):
        parse(RunConfig, two_files({"epochs": 2}, {"epoch": 2}), "")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"release_recipe": True},
            {"shared_prefix": True},
            r"release_recipe means --shared_prefix=False.* \(--release_recipe stands in .*first\.json, "
            r"--shared_prefix stands in .*second\.json\)",
        ),
        (
            {"overfit_one_batch": True},
            {"eval_only": True, "epochs": 3},
            r"--eval_only out \(--overfit_one_batch stands in .*first\.json, --eval_only stands in .*second\.json\)",
        ),
    ],
)
def test_what_does_not_go_together_names_the_files(two_files, first, second, message):
    with pytest.raises(InputError, match=message):
        parse(RunConfig, two_files(first, second), "")


def test_what_is_typed_is_in_no_file(two_files):
    files = two_files({"release_recipe": True}, {"shared_prefix": False})
    with pytest.raises(InputError, match=r"leave one of the two out \(--release_recipe stands in [^,]*first\.json\)"):
        parse(RunConfig, [*files, "--shared_prefix"], "")


@pytest.mark.parametrize("size", [448, 512])
def test_shipped_preprocessor_files_belong_to_their_size(repository, size):
    from utils.training.start import read_normalization

    file = repository / f"configs/preprocessor_{size}.json"
    mean, std = read_normalization(str(file), image_size=size)
    assert (len(mean), len(std)) == (3, 3)
    with pytest.raises(InputError, match=rf"--resize_vision_tower_size={size}"):
        read_normalization(str(file), image_size=336)


def test_help_groups_the_flags_by_what_reads_them():
    text = build_parser(RunConfig, "").format_help()
    groups = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert {"The run", "What is read", "The network and its input", "The loss", "The optimizer"} <= set(groups)
    assert text.index("What is read:") < text.index("--sem_seg_data") < text.index("The network and its input:")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_rate_that_no_run_can_use_is_refused(value):
    with pytest.raises(InputError, match=rf"--lr is {value}; expected"):
        RunConfig(lr=value)


def test_values_are_checked_however_a_configuration_is_made():
    with pytest.raises(InputError, match="--batch_size is 0; expected 1 or more"):
        dataclasses.replace(RunConfig(), batch_size=0)


def test_flags_of_training_that_a_data_command_ignores_are_told(config_file):
    typed = parse(PreviewConfig, ["--lr=0.1", "--dataset=vqa", "--sample_rates=1"], "").notices()
    assert typed == ["--lr has no effect here: nothing is trained"]
    assert parse(PreviewConfig, [config_file({"lr": 0.1})], "").notices() == [], "a shared file is taken in silence"


def test_a_command_tells_bad_input_in_one_line_and_hands_its_exit_code_on(capsys):
    assert run_command(RunConfig, lambda parsed: 7, "", []) == 7
    assert run_command(RunConfig, lambda parsed: None, "", []) == 0

    def fail(parsed: Parsed[RunConfig]) -> None:
        raise InputError("the file is bad")

    assert run_command(RunConfig, fail, "", []) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: the file is bad"


def test_commands_have_flags_of_their_own(capsys):
    commands = {"show": (PreviewConfig, lambda parsed: parsed.config.num)}
    assert run_commands(commands, "", ["show", "--num=5"]) == 5
    assert run_commands(commands, "", ["sho"]) == 2
    assert "show" in capsys.readouterr().err


def test_a_negative_switch_has_a_positive_one(config_file):
    """A preset may say no_eval; the command line says --eval, not --no_no_eval."""
    assert parse(RunConfig, [config_file({"no_eval": True}), "--eval"], "").config.no_eval is False


@pytest.mark.parametrize("flag", ["resume", "log_base_dir", "dataset_dir", "init_from"])
def test_a_path_that_is_too_long_is_one_line(capsys, tmp_path, flag):
    flags = {"log_base_dir": str(tmp_path), flag: "x" * 5000}
    refused(train_ds.main, [f"--{name}={value}" for name, value in flags.items()], capsys, "xxx")
    assert not list(tmp_path.iterdir())


def test_a_flag_of_several_texts_adds_up_and_may_stand_in_a_file(tmp_path):
    needed = ["--version=m", "--input=photos"]
    given = parse(PredictConfig, [*needed, "--prompt", "a", "b", "--prompt=c"], "").config
    assert given.prompt == ("a", "b", "c")
    (tmp_path / "c.json").write_text(json.dumps({"prompt": ["a", "b"]}), encoding="utf-8")
    in_file = [*needed, f"--config={tmp_path / 'c.json'}"]
    assert parse(PredictConfig, in_file, "").config.prompt == ("a", "b")
    assert parse(PredictConfig, [*in_file, "--prompt", "d"], "").config.prompt == ("d",)
