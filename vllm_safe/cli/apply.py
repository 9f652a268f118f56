"""`vllm-safe apply`, which systemd runs at boot and before each start of a model."""

from __future__ import annotations

import re
import traceback
from contextlib import ExitStack
from pathlib import Path

import click

from vllm_safe.apply.demand_steps import demand_steps, undo_demand_steps
from vllm_safe.apply.guard_steps import guard_steps, keep_guard_steps, undo_guard_steps
from vllm_safe.apply.renewal_steps import renew_power_steps
from vllm_safe.apply.room_steps import NoRoom, room_steps
from vllm_safe.apply.situation import has_demand, read_earlyoom, read_gateway, read_machine_room, read_situation, read_units, uses_gpus
from vllm_safe.apply.start_steps import prepare_steps, refusal_steps, undo_steps
from vllm_safe.cli.main import config_option, dry_run_option, need_root, optional_name_argument
from vllm_safe.common.errors import ConfigError, Failure, Misuse
from vllm_safe.common.key_file import read_key
from vllm_safe.common.notify import notify
from vllm_safe.common.paths import starts_file
from vllm_safe.common.steps import Step, carry_out
from vllm_safe.common.systemctl import runtime_dropins, show_properties
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.decide.demand_units import decide_demand_units, socket_of
from vllm_safe.decide.guard_settings import decide_guard
from vllm_safe.decide.limits import PROPERTIES, decide_budget, unit_of
from vllm_safe.decide.preparation import decide_default_protection, decide_preparation, decide_protection_of_all
from vllm_safe.decide.restarts import count_restart
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.host.host_facts import read_host
from vllm_safe.host.start_facts import boot_clock, read_starts, time_asleep
from vllm_safe.power.power_decision import asked_power, decide_power
from vllm_safe.power.power_facts import PowerReading, read_power
from vllm_safe.power.power_steps import power_steps, undo_power_steps
from vllm_safe.tunables.tunable_decision import decide_tunables
from vllm_safe.tunables.tunable_steps import tunables_steps, undo_tunables_steps


@click.command(name="apply")
@optional_name_argument
@dry_run_option
@click.option("--undo", is_flag=True, help="Revert what was applied. Needs no valid configuration.")
@click.option("--tunables", is_flag=True, help="Set only the kernel tunables, which are in force while a model runs.")
@click.option("--power", is_flag=True, help="Set only the power limits of the GPUs, which are in force while a model runs.")
@click.option("--gateway", is_flag=True, help="Set only the sockets of models on demand and the settings of the gateway.")
@config_option
def command(  # noqa: PLR0913 - each is an option
    name: str | None, *, dry_run: bool, undo: bool, tunables: bool, power: bool, gateway: bool, config_path: Path
) -> None:
    """Protect RAM for the system, set the arguments of earlyoom and, with NAME, prepare the start of that model.

    There is no need to run it by hand: systemd does so at boot and before each start. It changes only what is not up to date.
    """
    if name and (undo or tunables or power or gateway):
        raise Misuse("--undo, --tunables, --power and --gateway apply to the whole machine: leave out NAME")
    if tunables + power + gateway > 1:
        raise Misuse("use only one of --tunables, --power and --gateway; without these options, everything else is applied")
    if not dry_run:
        need_root()
    if tunables:
        _carry_out(undo_tunables_steps() if undo else _tune(config_path), dry_run=dry_run)
        return
    if power:
        if undo:
            _carry_out(undo_power_steps(), dry_run=dry_run)
        else:
            _limit_power(config_path, dry_run=dry_run)
        return
    if gateway:
        _carry_out(undo_demand_steps() if undo else _open_sockets(config_path), dry_run=dry_run)
        return
    if name is not None:
        _prepare_or_refuse(name, config_path, dry_run=dry_run)
        return
    steps, mistake = (_undo(), None) if undo else _protect(config_path)
    _carry_out(steps, dry_run=dry_run)
    if mistake:
        raise mistake


def _carry_out(steps: tuple[Step, ...], *, dry_run: bool) -> None:
    if dry_run and not steps:
        click.echo("nothing to do: already up to date")
    carry_out(steps, dry_run=dry_run, say=click.echo)


def _undo() -> tuple[Step, ...]:
    lasting = undo_steps(runtime_dropins(PROPERTIES), read_earlyoom())
    return (*undo_demand_steps(), *lasting, *undo_guard_steps(), *undo_tunables_steps(), *undo_power_steps())


def _open_sockets(config_path: Path) -> tuple[Step, ...]:
    """Return the steps of `apply --gateway`. An error in the file leaves the sockets, and the gateway's settings, as they are."""
    config, host = load(config_path), read_host()
    wanted = decide_demand_units(config)
    sockets = [socket_of(one.name) for one in wanted]
    active = {unit: shown.get("ActiveState") == "active" for unit, shown in show_properties(sockets, ("Id", "ActiveState")).items()}
    key = read_key(config.gateway.api_key_file) if config.gateway.enabled and config.gateway.api_key_file else None
    if key and key.problem:
        raise Misuse(key.problem, hint=key.way_out)
    gateway = read_gateway(config, config_path, host, decide_budget(config, host))
    return demand_steps(wanted, gateway, active, key.text if key else None)


