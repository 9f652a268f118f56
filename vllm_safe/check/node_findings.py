"""The checks of the other machines that serve a model with this one: addresses, routes and ports, as they look from here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.config.settings import Model
from vllm_safe.host.node_facts import NodeWay
from vllm_safe.launch.node_route import is_private_address


def check_ways(name: str, model: Model, rank: int, ways: Sequence[NodeWay], ports: str) -> Iterator[Finding]:
    """Yield the findings about the other machines. rank: the place of this one. ports: the range that the kernel chooses from."""
    for way in ways:
        yield _check_way(name, model, way)
    interfaces = {way.interface for way in ways if way.interface}
    if len(interfaces) > 1:
        yield failed(
            f"the other machines are behind several interfaces ({', '.join(sorted(interfaces))}): NCCL and gloo use one",
            "Let the names of all machines stand for addresses in one network.",
        )
    elif interfaces and not any(way.problem for way in ways):
        first = "here" if rank == 0 else f"on {(model.nodes or ('',))[0]}"
        needed = f"TCP {model.nodes_port} and {model.nodes_port + 1} {first}, and {ports} on all"
        yield passed(
            f"a firewall must allow {needed} between these machines and block them for all others: vLLM executes code that arrives there"
        )


def _check_way(name: str, model: Model, way: NodeWay) -> Finding:
    path = f"models.{name}"
    if way.problem:
        return failed(f"{way.name} cannot be reached: {way.problem}", f"Put it into /etc/hosts on each machine, or correct {path}.nodes.")
    where = f"{way.name} is {way.address}, over {way.interface} from {way.own}"
    if not model.nodes_public and not is_private_address(way.address):
        return failed(
            f"{where}: that is a public address, and vLLM neither encrypts nor authenticates what it sends there",
            f"Use a private network, such as one of WireGuard, or keep others away with a firewall and set {path}.nodes_public: true.",
        )
    if way.interface == "lo":
        return failed(f"{where}: that is this machine itself", f"Correct /etc/hosts here: {way.name} must be the address of that machine.")
    return _check_ports(where, way)


def _check_ports(where: str, way: NodeWay) -> Finding:
    """Return the finding about ports. Nothing listens before a start: it is enough that the machine answers."""
    unreached = next((tried for tried in way.tried if tried.answer and not tried.refused), None)
    if unreached:
        return warned(
            f"{where}, but its port {unreached.port} cannot be reached: {unreached.answer}",
            f"If {way.name} is up, a firewall drops connections that it has to allow between these machines.",
        )
    states = ", ".join(f"{tried.port} {'is closed' if tried.refused else 'accepts connections'}" for tried in way.tried)
    return passed(f"{where}; of its ports, {states}" if states else where)


def ports_to_try(model: Model, name: str, ports: str) -> tuple[int, ...]:
    """Return the ports of the machine `name` to try: one of those that the kernel chooses from, and on the first machine two more."""
    low, _, high = ports.partition("-")
    chosen = ((int(low) + int(high)) // 2,) if low.isdecimal() and high.isdecimal() else ()
    return ((model.nodes_port, model.nodes_port + 1) if name == (model.nodes or ("",))[0] else ()) + chosen
