"""The GPT-NeoX YAML: one verdict for every key of the nine files, the original's values, faults by name."""

import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError, load_run_config, preset
from stablelm.config.mixture import NO_PATHS
from stablelm.config.neox import is_neox, read_neox
from stablelm.config.neox_keys import KEYS, SECTIONS
from stablelm.config.run import RunConfig, from_reading, has_key, original_yaml
from stablelm.config.schema import read_yaml
from stablelm.data.run_data import open_data
from stablelm.planning.schedule import learning_rate

NINE = (
    "stablelm-2-12b", "stablelm-2-1_6b", "stablelm-3b-4e1t", "stablelm-base-alpha-3b",
    "stablelm-base-alpha-3b-v2", "stablelm-base-alpha-3b-v2-4k-extension", "stablelm-base-alpha-7b",
    "stablelm-base-alpha-7b-v2", "stablelm-base-alpha-7b-v2-4k-extension",
)  # fmt: skip
WORLD = ["batch.reference_world=256"]


def keys_of(values, above=""):
    for name, value in values.items():
        yield above + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{above}{name}.")


@pytest.fixture
def configs(shared):
    folder = shared / "seed" / "configs"
    assert sorted(file.stem for file in folder.glob("*.yml")) == sorted(NINE)
    return folder


@pytest.mark.parametrize("name", NINE)
def test_one_verdict_for_every_key(configs, name):
    values = read_yaml(configs / f"{name}.yml")
    assert is_neox(values, list(RunConfig.model_fields))
    reading = read_neox(values, name, WORLD)
    given = [row for row in reading.rows if row.given and row.key != WORLD[0].partition("=")[0]]
    assert sorted(row.key for row in given) == sorted(keys_of(values))
    for row in reading.rows:
        assert row.verdict in ("used", "mapped", "ignored", "refused")
        assert row.ours if row.verdict == "mapped" else row.why
        assert "unknown" not in row.why


def test_the_original_has_its_values(configs):
    run = load_run_config(configs / "stablelm-3b-4e1t.yml", WORLD)
    assert run.model == preset("stablelm-3b-4e1t")
    assert (run.optimizer.lr, run.optimizer.betas, run.optimizer.eps) == (3.2e-4, (0.9, 0.95), 1e-6)
    assert (run.optimizer.weight_decay, run.optimizer.clip) == (0.1, 1.0)
    assert (run.schedule.warmup, run.schedule.floor, run.steps) == (0.005, 0.04, 955_000)
    assert (run.batch.sequences, run.batch.micro_sequences, run.batch.sequence_length) == (1024, 4, 4096)
    assert (run.precision, run.checkpoint.every, run.evaluation.every) == ("bf16", 2000, 5000)
    assert run.checkpoint.permanent_every == 10_000
    assert (run.parallel.zero, run.parallel.tensor, run.recompute) == (1, 1, "full")
    assert (run.seed, run.logging.every, run.evaluation.windows) == (1234, 10, 10 * 1024)
    assert run.data.order == "neox" and run.data.neox.paths == [NO_PATHS]
    assert run.data.neox.train_iters == 955_000


def test_without_a_world_the_line_to_add_is_told(configs):
    file = configs / "stablelm-3b-4e1t.yml"
    with pytest.raises(InputError, match=r"e1t\.yml: .*--set batch\.reference_world=N"):
        load_run_config(file)
    assert load_run_config(file, gpus=8).batch.sequences == 32
    assert load_run_config(file, WORLD, gpus=8).batch.sequences == 1024
    assert yaml.safe_load(file.read_text("utf-8")).get("reference_world") is None


def test_the_learning_rates_of_the_original(configs):
    run = load_run_config(configs / "stablelm-3b-4e1t.yml", WORLD)
    peak, warmup = run.optimizer.lr, round(run.schedule.warmup * run.steps)
    assert warmup == 4775
    golden = {
        0: 3.2e-4 / 4775, 1: 3.2e-4 / 4775, 4775: 3.2e-4, 955_000: 1.28e-5,
        477_500: 1.28e-5 + (3.2e-4 - 1.28e-5) / 2 * (1 + math.cos(math.pi * 472_725 / 950_225)),
    }  # fmt: skip
    assert golden[477_500] == pytest.approx(1.676124e-4, rel=1e-6)
    for step, rate in golden.items():
        found = learning_rate(step, peak, peak * run.schedule.floor, warmup, run.steps)
        assert found == pytest.approx(rate, rel=1e-12), step


