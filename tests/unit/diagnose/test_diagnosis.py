"""Tests of every kind of end, from the recorder's files to the printed answer: tests/golden/why/CASE/.

Each case has expected.txt and expected.json; the run is made by tests/builders/endings.py. After an intended change, run
GOLDEN_UPDATE=1 pytest tests/unit/diagnose and read the diff.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.endings import BEFORE, CASES, ended
from tests.builders.runs import BEGUN, BOOT, GIB, make_run, write_run
from tests.unit.causes.test_messages import LINES
from vllm_safe.causes.messages import FOLLOWS, PATTERNS, Message
from vllm_safe.causes.patterns import Pattern
from vllm_safe.cli import main, why
from vllm_safe.common.errors import ConfigError
from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import parse_span
from vllm_safe.config.reader import load
from vllm_safe.contract import state_file
from vllm_safe.contract.recorded_run import End, Event, Gpu, Run, Sample, Start
from vllm_safe.contract.state_file import CAUSES, State, to_json
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.diagnose.error_meanings import ADVICE, advise
from vllm_safe.diagnose.verdict import Case
from vllm_safe.launch.end_sentence import WORDS
from vllm_safe.record import run_reader
from vllm_safe.report import judged_run

GOLDEN = Path(__file__).parents[2] / "golden/why"
NOW = BEGUN + 20


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW)
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the command read the recorded runs from this folder, in the boot of tests/runs.py."""
    (tmp_path / "boot_id").write_text(f"{BOOT}\n")
    monkeypatch.setattr(judged_run, "_BOOT", tmp_path / "boot_id")
    monkeypatch.setattr(run_reader.list_runs, "__defaults__", (tmp_path / "runs",))
    monkeypatch.setattr(run_reader.read_run, "__defaults__", (tmp_path / "runs",))
    monkeypatch.setattr(run_reader, "unit_properties", lambda *_: {})
    return tmp_path / "runs"


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's whole output is the same, as text and as JSON."""
    built = [builders[case]() for builders in (CASES, BEFORE) if case in builders]
    monkeypatch.setattr(time, "time", lambda: (built[0].end or built[0].samples[-1]).time + 6)
    for run in built:
        write_run(run, runs)
    folder = GOLDEN / case
    answers = {}
    for name, options in (("expected.txt", []), ("expected.json", ["--json"])):
        assert main.main(["why", "qwen72b", *options]) == 0
        answers[name] = capsys.readouterr().out
    if "GOLDEN_UPDATE" in os.environ:
        folder.mkdir(exist_ok=True)
        for name, text in answers.items():
            (folder / name).write_text(text)
    assert answers == {name: (folder / name).read_text() for name in answers}


def test_each_golden_answer_has_its_case() -> None:
    """What a case is no longer made for would be kept for ever."""
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_the_case(case: str) -> None:
    """Each case has its own code, a sentence and evidence: the golden files could be wrong together."""
    verdict = decide_why(CASES[case](), BOOT, NOW)
    wanted = {
        "memory-limit-machine-swap": "memory-limit-swap",
        "memory-limit-no-swap": "memory-limit-ram",
        "signal-to-main": "signal",
        "no-nvcc-for-the-sampler": "no-nvcc",
        "hang-process-gone": "hang",
        "kernel-oom-unread": "kernel-oom",
        "signal-unread": "signal",
        "hang-warming-up": "hang",
        "hang-in-vain": "hang",
        "stall-in-vain": "stall",
        "stall-with-busy-cards": "stall",
        "stall-until-start-timeout": "stall",
        "gpu-fault-memory": "gpu-fault",
        "gpu-fault-while-loading": "gpu-fault",
        "no-gpu-driver-mismatch": "no-gpu",
    }
    assert verdict.code == wanted.get(case, case.removesuffix("-on-risers"))
    assert verdict.evidence or case == "unknown"
    assert verdict.sentence.startswith(("qwen72b ", "It is not known"))


def test_each_suggestion_is_a_setting(tmp_path: Path) -> None:
    """Each suggestion can be written into config.yaml literally."""
    file = tmp_path / "config.yaml"
    refused = []
    for case, build in CASES.items():
        for change in decide_why(build(), BOOT, NOW).changes:
            *sections, key = change.path.split(".")
            lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
            lines.append(f"{'  ' * len(sections)}{key}: {change.new}")
            if sections[0] == "models":
                lines.append("    model: /srv/models/x")
            file.write_text("\n".join(lines) + "\n")
            try:
                load(file)
            except ConfigError as error:
                refused.append(f"{case}: {error}")
    assert refused == []


