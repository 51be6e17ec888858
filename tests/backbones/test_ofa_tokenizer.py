"""OFA's tokenizer: the ids of the reference definition on any text, from both sets of files.

The reference is written out here as it is defined, and slowly: GPT-2's byte-level BPE (Radford et al. 2019), its ids
mapped through fairseq's dictionary.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt.ofa_tokenizer import build_ofa_tokenizer
from bmpeft.backbones.tokenizing import LoadedTokenizer, load_tokenizer
from bmpeft.errors import BackboneError

VOCAB_SIZE = 59457
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CLINICAL = st.sampled_from(
    [
        " fever",
        "120/80",
        " β-blocker",
        "\n\n",
        "  ",
        "it's",
        " CD4+",
        "\t5.3 mg",
        "</s>",
        "<mask>",
        "<code_7>",
        "ﬁ",
        "ß",
    ]
)
# The two libraries know different versions of Unicode: what Python's does not know is left out.
ANY = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = st.lists(st.one_of(CLINICAL, st.text(ANY, max_size=8)), max_size=12).map("".join)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's character for each byte: printable ones stand for themselves, the rest for what follows at 256."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(rest)) for byte in range(256)}


BYTES = byte_alphabet()


def join(word: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join the pair of the lowest rank until none has one."""
    while True:
        pairs = [pair for pair in itertools.pairwise(word) if pair in ranks]
        if not pairs:
            return word
        best, joined, position = min(pairs, key=ranks.__getitem__), [], 0
        while position < len(word):
            take = 2 if tuple(word[position : position + 2]) == best else 1
            joined.append("".join(word[position : position + take]))
            position += take
        word = joined


def reference(directory: Path) -> Callable[[str], list[int]]:
    encoder = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
    lines = (directory / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines) if line}
    order = (directory / "dict.txt").read_text().split("\n")
    dictionary = {line.split()[0]: 4 + number for number, line in enumerate(order) if line}

    def ids(text: str) -> list[int]:
        words = ([BYTES[byte] for byte in word.encode()] for word in WORDS.findall(text))
        return [dictionary[str(encoder[token])] for word in words for token in join(word, ranks)]  # type: ignore[arg-type]

    return ids


def write_transformers_files(source: Path, directory: Path, *, added: bool) -> None:
    """The second set of files, made from the first."""
    vocabulary = build_ofa_tokenizer(source).get_vocab()
    extra = {token: number for token, number in vocabulary.items() if number > 50264}
    base = {token: number for token, number in vocabulary.items() if number <= 50264}
    (directory / "vocab.json").write_text(json.dumps(base), encoding="utf-8")
    shutil.copy(source / "vocab.bpe", directory / "merges.txt")
    if added:
        (directory / "added_tokens.json").write_text(json.dumps(extra), encoding="utf-8")


@pytest.fixture(scope="module")
def files(shared_data: Path) -> Path:
    return shared_data / "ofa_gpt2_bpe"


@pytest.fixture(scope="module")
def ofa(files: Path) -> LoadedTokenizer:
    return load_tokenizer(files, VOCAB_SIZE)


def ids_of(loaded: LoadedTokenizer, text: str) -> list[int]:
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def test_the_layout_is_that_of_the_checkpoints(ofa: LoadedTokenizer) -> None:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", ".", "<mask>", "<code_0>", "<code_8191>", "<bin_0>", "<bin_999>"]
    expected = [0, 1, 2, 3, 4, 50264, 50265, 58456, 58457, 59456]
    assert ofa.tokenizer.convert_tokens_to_ids(tokens) == expected
    assert len(ofa.tokenizer) == VOCAB_SIZE


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_any_text_has_the_ids_of_the_reference_and_comes_back(
    ofa: LoadedTokenizer, reference_ids: Callable[[str], list[int]], text: str
) -> None:
    ids = ids_of(ofa, text)
    assert ids == reference_ids(text)
    assert ofa.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all(4 <= number < 50261 for number in ids), "no text becomes a special token, a filler, a code or a bin"


@pytest.fixture(scope="module")
def reference_ids(files: Path) -> Callable[[str], list[int]]:
    return reference(files)


def test_every_character_that_python_knows_splits_words_alike(ofa: LoadedTokenizer) -> None:
    splitter = json.loads(ofa.text)["pre_tokenizer"]
    assert splitter["type"] == "ByteLevel" and not splitter["add_prefix_space"]
    characters = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    core: Any = ofa.tokenizer.backend_tokenizer.pre_tokenizer
    for start in range(0, len(characters), 4096):
        text = "".join(f"a{c}1 {c} " for c in characters[start : start + 4096])
        expected = ["".join(BYTES[byte] for byte in word.encode()) for word in WORDS.findall(text)]
        assert [word for word, _ in core.pre_tokenize_str(text)] == expected


def test_a_word_has_other_ids_with_a_space_before_it(ofa: LoadedTokenizer) -> None:
    assert ids_of(ofa, " yes") == [4420] != ids_of(ofa, "yes")
    assert ids_of(ofa, " no") + ids_of(ofa, " yes") == ids_of(ofa, " no yes")
    assert len(ids_of(ofa, "  yes")) == 2


