"""A model in parts on several devices.

Two devices that exist in fake tensors only, which refuse operands on different ones, stand in for GPUs. What is computed is
compared on one device that is named twice.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from kinray.checkpoints.models import open_models
from kinray.config import EvaluationConfig
from kinray.errors import CheckpointError
from kinray.evaluation.packed import Packed
from kinray.evaluation.packing import plan, request_of
from kinray.evaluation.resident import ResidentModel
from kinray.evaluation.spread import blocks_of, spread
from tests.evaluation.test_resident import IDS, gpt2, llama, resident, saved, tensors
from tests.evaluation.test_shared_prompts import NOT_SHARING, SHARING
from tests.helpers import spec

DEVICES = ("meta:0", "meta:1")
ONE_BY_ONE = {kind: make for kind, (make, _) in NOT_SHARING.items()}


def fake(make: Callable[[], Any]) -> Any:
    """Make a model of fake tensors in two parts."""
    model = transformers.AutoModelForCausalLM.from_config(make()).eval()
    spread(model, DEVICES)
    return model


@pytest.mark.parametrize("kind", [*SHARING, *ONE_BY_ONE])
def test_every_computation_finds_its_operands_on_one_device(kind: str) -> None:
    with FakeTensorMode(), torch.inference_mode():
        model = fake({**SHARING, **ONE_BY_ONE}[kind])
        logits = model(torch.zeros(2, 5, dtype=torch.int64, device=DEVICES[0])).logits

    assert {str(parameter.device) for parameter in model.parameters()} == set(DEVICES)
    assert str(logits.device) == DEVICES[0]


@pytest.mark.parametrize("kind", SHARING)
def test_shared_prompts_meet_their_prefix_on_the_device_of_each_layer(kind: str) -> None:
    context = list(range(40))
    requests = [request_of([*context, at], [at, 7], 128, str(at), "") for at in range(4)]

    with FakeTensorMode():
        packed = Packed(requests, plan(requests, 64, prefix=8), DEVICES[0])
        likelihoods, _ = packed.answer(fake(SHARING[kind]))

    assert packed.batches[0][0].prefix.shape[1] and likelihoods.shape == (4,)


@pytest.mark.parametrize("make", [lambda: llama(tied=True), lambda: llama(tied=False), gpt2])
def test_parts_answer_as_the_whole_does(make: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", make())
    whole = resident(folder)
    parts = ResidentModel(folder, open_models([spec(folder)]), "float32", ["cpu", "cpu"], EvaluationConfig())

    for model in (whole, parts):
        model.load(tensors(folder))

    with torch.no_grad():
        assert torch.equal(parts.model(IDS).logits, whole.model(IDS).logits)
        ids = parts.model.generate(IDS, max_new_tokens=3, do_sample=False)
        assert torch.equal(ids, whole.model.generate(IDS, max_new_tokens=3, do_sample=False))
    assert not any(parameter.requires_grad for parameter in parts.model.parameters())


def test_devices_hold_about_equal_bytes_and_blocks_in_their_order() -> None:
    config = transformers.LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=12)
    devices = [f"meta:{number}" for number in range(4)]
    with FakeTensorMode():
        model = transformers.AutoModelForCausalLM.from_config(config)
        block = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
        spread(model, devices)

    order = [devices.index(str(next(one.parameters()).device)) for one in blocks_of(model)]
    held = [sum(one.nbytes for one in model.parameters() if str(one.device) == device) for device in devices]
    assert all(before <= after for before, after in pairwise(order))
    assert max(held) - min(held) <= block


def test_a_model_that_does_not_name_its_blocks_is_refused() -> None:
    model = llama(tied=True)
    model._no_split_modules = set()

    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM does not say .* Set cluster\.gpus_per_evaluator: 1"):
        spread(model, ["cpu", "cpu"])
