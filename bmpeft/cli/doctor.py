"""`bmpeft doctor`."""

from __future__ import annotations

from bmpeft.cli.options import Json
from bmpeft.cli.output import print_json, print_rich, work


def doctor(as_json: Json = False) -> None:
    """Report versions, device, number types, backends, disk and hub."""
    with work(quiet=True):
        from bmpeft.doctor import diagnose

        diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.content())
    else:
        print_rich(diagnosis.table())
