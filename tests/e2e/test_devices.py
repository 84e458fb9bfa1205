# SPDX-License-Identifier: Apache-2.0
"""A node whose policy grants a device that is not there: it starts, and refuses each run by name instead of computing without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.step.devices import present
from tests.e2e.site import Site


@pytest.mark.skipif(bool(present(("nvidia",))), reason="this machine has the device whose absence is tested")
def test_a_device_that_is_absent_refuses_the_run_and_is_on_record(tmp_path: Path) -> None:
    with DevCombiner() as combiner, Site(tmp_path, combiner, devices=["nvidia"]) as site:
        node = site.start()
        offer = site.task()
        assert (offer.status, json.loads(offer.response)["code"]) == ("FAILED", "device-missing")
        (event,) = site.events("run-about-to-start", correlation_id=offer.correlation_id)
        assert event["devices"] == ["nvidia"]
        assert not site.events("run-ended", correlation_id=offer.correlation_id)
        # The control: the same project under the same policy without the word.
        node.stop()
        site.rewrite_policy()
        site.start()
        offer = site.task()
        assert offer.status == "COMPLETED"
        (event,) = site.events("run-about-to-start", correlation_id=offer.correlation_id)
        assert event["devices"] == []