def test_nothing_is_suggested_that_is_so_already_or_less() -> None:
    """Each old value was recorded, and times only grow."""
    for case, build in CASES.items():
        run = build()
        for change in decide_why(run, BOOT, NOW).changes:
            *_, section, key = change.path.split(".")
            assert change.old.lower() != change.new.strip('"').lower(), (case, change)
            if key in run.start.times:
                assert parse_span(change.old) == run.start.times[key] < parse_span(change.new), (case, change)
            if section == "env" and key != "VLLM_CPU_KVCACHE_SPACE":
                assert change.old == run.start.env.get(key, "unset"), (case, change)


def test_times_that_are_not_recorded_are_not_guessed() -> None:
    run = CASES["hang"]()
    assert decide_why(run._replace(start=run.start._replace(times={})), BOOT, NOW).changes == ()


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause != "exited"])
def test_each_cause_has_a_rule(cause: str) -> None:
    """A cause that the main process knows is never reported as unknown."""
    assert decide_why(ended(end={"cause": cause, "reason": "so it is"}), BOOT, NOW).code != "unknown"


def test_each_message_has_words_and_advice() -> None:
    """Each pattern of causes/ has its sentence and its advice, and there is no sentence or advice without a pattern."""
    kinds = {pattern.kind or pattern.code for pattern in PATTERNS if pattern.code not in FOLLOWS}
    assert kinds == set(WORDS) == set(ADVICE)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern.code not in FOLLOWS], ids=lambda pattern: pattern.kind)
def test_another_server_is_told_nothing_of_vllm(pattern: Pattern) -> None:
    """Another server has its options in `command`, and vllm-safe neither fetches nor installs it."""
    run = ended(end={"cause": "exited", "reason": "x (exit status 1)"})
    message = Message(pattern.code, pattern.kind or pattern.code, pattern.never_can_work, "", "", defaultdict(lambda: "1"))
    advice = advise(Case(run._replace(start=run.start._replace(command=True)), BOOT, NOW), message)
    assert not re.search(
        r"\bargs\.|engine\.|vllm-safe (?:fetch|install)", "\n".join([advice.hint, *(change.path for change in advice.changes)])
    )


def test_figures_that_are_rounded_to_none_are_not_said() -> None:
    """The KV cache of a tiny model is rounded to 0.0 GiB; the length is vLLM's own estimate, exact to the token."""
    line = (
        "ValueError: To serve at least one request with the model's max seq len (2048), (0.0 GiB KV cache is needed, which is larger than "
        "the available KV cache memory (0.0 GiB). Based on the available memory, the estimated maximum model length is 1008. Try"
    )
    verdict = decide_why(ended(end={"cause": "exited", "reason": "x (exit status 1)"}, log=[line]), BOOT, NOW)
    assert verdict.sentence.endswith("is too small for max-model-len 2048: at most 1008 tokens fit.")
    assert [change.new for change in verdict.changes] == ["1008"]


@pytest.mark.parametrize("by", ["-9", "-11"])
def test_who_killed_a_process_is_asked(by: str) -> None:
    """The hint says that no kill was recorded where a signal was sent, but not for a process that crashed."""
    line = f"ERROR 11-23 22:10:48 [x.py:1] Worker proc VllmWorker-3 died unexpectedly (exit code: {by}), shutting down"
    verdict = decide_why(ended(end={"cause": "exited", "reason": "x (exit status 1)"}, log=[line]), BOOT, NOW)
    assert ("recorded no kill" in verdict.hint) == (by == "-9")


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("ValueError: no. Re-run with --kv-cache-dtype bfloat16.", [("kv-cache-dtype", "bfloat16")]),
        ("ValueError: no. Please try --enforce-eager to go on", [("enforce-eager", "true")]),
        ("ValueError: no, for example: --dtype=half.", [("dtype", "half")]),
        ("ValueError: no. Please lower max_num_seqs to at most 95.", [("max-num-seqs", "95")]),
        ("ValueError: LoRA rank 48 is greater than max_lora_rank 16.", [("max-lora-rank", "64")]),
        (
            "ValueError: no: max_tokens_per_mm_item (2496) is larger than max_num_batched_tokens (2048).",
            [("max-num-batched-tokens", "2496")],
        ),
        (
            "  Value error, max_num_batched_tokens (512) must be greater than or equal to max_num_seqs (1024). [type=value_error, input=A]",
            [("max-num-batched-tokens", "1024")],
        ),
        ("ValueError: --foo is not a valid choice", []),
        ("vllm serve: error: unrecognized arguments: --swap-space 4", []),
    ],
)
def test_what_vllm_says_is_to_be_set_is_a_change(line: str, changes: list[tuple[str, str]]) -> None:
    """A setting that vLLM suggests is a change; an option that vLLM does not know is not."""
    verdict = decide_why(ended(end={"cause": "exited", "reason": "x (exit status 1)"}, log=[line]), BOOT, NOW)
    assert verdict.code in {"bad-setting", "bad-argument"}
    assert [(change.path.removeprefix("models.qwen72b.args."), change.new) for change in verdict.changes] == changes


