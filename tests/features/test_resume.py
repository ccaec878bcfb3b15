"""A scan that was stopped anywhere goes on, loses nothing, counts nothing twice, and mixes nothing."""

import errno
import json
import os
import random
import signal
import time

import pytest
import torch

from mechkit.features import FeatureIndex, parts, scan
from tests.features.tiny import contents, tiny_sae, token_rows

KEPT = {"top": 3, "sample": 6, "window": (2, 1), "cofiring": 200, "keep": "all", "batch": 48, "shard": 60}


def in_a_process(work):
    """The id of a forked process that does `work` on one thread."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def test_killed_at_five_random_moments_it_gives_the_undisturbed_index(model, tmp_path):
    rows, sae, draw = token_rows(200), tiny_sae(), random.Random(0)
    scan(model, sae, rows[:5], tmp_path / "first", **KEPT)  # imports what the processes below share
    assert os.waitpid(in_a_process(lambda: scan(model, sae, rows, tmp_path / "whole", **KEPT)), 0)[1] == 0
    for n_parts in sorted(draw.sample(range(15), 5)):  # of 22
        child = in_a_process(lambda: scan(model, sae, rows, tmp_path / "killed", **KEPT))
        while len(list(tmp_path.glob("killed/parts/*.safetensors"))) < n_parts:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert list(tmp_path.glob("killed/parts/*.safetensors"))
    assert not (tmp_path / "killed/manifest.json").exists()
    assert os.waitpid(in_a_process(lambda: scan(model, sae, rows, tmp_path / "killed", **KEPT)), 0)[1] == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.fixture
def whole(model, tmp_path):
    scan(model, tiny_sae(), token_rows(), tmp_path / "whole", **KEPT)
    return contents(tmp_path / "whole")


@pytest.fixture
def stopped(model, tmp_path, monkeypatch):
    """A scan that was interrupted after its second part."""
    write, n = parts.write_part, []

    def interrupt(*args):
        if len(n) == 2:
            raise KeyboardInterrupt
        n.append(write(*args))

    monkeypatch.setattr(parts, "write_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)
    monkeypatch.setattr(parts, "write_part", write)
    return tmp_path / "index"


def test_what_was_scanned_is_not_scanned_again(model, stopped, whole, monkeypatch):
    write, numbers = parts.write_part, []
    monkeypatch.setattr(
        parts, "write_part", lambda out, number, part: numbers.append(number) or write(out, number, part)
    )
    scan(model, tiny_sae(), token_rows(), stopped, **KEPT)
    assert numbers[0] == 2
    assert contents(stopped) == whole
    numbers.clear()
    scan(model, tiny_sae(), token_rows(), stopped, **KEPT)
    assert numbers == []


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied", "removed"])
def test_a_damaged_part_is_made_anew(model, stopped, whole, harm):
    path = sorted((stopped / "parts").glob("*"))[0]
    raw = path.read_bytes()
    changed = {"cut": raw[:-9], "changed": raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], "emptied": b""}
    path.unlink() if harm == "removed" else path.write_bytes(changed[harm])
    scan(model, tiny_sae(), token_rows(), stopped, **KEPT)
    assert contents(stopped) == whole


def test_what_a_write_that_was_cut_short_left_is_cleared_away(model, stopped, whole):
    (stopped / "parts/.000002-0123.safetensors.abcd").write_bytes(b"half")
    (stopped / "corpus/tokens.bin").write_bytes(b"half")
    (stopped / ".plan.json.abcd").write_bytes(b"half")
    (stopped / "corpus/corpus.json").unlink()
    scan(model, tiny_sae(), token_rows(), stopped, **KEPT)
    assert contents(stopped) == whole


OTHERS = {
    "model": (lambda m, s, r: ([m(seed=2, init_weights=True, d_mlp=25), s, r], {}), "model.sha256 was"),
    "sae": (lambda m, s, r: ([m(), tiny_sae(seed=1), r], {}), r"saes.*sha256 was"),
    "corpus": (lambda m, s, r: ([m(), s, [*r[:-1], r[0]]], {}), "corpus was"),
    "settings": (lambda m, s, r: ([m(), s, r], {"top": 4}), "settings.top was 3, is 4"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("finished", [False, True])
def test_nothing_is_mixed(build, stopped, other, finished):
    if finished:
        scan(build(), tiny_sae(), token_rows(), stopped, **KEPT)
    arguments, changes = OTHERS[other][0](build, tiny_sae(), token_rows())
    before = contents(stopped)
    with pytest.raises(ValueError, match=OTHERS[other][1]):
        scan(*arguments, stopped, **{**KEPT, **changes})
    assert contents(stopped) == before


def test_other_code_is_refused(model, stopped):
    plan = json.loads((stopped / "plan.json").read_text())
    (stopped / "plan.json").write_text(json.dumps({**plan, "mechkit": "0.0.1"}))
    with pytest.raises(ValueError, match=r"mechkit was 0\.0\.1, is"):
        scan(model, tiny_sae(), token_rows(), stopped, **KEPT)


def test_a_folder_with_other_files_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        scan(model, tiny_sae(), token_rows(), tmp_path, **KEPT)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="it is a file"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "file", **KEPT)


def test_two_writers_are_one_too_many(model, tmp_path):
    from mechkit.features.scanning import locked

    with locked(tmp_path / "index"), pytest.raises(ValueError, match="another scan is writing"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)
    scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)


def test_a_full_disk_stops_a_scan_that_can_go_on(model, tmp_path, monkeypatch, whole):
    write, n = parts.write_atomic, []

    def fill(path, data):
        n.append(path)
        if len(n) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(parts, "write_atomic", fill)
    with pytest.raises(OSError, match="make room and scan into the same folder again"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)
    with pytest.raises(FileNotFoundError, match="scan into the folder again to go on"):
        FeatureIndex.open(tmp_path / "index")
    scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)
    assert contents(tmp_path / "index") == whole


def test_a_file_that_cannot_be_written_whole_stops_a_scan_that_can_go_on(model, tmp_path, whole):
    resource = pytest.importorskip("resource")
    sizes = sorted({len(raw) for name, raw in whole.items() if name.endswith((".npy", ".safetensors"))})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i, size in enumerate(sizes[::2]):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
            with pytest.raises(OSError, match=r"no room left on the disk of .*again to go on"):
                scan(model, tiny_sae(), token_rows(), tmp_path / str(i), **KEPT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not (tmp_path / str(i) / "manifest.json").exists()
        scan(model, tiny_sae(), token_rows(), tmp_path / str(i), **KEPT)
        assert contents(tmp_path / str(i)) == whole


def test_too_little_room_is_said_before_any_work(model, tmp_path, monkeypatch):
    from collections import namedtuple

    from mechkit.features import sizes

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(sizes.shutil, "disk_usage", lambda path: usage(1 << 20, 1 << 19, 1 << 10))
    with pytest.raises(ValueError, match=r"will take about .* MiB and .* has 0 MiB left"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT)
    assert not list((tmp_path / "index/parts").glob("*"))


@pytest.mark.parametrize("keep", ["examples", "all"])
def test_an_index_takes_no_more_room_than_was_said(model, tmp_path, keep, monkeypatch):
    from mechkit.features import scanning, sizes

    said = []
    monkeypatch.setattr(scanning, "require_room", lambda out, *asked: said.append(sizes.bytes_needed(*asked)))
    scan(model, tiny_sae(), token_rows(300), tmp_path / "index", **{**KEPT, "keep": keep, "shard": 1 << 17})
    arrays = sum(
        len(raw) for name, raw in contents(tmp_path / "index").items() if name.endswith((".npy", "safetensors"))
    )
    assert 0.4 * said[0] < arrays < said[0]
