"""Some of it as real processes: exit code, one line, no traceback; and that no pickle is opened and no shell is started."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kinray.demo import DemoFiles
from tests.abuse.refusing import LINEAR
from tests.abuse.test_safetensors import header_of_100_megabytes
from tests.abuse.test_yaml import BOMB
from tests.merge.kitchen import Kitchen

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "$(touch pwned);touch pwned"

# Every process of a run writes down what it opens and starts; Python imports a module of this name by itself.
WATCH = """
import os, sys
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")):
        os.write(log, f"opened {arguments[0]}\\n".encode("utf-8", "replace"))
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"):
        os.write(log, (event + " " + repr(arguments[:2]).replace("\\n", " ") + "\\n").encode("utf-8", "replace"))
sys.addaudithook(watch)
"""


def kinray(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | environment
    command = [sys.executable, "-m", "kinray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment, check=False)


@pytest.mark.parametrize(
    ("command", "spoil"), [("merge", "header"), ("merge", "name"), ("kinship", "name"), ("evolve", "yaml"), ("evolve", "name")]
)
def test_refusal_of_a_real_process(kitchen: Kitchen, command: str, spoil: str) -> None:
    kitchen.family("base", "a", "b")
    other = "b"
    if spoil == "header":
        header_of_100_megabytes(kitchen.folder / "b" / "model.safetensors")
    elif spoil == "name":
        other = "\x1b[2J\n" + "n" * 1000
    kitchen.write(LINEAR.replace("model: b", f'model: "{other}"'.replace("\x1b", "\\e")))
    (kitchen.folder / "search.yaml").write_text(BOMB)
    arguments = {
        "merge": ["recipe.yaml", "out"],
        "kinship": ["--base", "base", "a", other],
        "evolve": ["search.yaml", *(["--set", f"base={other}"] if spoil == "name" else [])],
    }[command]

    done = kinray(kitchen.folder, command, *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr
    assert [sign for sign in done.stderr if not sign.isprintable()] == ["\n"]
    assert done.stdout == ""
    assert not (kitchen.folder / "out").exists()


@pytest.fixture
def traps(tmp_path: Path, demo: DemoFiles) -> dict[str, Path]:
    """Copy the demo's models into folders of hostile names, with pickles beside the weights."""
    models = {"base": demo.base, **demo.founders}
    places = {name: tmp_path / f"{name}{HOSTILE}" for name in models}
    for name, folder in models.items():
        shutil.copytree(folder, places[name])
        for pickle in (
            "pytorch_model.bin",
            "training_args.bin",
            "model.pt",
            "last.ckpt",
            "optimizer.pt",
            "consolidated.00.pth",
        ):
            (places[name] / pickle).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    return places


def watched(folder: Path, *arguments: str, **environment: str) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    """Run a command, and return what all of its processes opened and started."""
    log = folder / "watched.txt"
    path = os.pathsep.join([str(folder / "watch"), str(ROOT)])
    done = kinray(
        folder, *arguments, **{"PYTHONPATH": path, "WATCH_LOG": str(log), "KINRAY_CACHE": str(folder / "cache"), **environment}
    )
    return done, log.read_text().splitlines()


def test_whoever_opens_a_pickle_or_starts_a_shell_is_noticed(tmp_path: Path, traps: dict[str, Path]) -> None:
    program = "import os, sys; open(sys.argv[1], 'rb'); os.system('true')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "watch"), "WATCH_LOG": str(tmp_path / "watched.txt")}

    subprocess.run([sys.executable, "-c", program, str(traps["base"] / "last.ckpt")], env=environment, check=True)

    events = (tmp_path / "watched.txt").read_text().splitlines()
    assert [event.split()[0] for event in events] == ["opened", "os.system"]


def assert_no_trap_went_off(folder: Path, events: list[str]) -> None:
    assert [event for event in events if event.startswith("opened") and str(folder) in event] == []
    assert [event for event in events if "pwned" in event and not event.startswith("opened")] == []
    assert not (folder / "pwned").exists()


def test_merge_and_kinship_open_no_pickle_and_start_no_shell(tmp_path: Path, traps: dict[str, Path]) -> None:
    numbers, letters = str(traps["numbers"]), str(traps["letters"])
    (tmp_path / "recipe.yaml").write_text(f"merge_method: linear\nmodels: [{{model: '{numbers}'}}, {{model: '{letters}'}}]")

    for arguments in (["merge", "recipe.yaml", "out"], ["kinship", "--base", str(traps["base"]), numbers, letters]):
        done, events = watched(tmp_path, *arguments)

        assert done.returncode == 0, done.stderr
        assert_no_trap_went_off(tmp_path, events)
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir() if file.suffix in (".bin", ".pt", ".ckpt")) == []


SECRETS = {
    name: f"secret-{name}-0123456789"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY")
}

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.slow
def test_search_opens_no_pickle_starts_no_shell_stores_no_token_and_runs_trusted_code(
    tmp_path: Path, traps: dict[str, Path], demo: DemoFiles
) -> None:
    own = {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    for folder in traps.values():
        (folder / "modeling_own.py").write_text(CODE)
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | own))
    config = {
        "base": str(traps["base"]),
        "founders": [{"name": name, "model": str(folder)} for name, folder in traps.items() if name != "base"],
        "tasks": [{"name": "demo_numbers", "limit": 10}],
        "task_paths": [str(demo.tasks)],
        "search": {"max_generations": 1},
        "evaluation": {"trust_remote_code": True},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))

    done, events = watched(
        tmp_path, "evolve", "search.yaml", "--verbose", **SECRETS, HF_MODULES_CACHE=str(tmp_path / "modules")
    )

    assert done.returncode == 0, done.stderr
    assert any(event.startswith("subprocess.Popen") and "raylet" in event for event in events)
    assert_no_trap_went_off(tmp_path, events)
    assert (tmp_path / "run" / "best" / "modeling_own.py").is_file()
    written = [file for place in ("run", "cache") for file in (tmp_path / place).rglob("*") if file.is_file()]
    assert len(written) > 10
    for where, text in {
        **{str(file): file.read_bytes() for file in written},
        "output": (done.stdout + done.stderr).encode(),
    }.items():
        assert b"secret-" not in text, where