def test_our_copy_has_the_originals_values_and_one_key_more(configs, root):
    original, ours = (read_yaml(folder / "stablelm-3b-4e1t.yml") for folder in (configs, root / "configs"))
    assert ours == original | {"reference_world": 256}
    assert load_run_config(root / "configs/stablelm-3b-4e1t.yml") == load_run_config(
        configs / "stablelm-3b-4e1t.yml", WORLD
    )


def test_both_spellings_are_one_run_up_to_the_data(root):
    theirs, ours = (
        load_run_config(root / "configs" / f"{n}.yml") for n in ("stablelm-3b-4e1t", "stablelm-3b")
    )
    assert theirs.model_copy(update={"data": ours.data}) == ours
    assert ours.data.epochs == dict.fromkeys(("refinedweb", "redpajama", "pile", "starcoder", "pes2o"), 4)


def test_the_commented_run_is_not_stale(root):
    text = (root / "configs" / "stablelm-3b.yml").read_text("utf-8")
    assert text == original_yaml(), "run `make docs`"


def test_the_other_runs_of_the_family(configs):
    """What is refused of them is settled by naming our key; the rest is theirs."""
    run = load_run_config(configs / "stablelm-base-alpha-3b-v2.yml", [*WORLD, "precision=bf16"])
    assert (run.model.use_parallel_residual, run.model.use_norm_bias) == (True, True)
    assert run.batch.sequences == 256 // 2 * 16  # two GPUs hold one model
    assert run.parallel.tensor == 2
    assert run.model.vocab_size == 50_432  # 50,277 padded to 2 × 128
    assert (run.optimizer.lr, run.schedule.warmup, run.steps) == (3.2e-4, 0.01, 245_000)
    for name in ("stablelm-base-alpha-3b", "stablelm-base-alpha-7b"):
        with pytest.raises(InputError) as told:
            load_run_config(configs / f"{name}.yml", WORLD)
        for part in ("activation = gelu", "init_method = small_init", "fp16.enabled = True", "gpt_j_tied"):
            assert part in str(told.value)


@pytest.fixture
def original(configs):
    return read_yaml(configs / "stablelm-3b-4e1t.yml")


def load(tmp_path, values, *overrides, **more):
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return load_run_config(path, [*WORLD, *overrides], **more)


def test_hyphen_and_underscore_are_one(original, tmp_path):
    wanted = load(tmp_path, original)
    for old, new in (("-", "_"), ("_", "-")):
        assert load(tmp_path, {key.replace(old, new): value for key, value in original.items()}) == wanted
    with pytest.raises(InputError, match=r"run\.yml: train-iters = .*: it is given twice, with - and with _"):
        load(tmp_path, original | {"train_iters": 5})


