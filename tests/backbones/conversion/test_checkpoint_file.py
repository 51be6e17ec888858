"""A checkpoint is a program for Python's unpickler: nothing of it is ever run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt.conversion import checkpoint_file
from bmpeft.backbones.biomedgpt.conversion.checkpoint_file import StandIn, opened, read_checkpoint
from bmpeft.backbones.biomedgpt.conversion.sources import open_source
from bmpeft.errors import BackboneError
from tests.backbones.conversion.published_files import (
    OMEGACONF,
    checkpoint,
    foreign_classes,
    omegaconf_tree,
    run,
    save_fairseq,
    small_model,
)

PROOF = "BMPEFT_TEST_RAN"


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Loud:
    """A class that tells when its code runs."""

    def __setstate__(self, state: Any) -> None:
        os.environ[PROOF] = "1"


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save({"model": {"a": torch.zeros(2)}, "extra_state": content}, path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


HOSTILE = {
    f"{os.system.__module__}.system": Call(os.system, f"export {PROOF}=1"),
    "builtins.eval": Call(eval, f"__import__('os').environ.setdefault({PROOF!r}, '1')"),
    "builtins.getattr": Call(getattr, "text", "upper"),
    "builtins.exec": Call(exec, f"import os; os.environ[{PROOF!r}] = '1'"),
    "torch.hub.load": Call(torch.hub.load, "somebody/something", "x"),
    "torch.serialization.load": Call(torch.load, "other.pt"),
    "torch._utils._rebuild_sparse_tensor": torch.zeros(2, 2).to_sparse(),
    f"{Loud.__module__}.Loud": Loud(),
}
LAYOUTS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol-4": {"pickle_protocol": 4},
    "protocol-5-legacy": {"pickle_protocol": 5, "_use_new_zipfile_serialization": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_checkpoint_is_refused_by_its_name(name: str, layout: str, tmp_path: Path) -> None:
    path = save(tmp_path / "hostile.pt", HOSTILE[name], **LAYOUTS[layout])
    assert f"refused, nothing was loaded: it calls for {name}" in refused(path)
    assert PROOF not in os.environ


def test_a_plain_pickle_is_refused_by_the_name_in_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for protocol in range(1, 6):
        path.write_bytes(pickle.dumps(Call(os.system, "true"), protocol=protocol))
        message = refused(path)
        assert f"{os.system.__module__}.system" in message or "neither a zip file nor a pickle" in message


def test_classes_of_the_real_packages_are_never_imported(tmp_path: Path) -> None:
    """A module of such a name that lies in the path could be anybody's."""
    with foreign_classes(*OMEGACONF) as classes:
        by_name = {cls.__name__: cls for cls in classes}
        path = save(tmp_path / "a.pt", omegaconf_tree({"a": {"b": 1, "c": "???", "d": "${x.y}"}}, by_name))
        for cls in classes:
            cls.__setstate__ = Loud.__setstate__  # type: ignore[attr-defined]
        content = read_checkpoint(path)["extra_state"]
    assert type(content) is StandIn and PROOF not in os.environ
    assert opened(opened(content)["a"]) == {"b": 1, "c": None, "d": None}


