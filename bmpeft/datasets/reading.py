"""One reading of a dataset: what the recipe asks for, ids that are taken, bad rows, and splits at the end.

def read(reading: Reading) -> LoadedDataset:
    files = reading.split_files(".jsonl")
    return reading.finish(reading.by_file(files, reading.json_rows, partial(_record, reading)))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.base import ANY_TASK, DatasetInfo, LoadedDataset, assemble, missing
from bmpeft.datasets.formats.json_rows import read_rows
from bmpeft.datasets.formats.sheets import read_sheet
from bmpeft.datasets.formats.tables import read_tabbed, read_table
from bmpeft.datasets.rows import Identities, Row, json_type
from bmpeft.datasets.splits import SPLIT_NAMES, describe, divide, image_digests
from bmpeft.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from bmpeft.recipe import DataSection
    from bmpeft.records import ImageReference, Record

Splits = dict[str, tuple["Record", ...]]
ALL = "all"  # the split of rows that no file or field assigns to one
HIDDEN_TEST = "hidden_test"  # a test split without labels
# The keys of the recipe's data section that only some readers use; a reader's INFO.options names its own.
OPTIONAL_KEYS = ("fields", "label_names", "label_base", "delimiter", "images", "licence", "variant", "cop_base")


class Reading:
    """What a reader is given.

    Attributes:
        info: the description of the dataset.
        data: the recipe's data section.
        task: which of the dataset's tasks the records are for.
        path: `data.path`.
        variant: `data.variant`, or the dataset's default one; "" where there is nothing to choose.
    """

    def __init__(self, info: DatasetInfo, data: DataSection, task: str | None = None) -> None:
        """Raises UsageError for a task, a variant or an option that the dataset does not have."""
        self.info, self.data = info, data
        self.path = Path(data.path).expanduser()
        self.task = _checked_task(info, task)
        self.variant = _checked_variant(info, data.variant)
        for key in OPTIONAL_KEYS:
            if getattr(data, key) is not None and key not in (*info.options, *(["variant"] if info.variants else [])):
                raise UsageError(f"data.{key}: {info.name} has no such option")
        self._identities = Identities()
        self._bad: list[DataError] = []
        self._left_out: Counter[str] = Counter()

    # Bad rows

    def bad(self, error: DataError) -> None:
        """Take note of a bad row; raises the first one when there are more than `data.skip_bad_rows`."""
        self._bad.append(error)
        if len(self._bad) > self.data.skip_bad_rows:
            raise self._bad[0]

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count a row that is well-formed but holds nothing for this task, such as "reports without findings"."""
        self._left_out[what] += count

    # Rows

    def json_rows(self, path: Path) -> Iterator[Row]:
        """See `read_rows`; bad lines count as bad rows."""
        return read_rows(path, self.info, self.bad)

    def tabbed_rows(self, path: Path, names: tuple[str, ...], *, spans: tuple[str, ...] = ()) -> Iterator[Row]:
        """See `read_tabbed`."""
        return read_tabbed(path, self.info, names, self.bad, spans=spans)

    def table_rows(self, path: Path, *, columns: tuple[str, ...] = ()) -> Iterator[Row]:
        """The rows of a CSV file or of a workbook's first sheet, as the file's name says."""
        if path.suffix == ".xlsx":
            return read_sheet(path, self.info, self.bad, columns=columns)
        return read_table(path, self.info, self.bad, columns=columns, delimiter=self.data.delimiter)

    # Files

    def exists(self, path: Path) -> Path:
        """The path. Raises DataError, saying what belongs there and where to get it, if nothing is there."""
        if not path.exists():
            raise missing(path, self.info)
        return path

    def split_files(
        self, *suffixes: str, words: Mapping[str, tuple[str, ...]] = SPLIT_NAMES, without: str | None = None
    ) -> dict[str, Path]:
        """Split -> file, of a directory; a file itself is the split "all". See `find_split_files`."""
        if self.exists(self.path).is_dir():
            return find_split_files(self.path, suffixes, self.info, words, without)
        return {ALL: self.path}

    def image_directory(self, parent: Path, *names: str) -> Path:
        """`data.images`, or the first of the directories with these names, or the parent itself.

        Raises:
            DataError: `data.images` is no directory.
        """
        if self.data.images is not None:
            directory = Path(self.data.images).expanduser()
            if not directory.is_dir():
                raise DataError(directory, "data.images: no such directory")
            return directory
        return next((parent / name for name in names if (parent / name).is_dir()), parent)

    def image(self, row: Row, directory: Path, name: str, *, anywhere: bool = False) -> ImageReference:
        """The image file of a row; `anywhere` allows absolute paths and those that leave the directory.

        Raises:
            DataError: there is no such file, or the name leads out of the directory.
        """
        from bmpeft.images import ImageFile

        if not anywhere and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise row.error("the image's name leads out of the directory of images")
        path = directory / name
        try:
            found = path.is_file()
        except (ValueError, OSError) as error:  # a null character; a name that is too long, or not allowed
            raise row.error(f"the name of the image is none of a file: {getattr(error, 'strerror', error)}") from None
        if not found:
            raise row.error(f"the image {path} is not there")
        return ImageFile(path, None if row.number is None else f"{row.path.name}, row {row.number}")

    # Records

    def identity(self, row: Row, stated: str | None, derived: str) -> str:
        """The id that the row states, or one that depends on its content. Raises DataError for a repeated one."""
        return self._identities.stated(stated, row) if stated else self._identities.derived(derived, row)

    def records(self, rows: Iterable[Row], make: Callable[[Row], Record | None]) -> tuple[Record, ...]:
        """A record of each row; None leaves a row out.

        Where bad rows are allowed, images are decoded too, so that a broken one is a bad row.
        """
        made = []
        for row in rows:
            try:
                row.check_texts()
                record = make(row)
                if record is not None and record.image is not None and self.data.skip_bad_rows:
                    record.image.load()
            except DataError as error:
                self.bad(error if error.path == row.path else row.error(f"{error.path.name}: {error.problem}"))
            else:
                made += [] if record is None else [record]
        return tuple(made)

    def some(self, records: tuple[Record, ...], path: Path, what: str = "") -> tuple[Record, ...]:
        """The records. Raises DataError if there are none: the first bad row's where that is the reason."""
        if records:
            return records
        raise self._bad[0] if self._bad else DataError(path, f"{what} holds no rows".strip())

    def by_file(
        self,
        files: Mapping[str, Path],
        rows_of: Callable[[Path], Iterable[Row]],
        make: Callable[[str, Row], Record | None],
    ) -> Splits:
        """The records of each split's file. Raises DataError for a file without any."""
        return {
            split: self.some(self.records(rows_of(path), partial(make, split)), path) for split, path in files.items()
        }

    def own_image(self, row: Row, value: Any) -> ImageReference:
        """The image of a row of the user's own file: a path from the file's directory, or from `data.images`."""
        if not isinstance(value, str):
            raise row.error(f"the image must be a path, not {json_type(value)}")
        return self.image(row, self.image_directory(row.path.parent), value.strip(), anywhere=True)

    # The dataset

    def finish(self, splits: Splits, method: str = "official") -> LoadedDataset:
        """Divide what is not divided yet, or all anew if the recipe says so, and assemble the dataset.

        Raises:
            DataError: a split has no rows.
        """
        for name, records in splits.items():
            self.some(records, self.path, "" if name == ALL else f"the {name} split")
        section, group = self.data.split, self.info.group
        hidden = {name: records for name, records in splits.items() if name == HIDDEN_TEST}
        shares = {"validation": section.validation}
        if ALL in splits or self.data.split_by != "official":
            rows = [record for name, records in splits.items() if name != HIDDEN_TEST for record in records]
            unit = "image" if self.data.split_by == "image" else group
            shares["test"] = section.test
            divided = divide(rows, shares, section.seed, source=self.path, unit=unit, key=self._split_key())
            splits, method = {**divided, **hidden}, describe(section, shares, unit)
        elif "train" in splits and "validation" not in splits and section.validation > 0:
            divided = divide(splits["train"], shares, section.seed, source=self.path, unit=group)
            splits = {**divided, **{name: records for name, records in splits.items() if name != "train"}}
            method = "official test" if method == "official" and "test" in splits else method
            method = f"{method}; {describe(section, shares, group)}"
        return assemble(
            self.info,
            splits,
            method,
            licence=self.data.licence,
            bad_rows=tuple(map(str, self._bad)),
            notes=tuple(f"{count:,} {what} left out" for what, count in sorted(self._left_out.items())),
        )

    def _split_key(self) -> Callable[[Record], str]:
        if self.data.split_by != "image":
            return lambda record: record.group

        digest_of = image_digests()

        def digest(record: Record) -> str:
            if record.image is None:
                raise UsageError(f"data.split_by=image: {self.info.name} has records without an image; use group")
            return digest_of(record.image)

        return digest