@pytest.mark.parametrize("added", [False, True], ids=["two-files", "with-added-tokens"])
def test_both_sets_of_files_give_the_same_tokenizer(
    files: Path, ofa: LoadedTokenizer, tmp_path: Path, added: bool
) -> None:
    write_transformers_files(files, tmp_path, added=added)
    assert load_tokenizer(tmp_path, VOCAB_SIZE).text == ofa.text


def test_it_comes_back_from_what_is_stored_also_in_transformers(ofa: LoadedTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ofa.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(ofa.text, encoding="utf-8")
    assert load_tokenizer(tmp_path, VOCAB_SIZE).digest == ofa.digest
    text = " fever</s> of 39.5 °C <mask>"
    theirs = AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"]
    assert theirs == ids_of(ofa, text)


# A vocabulary of three letters, for files that are damaged on purpose.
SMALL_ENCODER = {BYTES[97]: 0, BYTES[98]: 1, "ab": 2, "<|endoftext|>": 3}
SMALL = {
    "encoder.json": json.dumps(SMALL_ENCODER),
    "vocab.bpe": "#version: 0.2\na b\n",
    "dict.txt": "2 90\n0 50\n1 40\n3 0\nmadeupword0000 0\n",
    "vocab.json": json.dumps(
        {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "ab": 4, "a": 5, "b": 6, "<|endoftext|>": 7, "<mask>": 8}
    ),
    "merges.txt": "#version: 0.2\r\na b\r\n",
}
FAIRSEQ, TRANSFORMERS = ("encoder.json", "vocab.bpe", "dict.txt"), ("vocab.json", "merges.txt")


def write_small(directory: Path, names: tuple[str, ...], **changed: str) -> Path:
    for name in names:
        (directory / name).write_bytes(changed.get(name, SMALL[name]).encode("utf-8", "surrogateescape"))
    return directory


@pytest.mark.parametrize("names", [FAIRSEQ, TRANSFORMERS], ids=["fairseq", "transformers"])
def test_a_small_set_of_files(tmp_path: Path, names: tuple[str, ...]) -> None:
    tokenizer = build_ofa_tokenizer(write_small(tmp_path, names))
    assert tokenizer.encode("aabb").tokens == ["a", "ab", "b"]
    assert tokenizer.encode("aabb").ids == [5, 4, 6]
    assert tokenizer.token_to_id("<code_0>") == tokenizer.token_to_id("<mask>") + 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("encoder.json", "{", r"encoder\.json: not JSON"),
        ("encoder.json", "[1]", r"encoder\.json: expected tokens and their ids"),
        ("encoder.json", '{"a": 0, "b": 0}', r"encoder\.json: two tokens have the same id"),
        ("encoder.json", "\udcff", r"encoder\.json: not UTF-8"),
        ("dict.txt", "2 90\n0 50\n9 40\n", r"dict\.txt, row 3: expected an id of encoder\.json"),
        ("dict.txt", "2 90\n2 90\n", r"dict\.txt, row 2: expected an id of encoder\.json that is new here"),
        ("dict.txt", "2\n", r"dict\.txt, row 1: .*and a count"),
        ("dict.txt", "2 90\n", r"dict\.txt: lacks 3 of the ids in encoder\.json"),
        ("vocab.bpe", "#version: 0.2\na b\nb a\n", r"vocab\.bpe, row 3: expected two tokens"),
        ("vocab.json", '{"a": 0}', r"vocab\.json: not OFA's vocabulary"),
        ("vocab.json", SMALL["vocab.json"].replace('"<mask>": 8', '"<mask>": 9'), r"the ids are not 0 to 8, each once"),
        ("vocab.json", SMALL["vocab.json"].replace("<mask>", "<task>"), r"not OFA's vocabulary: .*<mask>"),
        ("merges.txt", "a c\n", r"merges\.txt, row 1: expected two tokens"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    names = FAIRSEQ if name in FAIRSEQ else TRANSFORMERS
    with pytest.raises(BackboneError, match=problem):
        build_ofa_tokenizer(write_small(tmp_path, names, **{name: content}))


def test_added_tokens_that_contradict_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path, TRANSFORMERS)
    (tmp_path / "added_tokens.json").write_text('{"<mask>": 9}')
    with pytest.raises(BackboneError, match=r"added_tokens\.json: gives a token of vocab\.json another id"):
        build_ofa_tokenizer(tmp_path)


def test_a_tokenizer_larger_than_the_model_is_refused(files: Path) -> None:
    with pytest.raises(BackboneError, match=r"59457 tokens, but the model has 8192 embeddings"):
        load_tokenizer(files, 8192)


def test_a_directory_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"tokenizer\.json, with encoder\.json, vocab\.bpe and dict\.txt, or with"):
        load_tokenizer(tmp_path, VOCAB_SIZE)