def test_exponents_without_a_point_are_numbers(configs, tmp_path):
    text = (configs / "stablelm-3b-4e1t.yml").read_text("utf-8")
    for old, new in (("3.2e-4", "1e-4"), ("1.0e-6", "1e-8"), ("1.28e-5", "1e-5"), ("955_000", "1e3")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "run.yml").write_text(text, "utf-8")
    run = load_run_config(tmp_path / "run.yml", WORLD)
    assert (run.optimizer.lr, run.optimizer.eps, run.schedule.floor, run.steps) == (1e-4, 1e-8, 0.1, 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden-sise": 1}, "hidden-sise = 1: unknown key; did you mean 'hidden_size'"),
        ({"zzz": 1}, "zzz = 1: unknown key; none of GPT-NeoX's"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1e-4, "beta": [0, 0]}}},
         r"optimizer\.params\.beta = .*: unknown key; did you mean 'betas'"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}}, "optimizer.type = Lion: .*write Adam"),
        ({"optimizer": [1]}, r"optimizer = \[1\]: a mapping is wanted"),
        ({"optimizer": None}, r"the key 'optimizer.params.lr' is missing; .* --set optimizer.lr="),
        ({"optimizer": {"params": {"lr": -1}}}, r"optimizer\.params\.lr \(here optimizer\.lr\): "),
        ({"zero_optimization": {"stage": 1, "cpu_offload": True}}, "cpu_offload = True: .*ZeRO"),
        ({"train-iters": "many"}, "train-iters = many: a whole number is wanted"),
        ({"train-iters": 1.5}, "train-iters = 1.5: a whole number"),
        ({"train-iters": True}, "train-iters = True: a whole number"),
        ({"train-iters": None}, "'train_iters' is missing; add it, or say --set steps="),
        ({"lr-decay-iters": 900_000}, "lr-decay-iters = 900000: train_iters is 955000"),
        ({"warmup": "none"}, "warmup = none: a number is wanted"),
        ({"warmup": 2}, r"warmup \(here schedule\.warmup\): .*less than 1"),
        ({"lr-decay-style": "exponential"}, "lr-decay-style = exponential: .*cosine"),
        ({"lr-decay-style": None}, "lr-decay-style = None: .*cosine"),
        ({"norm": "rmsnorm"}, "norm = rmsnorm: .*layernorm"),
        ({"pos-emb": None}, "pos-emb = None: .*rotary"),
        ({"no-weight-tying": None}, "no-weight-tying = None: .*own; write true"),
        ({"mlp_type": None}, "activation = silu: without mlp_type it is a plain MLP"),
        ({"attention-config": [[["local"], 32]]}, "attention-config = .*flash or global in every layer"),
        ({"hidden-dropout": 0.1}, "hidden-dropout = 0.1: no dropout; write 0"),
        ({"pipe-parallel-size": 2}, "pipe-parallel-size = 2: no pipeline; write 1"),
        ({"model-parallel-size": 3}, "batch.reference_world = 256: 3 GPUs hold one model"),
        ({"model-parallel-size": 0}, "model-parallel-size = 0: 1 or more"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu = 0: 1 or more"),
        ({"train_batch_size": 7}, "train_batch_size = 7: 256 GPUs × micro .* are 1024"),
        ({"precision": "fp16", "bf16": None}, "precision = fp16: .*precision: bfloat16"),
        ({"precision": "fp32"}, "precision = fp32: it contradicts bf16.enabled"),
        ({"reset_attention_mask": True}, "reset_attention_mask = True: it goes with reset_position_ids"),
        ({"cooldown": 0.1}, "cooldown = 0.1: no cooldown"),
        ({"load": "old"}, "load = old: .*finetune: true .*--resume"),
        ({"num_kv_heads": 8}, "num_kv_heads = 8: it contradicts attention_head_type multihead"),
        ({"gpt_j_residual": True}, "gpt_j_tied = False: with gpt_j_residual, two LayerNorms"),
        ({"vocab-file": "mine.json"}, "vocab-file = mine.json: no such .*--set model.vocab_size"),
        ({"vocab-file": None}, "'vocab_file' is missing"),
        ({"train-data-paths": "a"}, "train-data-paths = a: a list is wanted"),
        ({"train-data-paths": [1]}, r"train-data-paths = \[1\]: a list of paths"),
        ({"train-data-paths": ["a"], "train-data-weights": ["b"]}, "weights = .*: a list of numbers"),
        ({"train-data-paths": ["a"], "train-data-weights": [1, 2]}, "1 paths have 2 weights"),
        ({"train-data-paths": ["a"], "data-path": "b"}, "data-path = b: train_data_paths is given too"),
        ({"stablelm": 3}, "stablelm = 3: a mapping of our keys"),
        ({"stablelm": {"optimizer": {"lrr": 1}}}, r"optimizer\.lrr: unknown key; did you"),
    ],
)  # fmt: skip
def test_a_fault_is_told_by_its_name(original, tmp_path, change, message):
    with pytest.raises(InputError, match=rf"run\.yml: .*{message}"):
        load(tmp_path, original | change)


