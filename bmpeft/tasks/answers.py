"""The answers that decoding by a trie may write: from the training rows, a list or a file, spelled out once.

Spelled out they become part of the task that an adapter stores, since the adapter needs them wherever it runs.
Answers of training rows are text of the dataset: `task.decoding.method: trie` is the one setting that puts such
text into an adapter, and `task.decoding.min_count` keeps rare answers out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import TrieDecoding, trie_of, with_trie
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Record
from bmpeft.tasks.base import Task, one_line

MAX_ANSWERS = 50_000
MAX_CHARACTERS = 1_000_000


def spell_out_answers(task: Task, training_rows: Sequence[Record]) -> TaskSection:
    """The section of a task with the answers of its trie as a list; without a trie, as it is.

    Only rows that the trie is for count: with `method: mixed`, those without choices.

    Raises:
        UsageError: there are no answers, too many, or they are no answers that a trie can write; no message
            shows one.
    """
    section = task.section()
    trie = trie_of(section.decoding)
    if trie is None:
        return section
    if trie.answers_file is not None:
        answers = _of_file(Path(trie.answers_file))
    elif trie.answers == "train":
        answers = _of_rows(task, training_rows, trie.min_count)
    else:
        answers = list(trie.answers)
    if len(answers) > MAX_ANSWERS or sum(map(len, answers)) > MAX_CHARACTERS:
        raise UsageError(
            f"task.decoding.method=trie: {len(answers):,} answers with {sum(map(len, answers)):,} characters are too "
            f"many for a set that an adapter stores (at most {MAX_ANSWERS:,} and {MAX_CHARACTERS:,}); use beam"
        )
    spelled = TrieDecoding(
        answers=tuple(sorted(set(answers))), num_beams=trie.num_beams, normalization=trie.normalization
    )
    return section.model_copy(update={"decoding": with_trie(section.decoding, spelled)})


def _of_rows(task: Task, rows: Sequence[Record], min_count: int) -> list[str]:
    mixed = task.decoding.method == "mixed"
    counts: Counter[str] = Counter()
    for row in rows:
        target = None if mixed and row.choices else task.example(row).target
        if target is None:
            continue
        if target != f" {one_line(target)}":
            raise UsageError(f"task.decoding.method=trie: {task.name} writes no answers that begin with one space")
        counts[one_line(target)] += 1
    answers = [answer for answer, count in counts.items() if count >= min_count]
    if not answers:
        raise UsageError(
            f"task.decoding.answers=train: no training row has an answer{f' (min_count={min_count})' * (min_count > 1)}"
        )
    return answers


def _of_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"task.decoding.answers_file: {path}: {reason}") from None
    answers = [one_line(line) for line in lines if line.strip()]
    if not answers:
        raise UsageError(f"task.decoding.answers_file: {path}: holds no answers")
    return answers
