"""The readers of published sets on small files in their formats: what a row becomes, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmpeft.datasets.medmnist import LABELS
from bmpeft.errors import BmpeftError, DataError, UsageError
from tests.datasets.files import (
    BOMB,
    STRICT,
    load,
    png,
    records,
    report,
    write_csv,
    write_lines,
    write_medmnist,
    write_tgz,
    write_xlsx,
)


def refusal(dataset: str, path: Path, task: str | None = None, **options: Any) -> str:
    with pytest.raises(BmpeftError) as caught:
        load(dataset, path, task, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


# Tables of texts


def abstracts(path: Path, n: int = 60, *, header: str = "medical_abstract", label: str | None = None) -> Path:
    rows = [[label or str(i % 5 + 1), f"Text {i}, secret."] for i in range(n)]
    return write_csv(path, [["condition_label", header], *rows])


def test_medical_abstracts(tmp_path: Path) -> None:
    path = abstracts(tmp_path / "medical_tc_test.csv")
    record = next(r for r in records(load("medical_abstracts", path)) if r.text == "Text 2, secret.")
    assert (record.task, record.choices[record.label]) == ("text_understanding", "nervous system diseases")
    names = {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}
    named = load("medical_abstracts", path, label_names=names).splits["train"][0]
    assert named.choices == ("a", "b", "c", "d", "e")
    assert "name each" in refusal("medical_abstracts", path, label_names={1: "a"})
    assert "one label only" in refusal("medical_abstracts", path, label_names={**names, 5: "a"})
    assert "row 1: there is no column 'medical_abstract'; did you mean 'medical_abstracts'" in refusal(
        "medical_abstracts", abstracts(path, header="medical_abstracts")
    )
    assert "row 2: 'condition_label' must be one of 1, 2, 3, 4, 5" in refusal(
        "medical_abstracts", abstracts(path, label="6")
    )


def test_one_abstract_with_two_labels_stays_in_one_split(tmp_path: Path) -> None:
    rows = [[str(label), f"Text {i}."] for i in range(60) for label in (1, 2)]
    path = write_csv(tmp_path / "t.csv", [["condition_label", "medical_abstract"], *rows])
    groups = [{record.group for record in split} for split in load("medical_abstracts", path).splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60


def test_meqsum_as_workbook_and_as_biomedgpt_divided_it(tmp_path: Path) -> None:
    rows = [["File", "CHQ", "Summary"], *([f"{i}.txt", f"SUBJECT: secret {i}", f"What is {i}?"] for i in range(60))]
    write_xlsx(tmp_path / "MeQSum.xlsx", rows)
    record = next(r for r in records(load("meqsum", tmp_path)) if r.id == "7.txt")
    assert (record.text, record.answers, record.task) == ("SUBJECT: secret 7", ("What is 7?",), "summarization")
    tables = tmp_path / "split"
    tables.mkdir()
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        (tables / f"{split}.tsv").write_text("".join(f'{split} "secret" {i}\tWhat?\n' for i in range(n)))
    loaded = load("meqsum", tables)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 5, "validation": 2, "test": 3}
    assert loaded.split_method == "official"
    (tables / "val.tsv").write_text("secret\n")
    assert "val.tsv, row 1: has 1 cells between tabs, expected 2" in refusal("meqsum", tables)
    write_xlsx(tmp_path / "MeQSum.xlsx", [["File", "CHQ"], ["a", "secret"]])
    assert "MeQSum.xlsx, row 1: there is no column 'Summary'" in refusal("meqsum", tmp_path)


def test_mts_dialog_has_two_tests_and_two_tasks(tmp_path: Path) -> None:
    header = ["ID", "section_header", "section_text", "dialogue"]
    names = ("TrainingSet", "ValidationSet", "TestSet-1-MEDIQA-Chat-2023", "TestSet-2-MEDIQA-Sum-2023")
    for name in names:
        rows = [[str(i), ("GENHX", "CC")[i % 2], f"{name} {i}", f"Doctor: {name}\nPatient: {i}"] for i in range(4)]
        write_csv(tmp_path / f"MTS-Dialog-{name}.csv", [header, *rows])
    loaded = load("mts_dialog", tmp_path)
    assert list(loaded.splits) == ["train", "validation", "test1", "test2"]
    assert loaded.splits["test2"][1].answers == ("TestSet-2-MEDIQA-Sum-2023 1",)
    kinds = load("mts_dialog", tmp_path, "text_understanding").splits["train"]
    assert [(r.choices, r.label, r.answers) for r in kinds[:2]] == [
        (("CC", "GENHX"), 1, None),
        (("CC", "GENHX"), 0, None),
    ]
    write_csv(tmp_path / "MTS-Dialog-TrainingSet.csv", [header, ["0", "CC", "secret", " "]])
    assert "TrainingSet.csv, row 2: 'dialogue' is empty" in refusal("mts_dialog", tmp_path)


def test_aci_bench_passes_over_the_files_about_its_files(tmp_path: Path) -> None:
    for name in ("train", "valid", "clinicalnlp_taskB_test1", "clinicalnlp_taskC_test2", "clef_taskC_test3"):
        rows = [["virtassist", f"{name}{i}", f"[doctor] {name} {i}", "NOTE"] for i in range(3)]
        write_csv(tmp_path / f"{name}.csv", [["dataset", "encounter_id", "dialogue", "note"], *rows])
        write_csv(tmp_path / f"{name}_metadata.csv", [["encounter_id"], ["x"]])
    loaded = load("aci_bench", tmp_path)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == dict.fromkeys(
        ("train", "validation", "test1", "test2", "test3"), 3
    )
    rows = [["dataset", "encounter_id", "dialogue", "note"], *[["a", "same", "secret", "secret"]] * 2]
    write_csv(tmp_path / "train.csv", rows)
    assert "train.csv, row 3: the id 'same' is already that of row 2" in refusal("aci_bench", tmp_path)


def test_mediqa_question_summaries(tmp_path: Path) -> None:
    for name in ("ValidationSet", "TestSet"):
        rows = [["q_id", "NLM Question", "Summary"], *([str(i), f"{name} {i}", "Short?"] for i in range(4))]
        write_xlsx(tmp_path / f"MEDIQA2021-Task1-{name}.xlsx", rows)
    assert {split: len(rows) for split, rows in load("mediqa2021_qs", tmp_path).splits.items()} == {
        "validation": 4,
        "test": 4,
    }
    regrouped = load("mediqa2021_qs", tmp_path, split_by="group", split={"validation": 0.0, "test": 0.4})
    assert sorted(regrouped.splits) == ["test", "train"]


def mas(root: Path, n: int = 4) -> Path:
    for name, form in (("Validation", STRICT), ("Test", STRICT)):
        directory = root / name
        directory.mkdir(exist_ok=True)
        for file, text in (
            ("x_ShortQuestions.txt", "Question"),
            ("x_MultiAbstrativeSummaries.txt", "Abstract"),
            ("x_MultiExtractiveSummaries.txt", "Extract"),
        ):
            (directory / file).write_text("".join(f"{i}||{text} secret {i}\n" for i in range(n)))
        rows = [[str(i), f"{i}_Answer{k}", f"Answer {k} secret"] for i in range(n) for k in range(2)]
        write_xlsx(directory / "x_Answers.xlsx", [["QuestionID", "AnswerID", "Answer"], *rows], form=form)
    return root


def test_mediqa_answers_are_joined_and_the_variant_chooses_the_summary(tmp_path: Path) -> None:
    record = load("mediqa2021_mas", mas(tmp_path)).splits["test"][1]
    assert record.text == "Question secret 1\nAnswer 0 secret\nAnswer 1 secret"
    assert record.answers == ("Abstract secret 1",)
    assert load("mediqa2021_mas", tmp_path, variant="extractive").splits["test"][1].answers == ("Extract secret 1",)
    assert "has no 'extractiv'; did you mean 'extractive'" in refusal("mediqa2021_mas", tmp_path, variant="extractiv")


def test_mediqa_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    directory = mas(tmp_path) / "Test"
    questions = directory / "x_ShortQuestions.txt"
    questions.write_text("0||What secret?\n77||What?\n")
    assert "x_ShortQuestions.txt, row 2: question 77 has no answers" in refusal("mediqa2021_mas", tmp_path)
    questions.write_text("0||What?\nsecret\n")
    assert "row 2: expected a key, two bars and a text" in refusal("mediqa2021_mas", tmp_path)
    (directory / "x_MultiAbstrativeSummaries.txt").write_text("3||secret\n")
    questions.write_text("0||What?\n")
    assert "row 1: question 0 has no abstractive summary" in refusal("mediqa2021_mas", tmp_path)
    questions.unlink()
    assert "expected one file *hortQuestions.txt, found 0" in refusal("mediqa2021_mas", tmp_path)


# Questions


def test_mmlu_files_have_no_header(tmp_path: Path) -> None:
    for split, n in (("dev", 5), ("val", 3), ("test", 4)):
        (tmp_path / split).mkdir()
        for subject in ("anatomy", "college_medicine"):
            rows = [[f"{subject} {split} {i}?", "w", "x", "y", "z", "ABCD"[i % 4]] for i in range(n)]
            write_csv(tmp_path / split / f"{subject}_{split}.csv", rows)
    loaded = load("mmlu", tmp_path)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 10, "validation": 6, "test": 8}
    record = loaded.splits["test"][1]
    assert (record.choices, record.label, record.meta) == (("w", "x", "y", "z"), 1, {"subject": "anatomy"})
    path = tmp_path / "dev" / "anatomy_dev.csv"
    write_csv(path, [["Q?", "w", "x", "y", "z", "E"]])
    assert "anatomy_dev.csv, row 1: 'answer' must be one of A, B, C, D" in refusal("mmlu", tmp_path)
    write_csv(path, [["Q?", "secret", "x", "A"]])
    assert "row 1: has 4 cells, but a row must have 6" in refusal("mmlu", tmp_path)


DOCUMENT = (
    '<Document id="1"><Focus>Focus {n}</Focus><QAPairs><QAPair pid="1"><Question qid="{n}-1" qtype="information">'
    "What is {n}?</Question><Answer>{answer}</Answer></QAPair></QAPairs></Document>"
)


def test_medquad_as_xml_and_as_lines(tmp_path: Path) -> None:
    source = tmp_path / "xml" / "1_CancerGov_QA"
    source.mkdir(parents=True)
    for n in range(40):
        (source / f"{n}.xml").write_text(DOCUMENT.format(n=n, answer=f"It is\n  {n}." if n % 4 else ""))
    loaded = load("medquad", tmp_path / "xml")
    assert loaded.notes == ("10 questions without an answer left out",)
    assert {r.answers[0] for r in records(loaded)} == {f"It is {n}." for n in range(40) if n % 4}
    (source / "3.xml").write_text(BOMB)
    assert "3.xml: XML with a document type or entities is refused" in refusal("medquad", tmp_path / "xml")
    assert load("medquad", tmp_path / "xml", skip_bad_rows=1).skipped_rows == 1
    row = {"id": "1", "source": "a", "focus": "F", "question": "Q?", "answer": "A."}
    rows = [{**row, "focus": f"F{i}", "question": f"Q{i}?"} for i in range(40)]
    assert len(records(load("medquad", write_lines(tmp_path / "m.jsonl", rows)))) == 40
    write_lines(tmp_path / "m.jsonl", [row, {"source": "a", "answer": "secret"}])
    assert "m.jsonl, row 2: the field 'question' is missing" in refusal("medquad", tmp_path / "m.jsonl")


def test_pubmedqa_serves_three_tasks(tmp_path: Path) -> None:
    rows = {
        str(n): {
            "QUESTION": f"Does {n}?",
            "CONTEXTS": ["c"],
            "LABELS": ["METHODS"],
            "final_decision": "yes",
            "LONG_ANSWER": f"It does {n}.",
        }
        for n in range(80)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({str(n): "yes" for n in range(20)}))
    assert load("pubmedqa", tmp_path, "text_understanding").splits["test"][0].choices == ("yes", "no", "maybe")
    summary = load("pubmedqa", tmp_path, "summarization").splits["test"][0]
    assert (summary.choices, summary.label, summary.answers) == (None, None, ("It does 0.",))
    assert "is for question_answering or text_understanding or summarization, not for captioning" in refusal(
        "pubmedqa", tmp_path, "captioning"
    )


# Images


def vqa(root: Path, **changes: Any) -> dict[str, Any]:
    (root / "images").mkdir(exist_ok=True)
    for n in range(20):
        if not (root / "images" / f"{n}.png").exists():
            (root / "images" / f"{n}.png").write_bytes(png(n))
    row = {"qid": 1, "image_name": "0.png", "question": "Is it?", "answer": "Yes", "answer_type": "CLOSED "}
    return {**row, "phrase_type": "freeform", "image_organ": "HEAD", "question_type": "PRES", **changes}


def test_vqa_rad_in_both_published_forms(tmp_path: Path) -> None:
    rows = [vqa(tmp_path, qid=n, image_name=f"{n % 20}.png") for n in range(30)]
    rows += [vqa(tmp_path, qid=100, answer=4, answer_type="open"), vqa(tmp_path, qid=101, answer="left side")]
    write_lines(tmp_path / "trainset.json", rows)
    write_lines(tmp_path / "testset.json", [vqa(tmp_path, qid=200 + n) for n in range(3)])
    loaded = load("vqa_rad", tmp_path, split={"validation": 0.0})
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 32, "test": 3}
    by_id = {record.id: record for record in records(loaded)}
    assert (by_id["0"].choices, by_id["0"].label, by_id["0"].answers) == (("yes", "no"), 0, ("Yes",))
    assert (by_id["100"].choices, by_id["100"].answers, by_id["100"].meta["answer_type"]) == (None, ("4",), "open")
    assert (by_id["101"].choices, by_id["101"].meta["answer_type"]) == (None, "closed")
    assert by_id["0"].group == "0.png"
    public = tmp_path / "VQA_RAD Dataset Public.json"
    write_lines(public, [vqa(tmp_path, qid=n, phrase_type=("freeform", "test_para")[n % 2]) for n in range(6)])
    loaded = load("vqa_rad", public, split={"validation": 0.0})
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 3, "test": 3}


def test_vqa_rad_by_image_keeps_equal_images_together(tmp_path: Path) -> None:
    rows = [vqa(tmp_path, qid=n, image_name=f"{n % 20}.png") for n in range(60)]
    (tmp_path / "images" / "19.png").write_bytes(png(0))  # the image of 0.png under another name
    write_lines(tmp_path / "trainset.json", rows[:40])
    write_lines(tmp_path / "testset.json", rows[40:])
    loaded = load("vqa_rad", tmp_path, split_by="image")
    assert loaded.split_method == "by image, seeded hash (seed 0, validation 0.1, test 0.2)"
    images = [{record.image.digest for record in split} for split in loaded.splits.values()]
    assert sum(map(len, images)) == len(set.union(*images)) == 19
    assert sum(map(len, loaded.splits.values())) == 60


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer_type": "secret"}, "'answer_type' must be OPEN or CLOSED"),
        ({"answer": ["secret"]}, "'answer' must be text or a number, not an array"),
        ({"answer": " "}, "'answer' is empty"),
        ({"image_name": "gone.png"}, "images/gone.png is not there"),
        ({"image_name": "../images/1.png"}, "leads out of the directory"),
        ({"image_name": "/etc/passwd"}, "leads out of the directory"),
        ({"image_name": "a\x00b"}, "'image_name' holds a null character"),
        ({"image_name": "a" * 5000}, "the name of the image is none of a file"),
    ],
    ids=range(8),
)
def test_a_bad_row_of_vqa_rad_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    write_lines(tmp_path / "trainset.json", [vqa(tmp_path), vqa(tmp_path, qid=2, **changes)])
    message = refusal("vqa_rad", tmp_path)
    assert "trainset.json, row 2: " in message
    assert problem in message


@pytest.mark.parametrize("channels", [None, 3])
def test_medmnist_reads_labels_and_leaves_images_where_they_are(tmp_path: Path, channels: int | None) -> None:
    path = write_medmnist(tmp_path / "pneumoniamnist_64.npz", channels=channels)
    loaded = load("medmnist", path)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 8, "validation": 3, "test": 4}
    record = loaded.splits["validation"][1]
    assert (record.choices, record.label, record.licence) == (("normal", "pneumonia"), 1, "CC BY 4.0")
    assert record.image.load().size == (28, 28)
    assert load("medmnist", path, label_names={0: "healthy", 1: "ill"}).splits["test"][0].choices == ("healthy", "ill")


def test_dermamnist_has_a_licence_of_its_own_and_labels_follow_the_flag(tmp_path: Path) -> None:
    record = load("medmnist", write_medmnist(tmp_path / "dermamnist.npz", channels=3)).splits["train"][0]
    assert (record.licence, len(record.choices)) == ("CC BY-NC 4.0", 7)
    assert len(LABELS["organsmnist"]) == 11


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("chestmnist.npz", {}, "the name begins with none of the sets bloodmnist"),
        ("retinamnist.npz", {"train_labels": np.zeros((8, 14), np.uint8)}, "several labels an image are not supported"),
        ("retinamnist.npz", {"train_labels": np.full((8, 1), 5)}, "row 1: train_labels holds 5, not 0 to 4"),
        ("retinamnist.npz", {"train_labels": np.zeros((7, 1), np.uint8)}, "train_labels must be [8, 1], not [7, 1]"),
        ("retinamnist.npz", {"val_labels": np.zeros((3, 1))}, "val_labels must be whole numbers, not float64"),
        ("retinamnist.npz", {"test_labels": ...}, "has no array test_labels"),
        ("retinamnist.npz", {"test_images": np.zeros((4, 28, 28, 28), np.uint8)}, "not uint8 [4, 28, 28, 28]"),
        ("retinamnist.npz", {"test_images": np.zeros((4, 28, 28))}, "not float64 [4, 28, 28]"),
        ("retinamnist.npz", {"extra": np.array([{"secret": 1}], dtype=object)}, "extra holds pickled objects"),
    ],
    ids=range(9),
)
def test_other_arrays_are_refused(tmp_path: Path, name: str, changes: dict[str, Any], problem: str) -> None:
    assert problem in refusal("medmnist", write_medmnist(tmp_path / name, **changes))


def hannover(root: Path, rows: list[list[str]]) -> Path:
    (root / "png").mkdir(exist_ok=True)
    for row in rows:
        (root / "png" / f"{row[1]}.png").write_bytes(png(len(row[1])))
    header = ["patient_id", "image_id", "projection", "icu_admission_offset", "icu_release_offset"]
    return write_csv(root / "data.csv", [header, *rows])


def test_hannover_projection_and_intensive_care(tmp_path: Path) -> None:
    stays = {
        "before": ("-9", "-2"),
        "during": ("-3.0", "4.0"),
        "open": ("0", ""),
        "after": ("2", "5"),
        "none": ("", ""),
    }
    rows = [[f"p{i}", f"{name}{i}", "ap", *stay] for i in range(8) for name, stay in stays.items()]
    hannover(tmp_path, rows)
    projection = records(load("hannover_cxr", tmp_path))
    assert {(record.choices, record.label) for record in projection} == {(("ap", "pa"), 0)}
    care = {
        r.id.rstrip("0123456789"): r.choices[r.label] for r in records(load("hannover_cxr", tmp_path, variant="icu"))
    }
    assert care == {"before": "no", "during": "yes", "open": "yes", "after": "no", "none": "no"}
    hannover(tmp_path, [["p", "x", "lateral", "", ""]])
    assert "data.csv, row 2: 'projection' must be one of ap, pa" in refusal("hannover_cxr", tmp_path)
    hannover(tmp_path, [["p", "x", "ap", "secret", ""]])
    assert "'icu_admission_offset' must be a number of days" in refusal("hannover_cxr", tmp_path, variant="icu")


def test_covid_notes_as_the_owners_table_and_as_lines(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    header = ["patientid", "license", "clinical_notes", "filename", "view"]
    rows = []
    for n in range(40):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(png(n))
        rows.append([str(n // 2), "CC BY", f"Note {n}." if n % 4 else "", f"{n}.jpg", "PA"])
    write_csv(tmp_path / "metadata.csv", [header, *rows])
    loaded = load("covid_cxr_notes", tmp_path)
    assert loaded.notes == ("10 images without a note or a licence left out",)
    assert {(r.task, r.licence, len(r.answers)) for r in records(loaded)} == {("captioning", "CC BY", 1)}
    (tmp_path / "images" / "1.jpg").unlink()
    assert "metadata.csv, row 3: the image " in refusal("covid_cxr_notes", tmp_path)
    assert load("covid_cxr_notes", tmp_path, skip_bad_rows=1).skipped_rows == 1


def test_iu_xray_from_archive_and_directory(tmp_path: Path) -> None:
    reports = {f"ecgen-radiology/{n}.xml": report(n) for n in range(40)}
    reports["ecgen-radiology/90.xml"] = report(90, findings=None)
    reports["ecgen-radiology/91.xml"] = report(91, impression=None, images=0)
    reports["ecgen-radiology/92.xml"] = report(92, impression=None, findings=None)
    path = write_tgz(tmp_path / "NLMCXR_reports.tgz", reports)
    loaded = load("iu_xray", path)
    assert (len(records(loaded)), loaded.notes) == (40, ("3 reports without findings or impression left out",))
    assert {(r.text, r.answers, r.image) for r in records(loaded)} == {("Clear.", ("Normal.",), None)}
    (tmp_path / "ecgen-radiology").mkdir()
    for name, text in reports.items():
        (tmp_path / name).write_text(text)
    assert load("iu_xray", tmp_path / "ecgen-radiology").split_digests == loaded.split_digests

    images = tmp_path / "NLMCXR_png"
    images.mkdir()
    for n in (*range(40), 90):
        for i in range(2):
            (images / f"CXR{n}_{i}.png").write_bytes(png(n))
    captions = load("iu_xray", path, "captioning")
    assert len(records(captions)) == 82
    assert captions.notes == (
        "1 reports without an image left out",
        "1 reports without findings and impression left out",
    )
    by_id = {record.id: record for record in records(captions)}
    assert (by_id["CXR3_1"].answers, by_id["CXR3_1"].group) == (("Normal. Clear.",), "CXR3")
    assert by_id["CXR90_0"].answers == ("Normal.",)
    (images / "CXR3_1.png").unlink()
    assert "3.xml: the image " in refusal("iu_xray", path, "captioning")


@pytest.mark.parametrize("content", [BOMB, "<eCitation><secret", "<eCitation/>"], ids=["bomb", "broken", "other"])
def test_a_bad_report_is_named_by_its_place_in_the_archive(tmp_path: Path, content: str) -> None:
    reports = {f"d/{n}.xml": report(n) for n in range(40)}
    path = write_tgz(tmp_path / "r.tgz", {**reports, "d/bad.xml": content})
    assert f"{path}/d/bad.xml: " in refusal("iu_xray", path)
    assert load("iu_xray", path, skip_bad_rows=1).skipped_rows == 1


# BiomedGPT's tables


def tsv(path: Path, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


IMAGE = base64.b64encode(png(3)).decode()


def test_biomedgpt_tables_of_questions(tmp_path: Path) -> None:
    rows = [
        (n, n // 2, f"Is it {n}?", "0.6|!+no&&1.0|!+Yes" if n % 2 else "1.0|!+left lobe", "", IMAGE) for n in range(60)
    ]
    loaded = load("biomedgpt_tsv", tsv(tmp_path / "t.tsv", rows), "visual_question_answering", licence="CC0")
    by_question = {record.question: record for record in records(loaded)}
    closed, free = by_question["Is it 7?"], by_question["Is it 8?"]
    assert (closed.answers, closed.choices, closed.label, closed.group) == (("Yes", "no"), ("yes", "no"), 0, "3")
    assert (free.answers, free.choices, free.meta["answer_type"]) == (("left lobe",), None, "open")
    assert (closed.image.load().size, closed.licence, loaded.licence) == ((12, 12), "CC0", "CC0")
    tsv(tmp_path / "t.tsv", [(1, 1, "Q?", "secret", "", IMAGE)])
    assert "row 1: the answers must be written as 1.0|!+answer" in refusal(
        "biomedgpt_tsv", tmp_path / "t.tsv", "visual_question_answering"
    )


def test_biomedgpt_tables_of_captions_labels_summaries_and_entailment(tmp_path: Path) -> None:
    def of(task: str, rows: list[tuple[object, ...]], **options: Any) -> Any:
        path = tsv(tmp_path / "test.tsv", rows)
        return load("biomedgpt_tsv", path.parent, task, **options).splits["test"]

    assert of("captioning", [(1, 7, "one && two", "", IMAGE)])[0].answers == ("one", "two")
    labels = of("image_classification", [(IMAGE, 10, "ten"), (IMAGE, 9, "nine"), (IMAGE, 10, "ten")])
    assert [(r.choices, r.label) for r in labels] == [(("nine", "ten"), 1), (("nine", "ten"), 0), (("nine", "ten"), 1)]
    assert of("summarization", [("long", "short")])[0].answers == ("short",)
    names = {0: "neutral", 1: "entailment", 2: "contradiction"}
    pairs = of("text_understanding", [("One.", "Two.", 2, "g:One.")], label_names=names)
    assert (pairs[0].text, pairs[0].question, pairs[0].choices[pairs[0].label]) == ("One.", "Two.", "contradiction")
    with pytest.raises(UsageError, match=r"data.label_names must say what they mean, for MedNLI \{0: neutral"):
        of("text_understanding", [("One.", "Two.", 2, "")])
    with pytest.raises(DataError, match=r"test.tsv, row 2: the label has another name here"):
        of("image_classification", [(IMAGE, 1, "one"), (IMAGE, 1, "uno")])
    with pytest.raises(DataError, match=r"test.tsv, row 1: the image is empty"):
        of("image_classification", [("", 1, "one")])
    with pytest.raises(DataError, match=r"test.tsv, row 1: .*base64"):
        of("image_classification", [("%%%", 1, "one")])
    assert "BiomedGPT has no tables for question_answering" in refusal("biomedgpt_tsv", tmp_path, "question_answering")


@pytest.mark.parametrize(
    "write",
    [
        lambda p: ("meqsum", write_xlsx(p / "w.xlsx", [["File", "CHQ", "Summary"]])),
        lambda p: ("medical_abstracts", abstracts(p / "t.csv", 0)),
        lambda p: ("medquad", write_lines(p / "m.jsonl", [{"source": "a", "question": "Q?", "answer": ""}])),
        lambda p: ("hannover_cxr", hannover(p, [])),
        lambda p: ("iu_xray", write_tgz(p / "r.tgz", {"1.xml": report(1, findings="")})),
    ],
    ids=["meqsum", "medical_abstracts", "medquad", "hannover_cxr", "iu_xray"],
)
def test_files_without_a_usable_row_are_refused(tmp_path: Path, write: Callable[[Path], tuple[str, Path]]) -> None:
    dataset, path = write(tmp_path)
    assert "holds no rows" in refusal(dataset, path)
