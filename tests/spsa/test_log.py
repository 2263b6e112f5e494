# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import CODECS
from lowtide.spsa._commit import Commit
from lowtide.spsa._header import Header
from lowtide.spsa._log import LogError, LogReader, LogWarning, read_bounded, tail_path
from lowtide.spsa._log_writer import LogWriter
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._method import Hyper, Method

from .logs import commits, header, hyper


def write(path: Path, run, head=None, *, every: int = 10**9, close: bool = True, **options) -> LogWriter:
    log = LogWriter(path, head or header(), **{"fsync": "never", **options})
    for c in run:
        log.append(c, hyper(c.step, every))
    if close:
        log.close()
    return log


def kill(log: LogWriter) -> None:
    """What is left of a writer whose process is gone: nothing is flushed, the lock is released."""
    os.close(log._fd)
    os.close(log._tail_fd)
    log._fd = log._tail_fd = -1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("total", [1, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 600])
def test_what_was_written_is_read(tmp_path, name, total, count):
    run = commits(count, name, total)
    write(tmp_path / "a.ltlog", run, header(name), every=100)
    reader = LogReader(tmp_path / "a.ltlog")
    steps = list(reader.steps())
    assert [s.commit for s in steps] == run
    assert [s.hyper for s in steps] == [hyper(c.step, 100) for c in run]
    assert reader.complete
    assert reader.cut is None
    assert reader.step == count
    assert not tail_path(tmp_path / "a.ltlog").exists()


def test_header_round_trip(tmp_path):
    head = header(method=Method(window=4, beta=0.5, dist="gaussian"), eps=0.1, seed=2**63 - 1)
    write(tmp_path / "a.ltlog", [], head)
    read = LogReader(tmp_path / "a.ltlog").header
    assert read == head
    assert read.manifest.digest == head.manifest.digest


def test_ten_thousand_steps_take_twelve_kilobytes(tmp_path):
    log = LogWriter(tmp_path / "a.ltlog", header())
    for c in commits(10_000):
        log.append(c, hyper())
        if c.step % 1000 == 999:
            log.digest(bytes(16))
    log.close()
    size = (tmp_path / "a.ltlog").stat().st_size
    print(f"10,000 steps of one slot, a digest every 1,000: {size} bytes")
    assert size <= 12_000


def test_other_frames_come_back(tmp_path):
    run = commits(30, total=3)
    (tmp_path / "s.safetensors").write_bytes(b"weights")
    with LogWriter(tmp_path / "a.ltlog", header()) as log:
        log.member("ann", joins=True, epoch=1, first=0, count=2)
        for c in run:
            if c.step == 10:
                log.digest(b"d" * 16)
                log.snapshot(tmp_path / "s.safetensors")
            log.append(c, hyper())
        log.member("ann", joins=False, epoch=2)
    reader = LogReader(tmp_path / "a.ltlog")
    assert [s.commit for s in reader.steps()] == run
    assert [(m.step, m.worker, m.joins, m.count) for m in reader.members()] == [
        (0, "ann", True, 2),
        (30, "ann", False, 0),
    ]
    assert reader.digests() == {10: b"d" * 16}
    assert [(s.step, s.name) for s in reader.snapshots()] == [(10, "s.safetensors")]
    with (
        pytest.raises(LowtideValueError, match="beside the log"),
        LogWriter(tmp_path / "b.ltlog", header()) as log,
    ):
        log.snapshot("/etc/hostname")


