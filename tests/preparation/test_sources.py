"""Archives, tables and paths that are not to be trusted."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.preparation import sources
from medvill_pl.preparation.sources import find, find_images, inside, read_csv, read_members, unpack

Members = dict[str, bytes]


def write_tgz(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_400_000_000
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name, (2014, 5, 13, 16, 53, 20)), content)
    return path


WRITERS = pytest.mark.parametrize(("write", "name"), [(write_tgz, "a.tgz"), (write_zip, "a.zip")], ids=["tgz", "zip"])
Write = Callable[[Path, Members], Path]


@WRITERS
def test_members_are_read_without_writing_a_file(write: Write, name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / name, {"a/1.xml": b"one", "a/2.png": b"two", "./b/3.xml": b"three"})
    members = list(read_members(archive, lambda path: path.endswith(".xml")))
    assert members == [("a/1.xml", 1_400_000_000, b"one"), ("./b/3.xml", 1_400_000_000, b"three")]
    assert list(tmp_path.iterdir()) == [archive]


@WRITERS
@pytest.mark.parametrize("bad", ["../x.xml", "/etc/x.xml", "a/../../x.xml", "C:/x.xml", "..\\x.xml"])
def test_path_that_leaves_the_archive_is_refused(bad: str, write: Write, name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / name, {"a.xml": b"one", bad: b"two"})
    with pytest.raises(ValueError, match=r"a\.(tgz|zip) is not to be trusted: the path .* leaves the data folder"):
        list(read_members(archive, lambda _: True))
    with pytest.raises(ValueError, match="leaves the data folder"):
        unpack(archive, tmp_path / "unpacked" / "here", lambda _: True)
    assert sorted(path.name for path in tmp_path.rglob("*.xml")) == ["a.xml"]


@WRITERS
def test_member_that_is_too_large_is_refused(write: Write, name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / name, {"bomb.xml": bytes(5_000_000)})
    with pytest.raises(ValueError, match=r"bomb\.xml has more than 1,000,000 bytes"):
        list(read_members(archive, lambda _: True, 1_000_000))
    assert next(iter(read_members(archive, lambda _: True, 5_000_000)))[2] == bytes(5_000_000)


def test_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a.xml": bytes(2000)})
    claimed, real = (2).to_bytes(4, "little"), (2000).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(real, claimed))
    with pytest.raises(ValueError, match=r"broken archive|not to be trusted"):
        list(read_members(archive, lambda _: True, 1000))


@WRITERS
def test_broken_archive_is_named(write: Write, name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / name, {"a.xml": bytes(range(256)) * 40})
    for content in (archive.read_bytes()[:-60], b"", b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is a broken archive"):
            list(read_members(archive, lambda _: True))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind!r}.xml")
            info.type, info.linkname = kind, str(tmp_path / "secret.xml")
            tar.addfile(info)
    assert list(read_members(tmp_path / "a.tar", lambda _: True)) == []


@WRITERS
def test_unpacking_goes_on_where_it_stopped(write: Write, name: str, tmp_path: Path) -> None:
    members = {f"images/{number}.png": bytes([number]) * 9 for number in range(5)} | {"images/no.txt": b"no"}
    archive, folder = write(tmp_path / name, members), tmp_path / "images"
    unpack(archive, folder, lambda base: base in ("0.png", "1.png"))
    (folder / ".2.png.tmp").write_bytes(b"half")
    stamps = {path.name: path.stat().st_ino for path in folder.glob("*.png")}
    unpack(archive, folder, lambda base: base.endswith(".png"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        f"{number}.png": bytes([number]) * 9 for number in range(5)
    }
    assert {path.stat().st_mtime for path in folder.iterdir()} == {1_400_000_000}
    assert {path.name: path.stat().st_ino for path in folder.iterdir()}.items() >= stamps.items()


@pytest.mark.parametrize("bad", ["", "/a", "..", "a/../b", "../a", "a\\..\\b", "C:\\a", "a\0b", "\\a"])
def test_path_that_leaves_its_folder_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="leaves the data folder"):
        inside(Path("root"), bad)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(["..", ".", "/", "\\", "a", ":", " "])).map("".join)))
def test_what_is_joined_stays_inside(relative: str) -> None:
    root = Path("/data/root")
    try:
        joined = inside(root, relative)
    except ValueError:
        return
    assert Path(*joined.parts).is_relative_to(root)
    assert ".." not in joined.parts


def test_things_are_found_in_the_folder_or_one_below(tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "b.csv").touch()
    (tmp_path / "sub" / "deep" / "c.csv").touch()
    assert find(tmp_path, ["a.csv", "b.*"], "a publisher") == tmp_path / "sub" / "b.csv"
    with pytest.raises(FileNotFoundError, match=r"has no a\.csv \(or c\.csv\): get it from a publisher"):
        find(tmp_path, ["a.csv", "c.csv"], "a publisher")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find(tmp_path / "none", ["a.csv"], "a publisher")


def test_images_are_found_as_a_folder_or_an_archive(tmp_path: Path) -> None:
    (tmp_path / "images.rar").touch()
    with pytest.raises(FileNotFoundError, match=r"images\.rar is neither a folder of images nor an archive"):
        find_images(tmp_path, "CXR*.png", ["images*"], "a publisher")
    (tmp_path / "images.rar").rename(tmp_path / "images.tgz")
    assert find_images(tmp_path, "CXR*.png", ["images*"], "a publisher") == tmp_path / "images.tgz"
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "CXR1.png").touch()
    assert find_images(tmp_path, "CXR*.png", ["images*"], "a publisher") == tmp_path / "png"


def test_table_is_read_packed_or_not(tmp_path: Path) -> None:
    content = "\ufeffa,b\r\n1,“two”\r\n".encode()
    (tmp_path / "t.csv").write_bytes(content)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content))
    for name in ("t.csv", "t.csv.gz"):
        assert list(read_csv(tmp_path / name, ("a", "b"))) == [{"a": "1", "b": "“two”"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "it has no column 'c'"),
        (b"", "it has no column 'a'"),
        (b"a,b,c\n1,2\n", "line 2 has another number of cells"),
        (b"a,b,c\n1,2,3,4\n", "line 2 has another number of cells"),
        (b"a,b,c\n1,2,\xff\n", "utf-8"),
        (b'a,b,c\n1,2,"' + b"x" * 200_000 + b'"\n', "field larger than field limit"),
    ],
)
def test_broken_table_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content))
    for name in ("t.csv", "t.csv.gz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a table: .*{message}"):
            list(read_csv(tmp_path / name, ("a", "b", "c")))


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", gzip.compress(b"a,b\n" + bytes(range(48, 90)) * 99)[:-20]], ids=["plain", "cut"]
)
def test_broken_gzip_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv\.gz cannot be read as a table"):
        list(read_csv(tmp_path / "t.csv.gz", ("a",)))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_no_bytes_make_the_table_reader_crash(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(content)
    try:
        rows = list(read_csv(path, ("a",)))
    except ValueError:
        return
    assert all("a" in row for row in rows)


def test_limits_are_those_of_the_documentation() -> None:
    assert (sources.MAX_TEXT, sources.MAX_IMAGE) == (10_000_000, 500_000_000)