def find_split_files(
    directory: Path,
    suffixes: tuple[str, ...],
    info: DatasetInfo,
    words: Mapping[str, tuple[str, ...]] = SPLIT_NAMES,
    without: str | None = None,
) -> dict[str, Path]:
    """The files of a directory whose names say train, dev or val(idation), or test.

    Args:
        directory: that holds them.
        suffixes: of the files that count; each also with .gz behind it.
        info: of the dataset, for messages.
        words: split -> what the name of its file contains, in lower case.
        without: files whose names contain this are passed over.

    Raises:
        DataError: no such file, or two for one split.
    """
    files = sorted(file for file in directory.iterdir() if file.name.removesuffix(".gz").endswith(suffixes))
    files = [file for file in files if file.is_file() and not (without and without in file.name.lower())]
    found: dict[str, Path] = {}
    of_file: dict[Path, str] = {}
    for split, alternatives in words.items():
        matches = [file for file in files if any(word in file.name.lower() for word in alternatives)]
        if len(matches) > 1:
            names = " and ".join(file.name for file in matches)
            raise DataError(directory, f"{names} could both be the {split} file; keep one of them here")
        if matches:
            found[split] = matches[0]
            other = of_file.setdefault(matches[0], split)
            if other != split:
                raise DataError(matches[0], f"its name says {other} and {split}: rename it")
    if not found:
        expected = f"{info.title} needs {info.files}, from {info.source}"
        raise DataError(directory, f"no file here is named train, dev or test; {expected}")
    return found


def _checked_task(info: DatasetInfo, task: str | None) -> str:
    if task is None and info.task == ANY_TASK:
        raise UsageError(
            f"{info.name} can be read for several tasks; say which by task.name or --task: {', '.join(info.tasks)}"
        )
    if task is not None and task not in info.tasks:
        raise UsageError(f"task.name: {info.name} is for {' or '.join(info.tasks)}, not for {task}")
    return info.tasks[0] if task is None else task


def _checked_variant(info: DatasetInfo, variant: str | None) -> str:
    if variant is None:
        return info.variants[0] if info.variants else ""
    if info.variants and variant not in info.variants:
        raise UsageError(f"data.variant: {info.name} has no {variant!r}{did_you_mean(variant, info.variants)}")
    return variant
