"""What this code replaces of transformers is there: where transformers gives up a name, ours would never be called."""

from __future__ import annotations

import pytest

from model.configuration import PixelLMConfig
from model.PixelLM import PixelLMForCausalLM, PixelLMModel
from model.processor import PixelLMProcessor

# Private names that are ours alone; every other one is transformers'.
OWN = {
    "_with_masks", "_check_codebook", "_check_input", "_architecture", "_of_settings", "_encode", "_ids", "_on_photo",
}  # fmt: skip
# Public names that somebody else calls.
CALLED = {
    "generate", "prepare_inputs_for_generation", "init_weights", "set_attn_implementation",
    "supports_gradient_checkpointing", "base_model_prefix", "main_input_name", "input_modalities", "to_diff_dict",
    "from_dict", "sub_configs", "apply_chat_template", "batch_decode",
    "post_process_image_text_to_text", "save_pretrained", "push_to_hub", "from_pretrained",
}  # fmt: skip


@pytest.mark.parametrize(
    "ours",
    [PixelLMForCausalLM, PixelLMModel, PixelLMConfig, PixelLMProcessor],
    ids=lambda ours: ours.__name__,
)
def test_what_is_replaced_exists(ours):
    """Checked with the newest transformers here, and with the oldest by scripts/test_oldest.sh."""
    own, theirs = (
        {name for base in ours.__mro__ if base.__module__.startswith(package) for name in vars(base)}
        for package in ("model.", "transformers.")
    )
    replaced = {name for name in own - OWN if name in CALLED or (name.startswith("_") and not name.endswith("__"))}
    assert replaced, "the names were looked for in the wrong place"
    caches = {name for name in replaced if name.startswith("_abc_") or name.endswith("_cached_value")}
    assert replaced - theirs - caches == set()