@pytest.mark.parametrize(("args", "hint"), [({"quantization": "foo"}, "Remove models.qwen72b.args.quantization"), ({}, "Another engine")])
def test_an_unknown_quantization_is_no_fault_of_the_card(args: dict[str, str], hint: str) -> None:
    run = ended(
        end={"cause": "exited", "reason": "x (exit status 1)"}, log=["ValueError: Unknown quantization method: foo. Must be one of"]
    )
    verdict = decide_why(run._replace(start=run.start._replace(args=args)), BOOT, NOW)
    assert "card" not in verdict.sentence
    assert verdict.hint.startswith(hint)


def test_of_a_setting_that_pydantic_refuses_both_lines_are_told() -> None:
    """The lines are those of vLLM 0.32.0 for max-model-len: -5."""
    log = [
        "Traceback (most recent call last):",
        "    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "max_model_len",
        "  Input should be greater than or equal to -1 [type=greater_than_equal, input_value=-5, input_type=int]",
        "    For further information visit https://errors.pydantic.dev/2.14/v/greater_than_equal",
    ]
    verdict = decide_why(ended(end={"cause": "exited", "reason": "x (exit status 1)"}, log=log), BOOT, NOW)
    assert verdict.code == "bad-setting"
    assert verdict.sentence.endswith(": an option is invalid: max_model_len: Input should be greater than or equal to -1.")


@pytest.mark.parametrize("digits", ["0", "9" * 400])
def test_figures_that_cannot_be_are_no_traceback(digits: str) -> None:
    """Any number that a server prints in an error is handled."""
    for line in chain.from_iterable(LINES.values()):
        run = ended(end={"cause": "exited", "reason": "x (exit status 1)", "error": re.sub(r"[0-9]+", digits, line)})
        assert decide_why(run, BOOT, NOW).sentence


def test_an_old_kill_is_not_the_cause() -> None:
    """A process that the kernel killed an hour before the end did not end it."""
    old = Event(BEGUN - 3600, "kernel-oom", "the kernel killed process 1 (cc1plus) at a memory limit", {"limit": True})
    verdict = decide_why(ended(end={"cause": "exited", "reason": "x (killed by SIGKILL)"}, events=[old]), BOOT, NOW)
    assert verdict.code == "signal"


def test_a_stop_is_not_blamed_on_what_was_printed() -> None:
    """A server that is asked to stop may print anything."""
    run = make_run(end={"cause": "stopped", "reason": "stopping"}, log=["RuntimeError: CUDA error: out of memory"])
    assert decide_why(run, BOOT, NOW).code == "stopped"


def test_a_stop_that_earlyoom_sent_to_the_main_process_is_told_as_its_kill() -> None:
    run = CASES["earlyoom"]()
    assert run.end
    stopped = run.end._replace(cause="stopped", reason="stopping")
    assert decide_why(run._replace(end=stopped), BOOT, NOW).code == "earlyoom"
    events = [event._replace(time=stopped.time + 60) if event.kind == "earlyoom" else event for event in run.events]
    assert decide_why(run._replace(end=stopped, events=events), BOOT, NOW).code == "stopped", "it acted after the stop"


def test_the_recorder_ended_first() -> None:
    """Without an end, in the same boot and with no record for long, the verdict is unknown."""
    verdict = decide_why(make_run(seconds=10), BOOT, BEGUN + 4000)
    assert (verdict.code, verdict.tone) == ("unknown", "")


