"""The benchmark of row selection: its rival keeps the largest rows, and its page has a line for each setting."""

from types import SimpleNamespace

import torch

from benchmarks import common, row_selection


def test_the_rival_keeps_the_largest_live_rows_with_their_own_weights():
    batch = {
        "advantages": torch.tensor([1.0, -3.0, 0.5, 9.0]),
        "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]),
    }
    live = torch.tensor([True, True, True, False])
    choose = row_selection.largest(SimpleNamespace(rows=2, loss_type="dapo"))
    chosen = choose(0, batch, live, 0)
    assert chosen["live"].tolist() == [True, True, False, False]  # of sizes 2, 3 and 1
    assert torch.equal(chosen["advantages"], batch["advantages"])
    assert choose(0, batch, live & False, 0)["live"].sum() == 0


def test_the_time_to_a_reward_is_that_of_a_whole_window(monkeypatch):
    """One lucky step at the beginning does not count."""
    monkeypatch.setattr(row_selection, "WINDOW", 2)
    run = [{"reward": reward, "seconds": second} for second, reward in enumerate([0.9, 0.1, 0.3, 0.7, 0.9])]
    assert row_selection.first_above(run, 0.5) == 0 + 1  # the mean of the first two
    assert row_selection.first_above(run, 0.6) == 4
    assert row_selection.first_above(run, 0.9) is None


def test_every_setting_trains_its_number_of_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(row_selection, "ROWS", 64)
    monkeypatch.setattr(row_selection, "WINDOW", 2)
    settings = {"all rows": (0, False), "8 rows drawn": (8, False), "8 largest rows": (8, True)}
    monkeypatch.setattr(row_selection, "SETTINGS", settings)
    assert row_selection.main(["--steps", "2", "--seeds", "1", "--goal", "0"]) == 0
    text = (tmp_path / "row_selection.md").read_text(encoding="utf-8")
    cells = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if line.startswith("|")}
    assert [int(cells[name][0]) for name in ("8 rows drawn", "8 largest rows")] == [8, 8]
    assert int(cells["all rows"][0]) > 8
    assert cells["all rows"][3].strip() != "not by all"  # a goal of 0 is reached at once
    assert (tmp_path / "row_selection.png").stat().st_size > 0
