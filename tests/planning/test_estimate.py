"""Time, cost and advice; the original run above all."""

import json
from dataclasses import replace

import pytest

from stablelm.config import InputError, preset
from stablelm.config.run import run_config
from stablelm.planning import DEVICES, estimate_lines, estimate_run, make_estimate, make_layout

SEED = preset("stablelm-3b-4e1t")
CARD = DEVICES["a100-40gb"]


def layout(world=256, **keys):
    batch = {"sequences": 1024, "micro_sequences": 4, "sequence_length": 4096, "recompute": "full"}
    return make_layout(SEED, world, **{**batch, **keys})


def estimate(wanted=None, device=CARD, **keys):
    return make_estimate(SEED, wanted or layout(), device, **{"sequences": 1024, "steps": 955_000, **keys})


def test_the_original_run():
    said = estimate(tokens_per_second=6028, price_per_gpu_hour=2.0)
    use = said.utilization
    assert [round(100 * share, 1) for share in (use.mfu, use.mfu_causal, use.hfu)] == [40.2, 34.8, 52.6]
    assert round(said.asked.days, 1) == 30.0 and said.asked.fits
    assert said.asked.gpu_hours == pytest.approx(256 * 24 * said.asked.days)
    assert said.asked.cost == pytest.approx(2 * said.asked.gpu_hours)
    assert said.parameters()["total"] == sum(said.parameters().values()) / 2 == 2_795_443_200
    assert said.tokens == 4_005_560_320_000
    text = "\n".join(estimate_lines(said))
    for words in (
        "2,795,443,200 parameters",
        "40.2 %",
        "34.8 %",
        "52.6 %",
        "30.0 days",
        "As configured it fits",
    ):
        assert words in text


def test_another_speed():
    assert round(estimate(tokens_per_second=8427).asked.days, 1) == 21.5


def test_dropping_recomputation_saves_a_quarter_and_needs_memory():
    said = estimate(tokens_per_second=6028)
    without = said.unrecomputed
    assert not without.fits and without.layout == replace(layout(), recompute="none")
    assert without.memory.total > said.asked.memory.total + 45e9
    gain = (20.7994 + 6.4179) / 20.7994  # GFLOP a token with and without the second forward pass
    assert without.tokens_per_second / 6028 == pytest.approx(gain, rel=1e-3)
    assert said.asked.days - without.days == pytest.approx(7.1, abs=0.05)
    best = said.recommended
    assert (best.layout.recompute, best.layout.micro_sequences, best.layout.zero) == ("none", 2, 2)
    assert best.fits and best.days == pytest.approx(without.days)
    text = "\n".join(estimate_lines(said))
    assert "1.31× the speed" in text and "23.0 days instead of 30.0" in text and "does not fit" in text
    assert "--set batch.micro_sequences=2 --set parallel.zero=2 --set recompute=none" in text


def test_more_memory_is_used():
    best = estimate(device=DEVICES["a100-80gb"]).recommended
    assert (best.layout.recompute, best.layout.micro_sequences, best.layout.zero) == ("none", 4, 1)


def test_where_nothing_fits():
    small = replace(CARD, memory=4 * 2**30)
    said = estimate(device=small)
    assert said.recommended is None and not said.asked.fits
    assert "Nothing fits" in estimate_lines(said)[-1]
    assert "DOES NOT FIT" in "\n".join(estimate_lines(said))


def test_an_assumed_speed_says_so():
    said = estimate()
    assert said.utilization.hfu == pytest.approx(CARD.utilization)
    assert said.speed_source.startswith("ASSUMED: 50 %") and "ASSUMED" in "\n".join(estimate_lines(said))
    given = estimate(mfu=0.402)
    assert given.utilization.mfu == pytest.approx(0.402)
    assert (
        given.asked.tokens_per_second == pytest.approx(6028, rel=2e-3) and "ASSUMED" not in given.speed_source
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mfu": 40}, "--mfu 40: a share between 0 and 1"),
        ({"mfu": 0}, "--mfu 0"),
        ({"mfu": float("nan")}, "--mfu nan"),
        ({"tokens_per_second": 0}, "--tokens-per-second 0"),
        ({"tokens_per_second": -3}, "--tokens-per-second -3"),
        ({"tokens_per_second": float("nan")}, "--tokens-per-second nan"),
        ({"mfu": 0.4, "tokens_per_second": 6028}, "give one of them"),
    ],
)
def test_mistakes(keys, message):
    with pytest.raises(InputError, match=message):
        estimate(**keys)


def test_the_table_has_every_stage_and_kind():
    said = estimate(layout(recompute=4))
    assert len(said.table) == 4 * 4
    assert {s.layout.zero for s in said.table} == {0, 1, 2, 3}
    assert all(s.layout.replicate * s.layout.shard == 256 for s in said.table)
    assert "every 4" in "\n".join(estimate_lines(said))
    assert said.unrecomputed.days < said.asked.days


def test_one_gpu_and_an_unknown_length():
    said = estimate(layout(1), device=DEVICES["h200"], steps=None)
    assert said.asked.days is None and said.tokens is None and said.traffic == ()
    text = "\n".join(estimate_lines(said))
    assert "nothing is sent" in text and "--set steps=N" in text
    json.dumps(said.as_dict())


def test_an_estimate_is_json():
    said = json.loads(json.dumps(estimate(price_per_gpu_hour=1).as_dict()))
    assert said["asked"]["memory"]["needed"] > said["asked"]["memory"]["total"] > 10e9
    assert said["parameters"]["total"] == 2_795_443_200 and said["gpus"] == 256
    assert len(said["table"]) == 12 and said["recommended"]["fits"]
    assert {row["kind"] for row in said["traffic"]} == {"all-gather", "reduce-scatter"}


def test_a_configured_run_without_its_data(tmp_path):
    data = {"path": str(tmp_path / "nowhere"), "epochs": {"web": 1}}
    said = estimate_run(run_config({"data": data, "steps": 955_000}), 256, CARD, tokens_per_second=6028)
    assert (said.steps, said.asked.layout.micro_batches, said.step_tokens) == (955_000, 1, 4_194_304)
    assert estimate_run(run_config({"data": data}), 256, CARD).steps is None