class TestCrash:
    def test_nothing_is_lost_when_a_process_is_killed(self, tmp_path):
        """At every step of a batch and after it."""
        run = commits(20)
        for count in range(21):
            path = tmp_path / f"{count}.ltlog"
            kill(write(path, run[:count], batch=8, close=False))
            reader = LogReader(path)
            assert [s.commit for s in reader.steps()] == run[:count]
            assert not reader.complete
            log = LogWriter.resume(path, header(), batch=8)
            assert log.step == count
            for c in run[count:]:
                log.append(c, hyper())
            log.close()
            assert [s.commit for s in LogReader(path).steps()] == run

    def test_nothing_is_lost_when_it_is_killed_again_and_again(self, tmp_path):
        run = commits(40)
        path = tmp_path / "a.ltlog"
        kill(write(path, run[:3], batch=16, close=False))
        for at in range(3, 40):
            log = LogWriter.resume(path, batch=16)
            log.append(run[at], hyper())
            kill(log)
        assert [s.commit for s in LogReader(path).steps()] == run

    def test_a_real_process_killed_by_a_signal(self, tmp_path):
        path = tmp_path / "a.ltlog"
        code = (
            "import sys; sys.path.insert(0, sys.argv[2])\n"
            "from logs import commits, header, hyper\n"
            "from lowtide.spsa._log_writer import LogWriter\n"
            "log = LogWriter(sys.argv[1], header(), batch=64)\n"
            "for c in commits(100000):\n"
            "    log.append(c, hyper())\n"
            "    if c.step == 500: print('ready', flush=True)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        reader = LogReader(path)
        assert reader.step >= 501
        assert [s.commit for s in reader.steps()] == commits(reader.step)

    def test_crash_between_batch_and_tail(self, tmp_path):
        """The tail repeats steps that are in the log: it is ignored, without a word."""
        run = commits(9)
        path = tmp_path / "a.ltlog"
        log = write(path, run[:7], batch=8, close=False)
        old = tail_path(path).read_bytes()
        log.append(run[7], hyper())
        kill(log)
        tail_path(path).write_bytes(old)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [s.commit for s in LogReader(path).steps()] == run[:8]

    def test_every_cut_of_the_file_is_a_prefix_and_said(self, tmp_path):
        run = commits(40, total=2)
        path = tmp_path / "a.ltlog"
        write(path, run, batch=8, every=5)
        whole, good = path.read_bytes(), LogReader(path)
        begin = good.marks[0].offset
        ends = {m.offset for m in good.marks} | {len(whole)}
        for size in range(begin, len(whole)):
            path.write_bytes(whole[:size])
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                reader = LogReader(path)
            assert [s.commit for s in reader.steps()] == run[: reader.step]
            assert bool(said) == (size not in ends)
            assert not reader.complete
            if said:
                assert said[0].category is LogWarning
                assert f"cut at byte {reader.size}" in str(said[0].message)
        for size in (0, 1, 5, 127, begin - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(LogError, match=r"cut off|not a run log"):
                LogReader(path)

    def test_resume_keeps_the_torn_bytes_and_goes_on(self, tmp_path):
        run = commits(20)
        path = tmp_path / "a.ltlog"
        write(path, run, batch=8)
        raw = path.read_bytes()
        mark = LogReader(path).marks[1].offset
        path.write_bytes(raw[: mark + 5])
        with pytest.warns(LogWarning, match="before step 8"):
            log = LogWriter.resume(path)
        assert log.step == 8
        assert (tmp_path / f"a.ltlog.cut-{mark}").read_bytes() == raw[mark : mark + 5]
        for c in run[8:]:
            log.append(c, hyper())
        log.close()
        assert [s.commit for s in LogReader(path).steps()] == run

    def test_zeros_at_the_end_are_a_torn_tail(self, tmp_path):
        run = commits(20)
        write(tmp_path / "a.ltlog", run, batch=8)
        with open(tmp_path / "a.ltlog", "ab") as file:
            file.write(bytes(4096))
        with pytest.warns(LogWarning, match="4096 bytes"):
            assert [s.commit for s in LogReader(tmp_path / "a.ltlog").steps()] == run


@pytest.mark.parametrize("ahead", [0, 1, 3, 4, 9])
def test_a_log_can_be_read_while_it_is_written(tmp_path, monkeypatch, ahead):
    """The writer goes on between the two files that a reader opens: no warning, and nothing out of place."""
    path, run = tmp_path / "a.ltlog", commits(20)
    log = write(path, run[:7], batch=4, close=False)
    files = []

    def reading(name, *most):
        data = read_bounded(name, *most)
        if not files:
            for c in run[7 : 7 + ahead]:
                log.append(c, hyper())
        files.append(name)
        return data

    monkeypatch.setattr("lowtide.spsa._log.read_bounded", reading)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = LogReader(path)
    assert len(files) == 2
    assert [s.commit for s in reader.steps()] == run[: reader.step]
    assert reader.step >= 7
    log.close()


class TestDamage:
    @pytest.fixture
    def log(self, tmp_path):
        run = commits(40, total=2)
        write(tmp_path / "a.ltlog", run, batch=8, every=5)
        return tmp_path / "a.ltlog", run

    def test_every_flipped_bit_is_an_error_or_a_cut(self, log):
        path, run = log
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            bad = bytearray(whole)
            bad[bit // 8] ^= 1 << bit % 8
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    reader = LogReader.from_bytes(bytes(bad))
                except LogError:
                    continue
            assert said
            assert [s.commit for s in reader.steps()] == run[: reader.step]
            assert reader.step < 40 or not reader.complete

    def test_reordered_duplicated_removed_and_foreign_frames(self, log, tmp_path):
        path, _ = log
        raw, marks = path.read_bytes(), LogReader(path).marks
        at = [m.offset for m in marks] + [len(raw)]
        frames = [raw[a:b] for a, b in pairwise(at)]
        head = raw[: at[0]]
        write(tmp_path / "b.ltlog", commits(40, total=2, seed=5), header(run_id=b"x" * 16), batch=8, every=5)
        other = (tmp_path / "b.ltlog").read_bytes()
        theirs = [m.offset for m in LogReader(tmp_path / "b.ltlog").marks]
        bad = {
            "reordered": [frames[0], frames[2], frames[1], *frames[3:]],
            "duplicated": [frames[0], frames[0], *frames[1:]],
            "removed": [frames[0], *frames[2:]],
            "foreign": [frames[0], other[theirs[1] : theirs[2]], *frames[2:]],
        }
        for parts in bad.values():
            with pytest.raises(LogError, match=r"does not follow.*good up to step 8.*--cut"):
                LogReader.from_bytes(head + b"".join(parts))
            with pytest.warns(LogWarning):
                reader = LogReader.from_bytes(head + b"".join(parts), damage="cut")
            assert reader.step == 8

    def test_bytes_behind_the_end(self, log):
        path, _ = log
        raw, marks = path.read_bytes(), LogReader(path).marks
        with pytest.raises(LogError, match="behind the end"):
            LogReader.from_bytes(raw + raw[marks[0].offset :])

    def test_other_files(self, tmp_path):
        for text in (b"", b"hello", b"PK\x03\x04" * 100):
            with pytest.raises(LogError, match=r"not a run log|cut off"):
                LogReader.from_bytes(text)
        with pytest.raises(FileNotFoundError):
            LogReader(tmp_path / "none.ltlog")

    def test_a_tail_of_another_log(self, log):
        path, run = log
        raw, marks = path.read_bytes(), LogReader(path).marks
        path.write_bytes(raw[: marks[-1].offset])
        tail_path(path).write_bytes(b"?" * 40)
        with pytest.warns(LogWarning, match="does not continue"):
            assert [s.commit for s in LogReader(path).steps()] == run


class TestWriter:
    def test_refuses_what_it_cannot_write(self, tmp_path):
        path = tmp_path / "a.ltlog"
        with LogWriter(path, header()) as log:
            log.append(commits(1)[0], hyper())
            for bad, values in (
                (Commit(5, 1, ()), hyper()),
                (Commit(1, 1, ((0, 0),)), hyper()),
                (Commit(1, 1, ()), Hyper((1.0,), (0.0,))),
            ):
                with pytest.raises(LowtideValueError):
                    log.append(bad, values)
            assert log.step == 1
        assert LogReader(path).step == 1
        with pytest.raises(LogError, match="closed"):
            log.append(commits(2)[1], hyper())

    def test_existing_files_and_second_writers_are_refused(self, tmp_path):
        path = tmp_path / "a.ltlog"
        log = write(path, commits(3), close=False)
        with pytest.raises(LogError, match="exists already"):
            LogWriter(path, header())
        with pytest.raises(LogError, match="another writer"):
            LogWriter.resume(path)
        log.close()
        LogWriter.resume(path).close()

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"seed": 8}, "seed"),
            ({"codec": "f32"}, "codec"),
            ({"method": Method(window=2)}, "method"),
            ({"base_digest": b"x" * 16}, "base_digest"),
            ({"manifest": Manifest((Entry("embed.weight", 0, (7, 5), "float32"),))}, "shape"),
        ],
    )
    def test_another_run_is_not_continued(self, tmp_path, changed, named):
        path = tmp_path / "a.ltlog"
        write(path, commits(3))
        before = path.read_bytes()
        with pytest.raises(LogError, match=named):
            LogWriter.resume(path, header(**changed))
        assert path.read_bytes() == before

    def test_slots_may_change(self, tmp_path):
        run = [*commits(5, total=1), *commits(5, total=3, first=5), *commits(5, total=2, first=10)]
        write(tmp_path / "a.ltlog", run)
        assert [s.commit for s in LogReader(tmp_path / "a.ltlog").steps()] == run

    @pytest.mark.parametrize("step", [0, 1, 7, 8, 9, 16, 29, 30])
    def test_cut_goes_back_to_a_step(self, tmp_path, step):
        run = commits(30)
        path = tmp_path / "a.ltlog"
        log = write(path, run, batch=8, every=3, close=False)
        log.cut(step)
        assert log.step == step
        other = commits(30 - step, first=step, seed=9)
        for c in other:
            log.append(c, hyper(c.step, 4))
        log.close()
        steps = list(LogReader(path).steps())
        assert [s.commit for s in steps] == run[:step] + other
        assert [s.hyper for s in steps] == [hyper(t, 3 if t < step else 4) for t in range(30)]

    def test_a_schedule_that_changes_every_step(self, tmp_path):
        run = commits(300)
        write(tmp_path / "a.ltlog", run, every=1)
        steps = list(LogReader(tmp_path / "a.ltlog").steps())
        assert [s.hyper for s in steps] == [hyper(c.step, 1) for c in run]

    def test_a_full_disk_leaves_a_good_log(self, tmp_path, monkeypatch):
        path = tmp_path / "a.ltlog"
        run = commits(10)
        log = write(path, run[:5], close=False)
        real = os.pwrite

        def full(fd, data, at):
            if len(data) > 4:
                return real(fd, data[:4], at)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(LogError, match=r"No space.*no step is lost"):
            log.append(run[5], hyper())
        monkeypatch.undo()
        for c in run[5:]:
            log.append(c, hyper())
        log.close()
        assert [s.commit for s in LogReader(path).steps()] == run

    def test_start_at_a_later_step(self, tmp_path):
        head = header(first_step=100, state={"rule": {"exponent": 0, "levels": []}, "window": []})
        run = commits(5, first=100)
        write(tmp_path / "a.ltlog", run, head)
        reader = LogReader(tmp_path / "a.ltlog")
        assert [s.commit for s in reader.steps()] == run
        assert reader.header.state == head.state
        with pytest.raises(LowtideValueError, match="state"):
            header(first_step=100)


