"""Nothing is fetched unasked, in part, or from the wrong place."""

import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from fewshot.data import catalogue, obtain, omniglot
from fewshot.data.catalogue import DATASETS, list_datasets, load_dataset
from fewshot.data.obtain import download, get_dataset
from fewshot.errors import DataError


def archive_of(part: str) -> bytes:
    buffer, png = io.BytesIO(), io.BytesIO()
    Image.new("1", (105, 105), 1).save(png, "PNG")
    with zipfile.ZipFile(buffer, "w") as archive:
        for drawer in range(2):
            archive.writestr(f"{part}/Alphabet_of_{part}/character01/0001_{drawer:02d}.png", png.getvalue())
    return buffer.getvalue()


ARCHIVES = {f"{part}.zip": archive_of(part) for part in ("images_background", "images_evaluation")}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ARCHIVES and ranges of them; breaks off after `break_after` bytes, or sends a web page."""

    break_after: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    html: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        content = b"<html>please log in</html>" if self.html else ARCHIVES[self.path.lstrip("/")]
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if self.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.break_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("break_after", None), ("ranges", True), ("html", False), ("asked", [])):
        monkeypatch.setattr(Handler, name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(omniglot, "CLASSES", {"images_background": 1, "images_evaluation": 1})
    monkeypatch.setattr(omniglot, "DRAWERS", 2)


@pytest.fixture
def publisher(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = {f"{server}/{name}": hashlib.md5(content).hexdigest() for name, content in ARCHIVES.items()}
    monkeypatch.setattr(obtain, "DOWNLOADS", {"omniglot": downloads})


BACKGROUND = "images_background.zip"
MD5 = hashlib.md5(ARCHIVES[BACKGROUND]).hexdigest()


@pytest.mark.usefixtures("publisher")
def test_download_says_what_it_is_before_it_starts(tmp_path: Path) -> None:
    said: list[tuple[str, bool]] = []
    places = get_dataset(
        "omniglot", tmp_path / "data", say=lambda line: said.append((line, bool(Handler.asked)))
    )
    before = " ".join(line for line, asked in said if not asked)
    for fact in ("1,623 classes", omniglot.SOURCE, "licence: MIT", "16 MB"):
        assert fact in before
    assert [place.name for place in places] == list(ARCHIVES)
    assert [place.read_bytes() for place in places] == list(ARCHIVES.values())
    assert sorted(path.name for path in (tmp_path / "data" / "omniglot").iterdir()) == sorted(ARCHIVES)
    asked = len(Handler.asked)
    get_dataset("omniglot", tmp_path / "data", say=lambda line: None)
    assert len(Handler.asked) == asked == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_goes_on(
    ranges: bool, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / BACKGROUND
    monkeypatch.setattr(Handler, "ranges", ranges)
    monkeypatch.setattr(Handler, "break_after", 100)
    with pytest.raises(DataError, match=r"broke off .*run the same command again"):
        download(f"{server}/{BACKGROUND}", MD5, target)
    assert not target.exists()
    monkeypatch.setattr(Handler, "break_after", None)
    download(f"{server}/{BACKGROUND}", MD5, target)
    assert Handler.asked == ["", "bytes=100-"]
    assert target.read_bytes() == ARCHIVES[BACKGROUND]
    assert [path.name for path in tmp_path.iterdir()] == [BACKGROUND]


def test_whole_part_is_only_renamed(server: str, tmp_path: Path) -> None:
    target = tmp_path / BACKGROUND
    target.with_name(f"{BACKGROUND}.part").write_bytes(ARCHIVES[BACKGROUND])
    download(f"{server}/{BACKGROUND}", MD5, target)
    assert target.read_bytes() == ARCHIVES[BACKGROUND]


def test_html_page_is_refused(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "html", True)
    with pytest.raises(DataError, match="sent an HTML page in place of the archive"):
        download(f"{server}/{BACKGROUND}", MD5, tmp_path / BACKGROUND)
    assert not list(tmp_path.iterdir())


def test_other_content_is_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its MD5 differs.*--from PATH"):
        download(f"{server}/{BACKGROUND}", "0" * 32, tmp_path / BACKGROUND)
    assert not list(tmp_path.iterdir())


def test_no_server_is_one_clear_line(server: str, tmp_path: Path) -> None:
    port = int(server.rpartition(":")[2])
    unused = port - 1 if port > 1025 else port + 1
    with pytest.raises(DataError, match="broke off"):
        download(f"http://127.0.0.1:{unused}/{BACKGROUND}", MD5, tmp_path / BACKGROUND)


def test_data_directory_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write to .*--data"):
        download(f"{server}/{BACKGROUND}", MD5, tmp_path / "file" / BACKGROUND)


def write_source(folder: Path) -> Path:
    folder.mkdir()
    for name, content in ARCHIVES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("point", [lambda folder: folder, lambda folder: folder / BACKGROUND])
def test_what_the_user_has_is_copied(point: Callable[[Path], Path], tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    get_dataset("omniglot", tmp_path / "data", source_path=point(source), say=lambda line: None)
    assert len(load_dataset("omniglot", tmp_path / "data", 28).class_names) == 2
    assert sorted(path.name for path in source.iterdir()) == sorted(ARCHIVES)


def test_folders_that_the_user_has_are_copied(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    for name in ARCHIVES:
        with zipfile.ZipFile(source / name) as archive:
            archive.extractall(tmp_path / "unpacked")
    get_dataset("omniglot", tmp_path / "data", source_path=tmp_path / "unpacked", say=lambda line: None)
    assert (tmp_path / "data" / "omniglot" / "images_background").is_dir()


def test_damaged_source_is_not_copied(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (source / BACKGROUND).write_bytes(ARCHIVES[BACKGROUND][:-50])
    with pytest.raises(DataError, match="cut short"):
        get_dataset("omniglot", tmp_path / "data", source_path=source, say=lambda line: None)
    assert not (tmp_path / "data").exists()


def test_mini_imagenet_explains_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded: .*no open address.*--from PATH"):
        get_dataset("mini_imagenet", tmp_path, say=lambda line: None)


def test_unknown_dataset_lists_what_there_is(tmp_path: Path) -> None:
    for ask in (get_dataset, load_dataset):
        with pytest.raises(
            DataError, match=r"'omniglt': did you mean 'omniglot'\? there is cifar_fs, cub, fc100, glyphs"
        ):
            ask("omniglt", tmp_path)  # type: ignore[operator]


def test_the_published_addresses_and_digests() -> None:
    files = {
        name: {a.rpartition("/")[2]: md5 for a, md5 in obtain.DOWNLOADS[name].items()}
        for name in obtain.DOWNLOADS
    }
    cifar100 = {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
    assert files == {
        "cifar_fs": cifar100,
        "fc100": cifar100,
        "cub": {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
        "omniglot": {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        },
    }


def test_what_is_downloaded_is_what_is_looked_for(tmp_path: Path) -> None:
    """Every address ends in a file name that its reader finds."""
    for name, addresses in obtain.DOWNLOADS.items():
        (tmp_path / name / name).mkdir(parents=True)
        targets = [tmp_path / name / name / address.rpartition("/")[2] for address in addresses]
        for target in targets:
            target.touch()
        assert list(DATASETS[name].find(tmp_path / name)) == targets


def test_list_says_what_is_there(tmp_path: Path) -> None:
    rows = {row.dataset.name: row for row in list_datasets(tmp_path)}
    assert set(rows) == set(DATASETS) == set(catalogue.DATASETS)
    assert not rows["omniglot"].found
    assert "fewshot data get omniglot" in rows["omniglot"].where
    write_source(tmp_path / "omniglot")
    rows = {row.dataset.name: row for row in list_datasets(tmp_path)}
    assert rows["omniglot"].found
    assert str(tmp_path / "omniglot" / BACKGROUND) in rows["omniglot"].where


def test_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewshot.data.locations import cache_root, data_root

    monkeypatch.setenv("FEWSHOT_DATA", os.fspath(tmp_path / "variable"))
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("FEWSHOT_DATA")
    assert data_root().name == "datasets"
    assert cache_root() == tmp_path / "cache"
