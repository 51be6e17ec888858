"""`bmpeft doctor` tells what is there, and a broken part is a line in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bmpeft import cli, doctor
from bmpeft.attention import BACKENDS
from bmpeft.doctor import PROBES, Diagnosis, Finding, diagnose


def values(area: str) -> dict[str, Any]:
    content: dict[str, Any] = diagnose({area: PROBES[area]}).content()[area]
    return content


def texts(area: str) -> dict[str, str]:
    return {finding.name: finding.text for finding in diagnose({area: PROBES[area]}).findings[area]}


def raising(error: Exception) -> Callable[..., Any]:
    def probe(*_: object, **__: object) -> Any:
        raise error

    return probe


# --- the command --------------------------------------------------------------------------------------------------


def test_json_is_one_object_with_every_area(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    result = subprocess.run(
        [sys.executable, "-m", "bmpeft", "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    content = json.loads(result.stdout)
    assert list(content) == [*PROBES, "problems"]
    assert content["versions"]["torch"] == torch.__version__
    assert content["cpu"]["cores"] >= 1
    assert 0 < content["memory"]["available"] <= content["memory"]["total"]
    assert content["device"]["used"] in ("cpu", "cuda")
    assert set(content["dtypes"]) == {"bfloat16", "float16"}
    without_gpu = {} if torch.cuda.is_available() else {"flex": "unavailable", "triton": "unavailable"}
    auto = {"256": "sdpa", "1024": "chunked" if content["device"]["used"] == "cpu" else "sdpa"}
    assert content["attention"] == {"auto": auto, **dict.fromkeys(BACKENDS, "available"), **without_gpu}
    assert content["quantization"]["bitsandbytes"] == content["device"]["used"]
    assert content["disk"]["here"]["directory"] == str(tmp_path)
    assert content["hub"] == {"state": "offline"}
    assert content["files"]["adapters"] == str(tmp_path / "adapters")
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_every_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = {"one": (Finding("a", 1, "first"), Finding("b", None, "[bold]", problem=True)), "two": ()}
    monkeypatch.setattr(doctor, "diagnose", lambda: Diagnosis(findings))
    assert cli.main(["doctor"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["one", "a", "first"], ["b", "[bold]"]]


# --- broken parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", PROBES)
def test_a_probe_that_raises_is_a_line_and_the_others_still_speak(area: str) -> None:
    fine = dict.fromkeys(PROBES, lambda: [Finding("state", "fine", "fine")])
    diagnosis = diagnose({**fine, area: raising(RuntimeError("broken\n  driver"))})
    content = diagnosis.content()
    assert content.pop(area) == {"failed": "RuntimeError: broken driver"}
    assert content.pop("problems") == [f"{area}, failed: RuntimeError: broken driver"]
    assert all(found == {"state": "fine"} for found in content.values())


@pytest.mark.parametrize(
    ("package", "failed"),
    [("torch", {"device", "dtypes", "attention", "quantization"}), ("huggingface_hub", {"disk", "hub"})],
)
def test_a_package_that_cannot_be_imported_breaks_only_what_needs_it(package: str, failed: set[str]) -> None:
    areas = {"versions", "cpu", "memory", "disk", "hub", "files"} | failed
    code = f"""