def test_more_memory_is_suggested_where_there_is_more() -> None:
    """The limit is low, the machine is large and swap is free."""
    run = CASES["memory-limit-ram"]()
    run = run._replace(start=run.start._replace(limits={"memory_max": 4 * GIB, "swap_max": 115 * GIB}))
    assert [(change.path, change.old, change.new) for change in decide_why(run, BOOT, NOW).changes] == [
        ("models.qwen72b.limits.memory_max", "4G", "5G")
    ]


@pytest.mark.parametrize(("swap", "code"), [(96, "memory-limit-swap"), (80, "memory-limit-ram")])
def test_swap_that_was_used_up_since_the_last_sample_is_known_from_the_kernel(swap: int, code: str) -> None:
    """With MGLRU nothing is refused, so no count of memory.swap.events shows it."""
    run = CASES["memory-limit-swap"]()
    (kill,) = (event for event in run.events if event.kind == "kernel-oom")
    kill = kill._replace(data={**kill.data, "swap": swap << 20, "swap_limit": 96 << 20})
    assert run.end
    run = run._replace(
        start=run.start._replace(limits={**run.start.limits, "swap_max": 96 << 20}),
        end=run.end._replace(swap_events={"high": 0, "max": 0, "fail": 0}),
        samples=tuple(sample._replace(swap=70 << 20) for sample in run.samples),
        events=(kill,),
    )
    assert decide_why(run, BOOT, NOW).code == code


def test_a_model_alone_reaches_the_limit_of_all_and_it_is_its_own() -> None:
    """The slice is as large as its only model and holds memory that an earlier start left, so the kernel names the slice."""
    run = CASES["memory-limit-shared"]()
    full = run._replace(samples=tuple(sample._replace(memory=int(11.5 * GIB)) for sample in run.samples))
    assert decide_why(full, BOOT, NOW).code.startswith("memory-limit-ram")
    (kill,) = (event for event in run.events if event.kind == "kernel-oom")
    fast = [kill._replace(data={**kill.data, "anon": int(11.5 * GIB)}) if event == kill else event for event in run.events]
    assert decide_why(run._replace(events=tuple(fast)), BOOT, NOW).code.startswith("memory-limit-ram")


def test_older_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--run counts back or names a run; while the model runs, the answer also says why it stopped before."""
    write_run(CASES["port-taken"](), runs)
    write_run(make_run(run="20261123T222049-1a2b3c4d", seconds=10), runs)
    assert main.main(["why", "qwen72b"]) == 0
    said = capsys.readouterr().out
    assert said.index("is serving") < said.index("its port 8000 is already in use")
    for which in ("2", "20261123T222048-1a2b3c4d"):
        assert main.main(["why", "qwen72b", "--run", which]) == 0
        assert "its port 8000 is already in use" in capsys.readouterr().out.splitlines()[0]
    assert main.main(["why", "qwen72b", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["1", "2"]
    assert main.main(["why", "qwen72b", "--list", "--json"]) == 0
    assert [run["code"] for run in json.loads(capsys.readouterr().out)] == ["running", "port-taken"]
    assert main.main(["why", "qwen72b", "--run", "3"]) == 2
    assert "--list" in capsys.readouterr().err


def test_a_model_that_stays_down_tells_why_it_ended_everywhere(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refused restart is a run of its own, which does not show the cause."""
    alone = write_run(CASES["gave-up"](), runs)
    assert why.judge_run("qwen72b", alone.name)[1].code == "gave-up"
    write_run(BEFORE["gave-up"](), runs)
    for options in ([], ["--run", "1"], ["--run", alone.name]):
        assert main.main(["why", "qwen72b", "--json", *options]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["code"], said["run"], said["restart"]) == ("memory-limit-swap", BEFORE["gave-up"]().start.run, 3)
        assert said["sentence"].startswith("qwen72b stays down after 3 automatic restarts: qwen72b was killed by the kernel at its memory")
    assert main.main(["report", "qwen72b", "--text"]) == 0
    assert "stays down after 3 automatic restarts" in " ".join(capsys.readouterr().out.split())
    assert main.main(["why", "qwen72b", "--list", "--json"]) == 0
    assert [run["code"] for run in json.loads(capsys.readouterr().out)] == ["gave-up", "memory-limit-swap"]


UNIT = {"ActiveState": "failed", "SubState": "failed", "InvocationID": "1a2b3c4d" * 4}


