"""The GPUs that the kernel lists, and those that a model uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.state_file import CardUsage
from vllm_safe.record import card_usage
from vllm_safe.record.card_usage import CardReadings, CardsInUse, read_pci_cards, visible_cards

# From an H200, driver 580.159.04, except for the name.
INFORMATION = (
    "Model: \t\t {name}\nIRQ:   \t\t 41\nGPU UUID: \t GPU-0eb5a1f8-4e15-94d7-4ea2-259d628a7a5c\nVideo BIOS: \t 96.00.a5.00.1a\n"
    "Bus Type: \t PCIe\nDMA Size: \t 52 bits\nDMA Mask: \t 0xfffffffffffff\nBus Location: \t 0000:00:06.0\nDevice Minor: \t 0\n"
    "GPU Firmware: \t 580.159.04\nGPU Excluded:\t No\n"
)
GIB = 1 << 30


def _put(root: Path, pci: str, name: str, above: str, lanes: str) -> None:
    folder = root / "proc/driver/nvidia/gpus" / pci
    folder.mkdir(parents=True)
    (folder / "information").write_text(INFORMATION.format(name=name))
    device = root / "sys/devices/pci0000:00" / above / pci
    device.mkdir(parents=True)
    (device / "current_link_width").write_text(f"{lanes}\n")
    links = root / "sys/bus/pci/devices"
    links.mkdir(parents=True, exist_ok=True)
    (links / pci).symlink_to(os.path.relpath(device, links))


def test_each_card_by_its_address_with_its_name_and_what_is_above_it(tmp_path: Path) -> None:
    _put(tmp_path, "0000:05:00.0", "NVIDIA GeForce RTX 3060", "0000:00:1c.0/0000:03:00.0/0000:04:01.0", "1")
    _put(tmp_path, "0000:01:00.0", "Tesla T4", "0000:00:02.0", "63")  # all ones: nobody answers
    assert read_pci_cards(str(tmp_path)) == [
        {"pci": "0000:01:00.0", "name": "Tesla T4", "lanes": 0, "bridges": ["0000:00:02.0"]},
        {
            "pci": "0000:05:00.0",
            "name": "NVIDIA GeForce RTX 3060",
            "lanes": 1,
            "bridges": ["0000:00:1c.0", "0000:03:00.0", "0000:04:01.0"],
        },
    ]


def test_a_machine_without_cards_has_none(tmp_path: Path) -> None:
    assert read_pci_cards(str(tmp_path)) == []


def test_a_driver_that_does_not_say_the_names_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is how the driver of a hung GPU behaves: the file can be opened, but reading blocks."""
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "information")
    monkeypatch.setattr(card_usage, "_PATIENCE", 0.05)
    assert read_pci_cards(str(tmp_path)) == [{"pci": "0000:01:00.0", "name": "", "lanes": 0, "bridges": []}]
    os.close(os.open(folder / "information", os.O_WRONLY))  # lets the thread end


def test_a_card_that_memory_was_taken_of_since_the_run_began_is_in_use() -> None:
    """The GPU of another program, and an idle one, do not show how busy the model is."""
    in_use = CardsInUse(None)

    def look(*rows: tuple[int, float]) -> CardUsage:
        return in_use.look([Gpu(used, 12 * GIB, busy) for used, busy in rows])

    assert look((GIB, 0.1), (0, 0.0), (0, 0.0)) == CardUsage(GIB, None)
    assert look((GIB, 0.1), (GIB // 2, 1.0), (GIB // 2, 0.98)) == CardUsage(2 * GIB, 0.98)
    assert look((GIB, 0.1), (GIB // 2, 0.4), (GIB // 2, 1.0)) == CardUsage(2 * GIB, 0.4)
    assert look((GIB // 2, 1.0), (0, 0.0), (0, 0.0)) == CardUsage(GIB // 2, None)
    assert look((GIB, 1.0), (0, 0.0), (0, 0.0)) == CardUsage(GIB, 1.0), "it has grown from what it was when least was in use"
    assert look((GIB, 1.0)) == CardUsage(GIB, None), "a GPU disappeared: the comparison begins anew"
    assert look() == CardUsage(0, None)


@pytest.mark.parametrize(
    ("env", "names", "seen"),
    [
        ({}, ["A", "A"], None),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["A", "A"], {0, 1}),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["A", "A"], set()),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["A", "B"], None),  # CUDA counts the fastest first, and which one that is is unknown
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["A", "B"], {1}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["A"], None),
    ],
)
def test_the_cards_that_a_model_sees(env: dict[str, str], names: list[str], seen: set[int] | None) -> None:
    assert visible_cards(env, names) == seen


def test_what_another_model_does_on_its_own_card_is_nothing_to_this_one() -> None:
    in_use = CardsInUse(frozenset({1}))
    in_use.look((Gpu(GIB, 8 * GIB, 0.1), Gpu(GIB, 8 * GIB, 0.0)))
    assert in_use.look((Gpu(7 * GIB, 8 * GIB, 0.2), Gpu(2 * GIB, 8 * GIB, 1.0))) == CardUsage(2 * GIB, 1.0)


def test_a_sample_has_the_mean_of_the_readings_since_the_one_before() -> None:
    readings = CardReadings()
    assert readings.take() == ()
    first, second = Gpu(GIB, 12 * GIB, 0.5, 100.0, 90, 1.0, 0.0, 0.0, 1, 3), Gpu(2 * GIB, 12 * GIB, 1.0, 50.0, 70, 0.0, 1.0, None, 1, 1)
    for gpus in ((first,), (), (second,)):
        readings.add(gpus)
    assert readings.take() == (Gpu(2 * GIB, 12 * GIB, 0.75, 75.0, 90, 0.5, 0.5, 0.0, 1, 3),)
    assert readings.take() == ()
    readings.add((first, first))
    readings.add((second,))
    assert readings.take() == (second,), "a reading of other cards is none of these"
    for gpu in (first, Gpu(0, 0, 0.0)):
        readings.add((gpu,))
    assert readings.take() == (Gpu(0, 0, 0.0),), "a card that no longer answers"