import json, sys
sys.modules[{package!r}] = None  # importing it raises ImportError
from bmpeft.doctor import PROBES, diagnose
print(json.dumps(diagnose({{area: PROBES[area] for area in {sorted(areas)!r}}}).content()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    content = json.loads(result.stdout)
    assert {area for area in areas if "failed" in content[area]} == failed
    assert content["versions"]["torch"] == torch.__version__


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-extra",))
    found = {finding.name: finding for finding in diagnose({"versions": PROBES["versions"]}).findings["versions"]}
    assert found["numpy"].value is not None
    assert (found["no-such-package"].text, found["no-such-package"].problem) == ("not installed, but required", True)
    assert (found["no-such-extra"].text, found["no-such-extra"].problem) == ("not installed", False)
    assert found["no-such-package"].value is found["no-such-extra"].value is None


def test_an_attention_backend_that_fails_or_computes_nonsense_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    from bmpeft.attention import choice, dispatch

    backends = {**BACKENDS, "needy": raising(RuntimeError("needs a GPU")), "wrong": lambda q, k, v, **_: 2 * q}
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    monkeypatch.setattr(choice, "NAMES", tuple(backends))
    monkeypatch.setattr("bmpeft.attention.BACKENDS", backends)
    found = texts("attention")
    assert found["needy"] == "not available: RuntimeError: needs a GPU"
    assert found["wrong"] == "computes wrong values on this device"
    assert found["eager"] == "available"


# --- device and disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fast", "value", "text"),
    [
        (False, "emulated", "emulated, slow; training.precision=auto is float32 here"),
        (True, "hardware", "in hardware; training.precision=auto is bfloat16 here"),
    ],
)
def test_bfloat16_is_what_the_trainer_goes_by(
    fast: bool, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmpeft.devices.has_fast_bfloat16", lambda device: fast)
    assert values("dtypes")["bfloat16"] == value
    assert texts("dtypes")["bfloat16"] == text


def test_gpus_are_listed_with_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Some GPU", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, function in {"is_available": lambda: True, "device_count": lambda: 1,
                           "get_device_properties": lambda index: gpu}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, function)
    assert values("device")["gpus"] == [{"name": "Some GPU", "memory": 80 * 2**30, "capability": "9.0"}]
    assert texts("device")["gpus"] == "Some GPU, 80.0 GiB, compute capability 9.0"


@pytest.mark.parametrize(("cuda", "reason"), [(None, "is built without CUDA"), ("13.0", "no GPU with a working")])
def test_without_a_gpu_the_reason_is_named(cuda: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason in texts("device")["gpus"]
    assert values("device")["gpus"] == []


def test_the_disk_of_a_cache_that_does_not_exist_yet_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "a" / "b"))
    assert values("disk")["hub_cache"]["free"] > 0
    assert texts("disk")["hub_cache"].endswith(f"{tmp_path}/a/b (does not exist yet)")


def test_damaged_adapters_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert texts("files")["adapters"] == f"0 in {tmp_path}/adapters"
    (tmp_path / "adapters" / "broken").mkdir(parents=True)
    assert texts("files")["adapters"].startswith(f"1 in {tmp_path}/adapters, 1 of them damaged")


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Finding]:
    """What doctor says of a hub that answers requests in this way."""

    def ask(head: Callable[..., Any]) -> Finding:
        monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
        monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
        (finding,) = diagnose({"hub": PROBES["hub"]}).findings["hub"]
        return finding

    return ask


def test_offline_mode_is_one_line_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.get_session", raising(AssertionError("asked")))
    assert values("hub") == {"state": "offline"}
    assert texts("hub")["state"].startswith("offline: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")


def test_any_answer_means_reachable(hub: Callable[..., Finding]) -> None:
    finding = hub(lambda url, timeout: SimpleNamespace(status_code=200))
    assert (finding.value, finding.problem) == ("reachable", False)
    assert finding.text.endswith("(HTTP status 200)")


def test_a_failing_request_is_one_line(hub: Callable[..., Finding]) -> None:
    finding = hub(raising(ConnectionError("Name or service\nnot known")))
    assert (finding.value, finding.problem) == ("unreachable", True)
    assert finding.text.endswith("ConnectionError: Name or service not known")


def test_a_request_that_hangs_is_given_up(hub: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the name server does not answer, which a request's own time limit does not cover."""
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.1)
    answer = threading.Event()
    started = time.monotonic()
    finding = hub(lambda url, timeout: answer.wait(30))
    answer.set()
    assert time.monotonic() - started < 10
    assert finding.value == "unreachable"
    assert finding.text.endswith("no answer in 0.1 s")
