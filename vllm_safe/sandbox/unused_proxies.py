"""Warning about proxies that a download does not use."""

from __future__ import annotations

import click


def warn_of_withheld_proxies() -> None:
    """Print a warning about proxies with a password, which are not used, before a download fails without one."""
    from vllm_safe.sandbox.run_as_vllm import withheld_proxies

    if names := " and ".join(withheld_proxies()):
        click.echo(
            f"warning: the proxy in {names} contains credentials and is not used: any user could read them during the download", err=True
        )
        click.echo(
            "  Use a proxy without credentials, such as cntlm or tinyproxy on this machine, which can hold the password; "
            "or a mirror: engine.index, engine.find_links, engine.hub",
            err=True,
        )
