"""Which device each rank gets and what ranks exchange numbers through, for any number of CUDA devices."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_driver import load_parallel, worker_ids

from backends.pytorch.devices import choose_device
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.meeting import choose_collective
from nanovllm.errors import ConfigError
from nanovllm.testing import write_checkpoint


@given(st.integers(2, 8), st.integers(0, 4), st.sampled_from(["auto", "cuda"]))
def test_every_rank_has_a_device_of_its_own(size: int, num_spare: int, wanted: str) -> None:
    options = TorchOptions(device=wanted)
    devices = [choose_device(options, size + num_spare, Rank(number, size)) for number in range(size)]
    assert devices == [torch.device("cuda", number) for number in range(size)]


@given(st.integers(2, 8), st.data())
def test_too_few_devices_are_an_error_that_names_both_numbers(size: int, data: st.DataObject) -> None:
    num_devices = data.draw(st.integers(1, size - 1))
    for wanted in ("auto", "cuda"):
        with pytest.raises(ConfigError, match=rf"tensor_parallel_size is {size}.*sees {num_devices}\."):
            choose_device(TorchOptions(device=wanted), num_devices, Rank(0, size))


def test_without_devices_all_ranks_are_on_the_cpu() -> None:
    assert choose_device(TorchOptions(), 0, Rank(1, 2)) == torch.device("cpu")
    assert choose_device(TorchOptions(device="cpu"), 8, Rank(1, 2)) == torch.device("cpu")


def test_one_device_is_not_several() -> None:
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        choose_device(TorchOptions(device="cuda:1"), 4, Rank(0, 2))
    assert choose_device(TorchOptions(device="cuda:1"), 4) == torch.device("cuda", 1)


def test_weights_are_quantized_on_cpus_only() -> None:
    with pytest.raises(ConfigError, match="quantization is 'int8'"):
        choose_device(TorchOptions(quantization="int8"), 2, Rank(0, 2))


@pytest.mark.parametrize(
    ("wanted", "device_type", "kind"),
    [("auto", "cpu", "shared_memory"), ("shared_memory", "cpu", "shared_memory"), ("gloo", "cpu", "gloo")],
)
def test_numbers_go_through_what_the_device_has(wanted: str, device_type: str, kind: str) -> None:
    assert choose_collective(wanted, device_type) == kind


@pytest.mark.parametrize(
    ("wanted", "device_type", "allowed"),
    [("nccl", "cpu", "'shared_memory' or 'gloo'"), ("gloo", "cuda", "'nccl'"), ("shared_memory", "cuda", "'nccl'")],
)
def test_what_the_device_has_not_is_refused(wanted: str, device_type: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"collective is '{wanted}'.*allowed there: {allowed}"):
        choose_collective(wanted, device_type)


@pytest.mark.parametrize("wanted", ["auto", "nccl"])
def test_devices_take_a_torch_with_nccl(wanted: str) -> None:
    if torch.distributed.is_nccl_available():
        assert choose_collective(wanted, "cuda") == "nccl"
    else:
        with pytest.raises(ConfigError, match="Install a build of torch for CUDA on Linux"):
            choose_collective(wanted, "cuda")


def test_what_cannot_be_starts_no_process(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2"):
        load_parallel(folder, device="cuda:1")
    with pytest.raises(ConfigError, match="collective is 'nccl'"):
        load_parallel(folder, device="cpu", collective="nccl")
    assert worker_ids(os.getpid()) == []
