"""The machines of tests/golden/check, by the name of the file with what `vllm-safe check` says of them."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.builders.rigs import GIB, FakeCard, FakeModule, FakeRig
from tests.truth.starts import MODELS_FILE

_3060 = {
    "capability": "8.6",
    "memory": "12288 1 246",
    "bar1": 256,
    "power": "170 170 100 190",
    "temperature": "41 93",
    "persistence": 0,
    "display": 0,
}
_H200 = {
    "capability": "9.0",
    "memory": "143771 0 616",
    "bar1": 262144,
    "power": "700 700 200 700",
    "temperature": "31 87",
    "persistence": 1,
    "display": 0,
    "ecc": "1 1",
    "remapped": "0 0 0 0",
}
_BOOTED = (7200.0, "Linux version 6.1.0-41-amd64 (debian-kernel@lists.debian.org)")
_NO_PEERS = "p2p -1 -1 2"

PLAN_MACHINE = FakeRig(
    config="""\
models:
  qwen72b:
    model: Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8
    profile: pcie-riser
    args: {tensor-parallel-size: 8, gpu-memory-utilization: 0.90, max-model-len: 8192, max-num-seqs: 32}
""",
    cards=[FakeCard(f"0000:{bus:02x}:00.0", "NVIDIA GeForce RTX 3060", _3060, lanes=1, slot_lanes=1) for bus in range(1, 9)],
    pairs=[_NO_PEERS],
    memory=16 * GIB,
    cores=2,
    threads=1,
    modules=[FakeModule("ChannelA-DIMM0", "BANK 0", 8192, 2133), FakeModule("ChannelB-DIMM0", "BANK 2", 8192, 2133)],
    disks={"sda": True, "sdb": False},
    swapfile=128 * GIB,
    journal=[_BOOTED],
    model=json.loads(MODELS_FILE.read_text())["qwen2.5-72b-instruct-gptq8"],
)

RIG_CASES = {
    "plan-machine": PLAN_MACHINE,
    # The same rig as its owner may have it: nothing set, a card lost, another hot, a third in use, RAM in one channel.
    "risers-in-trouble": replace(
        PLAN_MACHINE,
        config="""\
swap: {size: none}
models:
  qwen72b: {model: Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8, args: {tensor-parallel-size: 8}}
""",
        cards=[
            *(FakeCard(f"0000:{bus:02x}:00.0", "NVIDIA GeForce RTX 3060", _3060, lanes=1) for bus in range(1, 5)),
            FakeCard("0000:05:00.0", "NVIDIA GeForce RTX 3060", _3060 | {"temperature": "94 93", "slowed": "0x40"}, lanes=1, slot_lanes=1),
            FakeCard("0000:06:00.0", "NVIDIA GeForce RTX 3060", _3060 | {"memory": "12288 2600", "process": "4711 2500"}, lanes=8),
            FakeCard("0000:07:00.0", lanes=63),
            FakeCard("0000:08:00.0", "NVIDIA GeForce RTX 3060", _3060 | {"power": "110 170 100 190"}, lanes=1, slot_lanes=1),
            FakeCard("0000:09:00.0", bound="nouveau"),
        ],
        modules=[FakeModule("ChannelA-DIMM0", "BANK 0", 16384, 2133), FakeModule("ChannelB-DIMM0", "BANK 2", 0)],
        processes={4711: ("ollama", "/system.slice/ollama.service")},
        huge_pages="[always] madvise never",
        defrag="[always] defer defer+madvise madvise never",
        swapfile=16 * GIB,
        journal=[
            _BOOTED,
            (5400.0, "NVRM: Xid (PCI:0000:07:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
            (5399.0, "NVRM: GPU 0000:07:00.0: GPU has fallen off the bus."),
            (600.0, "NVRM: Xid (PCI:0000:02:00): 45, pid=812, name=python3, Ch 00000008"),
            (60.0, "pcieport 0000:00:01.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)"),
            (50.0, "pcieport 0000:00:01.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)"),
        ],
    ),
    "mixed-pair": FakeRig(
        config="""\
swap: {size: none}
models:
  qwen14b: {model: Qwen/Qwen2.5-14B-Instruct, args: {tensor-parallel-size: 2}}
