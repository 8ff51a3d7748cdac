"""A check decodes anew and says what is not as it should be."""

from pathlib import Path

import pytest
from PIL import Image

from fewshot.data import check as checking
from fewshot.data.check import check_dataset
from fewshot.data.image_folder import load_image_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "birds"
    for i in range(10):
        (folder / f"class{i}").mkdir(parents=True)
        Image.new("L", (4, 4), i).save(folder / f"class{i}" / "1.png")
    return folder


def test_folder_is_counted_and_split(folder: Path) -> None:
    report = check_dataset(str(folder))
    assert (report.name, report.classes, report.images, report.image_size) == ("birds", 10, 10, 4)
    assert report.splits == {"fraction": {"train": 6, "val": 2, "test": 2}}
    assert report.digest == load_image_folder(folder).digest
    assert report.problems == ()


def test_counts_and_pixels_are_held_against_what_is_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = load_image_folder(folder)
    dataset = checking.DATASETS["omniglot"]
    monkeypatch.setitem(
        checking.DATASETS,
        "omniglot",
        type(dataset)(**{**vars(dataset), "load": lambda root, size, rebuild: impostor}),
    )
    problems = check_dataset("omniglot", folder).problems
    assert problems[0] == "10 classes and 10 images, not 1,623 and 32,460"
    assert problems[1].startswith("the pixels are not the published ones")
    monkeypatch.setitem(checking.KNOWN_DIGESTS, "omniglot", {impostor.digest: "a known copy"})
    report = check_dataset("omniglot", folder)
    assert (report.copy, len(report.problems)) == ("a known copy", 1)


def test_pixels_that_changed_since_they_were_decoded_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_set = load_image_folder(folder)
    image_set.images[3] = 77
    monkeypatch.setattr(checking, "load_image_folder", lambda place, image_size, rebuild: image_set)
    (problem,) = check_dataset(str(folder)).problems
    assert "not those that were decoded" in problem
