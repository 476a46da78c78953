"""Which tensors of well-known architectures the filters mean."""

import pytest

from kinray.core.filters import FILTERS, words_in

ATTENTION = [
    "model.layers.0.self_attn.q_proj.weight",  # Llama, Mistral, Qwen, Gemma, Phi
    "model.layers.0.self_attn.q_norm.weight",  # Qwen3: a norm of the block itself
    "model.layers.0.linear_attn.in_proj.weight",  # Qwen3-Next
    "transformer.h.0.attn.c_attn.weight",  # GPT-2
    "gpt_neox.layers.0.attention.query_key_value.weight",
    "transformer.h.0.self_attention.dense.weight",  # Falcon, BLOOM
    "encoder.block.0.layer.0.SelfAttention.q.weight",  # T5
    "decoder.block.0.layer.1.EncDecAttention.k.weight",
    "model.decoder.layers.0.encoder_attn.k_proj.weight",  # BART
]
MLP = [
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.experts.7.down_proj.weight",  # Qwen-MoE, DeepSeek
    "model.layers.0.mlp.gate.weight",
    "model.layers.0.block_sparse_moe.experts.0.w1.weight",  # Mixtral
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.0.feed_forward.w1.weight",  # InternLM, Llama 4
    "transformer.blocks.0.ffn.up_proj.weight",  # MPT
    "model.decoder.layers.0.fc1.weight",  # OPT
    "encoder.block.0.layer.1.DenseReluDense.wi.weight",  # T5
]
REST = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.pre_feedforward_layernorm.weight",
    "model.layers.0.attention_norm.weight",
    "model.layers.0.ffn_norm.weight",
    "model.decoder.layers.0.self_attn_layer_norm.weight",
    "backbone.layers.0.mixer.in_proj.weight",  # Mamba
]


@pytest.mark.parametrize(
    ("name", "belongs"),
    [(name, belongs) for belongs, names in {"attention": ATTENTION, "mlp": MLP, "rest": REST}.items() for name in names],
)
def test_a_tensor_belongs_to_the_first_filter_with_a_word_in_its_name(name: str, belongs: str) -> None:
    found = next(filter for filter, words in FILTERS.items() if any(word in name for word in words))

    assert found == belongs


def test_only_words_of_the_model_are_kept() -> None:
    assert words_in([ATTENTION[0], MLP[0], MLP[3], REST[0]]) == {
        "attention": ("attn.",), "mlp": ("mlp.", "moe.", "experts."), "rest": ("",),
    }  # fmt: skip
    assert words_in(["backbone.layers.0.mixer.weight"]) == {"attention": (), "mlp": (), "rest": ("",)}
