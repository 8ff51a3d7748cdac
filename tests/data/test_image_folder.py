"""Any folder of class folders is a data set."""

from pathlib import Path

import pytest
from PIL import Image

from fewshot.data.catalogue import load_dataset
from fewshot.data.image_folder import load_image_folder
from fewshot.data.image_set import IMAGENET_MEAN
from fewshot.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))


def save(
    path: Path, mode: str = "L", colour: int | tuple[int, ...] = 128, size: tuple[int, int] = (8, 8)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_grey_folders_stay_grey_and_nest(tmp_path: Path) -> None:
    save(tmp_path / "letters" / "Greek" / "alpha" / "2.png", colour=20)
    save(tmp_path / "letters" / "Greek" / "alpha" / "1.png", colour=10)
    save(tmp_path / "letters" / "plain" / "1.png", colour=30)
    (tmp_path / "letters" / "README.txt").write_text("not an image")
    image_set = load_dataset(str(tmp_path / "letters"))
    assert image_set.name == "letters"
    assert image_set.class_names == ("Greek/alpha", "plain")
    assert image_set.image_names == ("1.png", "2.png", "1.png")
    assert image_set.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert (image_set.mean, image_set.std) == ((0.0,), (1.0,))


def test_one_coloured_image_makes_the_set_rgb(tmp_path: Path) -> None:
    save(tmp_path / "birds" / "a" / "1.png", colour=10)
    save(tmp_path / "birds" / "b" / "1.png", mode="RGB", colour=(1, 2, 3))
    image_set = load_image_folder(tmp_path / "birds")
    assert image_set.images[:, :, 0, 0].tolist() == [[10, 10, 10], [1, 2, 3]]
    assert image_set.mean == IMAGENET_MEAN


def test_the_name_is_looked_up_in_the_data_directory(tmp_path: Path) -> None:
    save(tmp_path / "data" / "birds" / "a" / "1.png")
    assert load_dataset("birds", root=tmp_path / "data").class_names == ("a",)


def test_oblong_images_are_cut_to_their_central_square(tmp_path: Path) -> None:
    save(tmp_path / "wide" / "a" / "1.png", size=(20, 4), colour=0)
    image = Image.open(tmp_path / "wide" / "a" / "1.png")
    image.paste(200, (8, 0, 12, 4))
    image.save(tmp_path / "wide" / "a" / "1.png")
    with pytest.raises(DataError, match="images of 20x4: choose an image_size"):
        load_image_folder(tmp_path / "wide")
    assert load_image_folder(tmp_path / "wide", 2).images.tolist() == [[[[200, 200], [200, 200]]]]


def test_images_of_several_sizes_need_an_image_size(tmp_path: Path) -> None:
    save(tmp_path / "mixed" / "a" / "1.png")
    save(tmp_path / "mixed" / "a" / "2.png", size=(12, 12))
    with pytest.raises(DataError, match="8x8 to 12x12: choose an image_size"):
        load_image_folder(tmp_path / "mixed")
    assert load_image_folder(tmp_path / "mixed", 8).image_shape == (1, 8, 8)


def test_renaming_a_class_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "birds" / "a" / "1.png")
    assert load_image_folder(tmp_path / "birds").class_names == ("a",)
    (tmp_path / "birds" / "a").rename(tmp_path / "birds" / "b")
    assert load_image_folder(tmp_path / "birds").class_names == ("b",)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load_image_folder(tmp_path / "empty")
    save(tmp_path / "loose" / "1.png")
    with pytest.raises(DataError, match=r"1\.png lies in no class folder"):
        load_image_folder(tmp_path / "loose")
    save(tmp_path / "deep" / "a" / "1.png", mode="I;16")
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        load_image_folder(tmp_path / "deep")
    save(tmp_path / "broken" / "a" / "1.png")
    (tmp_path / "broken" / "a" / "2.jpg").write_text("<html>")
    with pytest.raises(DataError, match=r"a/2\.jpg is not an image that reads"):
        load_image_folder(tmp_path / "broken")


@pytest.mark.parametrize("whole", [0, 50])
def test_the_first_of_many_broken_images_are_named_and_the_others_counted(tmp_path: Path, whole: int) -> None:
    """No images at all, and such whose headers read (50 bytes) but no more."""
    for number in range(6):
        image = tmp_path / "broken" / "a" / f"{number}.png"
        save(image)
        if number:
            image.write_bytes(image.read_bytes()[:whole])
    with pytest.raises(DataError) as caught:
        load_image_folder(tmp_path / "broken")
    said = "is damaged" if whole else "is not an image that reads"
    assert str(caught.value).count(f"{said} (") == 3
    for number in (1, 2, 3):
        assert f"{tmp_path / 'broken' / 'a' / f'{number}.png'} {said} (" in str(caught.value)
    assert str(caught.value).endswith("; and 2 more: replace or remove what is damaged")
