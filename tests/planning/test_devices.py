"""The table of devices, and which GPU is which row."""

import pytest
import torch

from stablelm.config import InputError
from stablelm.planning import DEVICES, device_named, peak_of
from stablelm.planning.devices import known_device

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "bf16", "gib", "bandwidth", "link"),
    [
        # The makers' datasheets, typed in from them and not from the code: dense, never "with sparsity".
        ("a100-40gb", 312e12, 40, 1.555e12, 600e9 / 2),
        ("a100-80gb", 312e12, 80, 2.039e12, 600e9 / 2),
        ("h100", 1979e12 / 2, 80, 3.35e12, 900e9 / 2),
        ("h200", 1979e12 / 2, 141e9 / GIB * 1.07, 4.8e12, 900e9 / 2),
        ("b200", 36e15 / 8 / 2, 180, 7.7e12, 1800e9 / 2),
        ("mi300x", 1307.4e12, 192, 5.3e12, 7 * 128e9 / 2),
    ],
)
def test_rates_are_the_datasheets(name, bf16, gib, bandwidth, link):
    row = DEVICES[name]
    assert (row.bf16, row.bandwidth, row.link) == (bf16, bandwidth, link)
    assert 0.96 * gib * GIB < row.memory <= gib * GIB
    assert 0.3 < row.utilization < 0.6 and row.source and row.utilization_source


def test_the_table_is_whole():
    assert len(DEVICES) == 6
    assert all(name == row.name and row.per_node == 8 for name, row in DEVICES.items())


@pytest.mark.parametrize(
    ("called", "gib", "row"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.39, "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB", 39.59, "a100-40gb"),
        ("A100-SXM4-80GB", 79.35, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 79.25, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 39.39, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 79.19, "h100"),
        ("NVIDIA H200", 139.81, "h200"),
        ("NVIDIA B200", 178.35, "b200"),
        ("AMD Instinct MI300X", 191.98, "mi300x"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, None),
        ("NVIDIA H100 80GB HBM3 MIG 7g.80gb", 79.0, None),
        ("NVIDIA A100-SXM-64GB", 63.4, None),  # a chip made for one customer, with more units
        ("NVIDIA H100 PCIe", 79.1, None),  # 756 TFLOP/s
        ("NVIDIA H100 NVL", 93.1, None),
        ("NVIDIA H200 NVL", 139.8, None),
        ("NVIDIA GH200 480GB", 94.5, None),  # a name that contains H200
        ("NVIDIA GB200", 184.0, None),
        ("NVIDIA H20", 95.0, None),
        ("NVIDIA H800", 79.1, None),
        ("AMD Instinct MI300A", 128.0, None),
        ("NVIDIA GeForce RTX 4090", 23.6, None),
    ],
)
def test_a_gpu_is_its_row_or_none(called, gib, row):
    found = known_device(called, int(gib * GIB))
    assert (found and found.name) == row


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("a100-40gb", "a100-40gb"), ("A100-40GB", "a100-40gb"), ("a100-40", "a100-40gb"),
        ("A100 80GB", "a100-80gb"), ("NVIDIA H100", "h100"), ("H200", "h200"), ("b200", "b200"),
        ("MI300X", "mi300x"), ("amd-mi300x", "mi300x"),
    ],
)  # fmt: skip
def test_names_on_the_command_line(said, row):
    assert device_named(said).name == row


@pytest.mark.parametrize("said", ["a100", "h1000", "", "v100", "gh200", "nvidia"])
def test_an_unknown_name_lists_the_known(said):
    with pytest.raises(InputError, match=r"a100-40gb, a100-80gb, h100, h200, b200, mi300x and cpu"):
        device_named(said)


def test_the_cpu_is_measured():
    cpu = device_named("cpu")
    assert 1e8 < cpu.bf16 < 1e15 and cpu.memory > 2**28 and cpu.bandwidth > 1e8
    assert "measured on this machine" in cpu.source
    assert any(cpu.title in line for line in cpu.lines())


class Card:
    def __init__(self, name: str, gib: float) -> None:
        self.name, self.total_memory = name, int(gib * GIB)


def test_mfu_is_stated_against_the_table_only_where_it_holds(monkeypatch):
    monkeypatch.setattr("stablelm.planning.devices.matmul_peak", lambda *_: 7.0)
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card("NVIDIA H100 80GB HBM3", 79.2))
    assert peak_of(cuda, torch.bfloat16).rate == 989.5e12
    assert "datasheet of the NVIDIA H100" in peak_of(cuda, torch.bfloat16).source
    assert peak_of(cuda, torch.float32).rate == 7.0  # the table says nothing of float32
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card("NVIDIA H100 PCIe", 79.2))
    assert (peak_of(cuda, torch.bfloat16).rate, peak_of(torch.device("cpu"), torch.bfloat16).rate) == (
        7.0,
        7.0,
    )
    assert "measured" in peak_of(cuda, torch.bfloat16).source