@pytest.fixture
def states(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the state folder of a run that is over, whose recorder has not written the end yet; systemd answers UNIT."""
    states = runs.parent / "state"
    states.mkdir()
    monkeypatch.setattr(state_file, "STATE_FOLDER", states)
    monkeypatch.setattr(run_reader, "unit_properties", lambda *_: UNIT)
    monkeypatch.setattr(why, "_RECORDED", 0.0)
    ended = State("qwen72b", UNIT["InvocationID"], 7, NOW, BEGUN, "ended", NOW)
    said = ended._replace(cause="exited", reason="x (exit status 1)", error="KeyError: 'x'")
    (states / "qwen72b.json").write_text(to_json(said))
    return states


def _says(capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(["why", "qwen72b"]) == 0
    return capsys.readouterr().out.splitlines()[0]


@pytest.mark.usefixtures("states")
def test_one_that_is_over_does_not_run_though_its_end_is_not_recorded_yet(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the second after the end systemd knows about it, and the main process has written the cause."""
    write_run(make_run(seconds=10, phases=("starting", "loading")), runs)
    assert _says(capsys) == "qwen72b exited before it was ready (exit status 1): KeyError: 'x'."


def test_the_end_file_says_it_too(runs: Path, states: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of ExecStopPost= is read; without any file the model is not reported as running either."""
    write_run(make_run(seconds=10), runs)
    (states / "qwen72b.json").unlink()
    assert _says(capsys).startswith("It is not known why qwen72b stopped")
    end = {"time": NOW, "run": UNIT["InvocationID"], "cause": "exited", "reason": "x (killed by SIGKILL)", "result": "exit-code"}
    (states / "qwen72b.end.json").write_text(json.dumps(end))
    assert "was killed by SIGKILL; the sender is not known" in _says(capsys)


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize(
    "shown",
    [{}, UNIT | {"ActiveState": "active", "SubState": "running"}, UNIT | {"InvocationID": "5e6f7a8b" * 4}],
)
def test_one_that_runs_runs(shown: dict[str, str], runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer of systemd proves nothing, and neither does another invocation."""
    monkeypatch.setattr(run_reader, "unit_properties", lambda *_: shown)
    write_run(make_run(seconds=10), runs)
    assert _says(capsys).startswith("qwen72b is serving")


@pytest.mark.usefixtures("states")
def test_the_recorder_is_waited_for(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The recorder knows which program killed the model."""
    monkeypatch.setattr(why, "_RECORDED", 5.0)
    monkeypatch.setattr(time, "sleep", lambda _: write_run(CASES["earlyoom"](), runs))
    write_run(make_run(seconds=10), runs)
    assert _says(capsys).startswith("qwen72b was killed by earlyoom")


def test_a_torn_run_is_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that cannot be read does not hide the others."""
    (write_run(CASES["port-taken"](), runs) / "start.json").write_text("{")
    assert main.main(["why", "qwen72b", "--list"]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert main.main(["why", "qwen72b"]) == 1


@pytest.mark.parametrize(
    ("config", "code", "hint"),
    [
        ("models: {qwen72b: {model: a/b}}", 1, "systemctl start vllm@qwen72b"),
        ("models: {other: {model: a/b}}", 2, "other"),
        ("models: [", 1, "systemctl start vllm@qwen72b"),
        (None, 1, "systemctl start vllm@qwen72b"),
    ],
)
def test_no_run(config: str | None, code: int, hint: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says what to do with any configuration."""
    file = runs.parent / "config.yaml"
    if config is not None:
        file.write_text(config)
    assert main.main(["why", "qwen72b", "--config", str(file)]) == code
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("word", ["why", "report"])
@pytest.mark.usefixtures("runs")
def test_without_permission(word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A user without permission gets the command with sudo."""

    def refuse(_path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vllm_safe.record.run_store.os.listdir", refuse)
    monkeypatch.setattr("vllm_safe.report.judged_run.os.geteuid", lambda: 1000)
    assert main.main([word, "qwen72b"]) == 1
    assert f"sudo vllm-safe {word} qwen72b" in capsys.readouterr().err


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TAB completes the models of the file and of the records, and ignores a broken file."""
    (tmp_path / "runs/recorded").mkdir(parents=True)
    monkeypatch.setattr("vllm_safe.common.paths.RUNS", tmp_path / "runs")
    file = tmp_path / "config.yaml"

    def offered(incomplete: str) -> list[str]:
        context = why.command.make_context("why", ["--config", str(file)], resilient_parsing=True)
        return [item.value for item in why.command.params[0].shell_complete(context, incomplete)]

    file.write_text("models: {qwen72b: {model: a/b}}")
    assert offered("") == ["qwen72b", "recorded"]
    assert offered("q") == ["qwen72b"]
    file.write_text("models: [")
    assert offered("") == ["recorded"]


_text = st.one_of(
    st.sampled_from(["", "ready", "loading", "killed by SIGKILL", "9 s", *CAUSES, "oom-kill", "watchdog"]), st.text(max_size=20)
)
_figure = st.one_of(st.none(), st.integers(-(1 << 62), 1 << 62))
_share = st.one_of(st.none(), st.floats(-1e18, 1e18))
_time = st.floats(0, 1e18)
_count = st.dictionaries(st.sampled_from(["oom", "oom_kill", "max", "fail", "memory_max", "swap_max"]), st.integers(-(1 << 62), 1 << 62))
_json = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
_data = st.dictionaries(
    st.sampled_from(["limit", "act", "low", "memory", "swap", "max-num-seqs", "max-model-len", "tensor-parallel-size"]), _json
)
_KINDS = ["guard", "kernel-oom", "earlyoom", "stall", "hang", "phase"]
_WORDS = [line for build in CASES.values() for line in build().log]
_runs = st.builds(
    Run,
    st.builds(
        Start,
        name=_text,
        run=_text,
        time=_time,
        boot=_text,
        command=st.booleans(),
        health=_text,
        limits=_count,
        host=_data,
        args=_data,
        profile=_text,
        times=st.dictionaries(st.sampled_from(["start_timeout", "stall_timeout", "hang_timeout"]), st.floats(-1e18, 1e18)),
        env=st.dictionaries(
            st.sampled_from(["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_USE_FLASHINFER_SAMPLER"]), _text | st.text("0123456789")
        ),
    ),
    st.lists(
        st.builds(
            Sample,
            time=_time,
            phase=_text,
            memory=_figure,
            shmem=_figure,
            swap=_figure,
            ram_available=_figure,
            swap_free=_figure,
            read=_figure,
            io_pressure=_share,
            disk_read=_share,
            gpus=st.just((Gpu(1, 2, 0.5),)),
        ),
        max_size=3,
    ).map(tuple),
    st.lists(st.builds(Event, time=_time, kind=st.sampled_from(_KINDS), text=_text, data=_data), max_size=3).map(tuple),
    st.none()
    | st.builds(
        End,
        time=_time,
        cause=_text,
        reason=_text,
        result=_text,
        exit_code=st.sampled_from(["", "exited", "killed"]),
        exit_status=_text,
        memory_events=_count,
        swap_events=_count,
    ),
    st.lists(st.sampled_from(_WORDS) | st.text(max_size=30), max_size=4).map(tuple),
)


@settings(max_examples=100)
@given(_runs, _text, _time)
def test_any_run_has_a_verdict(run: Run, boot: str, now: float) -> None:
    """Any record yields one line without control characters, and evidence sorted by time."""
    verdict = decide_why(run, boot, now)
    assert verdict.sentence
    texts = [
        verdict.sentence,
        verdict.hint,
        *(fact.text for fact in verdict.evidence),
        *(text for change in verdict.changes for text in change),
    ]
    assert all(printable(text) == text and "\n" not in text for text in texts)
    times = [fact.time for fact in verdict.evidence if fact.time is not None]
    assert times == sorted(times)


def test_what_it_held_is_told_from_before_the_kill_that_freed_it() -> None:
    run = CASES["memory-limit-swap"]()
    freed = run.samples[-1]._replace(time=run.samples[-1].time + 1, memory=100 << 10, swap=300 << 10, swap_free=120 * GIB)
    told = [fact.text for fact in decide_why(run._replace(samples=(*run.samples, freed)), now=NOW, boot=BOOT).evidence]
    assert any(text.startswith("it used RAM 12.0 GiB of 12.0 GiB, swap 115 GiB of 115 GiB") for text in told)


def test_a_swapfile_is_told_by_its_size_not_by_what_the_kernel_uses_of_it() -> None:
    run = CASES["memory-limit-swap"]()
    begun = run.start._replace(host={**run.start.host, "swap": 2 * GIB - 4096})
    changes = {change.path: change.old for change in decide_why(run._replace(start=begun), now=NOW, boot=BOOT).changes}
    assert changes["swap.size"] == "2G"
