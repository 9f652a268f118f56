"""The phases of a start in the log of vLLM: lines that the real 0.32 printed, and lines for GPUs from its source."""

from __future__ import annotations

import pytest

from vllm_safe.common.sizes import GIB
from vllm_safe.contract.state_file import ReportedMemory
from vllm_safe.launch.phases import LogMark, PhaseTracker, read_line

WORKER = "(Worker pid=121) INFO 11-23 23:02:18 "
COLOURED = "\x1b[0;36m(Worker pid=121)\x1b[0;0m \x1b[32mINFO\x1b[0m \x1b[90m11-23 23:02:18\x1b[0m \x1b[90m[cpu_model_runner.py:68]\x1b[0m "

# Printed by vLLM 0.32.0 on a CPU, in this order; some lines are left out.
LOG = """\
(APIServer pid=88) INFO 11-23 23:02:02 [api_utils.py:286] non-default args: {'model_tag': '/srv/models/big', 'host': '127.0.0.1'}
(APIServer pid=88) INFO 11-23 23:02:08 [model.py:733] Resolved architecture: Qwen2ForCausalLM
(EngineCore pid=109) INFO 11-23 23:02:12 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/srv/models/big'
(Worker pid=121) INFO 11-23 23:02:18 [cpu_model_runner.py:68] Starting to load model /srv/models/big...
(Worker pid=121) INFO 11-23 23:02:18 [base_loader.py:82] Initializing model took 0.125326 seconds

\rLoading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]

\rLoading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.16s/it]

\rLoading safetensors checkpoint shards: 100% Completed | 4/4 [00:04<00:00,  1.11s/it]

(Worker pid=121) INFO 11-23 23:02:23 [default_loader.py:501] Loading weights took 4.46 seconds
(EngineCore pid=109) INFO 11-23 23:02:25 [kv_cache_utils.py:2327] CPU KV cache size: 10,880 tokens, Maximum concurrency for 2,048 tokens
(EngineCore pid=109) INFO 11-23 23:02:28 [core.py:402] init engine (profile, create kv cache, warmup model) took 2.92 s
(APIServer pid=88) INFO 11-23 23:02:29 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000
"""


