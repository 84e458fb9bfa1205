# SPDX-License-Identifier: Apache-2.0
"""The group of a launcher: its name is nobody else's, also where pid namespaces give the same number twice."""

from __future__ import annotations

import os

import pytest

from scaleoutd.step.limits import GROUP_PREFIX, Cgroup, group_name


def test_two_launchers_with_one_number_have_groups_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 65)
    names = {group_name() for _ in range(100)}
    assert len(names) == 100 and all(name.startswith(f"{GROUP_PREFIX}65-") for name in names)


def test_a_group_that_is_there_already_is_not_taken_for_one_s_own() -> None:
    """The control: two of one name are not both held, and so the second run would only be watched."""
    name = group_name()
    first, second = Cgroup(), Cgroup()
    first.enter(name)
    try:
        if first.memory is None:
            pytest.skip("no memory cgroup can be made here")
        home = first._homes[first.memory]
        assert second._try_to_make(home, name, ()) is None
        assert os.path.isdir(first.memory)
    finally:
        first.leave()
    assert not [entry for entry in os.listdir(home) if entry == name]
