"""``import model.hf`` makes transformers' Auto classes know PixelLM's folders."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .configuration import PixelLMConfig
from .PixelLM import PixelLMForCausalLM
from .processor import PixelLMProcessor

AutoConfig.register(PixelLMConfig.model_type, PixelLMConfig)
AutoModelForImageTextToText.register(PixelLMConfig, PixelLMForCausalLM)
AutoProcessor.register(PixelLMConfig, PixelLMProcessor)