# Printed by vLLM 0.32.0 at the first start of 14 GB on two H200s, with its times; some lines are left out, and long lines are cut.
CARDS = """\
(APIServer pid=1021) INFO 11-28 11:18:51 [model.py:733] Resolved architecture: Qwen2ForCausalLM
(EngineCore pid=1046) INFO 11-28 11:18:59 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/srv/models/large'
(Worker pid=64) INFO 11-28 11:19:09 [parallel_state.py:1906] world_size=2 rank=0 local_rank=0 distributed_init_method=file:///x backend=nccl
(Worker pid=1064) INFO 11-28 11:19:10 [pynccl.py:148] vLLM is using nccl==2.29.7
(Worker_TP0 pid=1064) INFO 11-28 11:19:11 [model_runner.py:392] Loading model from scratch...
(Worker_TP0 pid=1064) INFO 11-28 11:19:15 [default_loader.py:501] Loading weights took 3.12 seconds
(Worker_TP0 pid=1064) INFO 11-28 11:19:17 [model_runner.py:424] Model loading took 7.16 GiB memory and 5.931616 seconds
(Worker_TP0 pid=1064) INFO 11-28 11:19:18 [monitor.py:40] [backbone] Starting torch.compile
(Worker_TP0 pid=1064) INFO 11-28 11:19:43 [monitor.py:62] [backbone] torch.compile took 24.49 s in total
(Worker_TP0 pid=1064) INFO 11-28 11:19:53 [model_runner.py:1127] Graph capturing finished in 7 secs, took 0.43 GiB
(Worker_TP0 pid=1064) INFO 11-28 11:19:53 [gpu_worker.py:759] Available KV cache memory: 119.2 GiB
(EngineCore pid=1046) INFO 11-28 11:19:53 [kv_cache_utils.py:2327] GPU KV cache size: 4,463,888 tokens, Maximum concurrency for 8,192 tokens
(Worker_TP0 pid=1064) INFO 11-28 11:19:54 [kernel_warmup.py:176] JIT kernel warmup starting.
(Worker_TP0 pid=1064) INFO 11-28 11:20:28 [model_runner.py:1127] Graph capturing finished in 8 secs, took 0.29 GiB
(EngineCore pid=1046) INFO 11-28 11:20:29 [core.py:395] init engine (profile, create kv cache, warmup model) took 71.19 s
"""


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        (
            "[parallel_state.py:1906] world_size=2 rank=1 local_rank=1 distributed_init_method=file:///tmp/vllm_dist_24e4 backend=nccl",
            LogMark("initializing", "CUDA and NCCL"),
        ),
        (
            "[parallel_state.py:1906] world_size=1 rank=0 local_rank=0 distributed_init_method=file:///tmp/vllm_dist_24e4 backend=gloo",
            LogMark("initializing"),
        ),
        ("[cpu_model_runner.py:68] Starting to load model /m...", LogMark("loading")),
        ("[model_runner.py:392] Loading model from scratch...", LogMark("loading")),
        (
            "[gpu_model_runner.py:5150] Model loading took 8.91 GiB memory and 1802.113000 seconds",
            LogMark("profiling", "8.91 GiB of weights loaded", figure="weights", value=int(8.91 * GIB)),
        ),
        (
            "[gpu_worker.py:760] Available KV cache memory: -0.31 GiB",
            LogMark("profiling", "-0.31 GiB for the KV cache", figure="cache", value=int(-0.31 * GIB)),
        ),
        (
            "[gpu_worker.py:669] Initial free memory 138.27 GiB, reserved 118.77 GiB memory for KV Cache as specified",
            LogMark("profiling", "118.77 GiB for the KV cache", figure="cache", value=int(118.77 * GIB)),
        ),
        (
            "[kv_cache_utils.py:2327] GPU KV cache size: 41,600 tokens, Maximum",
            LogMark("profiling", "a KV cache of 41,600 tokens", figure="tokens", value=41600),
        ),
        ("[backends.py:1167] Dynamo bytecode transform time: 5.10 s", LogMark("compiling")),
        ("[monitor.py:62] torch.compile took 31.00 s in total", LogMark("compiling")),
        ("[monitor.py:62] [backbone] torch.compile takes 31.00 s in total", LogMark("compiling")),
        ("[gpu_model_runner.py:6582] Graph capturing finished in 9 secs, took 0.30 GiB", LogMark("capturing")),
        ("[core.py:402] init engine (profile, create kv cache, warmup model) took 2.92 s", LogMark("warming-up")),
    ],
)
def test_what_a_line_announces(line: str, mark: LogMark) -> None:
    assert read_line(WORKER + line) == mark


@pytest.mark.parametrize(
    ("bar", "mark"),
    [
        ("Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.16s/it]", LogMark("loading", "shard 1 of 4", 1, 4)),
        ("Loading safetensors checkpoint shards (eager):  50% Completed | 2/4 [", LogMark("loading", "shard 2 of 4", 2, 4)),
        ("Loading pt checkpoint shards: 100% Completed | 3/3 [00:01<00:00]", LogMark("loading", "shard 3 of 3", 3, 3)),
        ("Multi-thread loading shards:  10% Completed | 1/10 [", LogMark("loading", "shard 1 of 10", 1, 10)),
        ("Capturing CUDA graphs (decode, FULL):  43%|████▎     | 3/7 [00:01<00:01,  2.2it/s]", LogMark("capturing", "graph 3 of 7", 3, 7)),
        ("(Worker_TP0 pid=7) Capturing CUDA graphs:   0%|          | 0/7 [00:00<?, ?it/s]", LogMark("capturing", "graph 0 of 7", 0, 7)),
    ],
)
def test_how_far_a_bar_is(bar: str, mark: LogMark) -> None:
    assert read_line(bar) == mark


def test_our_loader_counts_bytes() -> None:
    follow = PhaseTracker(0.0, "initializing")
    line = f"{WORKER}[ring_loader.py:9] vllm-safe: 1048576 of 4194304 bytes of the checkpoint have been read\n"
    assert follow.read_output(line.encode(), 1.0)
    assert (follow.phase, follow.read, follow.stored, follow.of) == ("loading", 1 << 20, 4 << 20, 0)


