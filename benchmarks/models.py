"""Models for benchmarks: a base of about 0.35 B parameters in bfloat16 and fine-tunes that moved by a tenth of its weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = {"0.35B": (1024, 4096, 18, 49152), "tiny": (256, 1024, 8, 16384)}
"""Hidden size, size of the feed-forward layer, layers, vocabulary."""


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name the tensors of a decoder as Hugging Face does."""
    hidden, wide, layers, vocabulary = SIZES[size]
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        result |= {f"{prefix}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        result |= {f"{prefix}mlp.{part}_proj.weight": (wide, hidden) for part in ("gate", "up")}
        result[f"{prefix}mlp.down_proj.weight"] = (hidden, wide)
        result |= {f"{prefix}{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return result | {"model.norm.weight": (hidden,)}


def make_models(folder: Path, size: str, count: int) -> list[Path]:
    """Write a base and ``count`` fine-tunes, unless they are there, and return their folders, the base's first."""
    paths = [folder / size / ("base" if at == 0 else f"model-{at}") for at in range(count + 1)]
    for at, path in enumerate(paths):
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config(size)))
        if not (path / "model.safetensors").is_file():
            _write(path, size, at)
    return paths


def config(size: str) -> dict[str, object]:
    """Describe a model of this size as Hugging Face does."""
    hidden, wide, layers, vocabulary = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def _write(path: Path, size: str, number: int) -> None:
    tensors = {}
    for name, shape in shapes(size).items():
        draw = torch.Generator().manual_seed(hash_of(name))
        weights = torch.randn(shape, generator=draw) * 0.02
        if number:
            draw.manual_seed(hash_of(name) + number)
            weights += torch.randn(shape, generator=draw) * 0.002
        tensors[name] = weights.bfloat16()
    temporary = path / "part"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(path / "model.safetensors")


def hash_of(name: str) -> int:
    """Turn a name into a seed that is the same in every process."""
    return int.from_bytes(name.encode()[-7:], "little")
