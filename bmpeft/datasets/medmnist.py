"""MedMNIST: small medical images of one kind, with one label each; `{flag}.npz` or `{flag}_64.npz` to `_224.npz`.

The file's name begins with the flag, such as `retinamnist`, which decides the names of the labels and the
licence. Arrays are `{train,val,test}_images`, uint8 [N, H, W] or [N, H, W, 3], and `_labels` [N, 1]. Only the
labels are read here; an image is read when it is needed. ChestMNIST (several labels an image) and the
three-dimensional sets are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.arrays import ArrayHeader, array_headers, read_small_array
from bmpeft.datasets.labels import published_names
from bmpeft.datasets.reading import Reading, Splits
from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError
from bmpeft.records import Record

if TYPE_CHECKING:
    from bmpeft.images import NpzImage

INFO = DatasetInfo(
    name="medmnist",
    title="MedMNIST v2",
    task="image_classification",
    licence="CC BY 4.0 (DermaMNIST: CC BY-NC 4.0)",
    files="the .npz file of one set, 28 to 224 pixels",
    source="zenodo.org/records/10519652",
    reference="Yang et al. 2023, Scientific Data 10:41",
    group="image",
    options=("label_names",),
)
SPLITS = {"train": "train", "val": "validation", "test": "test"}
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)  # fmt: skip
LABELS: Mapping[str, tuple[str, ...]] = {
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        "lymphocyte", "monocyte", "neutrophil", "platelet",
    ),
    "breastmnist": ("malignant", "normal, benign"),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
}  # fmt: skip
LICENCES = {"dermamnist": "CC BY-NC 4.0"}
LABEL = "label"


def read(reading: Reading) -> LoadedDataset:
    """Read a set of MedMNIST; see `bmpeft.datasets.base.Reader`."""
    path = reading.path
    if path.is_dir():
        raise DataError(path, f"is a directory; {INFO.title} needs {INFO.files}")
    headers = array_headers(path, INFO)
    flag = next((flag for flag in LABELS if path.name.startswith(flag)), None)
    if flag is None:
        raise DataError(path, f"the name begins with none of the sets {', '.join(LABELS)}")
    names = published_names(reading, {str(number): name for number, name in enumerate(LABELS[flag])})
    splits: Splits = {}
    for key, split in SPLITS.items():
        if f"{key}_images" in headers:
            _check(path, key, headers)
            splits[split] = reading.records(_rows(path, key), partial(_record, reading, names, flag, split))
    if not splits:
        raise DataError(path, "has no array train_images, val_images or test_images")
    return reading.finish(splits)


def _check(path: Path, key: str, headers: Mapping[str, ArrayHeader]) -> None:
    images, labels = headers[f"{key}_images"], headers.get(f"{key}_labels")
    shape = images.shape
    if images.dtype != "uint8" or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise DataError(path, f"{key}_images must be uint8 [N, H, W] or [N, H, W, 3], not {images.dtype} {list(shape)}")
    if labels is None:
        raise DataError(path, f"has no array {key}_labels")
    if labels.shape not in ((shape[0],), (shape[0], 1)):
        problem = "; several labels an image are not supported" if labels.shape[:1] == shape[:1] else ""
        raise DataError(path, f"{key}_labels must be [{shape[0]}, 1], not {list(labels.shape)}{problem}")
    if not labels.dtype.startswith(("uint", "int")):
        raise DataError(path, f"{key}_labels must be whole numbers, not {labels.dtype}")


def _rows(path: Path, key: str) -> Iterator[Row]:
    from bmpeft.images import NpzImage

    for i, label in enumerate(read_small_array(path, f"{key}_labels").reshape(-1).tolist()):
        yield Row(path, i + 1, {LABEL: str(label), "image": NpzImage(path, f"{key}_images", i)})


def _record(reading: Reading, names: dict[str, str], flag: str, split: str, row: Row) -> Record:
    image: NpzImage = row.values["image"]
    label = row.values[LABEL]
    if label not in names:
        raise row.error(f"{image.key.removesuffix('images')}labels holds {label}, not 0 to {len(names) - 1}")
    identity = f"{flag}-{split}-{image.row}"
    return Record(
        id=reading.identity(row, identity, ""),
        task=reading.task,
        split=split,
        group=identity,
        image=image,
        choices=tuple(names.values()),
        label=list(names).index(label),
        licence=LICENCES.get(flag, "CC BY 4.0"),
    )
