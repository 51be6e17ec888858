"""Interrupted and resumed is uninterrupted, bit for bit; a whole checkpoint is always there."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from bmpeft import cli
from bmpeft.errors import BmpeftError, Interrupted, UsageError
from bmpeft.training.checkpoints import CheckpointError, CheckpointStore, recipe_identity
from bmpeft.training.trainer import SequenceTrainer
from bmpeft.training.training_state import trainable
from tests.backbones.tiny import tiny_backbone
from tests.training.small import small_recipe
from tests.training.test_trainer import make_trainer

STEPS = 7
KILLS = 20
# Every source of randomness is on, and the run crosses an epoch (eleven rows, two windows of eight an epoch).
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "warmup": 0.3,
    "schedule": "cosine",
    "lora_dropout": 0.1,
    "evaluate_after": (2, 5, 7),
    "ema_decay": 0.7,
    "label_smoothing": 0.1,
    "drop_worst_ratio": 0.2,
    "drop_worst_after": 3,
    "decoder_noise": 0.2,
    "drop_path": 0.2,
}


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step, self._number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self._step:
            signal.raise_signal(self._number)


def new_trainer(directory: Path) -> SequenceTrainer:
    return make_trainer(directory, backbone=tiny_backbone(dropout=0.1), **OPTIONS)[0]


def interrupt(directory: Path, step: int, number: signal.Signals = signal.SIGTERM) -> SequenceTrainer:
    trainer = new_trainer(directory)
    trainer.add_callback(SignalAt(step, number))
    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after step {step} of {STEPS}: .*--resume"
    ) as error:
        trainer.fit()
    assert error.value.exit_code == 128 + number
    return trainer


def resume(directory: Path) -> tuple[SequenceTrainer, float]:
    torch.manual_seed(12345)  # a new process starts from other states
    trainer = new_trainer(directory)
    loss = trainer.fit(trainer.checkpoints.latest(print))
    return trainer, loss


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SequenceTrainer, float]:
    trainer = new_trainer(tmp_path_factory.mktemp("uninterrupted"))
    return trainer, trainer.fit()


def assert_same(one: tuple[SequenceTrainer, float], other: tuple[SequenceTrainer, float]) -> None:
    (first, first_loss), (second, second_loss) = one, other
    tensors = trainable(second.adapted)
    for name, tensor in trainable(first.adapted).items():
        assert torch.equal(tensor, tensors[name]), name
    assert first.validations == second.validations
    assert first.selected == second.selected
    assert first.supervised_tokens == second.supervised_tokens
    assert first_loss == second_loss
    last = [trainer.checkpoints.read(STEPS).files for trainer in (first, second)]
    assert last[0].keys() == last[1].keys()
    for name in last[0].keys() - {"state.json", "trainer_state.json"}:
        assert last[0][name] == last[1][name], name
    states = [json.loads(files["state.json"]) for files in last]
    assert all(state.pop("seconds") > 0 for state in states)
    assert states[0] == states[1]


@pytest.mark.parametrize("step", [1, 2, 5, STEPS])
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, step: int, uninterrupted: tuple[SequenceTrainer, float]
) -> None:
    """In the middle of an epoch, at its end, at an evaluation, and after the last step."""
    before = signal.getsignal(signal.SIGTERM)
    interrupt(tmp_path, step)
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(resume(tmp_path), uninterrupted)


def test_two_interruptions_and_ctrl_c(tmp_path: Path, uninterrupted: tuple[SequenceTrainer, float]) -> None:
    interrupt(tmp_path, 3, signal.SIGINT)
    trainer = new_trainer(tmp_path)
    trainer.add_callback(SignalAt(4, signal.SIGINT))
    with pytest.raises(Interrupted):
        trainer.fit(trainer.checkpoints.latest(print))
    assert_same(resume(tmp_path), uninterrupted)


@pytest.mark.parametrize("file", ["trainable.safetensors", "state.json", "checkpoint.json", None])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    tmp_path: Path, file: str | None, uninterrupted: tuple[SequenceTrainer, float]
) -> None:
    interrupt(tmp_path, 3)
    newest = tmp_path / "step-00000003"
    if file is None:
        (newest / "optimizer.safetensors").unlink()
    else:
        content = (newest / file).read_bytes()
        (newest / file).write_bytes(content[: len(content) // 2])
    said: list[str] = []
    trainer = new_trainer(tmp_path)
    checkpoint = trainer.checkpoints.latest(said.append)
    assert checkpoint.step == 2
    assert len(said) == 1
    assert f"step-00000003: damaged ({file or 'optimizer.safetensors'}" in said[0]
    assert not newest.exists(), "or it would be taken for the newest again"
    assert_same((trainer, trainer.fit(checkpoint)), uninterrupted)


def test_a_damaged_best_checkpoint_is_not_relied_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, {})
    store.write(1, best_step=1, files={"a": b"1"})
    store.write(2, best_step=2, files={"a": b"2"})
    store.write(3, best_step=2, files={"a": b"3"})
    (tmp_path / "step-00000002" / "a").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        store.latest(lambda _: None)


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, {})
    for step, best in ((1, None), (2, 2), (3, 2), (5, 2), (8, 2)):
        store.write(step, best_step=best, files={"a": b""})
    (tmp_path / ".step-00000009.writing-x").mkdir()
    store.write(9, best_step=2, files={"a": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000008", "step-00000009"]


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    original = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name != "random.safetensors":
            return original(self, content)
        original(self, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = new_trainer(tmp_path)
    checkpoint = trainer.checkpoints.latest(print)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(BmpeftError, match=r"step-00000005: cannot be written: No space left on device"):
            trainer.fit(checkpoint)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert resume(tmp_path)[0].state.global_step == STEPS


def test_another_recipe_s_checkpoint_is_refused_and_its_keys_named(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    others = small_recipe(tmp_path, "training.learning_rate=0.5", "adaptation.rank=8", "output.overwrite=true")
    identities = [recipe_identity(content.model_dump(mode="json")) for content in (recipe, others)]
    CheckpointStore(tmp_path / "runs", identities[0]).write(3, best_step=None, files={})
    assert str(tmp_path) not in (tmp_path / "runs" / "step-00000003" / "checkpoint.json").read_text()
    with pytest.raises(UsageError, match=r"different: adaptation\.rank, training\.learning_rate$"):
        CheckpointStore(tmp_path / "runs", identities[1]).latest(print)


def write_recipe(directory: Path, *overrides: str) -> Path:
    content = small_recipe(directory, *overrides).model_dump(mode="json")
    (directory / "small.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return directory / "small.yaml"


def command(recipe: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bmpeft", "train", str(recipe), "--quiet", *arguments]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_sigterm_and_resume_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("training.max_steps=30", "training.evaluations=3", "adaptation.dropout=0.1")
    weights = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, *overrides)
        assert cli.main(["train", str(recipe), "--resume"]) == 2
        assert "no checkpoint to resume from" in capsys.readouterr().err
        process = subprocess.Popen(command(recipe), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if name == "stopped":
            log = tmp_path / name / "runs/small/log.jsonl"
            wait_for(lambda log=log: log.exists() and '"event": "train"' in log.read_text(), process)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate()
            assert process.returncode == 143, stderr
            assert stderr.startswith("bmpeft: stopped by SIGTERM after step ")
            assert "--resume" in stderr and stderr.count("\n") == 1
            process = subprocess.Popen(
                command(recipe, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        weights.append((tmp_path / name / "adapters/small/adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def kill_at_random(directory: Path, kills: int, seed: int) -> None:
    """A process that saves at every step is killed again and again; what it leaves must load each time."""
    generator = random.Random(seed)
    script = (
        "import sys; from pathlib import Path; from bmpeft.training.checkpoints import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]), {'a': 'b'}); start = int(sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "for step in range(start, start + 10**6):\n"
        "    files = {name: bytes([step % 251]) * 300_000 for name in 'xyz'}\n"
        "    store.write(step, best_step=step - step % 7 or None, files=files)\n"
    )
    newest = 0
    store = CheckpointStore(directory, {"a": "b"})
    store.write(0, best_step=None, files={})
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(directory), str(newest + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.random() * 0.15)
        process.kill()
        process.wait()
        process.stdout.close()
        said: list[str] = []
        checkpoint = store.latest(said.append)
        assert len(said) <= 1, "the newest or the one before"
        assert checkpoint.step >= newest
        assert all(content == bytes([checkpoint.step % 251]) * 300_000 for content in checkpoint.files.values())
        newest = checkpoint.step
    assert newest > 0


def test_killed_while_saving_a_checkpoint_always_loads(tmp_path: Path) -> None:
    kill_at_random(tmp_path, kills=4, seed=0)


@pytest.mark.slow
def test_twenty_kills_of_a_real_training(tmp_path: Path) -> None:
    """By the command line, at random moments of steps, evaluations and saves; all but the first are resumed."""
    recipe = write_recipe(tmp_path, "training.max_steps=2000", "training.evaluations=1000", "data.train_rows=8")
    log, checkpoints = tmp_path / "runs/small/log.jsonl", tmp_path / "runs/small/checkpoints"
    generator, last = random.Random(0), 0
    for kill in range(KILLS):
        process = subprocess.Popen(command(recipe, *["--resume"][:kill]), stderr=subprocess.DEVNULL, text=True)
        wait_for(lambda: any(checkpoints.glob("step-*")), process)
        wait_for(lambda kill=kill: log.read_text(encoding="utf-8").count('"event": "resume"') == kill, process)
        time.sleep(generator.random() * 2.0)
        process.kill()
        process.wait()
        content = json.loads(next(checkpoints.glob("step-*/checkpoint.json")).read_text(encoding="utf-8"))
        said: list[str] = []
        copy = shutil.copytree(checkpoints, tmp_path / f"copy-{kill}")  # `latest` deletes what is damaged
        step = CheckpointStore(copy, content["identity"]).latest(said.append).step
        assert len(said) <= 1, "the newest or the one before"
        assert step >= last
        last = step
    assert last > KILLS, "the kills must hit a training, not only its start"