def test_all_faults_are_told_at_once(original, tmp_path):
    with pytest.raises(InputError) as told:
        load(tmp_path, original | {"norm": "rmsnorm", "hidden-sise": 1, "warmup": "x"})
    assert len(str(told.value).splitlines()) == 3
    with pytest.raises(InputError, match=r"(?s)run\.yml: a GPT-NeoX YAML does not name.*norm = rmsnorm"):
        load_run_config(tmp_path / "run.yml", [])


WORDS = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=24)


@given(WORDS, st.sampled_from(["", "optimizer", "optimizer.params", "zero_optimization", "bf16"]))
def test_an_unknown_key_is_never_kept(key, above):
    name = f"{above}.{key}" if above else key
    known = name.replace("-", "_") in KEYS or name.replace("-", "_") in SECTIONS
    values = {"num-layers": 2, "optimizer": {"params": {"lr": 1e-4}}, "bf16": {"enabled": True}}
    node = values
    for part in above.split(".") if above else []:
        node = node.setdefault(part, {})
    node.setdefault(key, None)
    told = [fault for fault in read_neox(values, "run.yml").faults if "unknown key" in fault]
    assert (told == []) if known else (len(told) == 1 and told[0].startswith(f"{name} = None: unknown key"))


@given(st.sampled_from(sorted(KEYS)), st.data())
def test_a_misspelt_key_names_the_one_that_is_meant(key, data):
    above, _, last = key.rpartition(".")
    at = data.draw(st.integers(0, len(last) - 1))
    typo = last[:at] + "x" + last[at + 1 :]
    if f"{above}.{typo}".strip(".") in {*KEYS, *SECTIONS} or len(last) < 5:
        return
    values: object = {typo: 1}
    for part in reversed(above.split(".") if above else []):
        values = {part: values}
    told = [fault for fault in read_neox(values, "run.yml").faults if "unknown key" in fault]
    assert len(told) == 1 and repr(last) in told[0]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted({*KEYS, *SECTIONS})), ANYTHING, min_size=1, max_size=3))
def test_any_value_is_taken_or_refused_by_name(shared, changes):
    """Never a traceback: a wrong value is an `InputError`, and a row in the table all the same."""
    values = read_yaml(shared / "seed" / "configs" / "stablelm-3b-4e1t.yml")
    for name, value in changes.items():
        node = values
        *above, last = name.split(".")
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node.pop(last.replace("_", "-"), None)
        node[last] = value
    reading = read_neox(values, "run.yml", WORLD)
    assert {row.key for row in reading.rows if row.given} >= set(map(str, values))
    lines = []
    try:
        from_reading(reading)
    except InputError as error:
        lines = str(error).splitlines()
    assert all(line.startswith("run.yml: ") for line in lines)


def test_overrides_are_in_our_keys_and_win(original, tmp_path):
    assert load(tmp_path, original, "optimizer.lr=1e-3").optimizer.lr == 1e-3
    for theirs, ours in (("train-iters", "steps"), ("optimizer.params.lr", "optimizer.lr"), ("save", "out")):
        with pytest.raises(InputError, match=rf"--set {theirs}=5: --set takes our keys, .*it sets {ours}"):
            load(tmp_path, original, f"{theirs}=5")
    small = load(tmp_path, original, "model.preset=stablelm-12m", "batch.sequence_length=512")
    assert small.model == preset("stablelm-12m")
    assert load(tmp_path, original, "model.hidden_size=256").model.intermediate_size == 768  # derived anew
    with pytest.raises(InputError, match="reference_world = x: a whole number"):
        load(tmp_path, original, "batch.reference_world=x")
    with pytest.raises(InputError, match="reference_world = 0: 1 or more"):
        load(tmp_path, original, "batch.reference_world=0")
    assert load_run_config(tmp_path / "run.yml", ["batch.sequences=64"]).batch.sequences == 64
    with pytest.raises(InputError, match=r"batch\.sequencs: unknown key; did you mean 'sequences'"):
        load(tmp_path, original, "batch.sequencs=64")


