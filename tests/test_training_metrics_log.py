from __future__ import annotations

from pathlib import Path

import pytest
from training_toys import no_file_larger_than

from edmund.errors import InputError
from edmund.training.metrics_log import MetricsLog, read_metrics


def test_lines_come_back(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "new/run", 0) as log:
        log.add(128, loss=0.1, lr=1e-3)
        log.add(256, loss=None)
        log.sync()
    assert read_metrics(tmp_path / "new/run") == [
        {"samples": 128, "loss": 0.1, "lr": 1e-3},
        {"samples": 256, "loss": None},
    ]


def test_going_on_drops_the_lines_beyond_and_a_line_cut_short(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for samples in (100, 200, 300):
            log.add(samples, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"samples": 400, "lo')
    assert [record["samples"] for record in read_metrics(tmp_path)] == [100, 200, 300]
    with MetricsLog(tmp_path, 200) as log:
        log.add(300, loss=2.0)
    assert [(record["samples"], record["loss"]) for record in read_metrics(tmp_path)] == [(100, 1), (200, 1), (300, 2)]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"directory: cannot write to .*file"):
        MetricsLog(tmp_path / "file", 0)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def write_much() -> None:
        with MetricsLog(tmp_path, 0) as log:
            for samples in range(1000):
                log.add(samples, loss=1.0)

    with no_file_larger_than(1000), pytest.raises(InputError, match=r"cannot write to .*File too large"):
        write_much()
    records = read_metrics(tmp_path)
    assert 0 < len(records) < 1000
    assert [record["samples"] for record in records] == list(range(len(records)))
