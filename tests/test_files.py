"""Files are written whole, and lines are read as JSON lines are: only a newline ends one."""

import json
import os

import pytest

from grpo_math.files import read_jsonl, read_lines, write_whole


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    write_whole(path, "new ü\n")
    assert path.read_bytes() == "new ü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "metrics.jsonl"
    link.symlink_to(tmp_path / "elsewhere" / "metrics.jsonl")
    write_whole(link, "{}\n")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc\x1cd\x1de\x1ef", "a\r\nb", "\ud83e"])
def test_any_text_survives_a_round_trip(tmp_path, text):
    path = tmp_path / "completions.jsonl"
    line = json.dumps({"completion": text}, ensure_ascii="\ud83e" in text)
    write_whole(path, f"{line}\n{line}\n")
    assert read_jsonl(path) == [{"completion": text}] * 2


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "word": "é'.encode()[:-1])
    assert read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", "5", "[" * 100_000, "\ud83e".encode("utf-8", "surrogatepass")])
def test_any_other_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"step": 2}\n')
    assert read_lines(path)[0] == [{"step": 1}, {"step": 2}]
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        read_jsonl(path)
