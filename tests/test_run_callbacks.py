"""The run's record: what lies beyond a checkpoint is dropped, what cannot be read is kept aside, a plot never ends a run."""

import json

from grpo_math.run import callbacks


def test_the_record_is_kept_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps({"step": s, "completion": "a\u2028b"}) + "\n" for s in (1, 2, 3)))
    callbacks.keep_until(path, 2)
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line)["step"] for line in lines if line] == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_record_is_kept_beside_and_said(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    content = '{"step": 1}\nno JSON\n{"reward": 1}\n{"step": 2}\n'
    path.write_text(content)
    callbacks.keep_until(path, 9)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == content
    assert "2 damaged lines" in capsys.readouterr().out


def test_a_curve_that_cannot_be_drawn_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    (tmp_path / "summary.json").write_text("{")
    callbacks.draw_or_say(tmp_path, None)
    printed = capsys.readouterr().out
    assert printed.startswith("The reward curve is not drawn: JSONDecodeError")
    assert printed.count("\n") == 1
