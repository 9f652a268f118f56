"""What is said of a proxy that a download does not use."""

from __future__ import annotations

import click

from vllm_safe.sandbox.run_as_vllm import withheld_proxies


def warn_of_withheld_proxies() -> None:
    """Say which proxies have a password and are therefore not used, before a download fails for want of one."""
    if names := " and ".join(withheld_proxies()):
        click.echo(
            f"warning: the proxy in {names} has a name or password in it, and is not used: everybody could read it meanwhile", err=True
        )
        click.echo(
            "  Name one that asks for none, such as cntlm or tinyproxy on this machine, which can have the password; "
            "or a mirror: engine.index, engine.find_links, engine.hub",
            err=True,
        )
