"""The published tables and the rules that made their averages."""

import re

import pytest

from stablelm.evaluation.published import PUBLISHED, RULES, SEED, TASKS, average, cells, published_average

# evals/stablelm-3b-4e1t.json of the StableLM repository: acc and its error, acc_norm and its error.
RELEASED = {
    "arc_challenge": (0.3779863481228669, 0.014169664520303103, 0.40017064846416384, 0.014317197787809169),
    "arc_easy": (0.7247474747474747, 0.009164888895174743, 0.6771885521885522, 0.009593950220366743),
    "boolq": (0.7562691131498471, 0.007509067459407977, None, None),
    "hellaswag": (0.5482971519617607, 0.004966448380104203, 0.7389962158932484, 0.004382844128643414),
    "lambada_openai": (0.7063846303124394, 0.006344860619678723, None, None),
    "openbookqa": (0.314, 0.020776701920308997, 0.398, 0.02191237788577997),
    "piqa": (0.7921653971708379, 0.009466997964536423, 0.7976060935799782, 0.00937428968280767),
    "sciq": (0.948, 0.007024624213817142, 0.919, 0.00863212103213998),
    "siqa": (0.41914022517911975, 0.011165140708170328, 0.44319344933469806, 0.011240812731564952),
    "winogrande": (0.665351223362273, 0.013261823629558375, None, None),
}


def released(style):
    """The results of the released JSON, in the keys of lm_eval 0.3 or 0.4."""
    end = "" if style == "0.3" else ",none"
    return {
        task: {
            f"{name}{end}": value
            for name, value in zip(("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"), values, strict=True)
            if value is not None
        }
        for task, values in RELEASED.items()
    }


@pytest.mark.parametrize("style", ["0.3", "0.4"])
def test_the_released_results_give_the_published_row(style):
    found = cells(released(style))
    assert [cell.task for cell in found] == list(TASKS)
    assert tuple(round(cell.value, 2) for cell in found) == PUBLISHED[SEED]
    mean = average(found)
    assert f"{mean.value:.2f}" == "66.93"
    assert mean.stderr == pytest.approx(0.3763, abs=1e-4)


def test_three_rules_three_averages_of_one_run():
    shown = [f"{average(cells(released('0.3'), rule), rule).value:.2f}" for rule in RULES]
    assert shown == ["66.93", "66.65", "64.18"]


def test_published_averages():
    expected = {"Llama-2-13b": 71.77, "LLaMA-7b": 68.84, "gpt-neox-20B": 65.57, "pythia-2.8b-deduped": 58.52}
    for model, mean in expected.items():
        assert round(published_average(model), 2) == mean
    assert all(len(row) == len(TASKS) for row in PUBLISHED.values())


def test_an_average_of_some_tasks_is_none():
    some = {task: values for task, values in released("0.3").items() if task != "piqa"}
    assert len(cells(some)) == 8
    assert average(cells(some)) is None


def test_every_published_number_is_a_percentage_with_two_digits():
    assert all(re.fullmatch(r"\d\d\.\d{1,2}", str(v)) for row in PUBLISHED.values() for v in row)
