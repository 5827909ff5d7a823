"""The page about a run: complete, half done, or not there."""

import pytest

from stablelm.config import InputError
from stablelm.training import train
from stablelm.training.report import run_page
from tests.training.conftest import Recorder


class Crash(Exception):
    pass


def crash():
    raise Crash


def cells(html):
    """The table of what was read, as rows of text."""
    table = html[html.index("windows to read") :]
    table = table[: table.index("</table>")]
    return [
        [cell.split(">", 1)[1].replace(",", "") for cell in row.split("</td>")[:-1]]
        for row in table.split("<tr>")[1:]
    ]


def test_a_whole_run_with_every_epoch(make_config):
    config = make_config(data={"epochs": {"tales": 2, "notes": 1.5}})
    html = run_page(train(config, console=Recorder())).html()
    rows = [row[:4] for row in cells(html) if row]
    assert ["tales", "1", "12", "12"] in rows
    assert ["tales", "2", "12", "12"] in rows
    assert ["notes", "1", "16", "16"] in rows
    assert ["notes", "2", "8", "8"] in rows
    for text in ("Held-out bits per byte", "Learning rate", "Gradient norm", "Tokens per second", "12 of 12"):
        assert text in html


def test_a_run_that_goes_on_shows_what_is_saved(make_config):
    with pytest.raises(Crash):
        train(make_config(), console=Recorder({5: crash}))
    from pathlib import Path

    rows = [row[:4] for row in cells(run_page(Path(make_config().out)).html()) if row]
    assert sum(int(row[3]) for row in rows) == 12  # three steps of four windows are saved


def test_a_run_of_many_epochs_is_summed_up(make_config):
    config = make_config(data={"epochs": {"tales": 20, "notes": 1}, "windows": {"tales": 2, "notes": 2}})
    rows = [row[:4] for row in cells(run_page(train(config, console=Recorder())).html()) if row]
    assert ["tales", "8 more", "16", "16"] in rows


def test_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics.jsonl: no step yet"):
        run_page(tmp_path)
