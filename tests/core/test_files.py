import os
import stat

import pytest

from mechkit.core.files import write_atomic
from mechkit.core.progress import progress, showing


@pytest.mark.parametrize(("data", "raw"), [("héllo", "héllo".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_are_written_whole(tmp_path, data, raw):
    path = write_atomic(tmp_path / "a.txt", data)
    assert path.read_bytes() == raw
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in (tmp_path / "plain", write_atomic(tmp_path / "b", "x"))}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["replace", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, step):
    path = write_atomic(tmp_path / "a.txt", "old")

    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"mechkit.core.files.os.{step}", fail)
        with pytest.raises(type(error)):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_errors_name_the_path_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"cannot write '.*no/a.txt': there is no folder '.*no'; create it"):
        write_atomic(tmp_path / "no" / "a.txt", "x")
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file inside it"):
        write_atomic(tmp_path, "x")

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mechkit.core.files.tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot write '.*a.txt': Permission denied; choose a folder"):
        write_atomic(tmp_path / "a.txt", "x")


def test_progress_is_plain_iteration_until_a_bar_is_shown():
    assert list(progress(iter([1, 2]), "adding")) == [1, 2]
    told = []
    with showing(lambda items, label, total: told.append((label, total)) or items):
        assert sum(progress([1, 2], "adding")) == 3
        assert sum(progress(iter([1, 2]), "streaming", total=2)) == 3
        assert sum(progress(iter([1, 2]), "unknown")) == 3
    assert told == [("adding", 2), ("streaming", 2), ("unknown", None)]
    with pytest.raises(RuntimeError), showing(lambda items, label, total: told.append(label) or items):
        raise RuntimeError
    assert list(progress([1], "after")) == [1]
    assert "after" not in told
