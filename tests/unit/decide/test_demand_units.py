"""Where clients of a model on demand connect, and where its server listens."""

from __future__ import annotations

import pytest

from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.demand_units import decide_demand_units


@pytest.mark.parametrize(("host", "listen"), [("localhost", "127.0.0.1:8000"), ("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000")])  # noqa: S104 - a text
def test_clients_connect_to_the_port_and_the_server_has_another(host: str, listen: str) -> None:
    (units,) = decide_demand_units(Config(models={"x": Model(model="a/b", host=host, on_demand=True), "y": Model(model="a/b", port=9000)}))
    assert units.listen == listen
    assert dict(units.dropins) == {
        "vllm-on-demand@x.socket": f"[Socket]\nListenStream={listen}\n",
        "vllm-on-demand@x.service": "[Service]\nEnvironment=SERVER=127.0.0.1:18000\n",
    }
