"""File formats: what is written comes back, and every kind of damage is one line with file and row."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.datasets.base import DatasetInfo
from bmpeft.datasets.formats import archives, lines, sheets
from bmpeft.datasets.formats.archives import archived_files
from bmpeft.datasets.formats.arrays import array_headers, read_small_array
from bmpeft.datasets.formats.json_rows import read_rows
from bmpeft.datasets.formats.sheets import read_sheet
from bmpeft.datasets.formats.tables import Span, read_tabbed, read_table
from bmpeft.datasets.formats.xml_files import parse_xml
from bmpeft.errors import DataError
from tests.datasets.files import BOMB, STRICT, TRANSITIONAL, write_tgz, write_xlsx

INFO = DatasetInfo(
    "toy", "Toy", "summarization", "MIT", "a file", "example.org/toy", "Toy 2020", options=("delimiter",)
)
CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)


def refusal(read: object, *arguments: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        list(read(*arguments, **options))  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=4), compressed=st.booleans())
def test_tables_hold_any_text_and_count_rows_as_a_spreadsheet_does(
    rows: list[list[str]], compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["a", "b"], *rows])
    path = tmp_path_factory.mktemp("t") / "t.csv"
    content = b"\xef\xbb\xbf" + buffer.getvalue().encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = list(read_table(path, INFO))
    assert [list(row.values.values()) for row in read] == rows
    assert [row.number for row in read] == list(range(2, len(rows) + 2))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"a,a\n1,2\n", "row 1: the header names 'a' twice"),
        (b",\n1,2\n", "row 1: the header names no column"),
        (b"a,c\n1,2\n", "row 1: there is no column 'b'"),
        (b"a;b\nsecret;2\n", "row 1: there is no column 'b'; valid: a;b; are the cells apart by ';'?"),
        (b'a,b\n1,2\n\n"secret"x,4\n', "row 4: not a row of CSV"),
        (b"a,b\n1,2\nsecret\n", "row 3: has 1 cells, but the header 2"),
        (b'a,b\n1,"secret\n', "row 2: not a row of CSV: unexpected end of data"),
        (b"a,b\nsecret,\xff\n", "row 2: not UTF-8 text"),
        (b"\xff\xfea\x00,\x00b\x00\n\x00", "row 1: not UTF-8 text"),
        (gzip.compress(b"a,b\n1,2\n" * 9)[:-12], "broken gzip"),
    ],
    ids=range(11),
)
def test_a_broken_table_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert problem in refusal(read_table, path, INFO, columns=("b",))


def test_bad_rows_are_handed_over_and_the_others_still_come(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\n1,2\n3\n4,\xff\n"5"x,6\n7,8\n')
    bad: list[DataError] = []
    assert [row.values["a"] for row in read_table(path, INFO, bad.append)] == ["1", "7"]
    assert [error.row for error in bad] == [3, 4, 5]
    lines_path = tmp_path / "t.jsonl"
    lines_path.write_bytes(b'{"a": 1}\n{"a"\n\xff\n[]\n{"a": 2}\n')
    assert [row.values["a"] for row in read_rows(lines_path, INFO, bad.append)] == [1, 2]
    assert [error.row for error in bad[3:]] == [2, 3, 4]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, st.binary(max_size=9)), min_size=1, max_size=4), mark=st.booleans())
def test_tabbed_cells_are_found_again_by_their_place(
    rows: list[tuple[str, bytes]], mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [("x" + "".join(c for c in text if c not in "\t\r\n"), image.hex().encode()) for text, image in rows]
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    path.write_bytes(b"\xef\xbb\xbf" * mark + b"\r\n".join(text.encode() + b"\t" + image for text, image in rows))
    content, found = path.read_bytes(), list(read_tabbed(path, INFO, ("text", "image"), spans=("image",)))
    assert [row.values["text"] for row in found] == [text for text, _ in rows]
    spans: list[Span] = [row.values["image"] for row in found]
    assert [content[span.offset : span.offset + span.length] for span in spans] == [image for _, image in rows]


def test_a_tabbed_table_is_refused_with_other_columns_or_compressed_images(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\tb\nsecret\n")
    assert "row 2: has 1 cells between tabs, expected 2" in refusal(read_tabbed, path, INFO, ("x", "y"))
    path.write_bytes(gzip.compress(b"a\tb\n"))
    assert "decompress it" in refusal(read_tabbed, path, INFO, ("x", "y"), spans=("y",))


def test_lines_and_what_a_compressed_file_becomes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(b"{}\n" * 100))
    monkeypatch.setattr(lines, "LARGEST_DECOMPRESSED", 200)
    assert "when decompressed" in refusal(read_rows, path, INFO)
    path.write_bytes(b'{"a": "%s"}' % (b"x" * 100))
    monkeypatch.setattr(lines, "LONGEST_LINE", 50)
    assert "row 1: the line is longer than" in refusal(read_rows, path, INFO)


@pytest.mark.parametrize("form", [TRANSITIONAL, STRICT], ids=["transitional", "strict"])
def test_a_workbook_is_read_in_both_forms(tmp_path: Path, form: str) -> None:
    path = write_xlsx(
        tmp_path / "w.xlsx", [["id", "text"], [" 1", "a & b"], ["2", ""], ["", ""], ["3", "c"]], form=form
    )
    rows = list(read_sheet(path, INFO, columns=("id",)))
    assert [(row.number, dict(row.values)) for row in rows] == [
        (2, {"id": " 1", "text": "a & b"}),
        (3, {"id": "2", "text": ""}),
        (5, {"id": "3", "text": "c"}),
    ]


def test_rich_text_escapes_and_phonetic_hints_of_a_workbook(tmp_path: Path) -> None:
    shared = "<sst><si><t>a</t></si><si><r><t>bo</t></r><r><t>ld_x000A_</t></r><rPh><t>hint</t></rPh></si></sst>"
    path = write_xlsx(tmp_path / "w.xlsx", [["a"], ["x"]], parts={"xl/sharedStrings.xml": shared})
    assert [dict(row.values) for row in read_sheet(path, INFO)] == [{"a": "bold\n"}]


def test_a_row_number_beyond_all_sense_is_counted_instead(tmp_path: Path) -> None:
    row = '<row r="{}"><c t="inlineStr"><is><t>{}</t></is></c></row>'
    sheet = f"<worksheet><sheetData>{row.format(1, 'a')}{row.format('9' * 5000, 'x')}</sheetData></worksheet>"
    (only,) = read_sheet(write_xlsx(tmp_path / "w.xlsx", [["a"]], parts={"xl/worksheets/a.xml": sheet}), INFO)
    assert (only.number, dict(only.values)) == (2, {"a": "x"})


HEADER = '<row r="1"><c t="inlineStr"><is><t>a</t></is></c></row>'
SHEET = f'<worksheet><sheetData>{HEADER}<row r="2">{{}}</row></sheetData></worksheet>'


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"xl/worksheets/a.xml": SHEET.format('<c t="s"><v>99</v></c>')}, "row 2: a cell refers to a text"),
        ({"xl/worksheets/a.xml": SHEET.format(f'<c t="s"><v>{"9" * 5000}</v></c>')}, "row 2: a cell refers to a text"),
        ({"xl/worksheets/a.xml": SHEET.format('<c t="e"><v>#REF!</v></c>')}, "row 2: a cell holds an error value"),
        ({"xl/worksheets/a.xml": "<worksheet><sheetData/></worksheet>"}, "the first sheet is empty"),
        ({"xl/worksheets/a.xml": "<worksheet><secret"}, "broken XML at line 1"),
        ({"xl/worksheets/a.xml": BOMB}, "XML with a document type or entities is refused"),
        ({"xl/sharedStrings.xml": BOMB}, "XML with a document type or entities is refused"),
        ({"xl/workbook.xml": "<workbook/>"}, "the workbook has no sheet"),
        ({"xl/_rels/workbook.xml.rels": "<Relationships/>"}, "does not say where its first sheet is"),
        ({"xl/worksheets/a.xml": b"<a>" + b" " * 3_000_000}, "would become 2 MiB when decompressed; refused"),
    ],
    ids=range(10),
)
def test_a_bad_workbook_is_refused(tmp_path: Path, parts: dict[str, str | bytes], problem: str) -> None:
    path = write_xlsx(tmp_path / "w.xlsx", [["a"], ["secret"]], parts=parts)
    assert problem in refusal(read_sheet, path, INFO)


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.xlsx"
    path.write_bytes(b"id,secret\n")
    assert "no .xlsx workbook" in refusal(read_sheet, path, INFO)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("secret", "x")
    assert "it has no xl/workbook.xml" in refusal(read_sheet, path, INFO)
    content = write_xlsx(path, [["a"], ["secret"]]).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "or a damaged one" in refusal(read_sheet, path, INFO)


@pytest.mark.parametrize("content", [BOMB, "<a><secret></a>", '<?xml version="1.0" encoding="nonsense"?><a/>', ""])
def test_xml_with_entities_or_broken_is_refused(content: str) -> None:
    with pytest.raises(DataError, match=r"x.xml: (broken XML|XML with a document type)"):
        parse_xml(Path("x.xml"), content.encode())


def test_an_archive_gives_its_files_and_refuses_names_that_lead_out(tmp_path: Path) -> None:
    path = write_tgz(tmp_path / "a.tgz", {"d/1.xml": "<a/>", "d/readme.txt": "x"})
    assert list(archived_files(path, ".xml")) == [(path / "d/1.xml", b"<a/>")]
    for name in ("../1.xml", "/etc/1.xml", "d/../../1.xml"):
        problem = refusal(archived_files, write_tgz(tmp_path / "b.tgz", {name: "<a/>"}), ".xml")
        assert "leads out of the archive" in problem


def test_links_in_an_archive_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        link = tarfile.TarInfo("1.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(archived_files(tmp_path / "a.tgz", ".xml")) == []


def test_damaged_and_overgrown_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tgz(tmp_path / "a.tgz", {f"{n}.xml": "<a/>" * 500 for n in range(9)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(archived_files, path, ".xml")
    path.write_bytes(b"secret")
    assert "no .tgz archive" in refusal(archived_files, path, ".xml")
    path.write_bytes(content)
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 5_000)
    assert "member 3 goes beyond the limits" in refusal(archived_files, path, ".xml")


def test_arrays_are_described_without_pickle_and_with_their_true_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 3), np.uint8), labels=np.array([1, 2]))
    assert array_headers(path, INFO)["images"].shape == (2, 3)
    assert read_small_array(path, "labels").tolist() == [1, 2]
    np.savez(path, labels=np.array([{"secret": 1}], dtype=object))
    assert "pickled objects" in refusal(array_headers, path, INFO)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 3), np.uint8))
    for content, problem in (
        (buffer.getvalue()[:-1], "cut off or too long for its shape"),
        (b"secret", "is no array of numpy's format"),
        (buffer.getvalue().replace(b"(2", b"$2"), "is no array of numpy's format"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
        assert problem in refusal(array_headers, path, INFO)
    path.write_bytes(b"PK\x03\x04secret")
    assert "no .npz file" in refusal(array_headers, path, INFO)


def test_the_limits_leave_room_for_real_workbooks() -> None:
    assert sheets.HIGHEST_RATIO > 50