def test_the_real_classes_are_stood_in_for_while_a_file_is_read_only(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    with foreign_classes("omegaconf.nodes.AnyNode") as (node,):
        read_checkpoint(save(tmp_path / "a.pt", node()))
    assert torch.serialization.get_safe_globals() == before


def test_values_of_training_are_read_without_numpy_running(tmp_path: Path) -> None:
    import numpy as np

    values = {"best": np.float64(0.5), "meters": defaultdict(dict, a={"b": 1}), "path": Path("x"), "log": [np.ones(2)]}
    read = read_checkpoint(save(tmp_path / "a.pt", values))["extra_state"]
    assert isinstance(read["best"], StandIn) and read["meters"] == {"a": {"b": 1}}


def test_types_and_containers_of_options_are_read(tmp_path: Path) -> None:
    """omegaconf keeps the types of a configuration, and Optional has the type of None in it."""
    values: dict[str, Any] = {"types": [Optional[str], type(None)]}  # noqa: UP045 (the form of Python 3.7)
    values |= {"sets": [{1}, frozenset({2})], "complex": 1j}
    values |= {"slice": slice(3), "range": range(3), "bytes": bytearray(b"x")}
    for layout in ("zip", "legacy"):
        path = save(tmp_path / "a.pt", values, **LAYOUTS[layout])
        assert read_checkpoint(path)["extra_state"].keys() == values.keys()


def test_a_configuration_that_contains_itself_costs_nothing(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"encoder_layers": 2}
    for _ in range(60):
        loop = {"model": loop, "task": loop}
    loop["model"] = loop
    torch.save({"model": {"a": torch.zeros(2)}, "cfg": loop}, tmp_path / "a.pt")
    assert open_source(tmp_path / "a.pt").declared.keys() == {"model", "task"}


def test_a_stand_in_keeps_what_a_hostile_state_calls_arguments() -> None:
    stand_in = StandIn("x")
    stand_in.__setstate__({"arguments": 7, "_parent": 1})
    assert opened(stand_in) == {"arguments": 7, "_parent": 1} and stand_in.arguments == ("x",)


@pytest.mark.parametrize("part", [0, 1, 3, 40, 500, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_one_clear_line(part: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"model": {"a": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: part if isinstance(part, int) else int(part * len(content))])
    assert "checkpoint" in refused(path) or "truncated" in refused(path)


@example(position=14, value=141, zipped=False)
@given(position=st.integers(0, 2**32), value=st.integers(0, 255), zipped=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_is_read_or_refused_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("changed") / "a.pt"
    content = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(3)}, "args": None}, content, _use_new_zipfile_serialization=zipped)
    changed = bytearray(content.getvalue())
    changed[position % len(changed)] = value
    path.write_bytes(changed)
    with contextlib.suppress(BackboneError):
        open_source(path)


def test_a_zip_file_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    original = save(tmp_path / "a.pt", None)
    with zipfile.ZipFile(original) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name, compression, content, expected in (
        ("compressed.pt", zipfile.ZIP_DEFLATED, parts, "a compressed zip file"),
        ("empty.pt", zipfile.ZIP_STORED, {"archive/readme": b"x"}, "without torch's data.pkl"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            for part, data in content.items():
                archive.writestr(part, data)
        assert expected in refused(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("a page that says: log in to download")
    assert "neither a zip file nor a pickle" in refused(tmp_path / "text.pt")
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.add(tmp_path / "text.pt")
    assert "neither a zip file nor a pickle" in refused(tmp_path / "tar.pt")
    assert "No such file" in refused(tmp_path / "nothing.pt")


def test_a_legacy_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "old.pt", None, _use_new_zipfile_serialization=False)
    monkeypatch.setattr(checkpoint_file, "MAX_LEGACY_BYTES", 100)
    assert "has to be read whole, at most 100" in refused(path)
    monkeypatch.setattr(checkpoint_file, "MAX_PICKLE_BYTES", 10)
    assert "at most 10" in refused(save(tmp_path / "new.pt", None))


def test_a_tensor_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    state = {"encoder.embed_tokens.weight": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(checkpoint(state), tmp_path / "bomb.pt")
    with pytest.raises(BackboneError, match="its data are shorter than its shape"):
        open_source(tmp_path / "bomb.pt")


def test_tensors_of_a_zip_file_stay_in_the_file(tmp_path: Path) -> None:
    """The process's own memory grows by a small part of the file while its tensors are read, written and checked."""
    model = small_model(vocab_size=200_000)
    adam = {"state": {0: {"exp_avg": torch.zeros(10_000_000)}}, "param_groups": []}
    source = save_fairseq(tmp_path / "large.pt", model, last_optimizer_state=adam)
    assert source.stat().st_size > 90_000_000
    del model, adam
    run(source, None, dry_run=True)  # what is imported and cached the first time counts for nothing
    before = anonymous_bytes()
    with peak_of_anonymous_bytes() as peak:
        run(source, tmp_path / "backbone")
    assert max(peak) - before < 10_000_000


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


@contextlib.contextmanager
def peak_of_anonymous_bytes() -> Iterator[list[int]]:
    """What `anonymous_bytes` was every few milliseconds, at least twice."""
    samples = [anonymous_bytes()]
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.005):
            samples.append(anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
        samples.append(anonymous_bytes())