@pytest.mark.parametrize(
    "changed",
    [{"seed": -1}, {"run_id": b""}, {"eps": 0.0}, {"eps": float("nan")}, {"codec": "x"}, {"first_step": -1}],
)
def test_headers_name_what_is_wrong(changed):
    with pytest.raises(LowtideValueError, match=next(iter(changed))):
        header(**changed)


def test_hostile_headers_are_refused():
    """Checksums right, contents wrong."""
    import zlib

    from lowtide.spsa._header import SIZE
    from lowtide.spsa._wire import crc32c

    good = header().to_bytes()

    def forge(edit, block: bytes | None = None, text_size: int | None = None) -> bytes:
        head = bytearray(good[:SIZE])
        body = good[SIZE:] if block is None else block
        edit(head)
        head[12:16] = len(body).to_bytes(4, "little")
        if text_size is not None:
            head[104:108] = text_size.to_bytes(4, "little")
        head[108:112] = crc32c(body).to_bytes(4, "little")
        head[124:128] = crc32c(bytes(head[:124])).to_bytes(4, "little")
        return bytes(head) + body

    def set_byte(at: int, value: int):
        return lambda head: head.__setitem__(at, value)

    bomb = zlib.compress(bytes(1 << 24), 9)
    cases = [
        forge(set_byte(6, 9)),
        forge(set_byte(8, 9)),
        forge(set_byte(9, 9)),
        forge(set_byte(10, 9)),
        forge(set_byte(11, 9)),
        forge(set_byte(56, good[56] ^ 1)),
        forge(set_byte(115, 1)),
        forge(lambda h: None, bomb),
        forge(lambda h: None, bomb, 1 << 31),
        forge(lambda h: None, b"junk", 10),
        forge(lambda h: None, zlib.compress(b"a\nb\nc"), 5),
        forge(lambda h: None, zlib.compress(b"{}\n[]\nnull"), 10),
        forge(lambda h: None, zlib.compress(b"[" * 100000), 100000),
    ]
    for raw in cases:
        with pytest.raises(LogError, match="at byte"):
            LogReader.from_bytes(raw)
    assert Header.from_bytes(forge(lambda h: None))[0] == header()
