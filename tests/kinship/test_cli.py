"""The command: what it prints, writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import kinray
from kinray.kinship.cli import main
from tests.helpers import ARCHITECTURE, make_model, random_tensors

SHAPES = {"model.embed_tokens.weight": (10, 6), "mlp.weight": (5, 6), "norm.weight": (6,)}
CONFIG = {"architectures": [ARCHITECTURE], "vocab_size": 10}


def write(folder: Path, name: str, tensors: dict[str, Tensor], **config: object) -> str:
    return str(make_model(folder / name, tensors, CONFIG | config))


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A base and three models; paths as text, the base's first."""
    return [write(tmp_path, name, random_tensors(seed, SHAPES)) for seed, name in enumerate(["base", "a", "b", "c"])]


def run(models: list[str], *options: str) -> int:
    return main([*models[1:], "--base", models[0], *options])


def deltas(tensors: list[dict[str, Tensor]]) -> np.ndarray:
    whole = [np.concatenate([tensor.double().numpy().ravel() for tensor in model.values()]) for model in tensors]
    return np.stack(whole[1:]) - whole[0]


def test_prints_aligned_matrices_and_what_they_mean(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(models) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 models, 0.0 M parameters"
    assert [line.split(":")[0] for line in lines if line[:3] in ("pcc", "cs:", "ed:")] == ["pcc", "cs", "ed"]
    rows = [line for line in lines if line[:1].isdigit() and line.split()[0] in "012" and len(line.split()) == 5]
    assert len(rows) == 9
    assert len({len(line) for line in rows[:3]}) == 1
    assert sum(line.startswith("Closest: ") and "Most distant: " in line for line in lines) == 3


def test_json_has_exactly_the_promised_keys(models: list[str], tmp_path: Path) -> None:
    assert run(models, "--json", str(tmp_path / "out.json")) == 0

    data = json.loads((tmp_path / "out.json").read_text())
    assert list(data) == ["models", "parameters", "pcc", "cs", "ed", "group"]
    assert data["models"] == ["a", "b", "c"]
    assert data["parameters"] == 96
    expected = np.corrcoef(deltas([random_tensors(seed, SHAPES) for seed in range(4)]))
    np.testing.assert_allclose(data["pcc"], expected, atol=1e-6)
    assert data["group"]["pcc"] == pytest.approx(expected[np.triu_indices(3, 1)].mean(), abs=1e-6)


def test_layers_are_compared_one_by_one(models: list[str], tmp_path: Path) -> None:
    assert run(models, "--json", str(tmp_path / "out.json"), "--per-layer") == 0

    layers = json.loads((tmp_path / "out.json").read_text())["layers"]
    assert set(layers) == set(SHAPES)
    assert list(layers["norm.weight"]) == ["pcc", "cs", "ed"]
    part = deltas([{"norm.weight": random_tensors(seed, SHAPES)["norm.weight"]} for seed in range(4)])
    np.testing.assert_allclose(layers["norm.weight"]["ed"][0][1], np.linalg.norm(part[0] - part[1]), rtol=1e-6)


def test_kinship_of_a_model_that_did_not_change_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = [random_tensors(seed, SHAPES) for seed in (0, 0, 1)]
    paths = [write(tmp_path, name, model) for name, model in zip(("base", "same", "other"), tensors, strict=True)]

    assert run(paths, "--json", str(tmp_path / "out.json")) == 0

    data = json.loads((tmp_path / "out.json").read_text())
    assert data["cs"][0] == [None, None]
    assert data["cs"][1][1] == 1.0
    assert data["group"]["cs"] is None
    assert data["ed"][0][0] == 0.0
    assert "same: undefined" in capsys.readouterr().out


def test_sentence_says_that_models_are_saturated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = random_tensors(0, SHAPES), random_tensors(1, SHAPES)
    near = {name: tensor + 1e-3 for name, tensor in tuned.items()}
    paths = [write(tmp_path, name, model) for name, model in (("base", base), ("a", tuned), ("b", near))]

    run(paths, "--metric", "cs")

    assert "Saturated: all pairs are above 0.9" in capsys.readouterr().out


def test_python_call_gives_the_same_arrays(models: list[str], tmp_path: Path) -> None:
    run(models, "--json", str(tmp_path / "out.json"), "--merge-of", "0,2:0.5,0.5")

    result = kinray.kinship_of(models[0], models[1:], merges=["0,2:0.5,0.5"])

    assert result.as_json() == json.loads((tmp_path / "out.json").read_text())
    assert result.pcc.shape == (4, 4)


def test_rows_beyond_the_common_vocabulary_are_left_out_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.embed_tokens.weight"
    sizes = {"base": 10, "small": 8, "large": 12}
    tensors = {model: random_tensors(seed, SHAPES | {name: (rows, 6)}) for seed, (model, rows) in enumerate(sizes.items())}
    paths = [write(tmp_path, model, tensors[model], vocab_size=rows) for model, rows in sizes.items()]

    assert run(paths, "--json", str(tmp_path / "out.json")) == 0

    data = json.loads((tmp_path / "out.json").read_text())
    common = deltas([model | {name: model[name][:8]} for model in tensors.values()])
    assert data["parameters"] == common.shape[1]
    np.testing.assert_allclose(data["pcc"], np.corrcoef(common), atol=1e-6)
    notes = capsys.readouterr().err.splitlines()
    assert "'base' has 10 vocabulary rows, 8 are common to all: its last 2 are left out." in notes[0]
    assert "'large' has 12 vocabulary rows" in notes[1]


def test_tied_weights_count_once_and_buffers_do_not_count(tmp_path: Path) -> None:
    paths = []
    for seed, name in enumerate(("base", "a", "b")):
        tensors = random_tensors(seed, SHAPES)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["position_ids"] = torch.arange(6) + seed
        tensors["rotary_emb.inv_freq"] = torch.randn(4)
        paths.append(write(tmp_path, name, tensors, tie_word_embeddings=True))

    assert kinray.kinship_of(paths[0], paths[1:]).parameters == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "2"], "--shards is a number of Ray actors"),
        (["--split"], "Add --convention paper"),
        (["--plot", "x.pdf"], r"must end in one of .png, .svg, .html"),
        (["--json", "nowhere/at/all.json"], "there is no folder nowhere/at"),
        (["--merge-of", "0,7:0.5,0.5"], "names model 7, but there are the models 0 to 2"),
        (["--merge-of", "0,1:a"], "'a' is neither a number nor NAME=VALUE"),
        (["--merge-of", "ties:0,1"], "does not follow from the kinship of its parents"),
        (["--merge-of", "slurp:0,1"], "Did you mean 'slerp'"),
        (["--merge-of", "slerp:0,1,2"], "takes 2 models, not 3"),
        (["--merge-of", "half:of:it"], "is not a planned merge"),
    ],
)
def test_bad_options_are_one_clear_line_and_code_2(
    models: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models, *options) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("what", ["no folder", "missing tensor", "other shape", "truncated"])
