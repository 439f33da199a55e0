"""Processors whose int8 sums saturate are told from the others, since ONNX Runtime must multiply otherwise there."""

import pytest

from backends.ort.session import int8_sums_saturate

SKYLAKE = "fpu vme sse4_2 avx2 avx512f avx512bw"


def cpuinfo(flags: str) -> str:
    """As Linux writes it, shortened, for two cores."""
    core = f"processor\t: 0\nvendor_id\t: GenuineIntel\nbugs\t\t: spectre_v1\nflags\t\t: {flags}\n"
    return f"{core}\n{core}"


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
@pytest.mark.parametrize(
    ("text", "saturate"),
    [
        (cpuinfo(SKYLAKE), True),
        (cpuinfo(f"{SKYLAKE} avx512_vnni"), False),
        (cpuinfo("fpu avx2 avx_vnni serialize"), False),
        (cpuinfo(f"{SKYLAKE} avx512_vnni_of_another_kind"), True),
        ("processor\t: 0\n", True),
        ("", True),
        (None, True),
    ],
)
def test_on_x64_only_vnni_keeps_sums_from_saturating(machine: str, text: str | None, saturate: bool) -> None:
    assert int8_sums_saturate(machine, text) is saturate


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64"])
@pytest.mark.parametrize("text", [None, "Features\t: fp asimd", cpuinfo(SKYLAKE)])
def test_elsewhere_they_do_not(machine: str, text: str | None) -> None:
    assert int8_sums_saturate(machine, text) is False
