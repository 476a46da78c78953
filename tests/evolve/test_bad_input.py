"""Bad input of the main job: exit code 2, one clear message, no traceback, nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinray.evolve.cli import main
from tests.evolve.conftest import Evolve

Config = dict[str, Any]
Spoil = Callable[[Config, Path], None]


def a_copy(config: Config, folder: Path) -> Path:
    """Replace the first founder by a copy that may be spoilt, and return it."""
    copy = folder / "copy"
    shutil.copytree(config["founders"][0]["model"], copy)
    config["founders"][0]["model"] = str(copy)
    return copy


def rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def missing_folder(config: Config, folder: Path) -> None:
    config["founders"][0]["model"] = "/no/such/folder"


def not_a_model_folder(config: Config, folder: Path) -> None:
    (folder / "empty").mkdir()
    config["founders"][0]["model"] = str(folder / "empty")


def other_architecture(config: Config, folder: Path) -> None:
    file = a_copy(config, folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["GPTNeoXForCausalLM"]}))


def other_shape(config: Config, folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(a_copy(config, folder), lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


def missing_tensor(config: Config, folder: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    rewrite(a_copy(config, folder), drop)


def one_founder(config: Config, folder: Path) -> None:
    config["founders"] = config["founders"][:1]


def founder_twice(config: Config, folder: Path) -> None:
    shutil.copytree(config["founders"][0]["model"], folder / "twin")
    config["founders"][1] = {"name": "twin", "model": str(folder / "twin")}


def founder_is_base(config: Config, folder: Path) -> None:
    config["founders"][1] = {"name": "same", "model": config["base"]}


def unknown_task(config: Config, folder: Path) -> None:
    config["tasks"][0]["name"] = "demo_number"


def unknown_metric(config: Config, folder: Path) -> None:
    config["tasks"][0]["metric"] = "accuracy"


def unknown_method(config: Config, folder: Path) -> None:
    config["merge"]["methods"] = {"slrep": {}}


def unknown_parameter(config: Config, folder: Path) -> None:
    config["merge"]["methods"] = {"slerp": {"tt": 0.5}}


def range_upside_down(config: Config, folder: Path) -> None:
    config["merge"]["methods"] = {"slerp": {"t": {"low": 0.9, "high": 0.1}}}


def equal_children(config: Config, folder: Path) -> None:
    config["merge"]["methods"] = {"slerp": {"t": 0.5}}
    config["search"]["children_per_mating"] = 3


def truncated_weights(config: Config, folder: Path) -> None:
    file = a_copy(config, folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def corrupt_header(config: Config, folder: Path) -> None:
    file = a_copy(config, folder) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:12] = b"\xff\xfe\x00{"
    file.write_bytes(data)


def index_outside(config: Config, folder: Path) -> None:
    copy = a_copy(config, folder)
    (copy / "model.safetensors").rename(folder / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))


def nan_in_the_weights(config: Config, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    rewrite(a_copy(config, folder), spoil)


def infinity_in_the_weights(config: Config, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = tensors[name].to(torch.bfloat16)
        tensors[name][:2, 0] = float("-inf")

    rewrite(a_copy(config, folder), spoil)


def only_pickles(config: Config, folder: Path) -> None:
    copy = a_copy(config, folder)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")


def another_run(config: Config, folder: Path) -> None:
    Path(config["output"]).mkdir()
    (Path(config["output"]) / "config.yaml").write_text("base: x\n")


def output_is_a_file(config: Config, folder: Path) -> None:
    (folder / "file").write_text("")
    config["output"] = str(folder / "file" / "run")


def no_tokenizer(config: Config, folder: Path) -> None:
    shutil.copytree(config["base"], folder / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / file).unlink()
    config["base"] = str(folder / "base")


def no_chat_template(config: Config, folder: Path) -> None:
    config["evaluation"]["apply_chat_template"] = True


def endless_name(config: Config, folder: Path) -> None:
    config["output"] = str(folder / ("x" * 300))


def too_many_founders(config: Config, folder: Path) -> None:
    config["founders"] = [{"name": f"f{number}", "model": f"/m/{number}"} for number in range(65)]


def misspelt_key(config: Config, folder: Path) -> None:
    config["serach"] = config.pop("search")


def logger_not_installed(config: Config, folder: Path) -> None:
    config["loggers"] = ["wandb"]


def unknown_backend(config: Config, folder: Path) -> None:
    config["evaluation"]["backend"] = "vlm"


def backend_not_installed(config: Config, folder: Path) -> None:
    config["evaluation"]["backend"] = "vllm"


def backend_of_a_server(config: Config, folder: Path) -> None:
    config["evaluation"] |= {"backend": "local-completions", "backend_args": {"base_url": "http://localhost:8000"}}


def arguments_of_no_class(config: Config, folder: Path) -> None:
    config["evaluation"]["backend_args"] = {"gpu_memory_utilization": 0.8}


def scores_in_a_file(config: Config, folder: Path) -> None:
    (folder / "file").write_text("")
    config["evaluation"]["score_cache"] = str(folder / "file")


CASES: list[tuple[Spoil, str]] = [
    (missing_folder, "there is no folder /no/such/folder"),
    (not_a_model_folder, "has no config.json"),
    (other_architecture, "is a GPTNeoXForCausalLM, but the base"),
    (other_shape, r"Tensor 'model.layers.0.mlp.up_proj.weight' has shape \(127, 64\) in 'numbers' but \(128, 64\)"),
    (missing_tensor, "'numbers' has no tensor 'model.norm.weight'"),
    (one_founder, "at least 2 founders, not 1"),
    (founder_twice, "has exactly the weights of 'numbers'"),
    (founder_is_base, "has exactly the weights of the base"),
    (unknown_task, "no lm-eval task 'demo_number'. Did you mean 'demo_numbers'"),
    (unknown_metric, "has no metric 'accuracy'"),
    (unknown_method, "no merge method 'slrep'. Did you mean 'slerp'"),
    (unknown_parameter, "'slerp' has no parameter 'tt'. Did you mean 't'"),
    (range_upside_down, "range from 0.9 to 0.1"),
    (equal_children, "leaves nothing open"),
    (truncated_weights, "truncated"),
    (corrupt_header, "not valid safetensors"),
    (index_outside, "points outside"),
    (nan_in_the_weights, "Model 'numbers': tensor 'model.norm.weight' holds NaN or infinity in 1 of 64 places"),
    (infinity_in_the_weights, "'model.embed_tokens.weight' holds NaN or infinity in 2 of"),
    (only_pickles, "a pickle.*Convert it"),
    (another_run, "already holds a run"),
    (output_is_a_file, "Cannot write the run folder .* is a file"),
    (logger_not_installed, "wandb is not installed. Install it"),
    (no_tokenizer, "Model 'base': transformers cannot build it"),
    (no_chat_template, "its tokenizer has no chat template"),
    (endless_name, "Cannot use the run folder .*File name too long"),
    (too_many_founders, "at most 64 items"),
    (unknown_backend, "evaluation.backend is vlm, which is no model class of lm-eval. Did you mean 'vllm'"),
    (backend_not_installed, "evaluation.backend is vllm, but vllm is not installed"),
    (backend_of_a_server, "local-completions, which loads no model from a folder"),
    (arguments_of_no_class, "backend_args are for a model class of lm-eval"),
    (scores_in_a_file, "evaluation.score_cache is '.*file', but .*file is not a folder"),
    (misspelt_key, "unknown key 'serach'. Did you mean 'search'"),
]


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_bad_input_is_refused_in_one_message_before_anything_is_written(
    spoil: Spoil,
    message: str,
    config: Config,
    evolve: Evolve,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    spoil(config, tmp_path)
    existed = os.path.exists(config["output"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    code = main([evolve.write(config)])

    errors = capfd.readouterr().err
    assert code == 2
    assert re.search(message, errors), errors
    assert "Traceback" not in errors
    assert os.path.exists(config["output"]) == existed
    assert not os.path.exists(os.path.join(config["output"], "children"))


def test_too_little_disk_is_said_before_anything_is_written(
    config: Config, evolve: Evolve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("kinray.checkpoints.writer.shutil.disk_usage", lambda _: usage)

    code = main([evolve.write(config)])

    assert code == 2
    assert "Too little room" in capfd.readouterr().err
    assert not Path(config["output"]).exists()


def test_a_folder_without_write_permission_is_said(
    config: Config, evolve: Evolve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinray.records.claim.os.access", lambda *_: False)

    code = main([evolve.write(config)])

    assert code == 2
    assert "no permission" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "/no/such/run"], "holds no run"),
        (["--resume", "x", "--output", "y"], "Leave out CONFIG, --output and --dry-run"),
        (["--resume", "x", "--dry-run"], "Leave out CONFIG, --output and --dry-run"),
        (["/no/such/config.yaml"], "Cannot read the configuration"),
        (["--set", "search.k=none"], "'search.k' is 'none'"),
        (["--set", "search"], "not of the form key=value"),
    ],
)
def test_a_bad_command_line_is_refused(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capfd.readouterr().err
