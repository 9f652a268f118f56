"""Warning about proxies that a download does not use."""

from __future__ import annotations

from vllm_safe.sandbox.run_as_vllm import withheld_proxies


def withheld_proxy_lines() -> tuple[str, ...]:
    """Return the warning about proxies with a password, which are not used, before a download fails without one."""
    if not (names := " and ".join(withheld_proxies())):
        return ()
    return (
        f"warning: the proxy in {names} contains credentials and is not used: any user could read them during the download",
        (
            "  Use a proxy without credentials, such as cntlm or tinyproxy on this machine, which can hold the password; "
            "or a mirror: engine.index, engine.find_links, engine.hub"
        ),
    )
