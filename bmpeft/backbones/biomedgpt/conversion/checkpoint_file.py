"""Reading what `torch.save` wrote without running anything that is in it.

A checkpoint is a pickle: a program that names functions to call. Two things keep it from doing so here. Its names
are listed first, from the opcodes alone, and every one that a BiomedGPT checkpoint does not have is refused. Then
`torch.load(weights_only=True)` reads it, in which a name stands for one of torch's own tensor functions or for
`StandIn`; nothing is imported because a file names it.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from bmpeft.errors import BackboneError

# A legacy file is one stream: it is read whole. Zip files are mapped, and any size will do.
MAX_LEGACY_BYTES = 2_500_000_000
# The pickle in a zip file has names and shapes; XLarge with its optimizer state takes 2 MB.
MAX_PICKLE_BYTES = 100_000_000
# A legacy file is five pickles and then data: magic number, version, system, content, storage keys.
_LEGACY_PICKLES = 4

_DTYPES = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
_STORAGES = ("Half", "Float", "Double", "BFloat16", "Char", "Short", "Int", "Long", "Byte", "Bool")
_REBUILT_BY_TORCH = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.nn.parameter.Parameter",
        "torch.Size",
        "torch.device",
        "_codecs.encode",  # bytes, as Python 3 writes them for Python 2
        *(f"torch.{name}" for name in _DTYPES),
        *(f"torch.{name}Storage" for name in _STORAGES),
    }
)
_STOOD_IN_FOR = frozenset(
    {
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "operator.getitem",  # typing.Optional[str], as Python 3.7 writes it
        "_operator.getitem",
        "builtins.type",  # of None, in typing.Optional
        *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")),
        *(f"builtins.{name}" for name in ("bytearray", "complex", "frozenset", "range", "set", "slice")),
    }
)
# Configurations of fairseq and of upstream's own packages, as omegaconf nodes or as they are.
_STOOD_IN_FOR_PACKAGES = ("omegaconf.", "fairseq.", "typing.", "ofa_module.", "tasks.", "criterions.")
_BECOMES_A_DICT = "collections.defaultdict"


class StandIn:
    """An object of a class that is not imported: the values it was pickled with, and none of its code."""

    __slots__ = ("__dict__", "arguments")

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> StandIn:
        stand_in = super().__new__(cls)
        stand_in.arguments = arguments
        return stand_in

    def __setstate__(self, state: Any) -> None:
        """Keep the state of an ordinary object; other forms of it have nothing that is needed here."""
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint file holds; tensors of a zip file are mapped from it, not read.

    Raises:
        BackboneError: the file cannot be read, is no checkpoint, damaged, compressed or too large, or names
            anything but tensors, numbers, texts and configurations.
    """
    substitutes: dict[str, Any] = {}
    try:
        is_zip = _is_zip(path)
        for name in _names_in_zip(path) if is_zip else _names_in_legacy_file(path):
            if name not in _REBUILT_BY_TORCH and name not in substitutes:
                substitutes[name] = _substitute(path, name)
    except BackboneError:
        raise
    except OSError as error:
        raise BackboneError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a file that somebody broke on purpose brings about any
        raise BackboneError(f"{path}: no checkpoint, or truncated or damaged: {_one_line(error)}") from None
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(instead, name) for name, instead in substitutes.items()]),
        ):
            warnings.simplefilter("ignore")  # on old formats, which are expected here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # likewise
        raise BackboneError(f"{path}: truncated, damaged or not readable: {_one_line(error)}") from None


def opened(value: Any) -> dict[str, Any]:
    """The entries of a configuration, one level of it: of a dict, a namespace or omegaconf's DictConfig.

    Deeper levels stay as they are, so that a configuration which contains itself, or a billion references to one
    another, costs nothing. What omegaconf has not resolved is None. Anything but a configuration is empty.
    """
    if isinstance(value, StandIn):
        state = vars(value)
        value = state.get("_content", state)
    return {str(name): _value(entry) for name, entry in value.items()} if isinstance(value, dict) else {}


def _value(entry: Any) -> Any:
    if isinstance(entry, StandIn) and "_val" in vars(entry):  # omegaconf's node of a value
        entry = vars(entry)["_val"]
    if isinstance(entry, StandIn) and not vars(entry) and len(entry.arguments) == 1:  # a member of an enumeration
        entry = entry.arguments[0]
    return None if isinstance(entry, str) and (entry == "???" or entry.startswith("${")) else entry


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _names_in_zip(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise BackboneError(f"{path}: a zip file without torch's data.pkl: no checkpoint")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise BackboneError(
                f"{path}: a compressed zip file, which torch.save does not write: unpack and zip with -0"
            )
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise BackboneError(f"{path}: a pickle of {pickles[0].file_size:,} bytes, at most {MAX_PICKLE_BYTES:,}")
        with archive.open(pickles[0]) as file:
            yield from names_in_pickle(file)


def _names_in_legacy_file(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise BackboneError(f"{path}: no checkpoint: neither a zip file nor a pickle")
        file.seek(0)
        yield from names_in_pickle(file)  # the magic number: a few bytes, or no torch file at all
        size = path.stat().st_size
        if size > MAX_LEGACY_BYTES:
            raise BackboneError(
                f"{path}: a legacy checkpoint of {size:,} bytes has to be read whole, at most {MAX_LEGACY_BYTES:,}: "
                "load it and save it again by torch.save of version 1.6 or newer, which writes zip files"
            )
        for _ in range(_LEGACY_PICKLES - 1):
            yield from names_in_pickle(file)


def names_in_pickle(file: IO[bytes]) -> Iterator[str]:
    """The dotted names in one pickle, from its opcodes: nothing of it is run.

    Raises:
        ValueError: it is no pickle, or cut off.
    """
    texts: list[str] = []  # what a STACK_GLOBAL takes its two parts from
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            module, name = str(argument).split(" ", 1)
            yield _current_name(module, name)
        elif opcode.name == "STACK_GLOBAL":
            yield _current_name(*texts[-2:]) if len(texts) > 1 else "a name that it computes"
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            texts.append(memo.get(int(str(argument)), ""))
        elif isinstance(argument, str):
            texts.append(argument)
        del texts[:-2]


def _current_name(module: str, name: str) -> str:
    """The name by which Python 3 knows what Python 2 called otherwise; torch.load takes it the same way."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _substitute(path: Path, name: str) -> Any:
    if name == _BECOMES_A_DICT:
        return _empty_dict
    if name in _STOOD_IN_FOR or name.startswith(_STOOD_IN_FOR_PACKAGES):
        return StandIn
    raise BackboneError(
        f"{path}: refused, nothing was loaded: it calls for {printable(name)}, as no checkpoint of BiomedGPT"
    )


def printable(name: object) -> str:
    """A name that a file gives, without what a terminal would obey, and not too long for a line."""
    text = str(name)[:200]
    return text if text.isprintable() else ascii(text)


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _one_line(error: BaseException) -> str:
    """What torch found, without its advice to trust the file."""
    text = " ".join(str(error).split())
    found = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", text)
    return (found.group(1) if found else text)[:300] or type(error).__name__
