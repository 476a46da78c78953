"""Writes a demo model as a folder that `from_pretrained` reads."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes weights, config and tokenizer; unlike `save_pretrained` it prints no progress bar of its own."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