def test_colours_change_nothing() -> None:
    assert read_line(f"{COLOURED}Starting to load model /m...") == LogMark("loading")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading",
        f"{WORKER}[x.py:1] a request said: Starting to load model /m...",
        '127.0.0.1 - "GET /health HTTP/1.1" 200 OK',
        "x" * 2000,
    ],
)
def test_other_lines_announce_nothing(line: str) -> None:
    assert read_line(line) is None


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_the_phases_of_a_real_log_in_order_however_it_is_cut(size: int) -> None:
    follow, text = PhaseTracker(0.0, "starting"), LOG.encode()
    seen = ["starting"]
    shards = []
    for at in range(0, len(text), size):
        if follow.read_output(text[at : at + size], float(at)):
            seen.append(follow.phase)
        shards.append((follow.done, follow.of))
    if size == 1:  # otherwise several phases pass at once
        assert seen == ["starting", "importing", "loading", "profiling", "warming-up"]
        assert list(dict.fromkeys(shards)) == [(0, 0), (0, 4), (1, 4), (4, 4)]
    assert follow.phase == "warming-up"


def test_the_phases_of_a_real_log_of_cards() -> None:
    """The first capture is an estimate: kernels are compiled after it for half a minute."""
    follow, seen = PhaseTracker(0.0, "starting"), {}
    for line in CARDS.splitlines():
        if follow.read_output(f"{line}\n".encode(), 0.0):
            seen[follow.phase] = line.split()[4]
        if "JIT" in line:
            assert (follow.phase, follow.text) == ("compiling", "kernels")
    assert seen == {
        "importing": "11:18:51",
        "initializing": "11:19:09",
        "loading": "11:19:11",
        "profiling": "11:19:17",
        "compiling": "11:19:18",
        "capturing": "11:20:28",
        "warming-up": "11:20:29",
    }


def test_phases_only_go_forward() -> None:
    follow = PhaseTracker(0.0)
    follow.read_output(b"(EngineCore pid=9) INFO 11-28 11:19:53 [kv_cache_utils.py:2327] GPU KV cache size: 41,600 tokens, Maximum\n", 0.5)
    follow.read_output(b"Capturing CUDA graphs (decode, FULL):  43%|x| 3/7 [\n", 1.0)
    assert not follow.read_output(b"Starting to load model the drafter...\n", 2.0)
    assert (follow.phase, follow.since, follow.text) == ("capturing", 1.0, "graph 3 of 7")
    assert not follow.go("loading", 3.0)
    assert follow.go("ready", 4.0)
    assert (follow.phase, follow.since, follow.text) == ("ready", 4.0, "")


def test_nothing_that_is_printed_later_ends_being_ready() -> None:
    follow = PhaseTracker(0.0)
    follow.go("ready", 1.0)
    assert not follow.read_output(b"Starting to load model x...\n", 2.0)


def test_the_main_process_alone_says_ready() -> None:
    follow = PhaseTracker(0.0)
    follow.read_output(LOG.encode() + b"ready\nstopping\nended\nApplication startup complete.\n", 1.0)
    assert follow.phase == "warming-up"


def test_what_is_repeated_is_no_news() -> None:
    follow = PhaseTracker(0.0)
    for second in range(50):
        follow.read_output(
            f"(EngineCore pid=9) INFO 11-23 23:02:{second:02} [shm_broadcast.py:681] No available block found in 60 seconds.\n".encode(),
            1.0,
        )
    assert follow.news == 1
    follow.read_output(
        b"Loading x checkpoint shards:  25% Completed | 1/4 [00:01\nLoading x checkpoint shards:  50% Completed | 2/4 [00:02\n", 2.0
    )
    assert follow.news == 3


def test_a_line_without_an_end_stays_small() -> None:
    follow = PhaseTracker(0.0)
    for _ in range(100):
        follow.read_output(b"x" * 65536, 0.0)
    assert len(follow._torn) <= 1000


def test_what_was_reported_about_memory() -> None:
    follow = PhaseTracker(0.0)
    assert follow.memory is None
    follow.read_output(CARDS.encode(), 1.0)
    assert follow.memory == ReportedMemory((int(7.16 * GIB),), int(119.2 * GIB), 4463888)


def test_the_weights_of_workers_stand_in_the_order_of_their_ranks() -> None:
    follow = PhaseTracker(0.0)
    for rank, size in ((1, "5.25"), (10, "6.5"), (0, "4.0"), (2, "5.5")):
        follow.read_output(f"(Worker_PP{rank} pid=7) INFO Model loading took {size} GiB memory and {rank}.5 seconds\n".encode(), 1.0)
    for size in ("3.5", "3.25", "4.0"):
        follow.read_output(f"(Worker_PP1 pid=7) INFO Available KV cache memory: {size} GiB\n".encode(), 2.0)
    assert follow.memory == ReportedMemory((4 * GIB, int(5.25 * GIB), int(5.5 * GIB), int(6.5 * GIB)), int(3.25 * GIB))