""",
        cards=[
            FakeCard("0000:01:00.0", "NVIDIA GeForce RTX 3060", _3060 | {"display": 1, "memory": "12288 900", "process": "812 850"}),
            FakeCard(
                "0000:02:00.0",
                "NVIDIA GeForce RTX 3090",
                _3060 | {"memory": "24576 1", "bar1": 32768, "power": "262 350 100 350", "temperature": "52 95"},
                lanes=4,
                slot_lanes=4,
            ),
        ],
        pairs=["p2p -1 -1 1"],
        open_module=False,
        modules=[FakeModule(f"DIMM {number}", f"P0 CHANNEL {bank}", 16384, 3200) for bank in "AB" for number in (0, 1)],
        processes={812: ("Xorg", "/user.slice/user-1000.slice/session-2.scope")},
        journal=[_BOOTED],
        model={"model_type": "qwen2", "torch_dtype": "bfloat16"},
    ),
    "laptop": FakeRig(
        config="""\
swap: {size: none}
models:
  small: {model: Qwen/Qwen2.5-3B-Instruct-FP8}
""",
        cards=[
            FakeCard(
                "0000:01:00.0",
                "NVIDIA GeForce RTX 3070 Laptop GPU",
                {
                    "capability": "8.6",
                    "memory": "8192 1400",
                    "bar1": 8192,
                    "temperature": "86 87",
                    "slowed": "0x20",
                    "persistence": 0,
                    "display": 1,
                    "process": "2210 1100",
                    "process@2": "3120 250",
                },
                slot_lanes=8,
                lanes=8,
            )
        ],
        memory=16 * GIB,
        modules=[FakeModule("ChannelA-DIMM0", "BANK 0", 16384, 3200), FakeModule("ChannelB-DIMM0", "BANK 2", 0)],
        chassis=10,
        command_line="root=/dev/nvme0n1p2 ro quiet resume=UUID=0f0f",
        processes={
            2210: ("gnome-shell", "/user.slice/user-1000.slice/user@1000.service/session.slice/org.gnome.Shell@wayland.service"),
            3120: ("firefox", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox.scope"),
        },
        journal=[_BOOTED, (300.0, "NVRM: Xid (PCI:0000:01:00): 31, pid=3120, name=firefox, Ch 00000008, MMU Fault: ENGINE GRAPHICS")],
        model={"model_type": "qwen2", "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}},
    ),
    "no-driver": FakeRig(
        config="""\
swap: {size: none}
models:
  small: {model: Qwen/Qwen2.5-3B-Instruct}
""",
        cards=[FakeCard("0000:01:00.0", bound="nouveau")],
        driver="",
        journal=[_BOOTED],
    ),
    "old-cards": FakeRig(
        config="""\
swap: {size: none}
models:
  chosen: {model: org/llama, args: {tensor-parallel-size: 2, dtype: bfloat16}}
  automatic: {model: org/llama, port: 8001, gpus: [0]}
""",
        cards=[
            FakeCard(f"0000:{bus:02x}:00.0", "Tesla T4", _3060 | {"capability": "7.5", "memory": "15360 1", "ecc": "1 0", "retired": "2 1"})
            for bus in (1, 2)
        ],
        pairs=["p2p -1 -1 0"],
        journal=[_BOOTED],
        model={"model_type": "llama", "torch_dtype": "bfloat16"},
    ),
    "nvlink-pair": FakeRig(
        config="""\
swap: {size: none}
models:
  qwen72b: {model: Qwen/Qwen2.5-72B-Instruct, args: {tensor-parallel-size: 2}}
""",
        cards=[FakeCard(f"0000:{bus:02x}:00.0", "NVIDIA H200", _H200, iommu="DMA-FQ") for bus in (1, 2)],
        pairs=["p2p -1 -1 0", "nvlink 0 1"],
        memory=512 * GIB,
        cores=32,
        modules=[FakeModule(f"P0_DIMM_{channel}1", "", 65536, 5600) for channel in "ABCDEFGH"],
        journal=[_BOOTED],
        model={"model_type": "qwen2", "torch_dtype": "bfloat16"},
    ),
}
