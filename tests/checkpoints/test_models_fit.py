"""Which founders fit a base, what is left out of a merge, and how vocabularies are fitted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinray.checkpoints.folder import WeightSource, open_checkpoint
from kinray.checkpoints.models import FittedModel, Models, fit, open_models, weight_names
from kinray.errors import CheckpointError
from tests.helpers import ARCHITECTURE, make_model, random_tensors, spec

ROWS = {"embed.weight": 10, "lm_head.weight": 10}


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    return {"embed.weight": (vocabulary, 4), "mlp.weight": (5, 4), "lm_head.weight": (vocabulary, 4)}


def config(vocabulary: int = 10, **more: Any) -> dict[str, Any]:
    return {"architectures": [ARCHITECTURE], "vocab_size": vocabulary, **more}


def open_pair(
    folder: Path, base: dict[str, Tensor], founder: dict[str, Tensor], ours: dict[str, Any], theirs: dict[str, Any]
) -> Models:
    """Write and open a base and one founder, 'chat'."""
    return open_models([spec(make_model(folder / "base", base, ours)), spec(make_model(folder / "chat", founder, theirs))])


def test_models_know_their_size(tmp_path: Path) -> None:
    tensors = [random_tensors(seed, shapes(10)) for seed in range(2)]

    models = open_pair(tmp_path, *tensors, config(), config())

    assert models.parameters == 40 + 20 + 40
    assert models.nbytes() == 2 * 4 * 100
    assert models.digests == tuple(spec.founder.digest for spec in models.specs)
    assert models.base.name == "base"
    assert models.notices == []


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(0, shapes(10))

    with pytest.raises(CheckpointError, match=f"'chat' is a OtherModel, but the base 'base' is a {ARCHITECTURE}"):
        open_pair(tmp_path, tensors, random_tensors(1, shapes(10)), config(), {"architectures": ["OtherModel"]})


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(0, shapes(10))
    less = {name: tensor + 1 for name, tensor in tensors.items() if name != "mlp.weight"}

    with pytest.raises(CheckpointError, match=r"'chat' has no tensor 'mlp.weight', which the base 'base' has"):
        open_pair(tmp_path, tensors, less, config(), config())


def test_extra_tensor_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(0, shapes(10))

    with pytest.raises(CheckpointError, match=r"'chat' has tensor 'mlp.bias', which the base 'base' does not have"):
        open_pair(tmp_path, tensors, tensors | {"mlp.bias": torch.ones(5)}, config(), config())


def test_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_tensors(0, shapes(10))
    wide = tensors | {"mlp.weight": torch.ones(6, 4)}

    with pytest.raises(CheckpointError, match=r"'mlp.weight' has shape \(6, 4\) in 'chat' but \(5, 4\) in 'base'"):
        open_pair(tmp_path, tensors, wide, config(), config())


def test_wider_embedding_is_no_matter_of_vocabulary(tmp_path: Path) -> None:
    wide = random_tensors(1, shapes(10)) | {"embed.weight": torch.ones(10, 5)}

    with pytest.raises(CheckpointError, match=r"'embed.weight' has shape \(10, 5\) in 'chat' but \(10, 4\)"):
        open_pair(tmp_path, random_tensors(0, shapes(10)), wide, config(), config())


def test_rows_that_are_not_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \(12, 4\) in 'chat' but \(10, 4\)"):
        open_pair(tmp_path, random_tensors(0, shapes(10)), random_tensors(1, shapes(12)), config(), config(99))


def test_larger_vocabulary_is_cut_to_the_base(tmp_path: Path) -> None:
    base, founder = random_tensors(0, shapes(10)), random_tensors(1, shapes(13))

    models = open_pair(tmp_path, base, founder, config(), config(13))

    chat = models.sources[models.digests[1]]
    assert models.notices == ["'chat' has 13 vocabulary rows, the base has 10: the last 3 are left out."]
    for name in base:
        assert torch.equal(chat.load(name), founder[name][: base[name].shape[0]])
        assert chat.tensors[name].shape == tuple(base[name].shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_vocabulary_is_filled_from_the_base(tmp_path: Path, dtype: torch.dtype) -> None:
    base, founder = random_tensors(0, shapes(10)), random_tensors(1, shapes(7), dtype)

    models = open_pair(tmp_path, base, founder, config(), config(7))

    embedding = models.sources[models.digests[1]].load("embed.weight")
    assert models.notices == ["'chat' has 7 vocabulary rows, the base has 10: the missing 3 are taken from the base."]
    assert embedding.dtype == dtype
    assert torch.equal(embedding[:7], founder["embed.weight"])
    assert torch.equal(embedding[7:], base["embed.weight"][7:].to(dtype))


def test_vocabulary_may_stand_in_the_text_config(tmp_path: Path) -> None:
    ours, theirs = ({"architectures": [ARCHITECTURE], "text_config": {"vocab_size": size}} for size in (10, 12))

    models = open_pair(tmp_path, random_tensors(0, shapes(10)), random_tensors(1, shapes(12)), ours, theirs)

    assert len(models.notices) == 1


@pytest.mark.parametrize("text_config", [None, 5, {}])
def test_text_config_may_say_nothing(tmp_path: Path, text_config: Any) -> None:
    tensors = [random_tensors(seed, shapes(10)) for seed in range(2)]

    models = open_pair(tmp_path, *tensors, config(text_config=text_config), config(text_config=text_config))

    assert set(models.names) == set(shapes(10))


@pytest.mark.parametrize("ties", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
@pytest.mark.parametrize("founder_holds_it", [True, False])
def test_tied_output_layer_is_left_out(tmp_path: Path, ties: dict[str, Any], founder_holds_it: bool) -> None:
    tensors = random_tensors(0, shapes(10))
    founder = {name: tensor + 1 for name, tensor in tensors.items() if founder_holds_it or name != "lm_head.weight"}

    models = open_pair(tmp_path, tensors, founder, config(**ties), config(**ties))

    assert set(models.names) == {"embed.weight", "mlp.weight"}


def test_output_layer_that_is_not_tied_is_merged(tmp_path: Path) -> None:
    tensors = [random_tensors(seed, shapes(10)) for seed in range(2)]

    models = open_pair(tmp_path, *tensors, config(tie_word_embeddings=False), config())

    assert "lm_head.weight" in models.names


def test_caches_and_integer_buffers_are_left_out(tmp_path: Path) -> None:
    weights = random_tensors(0, shapes(10))
    buffers = {
        "layers.0.rotary_emb.inv_freq": torch.ones(4),
        "layers.0.rotary_emb.cos_cached": torch.ones(4),
        "layers.0.rotary_emb.sin_cached": torch.ones(4),
        "position_ids": torch.arange(4),
        "mask": torch.ones(4, dtype=torch.bool),
    }

    models = open_pair(tmp_path, weights | buffers, {n: t + 1 for n, t in weights.items()}, config(), config())
    assert set(models.names) == set(weights)
    models = open_pair(tmp_path / "b", weights, {n: t + 1 for n, t in weights.items()} | buffers, config(), config())
    assert set(models.names) == set(weights)


@pytest.mark.parametrize(("key", "ours", "theirs"), [("num_attention_heads", 4, 2), ("hidden_act", "silu", "gelu")])
def test_founders_that_use_equal_shapes_otherwise_are_refused(tmp_path: Path, key: str, ours: object, theirs: object) -> None:
    models = [
        make_model(tmp_path / name, random_tensors(0), {"architectures": [ARCHITECTURE], "vocab_size": 10, key: value})
        for name, value in (("base", ours), ("other", theirs))
    ]

    with pytest.raises(CheckpointError, match=f"Model 'other' has {key} {theirs!r} but the base 'base' has {ours!r}"):
        open_models([spec(model) for model in models])


def test_settings_that_children_take_from_the_base_are_noted(tmp_path: Path) -> None:
    plain = {"architectures": [ARCHITECTURE], "vocab_size": 10}
    base = make_model(tmp_path / "base", random_tensors(0), plain | {"rope_theta": 1e4, "sliding_window": 4096})
    other = make_model(
        tmp_path / "other", random_tensors(1), plain | {"rope_parameters": {"rope_theta": 1e6}, "sliding_window": None}
    )

    notices = open_models([spec(base), spec(other)]).notices

    assert any("rope_theta 1000000.0" in notice and "base's 10000.0" in notice for notice in notices)
    assert any("sliding_window None" in notice and "base's 4096" in notice for notice in notices)


# -- merges by recipe, where tensors may be missing


def fitted(
    folder: Path, base: dict[str, Tensor], founder: dict[str, Tensor], ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[WeightSource, list[str]]:
    """Fit 'chat' to a base, filling what it lacks, and return it with what a person is told."""
    models = [open_checkpoint(make_model(folder / n, t, c), n) for n, t, c in (("base", base, ours), ("chat", founder, theirs))]
    notices: list[str] = []
    return fit(models[1], models[0], weight_names(models[0]), notices, fill=True), notices


def test_missing_tensors_are_the_base_s(tmp_path: Path) -> None:
    base = random_tensors(0, shapes(10))
    founder = {"embed.weight": base["embed.weight"] + 1}

    chat, notices = fitted(tmp_path, base, founder, config(), config())

    assert notices == ["'chat' lacks 'lm_head.weight' and 1 more: taken from 'base'."]
    assert torch.equal(chat.load("embed.weight"), founder["embed.weight"])
    for name in ("lm_head.weight", "mlp.weight"):
        assert torch.equal(chat.load(name), base[name])
        assert chat.tensors[name].shape == tuple(base[name].shape)


def test_model_that_lacks_nothing_is_itself_and_surplus_tensors_are_not_looked_at(tmp_path: Path) -> None:
    base = random_tensors(0, shapes(10))

    chat, notices = fitted(tmp_path, base, base | {"more.weight": torch.ones(3)}, config(), config())

    assert not isinstance(chat, FittedModel)
    assert notices == []


LLAMA = {"model.embed_tokens.weight": (10, 4), "lm_head.weight": (10, 4)}


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {}])
def test_embedding_stands_in_for_an_output_layer_that_is_tied_to_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = random_tensors(0, LLAMA)
    founder = {"model.embed_tokens.weight": base["model.embed_tokens.weight"] + 1}

    chat, _ = fitted(tmp_path, base, founder, config(tie_word_embeddings=False), config(**settings))

    assert torch.equal(chat.load("lm_head.weight"), founder["model.embed_tokens.weight"])


def test_output_layer_that_an_untied_model_lacks_is_the_base_s(tmp_path: Path) -> None:
    base = random_tensors(0, LLAMA)
    untied = config(tie_word_embeddings=False)

    chat, notices = fitted(tmp_path, base, {"model.embed_tokens.weight": base["lm_head.weight"]}, untied, untied)

    assert torch.equal(chat.load("lm_head.weight"), base["lm_head.weight"])
    assert notices == ["'chat' lacks 'lm_head.weight': taken from 'base'."]


def test_tied_embedding_of_a_larger_vocabulary_is_cut_in_both_places(tmp_path: Path) -> None:
    base = random_tensors(0, LLAMA)
    founder = random_tensors(1, {"model.embed_tokens.weight": (12, 4)})

    chat, _ = fitted(tmp_path, base, founder, config(), config(12, tie_word_embeddings=True))

    for name in LLAMA:
        assert torch.equal(chat.load(name), founder["model.embed_tokens.weight"][:10])
        assert chat.tensors[name].shape == (10, 4)


def test_shapes_are_checked_though_tensors_may_be_missing(tmp_path: Path) -> None:
    base = random_tensors(0, shapes(10))

    with pytest.raises(CheckpointError, match=r"'mlp.weight' has shape \(6, 4\) in 'chat' but \(5, 4\) in 'base'"):
        fitted(tmp_path, base, {"mlp.weight": torch.ones(6, 4)}, config(), config())


def test_a_model_whose_tensors_are_named_otherwise_is_refused_though_tensors_may_be_missing(tmp_path: Path) -> None:
    tensors = random_tensors(0, shapes(10))
    base = open_checkpoint(make_model(tmp_path / "base", tensors, config()), "base")
    other = {f"module.{name}": tensor for name, tensor in tensors.items()}
    model = open_checkpoint(make_model(tmp_path / "chat", other, config()), "chat")

    with pytest.raises(CheckpointError, match=r"'chat' has few of the tensors of 'base': it has 'module\.embed"):
        fit(model, base, weight_names(base), [], fill=True)


@pytest.mark.parametrize(("ours", "theirs"), [(None, 128), (128, None)])
def test_a_setting_that_is_null_follows_from_others(tmp_path: Path, ours: int | None, theirs: int | None) -> None:
    tensors = [random_tensors(seed, shapes(10)) for seed in range(2)]

    assert open_pair(tmp_path, *tensors, config(head_dim=ours), config(head_dim=theirs)).notices == []
