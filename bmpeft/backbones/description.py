"""backbone.json: by which a backbone directory is known and checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bmpeft.errors import BackboneError

BACKBONE_FILE = "backbone.json"
LICENCE_FILE = "LICENCE_NOTE.md"
"""In directories of weights that upstream has licence statements about, and of weights trained from them."""
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class BackboneDescription:
    """What a backbone directory says of itself.

    Attributes:
        family: of models, "biomedgpt".
        name: how the backbone was asked for when it was written.
        init: "pretrained" or "random".
        init_seed: the seed of random weights; None for pretrained ones.
        fingerprint: SHA-256 that names the weights, whatever type they are stored in.
        stored_tensors: SHA-256 of the tensors in this directory.
        tokenizer_digest: SHA-256 of the tokenizer's file; None where the directory has none.
    """

    family: str
    name: str
    init: str
    init_seed: int | None
    fingerprint: str
    stored_tensors: str
    tokenizer_digest: str | None

    def write(self, directory: Path) -> None:
        """Write the description into a directory."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        (directory / BACKBONE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> BackboneDescription:
        """The description in a directory.

        Raises:
            BackboneError: there is none, it is damaged, or of another schema.
        """
        path = directory / BACKBONE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = "; `bmpeft convert` makes one of other weights" if (directory / "config.json").exists() else ""
            raise BackboneError(f"{directory}: not a bmpeft backbone directory (no {BACKBONE_FILE}){hint}") from None
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackboneError(f"{path}: cannot be read: {reason}") from None
        expected = {"schema_version": int, "init": str, "fingerprint": str, "stored_tensors": str}
        if not isinstance(content, dict) or any(not isinstance(content.get(k), t) for k, t in expected.items()):
            raise BackboneError(f"{path}: expected the keys {', '.join(expected)}")
        if content["schema_version"] != SCHEMA_VERSION:
            raise BackboneError(
                f"{path}: schema version {content['schema_version']}, this bmpeft reads {SCHEMA_VERSION}"
            )
        return cls(
            family=content.get("family", "biomedgpt"),
            name=content.get("name", directory.name),
            init=content["init"],
            init_seed=content.get("init_seed"),
            fingerprint=content["fingerprint"],
            stored_tensors=content["stored_tensors"],
            tokenizer_digest=content.get("tokenizer_digest"),
        )
