"""What is said of a proxy that a download does not use."""

from __future__ import annotations

from vllm_safe.sandbox.run_as_vllm import withheld_proxies


def withheld_proxy_lines() -> tuple[str, ...]:
    """Say which proxies have a password and are therefore not used, before a download fails for want of one."""
    if not (names := " and ".join(withheld_proxies())):
        return ()
    return (
        f"warning: the proxy in {names} has a name or password in it, and is not used: everybody could read it meanwhile",
        (
            "  Name one that asks for none, such as cntlm or tinyproxy on this machine, which can have the password; "
            "or a mirror: engine.index, engine.find_links, engine.hub"
        ),
    )
