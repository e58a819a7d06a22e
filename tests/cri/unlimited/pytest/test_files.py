import fcntl
import hashlib
import mmap
import os
import tarfile

import pytest


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65536, 1 << 20, 10_000_001])
def test_file_has_what_was_written(tmp_path, size):
    data = bytes(n % 251 for n in range(min(size, 65536))) * (size // 65536 + 1)
    path = tmp_path / "file"
    path.write_bytes(data[:size])
    assert path.stat().st_size == size
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data[:size]).digest()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o4755, 0o1777, 0o000])
def test_mode_of_a_file_is_what_was_set(tmp_path, mode):
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("name", ["plain", "with space", "ümläut", "line\nbreak", "n" * 255, "-x"])
def test_name_of_a_file_is_in_the_listing(tmp_path, name):
    (tmp_path / name).touch()
    assert os.listdir(tmp_path) == [name]


def test_rename_replaces_a_file(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").rename(tmp_path / "old")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "new")]


def test_open_file_outlives_its_name(tmp_path):
    with open(tmp_path / "file", "w+") as file:
        file.write("still here")
        os.unlink(tmp_path / "file")
        file.seek(0)
        assert file.read() == "still here"


def test_links_share_one_file(tmp_path):
    (tmp_path / "file").write_text("one")
    os.link(tmp_path / "file", tmp_path / "hard")
    os.symlink("file", tmp_path / "soft")
    (tmp_path / "hard").write_text("two")
    assert (tmp_path / "soft").read_text() == "two"
    assert (tmp_path / "file").stat().st_nlink == 2


def test_mapping_that_is_shared_changes_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(mmap.PAGESIZE * 4))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[mmap.PAGESIZE : mmap.PAGESIZE + 5] = b"hello"
        mapping.flush()
    assert path.read_bytes()[mmap.PAGESIZE : mmap.PAGESIZE + 5] == b"hello"


def test_lock_keeps_a_second_process_out(tmp_path):
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            with open(tmp_path / "lock", "w") as again:
                try:
                    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os._exit(1)
                except BlockingIOError:
                    os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)


def test_archive_of_200_files_unpacks_to_the_same(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for n in range(200):
        path = source / str(n % 10) / f"file-{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{n}\n" * n)
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        archive.add(source, arcname=".")
    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        archive.extractall(target)
    tree = lambda root: {p.relative_to(root): p.read_text() for p in root.rglob("file-*")}
    assert len(tree(target)) == 200
    assert tree(source) == tree(target)


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_database_sums_what_was_inserted(database, count):
    with database:
        rows = ((n, n * n) for n in range(count))
        database.executemany("insert into numbers values (?, ?)", rows)
    found = database.execute("select count(*), sum(square) from numbers").fetchone()
    assert found == (count, sum(n * n for n in range(count)))


def test_database_takes_a_failed_transaction_back(database):
    with pytest.raises(ZeroDivisionError), database:
        database.execute("insert into numbers values (1, 1)")
        1 / 0
    assert database.execute("select count(*) from numbers").fetchone() == (0,)