def _tune(config_path: Path) -> tuple[Step, ...]:
    present = read_host().tunables
    return tunables_steps(decide_tunables(load(config_path), present), present)


def _limit_power(config_path: Path, *, dry_run: bool) -> None:
    """Set the power limits. The result becomes the status of the unit, which the check of a start quotes."""
    try:
        _carry_out(_power_steps(config_path), dry_run=dry_run)
    except Failure as failure:
        notify(STATUS=failure.message)
        raise
    if not dry_run:
        notify(STATUS="the power limits of the GPUs are as configured")


def _power_steps(config_path: Path) -> tuple[Step, ...]:
    config = load(config_path)
    seen = read_power() if config.gpu.power_limit else PowerReading()
    if seen.problem:
        raise Failure(f"the power limits of the GPUs cannot be set: {seen.problem}", hint=seen.hint)
    plan = decide_power(config, seen.cards)
    if plan.problems:
        raise Misuse("; ".join(plan.problems), hint=f"Correct gpu.power_limit in {config.positions.get('gpu.power_limit', config.source)}.")
    return power_steps(asked_power(config), plan.limits, seen.cards)


def _protect(config_path: Path) -> tuple[tuple[Step, ...], ConfigError | None]:
    """Return the steps that protect the system, and the error if the configuration has one.

    An error in the file must not make logins impossible: the defaults are then protected for the system, and the rest stays as it is.
    """
    host, there = read_host(), read_earlyoom()
    try:
        config = load(config_path)
    except ConfigError as mistake:
        kept = prepare_steps(decide_default_protection(host, there), read_units(), there)
        return (*kept, *keep_guard_steps(str(mistake.mistakes[0]))), mistake
    steps = prepare_steps(decide_protection_of_all(config, decide_budget(config, host)), read_units(), there)
    return (*steps, *guard_steps(decide_guard(config))), None


def _prepare_or_refuse(name: str, config_path: Path, *, dry_run: bool) -> None:
    """Prepare the start of the model `name`, or write a refusal for it.

    If the preparation itself fails, the unit of the model reports the reason: systemd would only say that a required unit failed.
    """
    # The name becomes a file name, so it has no slash. For any other name that systemd accepts, the unit says that there is no such model.
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+", name):
        raise Misuse(f"{name!r} is not a valid model name")
    try:
        with ExitStack() as held:
            _carry_out(_prepare(name, config_path, held, dry_run=dry_run), dry_run=dry_run)
    except NoRoom as refused:
        _carry_out(refusal_steps(name, refused.message, refused.hint), dry_run=dry_run)
    except Failure as failure:
        _carry_out(_refuse_for_now(name, failure.message, failure.hint), dry_run=dry_run)
    except Exception as error:  # noqa: BLE001 -- systemd would only report "dependency failed"
        click.echo(traceback.format_exc(), err=True)
        what = f"vllm-safe could not prepare the start: {type(error).__name__}: {error}"
        _carry_out(_refuse_for_now(name, what, f"journalctl -u vllm-safe-prepare@{name}"), dry_run=dry_run)


def _refuse_for_now(name: str, what: str, do_next: str) -> tuple[Step, ...]:
    """Return the steps of a refusal after which the start is tried again, as often as after any other failure."""
    shown = show_properties([unit_of(name)], ("Id", "NRestarts", "ActiveEnterTimestampMonotonic"))
    starts, too_many = count_restart(read_starts(starts_file(name)), shown, boot_clock(), time_asleep(), name)
    return refusal_steps(name, what, do_next, again=not too_many, starts=starts)


def _prepare(name: str, config_path: Path, held: ExitStack, *, dry_run: bool) -> tuple[Step, ...]:
    """Return the steps before a start. The reason for a refusal goes into the launch file, so that vllm@NAME itself reports it.

    held: takes what keeps other starts from using the room that was made for this one.
    """
    try:
        config = load(config_path)
        require_model(config, name)
    except ConfigError as error:
        more = len(error.mistakes) - 1
        first, hint = str(error.mistakes[0]), f"`vllm-safe check` lists all {more + 1} errors." if more else ""
        return (*refusal_steps(name, first, hint), *keep_guard_steps(first))
    except Misuse as error:
        return refusal_steps(name, error.message, error.hint)
    carry_out(renew_power_steps(asked_power(config)), dry_run=dry_run, say=click.echo)  # first: a check depends on it
    host = read_host()
    if has_demand(config):
        machine = read_machine_room(config, config_path, host, decide_budget(config, host))
        carry_out(room_steps(name, machine, held), dry_run=dry_run, say=click.echo)
        host = read_host()  # without the models that had to stop
    cards = read_driver().nvml.cards if uses_gpus(config, name) else ()
    situation = read_situation(config, host, decide_budget(config, host), name, cards)
    # The launch file comes last: its presence shows that all other steps were carried out.
    steps = prepare_steps(decide_preparation(situation), situation.facts.units, read_earlyoom())
    return (*guard_steps(decide_guard(config)), *steps)