def test_bad_models_are_refused_from_their_headers(models: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(models[2])
    tensors = random_tensors(5, SHAPES)
    if what == "missing tensor":
        del tensors["norm.weight"]
    if what == "other shape":
        tensors["mlp.weight"] = torch.ones(4, 6)
    make_model(folder, tensors, CONFIG)
    if what == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
    if what == "no folder":
        models[2] = str(folder / "nothing")

    assert run(models) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = {"missing tensor": "'norm.weight'", "other shape": "(4, 6)", "truncated": "truncated", "no folder": "no folder"}
    assert expected[what] in error


def test_models_of_one_name_are_told_apart(models: list[str], tmp_path: Path) -> None:
    twin = write(tmp_path / "else", "a", random_tensors(9, SHAPES))

    names = kinray.kinship_of(models[0], [models[1], twin, models[2], models[2]]).models

    assert len(set(names)) == 4
    assert names[0] == models[1]
    assert names[3].endswith("b#2")


def test_one_machine_needs_neither_ray_nor_transformers(models: list[str]) -> None:
    program = (
        f"import sys; from kinray.kinship.cli import main; main({[*models[1:], '--base', models[0]]!r}); print(*sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not {"ray", "transformers", "lm_eval", "optuna", "matplotlib"} & set(done.stdout.splitlines()[-1].split())


def test_both_ways_to_start_it_are_there() -> None:
    for start in (["-m", "kinray.kinship"], ["-m", "kinray", "kinship"]):
        done = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, check=True)
        assert "--merge-of" in done.stdout


def test_lora_adapter_is_a_model_on_the_base(models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    factors = random_tensors(3, {"lora_A": (2, 6), "lora_B": (5, 2)})
    names = {f"base_model.model.mlp.{part}.weight": tensor for part, tensor in factors.items()}
    save_file(names, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))

    result = kinray.kinship_of(models[0], [models[1], str(folder)])

    whole = deltas([random_tensors(seed, SHAPES) for seed in range(2)])[0]
    change = np.concatenate([np.zeros(60), (2 * factors["lora_B"] @ factors["lora_A"]).double().numpy().ravel(), np.zeros(6)])
    assert result.models[1] == "lora"
    expected = whole @ change / np.linalg.norm(whole) / np.linalg.norm(change)
    assert result.cs[0, 1] == pytest.approx(expected, abs=1e-6)


def test_cluster_that_is_not_there_is_one_line(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(models, "--ray=127.0.0.1:1") == 2

    assert "Cannot join the Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err