def test_data_of_the_file_and_data_of_ours(original, tmp_path, shared):
    tokenizer = str(shared / "data" / "neox-tokenizer" / "tokenizer.json")
    named = original | {
        "train-data-paths": ["a", "b"],
        "train-data-weights": [1, 2.5],
        "vocab-file": tokenizer,
    }
    run = load(tmp_path, named)
    assert (run.data.order, run.data.neox.paths, run.data.neox.weights) == ("neox", ["a", "b"], [1, 2.5])
    assert (run.data.neox.tokenizer, run.model.vocab_size, run.model.eos_token_id) == (tokenizer, 50_304, 0)
    assert run.data.neox.split is None
    single = load(tmp_path, original | {"data-path": "a"})
    assert (single.data.neox.paths, single.data.neox.split) == (["a"], "969, 30, 1")
    ours = load(tmp_path, named, "data.path=prepared", "data.epochs={web: 4}")
    assert (ours.data.order, ours.data.neox, ours.data.epochs) == ("stablelm", None, {"web": 4})
    masked = load(tmp_path, original | {"reset_attention_mask": True, "reset_position_ids": True})
    assert masked.data.document_boundaries
    (tmp_path / "tok.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=r"tok\.json: not a tokenizer\.json"):
        load(tmp_path, original | {"vocab-file": str(tmp_path / "tok.json")})


def test_a_run_without_data_is_not_started(original, tmp_path):
    with pytest.raises(InputError, match="train-data-paths is empty.*--set data.path="):
        open_data(load(tmp_path, original))


def test_a_tokenizer_file_gives_the_vocabulary(original, tmp_path):
    words = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 299, "content": "<|endoftext|>"}]}
    (tmp_path / "tok.json").write_text(json.dumps(words), "utf-8")
    run = load(tmp_path, original | {"vocab-file": str(tmp_path / "tok.json")})
    assert (run.model.vocab_size, run.model.bos_token_id, run.model.eos_token_id) == (384, 299, 299)
    wide = {"vocab-file": str(tmp_path / "tok.json"), "make_vocab_size_divisible_by": 64}
    assert load(tmp_path, original | wide | {"model-parallel-size": 4}).model.vocab_size == 512


def test_the_width_of_the_mlp_is_that_of_its_time(original, tmp_path):
    """A third of intermediate_size where the MLP is upstream's gated one (gpt-neox#1319)."""
    new = {**original, "activation": "swiglu", "mlp_type": None, "mlp_multiple_of": None}
    assert load(tmp_path, new | {"intermediate_size": 20_736}).model.intermediate_size == 6912
    assert load(tmp_path, original | {"intermediate_size": 6912}).model.intermediate_size == 6912
    assert load(tmp_path, new).model.intermediate_size == 3413


def test_starting_from_weights(original, tmp_path):
    assert load(tmp_path, original | {"load": "old", "finetune": True}).init == "old"
    assert load(tmp_path, original | {"load": "run", "save": "run"}).init is None
    assert load(tmp_path, original | {"init_method": "small_init"}, "init=old").init == "old"


def test_our_keys_inside_the_file(original, tmp_path):
    section = {"stablelm": {"data": {"path": "p", "epochs": {"web": 1}}, "optimizer": {"lr": 1e-3}}}
    run = load(tmp_path, original | section)
    assert (run.data.path, run.optimizer.lr, run.optimizer.eps) == ("p", 1e-3, 1e-6)
    assert load(tmp_path, original | section, "optimizer.lr=2e-3").optimizer.lr == 2e-3


def test_ours_are_not_taken_for_theirs(root):
    for name in ("reference", "small", "stablelm-3b"):
        assert not is_neox(read_yaml(root / "configs" / f"{name}.yml"), list(RunConfig.model_fields))
    assert not is_neox({"data": {}, "hidden_size": 3}, list(RunConfig.model_fields))
    assert is_neox({"num-layers": 2, "optimizer": {}, "precision": "fp16"}, list(RunConfig.model_fields))


def test_every_mapped_key_is_one_of_ours():
    for name, key in KEYS.items():
        if key.ours:
            assert has_key(key.ours), f"{name} is mapped to {key.ours}"
    assert has_key("data.neox.split") and not has_key("data.neox.splits") and not has_key("seed.x")
