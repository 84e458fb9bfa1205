# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl env lock | check`: digests of the environments and data sets of a policy, to be signed and to be compared.

What a digest covers, and who may be able to write an environment that has one, is in runner/environments.py; the same code proves
it before a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from scaleoutd.cli.place import JSON_OPTION
from scaleoutd.cli.terminal import escape
from scaleoutd.core.policy import MAX_POLICY_BYTES, DataSetRule, EnvironmentRule, Policy, parse_policy_yaml
from scaleoutd.durable import storage_errors
from scaleoutd.errors import VerificationError
from scaleoutd.runner.environments import check_data_set, environment_digest

DIFFERENT = 65
POLICY = Path("/etc/scaleoutd/policy.yaml")

_POLICY_OPTION = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=POLICY,
    show_default=True,
    help="The policy that names them.",
)


@dataclass(frozen=True)
class Row:
    """`sha256` as found, None for a data set of mode none; `expected` of the policy; `problem` why it cannot be used."""

    kind: str
    name: str
    sha256: str | None
    expected: str | None
    problem: str = ""

    @property
    def state(self) -> str:
        if self.problem:
            return "refused"
        return "as locked" if self.expected is not None and self.expected == self.sha256 else "not locked"


@click.group("env")
def env() -> None:
    """Environments and data sets of a policy: what they are made of, as one digest each.

    \b
    Example:
      scaleoutctl env lock --policy policy.yaml
    """


@env.command("lock")
@_POLICY_OPTION
@JSON_OPTION
def env_lock(policy_file: Path, as_json: bool) -> int:
    """Print the digest of each environment and data set as they are now, for the policy and for `sign --environment`.

    An environment that somebody but root can write gets none.  Exit status 65 when one of them cannot be locked.

    \b
    Example:
      scaleoutctl env lock --policy policy.yaml
    """
    policy = _read(policy_file)
    rows = list(_rows(replace(policy, environments=_unlocked(policy), data_sets=_unlocked_data(policy))))
    if as_json:
        _tell(rows)
    else:
        for row in rows:
            option = "--environment" if row.kind == "environment" else "--data-set"
            found = (
                f"{option} {row.name}={row.sha256}" if row.sha256 else row.problem or f"data set {row.name}: mode none, no digest"
            )
            click.echo(escape(found))
    return DIFFERENT if any(row.problem for row in rows) else 0


@env.command("check")
@_POLICY_OPTION
@JSON_OPTION
def env_check(policy_file: Path, as_json: bool) -> int:
    """Say whether each environment and data set still is as the policy's digest has it.  Exit status 65 when one is not.

    \b
    Example:
      scaleoutctl env check
    """
    rows = list(_rows(_read(policy_file)))
    if as_json:
        _tell(rows)
    else:
        for row in rows:
            click.echo(escape(f"{row.kind} {row.name}: {row.state}{f', {row.problem}' if row.problem else ''}"))
    return DIFFERENT if any(row.problem for row in rows) else 0


def _rows(policy: Policy) -> Iterator[Row]:
    for name, rule in sorted(policy.environments.items()):
        yield _environment(name, rule)
    for name, data in sorted(policy.data_sets.items()):
        yield _data_set(name, data)


def _environment(name: str, rule: EnvironmentRule) -> Row:
    try:
        found = environment_digest(rule)
    except VerificationError as exc:
        return Row("environment", name, None, rule.digest, exc.message)
    problem = (
        "" if rule.digest in (None, found) else f"expected {rule.digest}, found {found}; lock it again and sign, or put it back"
    )
    return Row("environment", name, found, rule.digest, problem)


def _data_set(name: str, rule: DataSetRule) -> Row:
    try:
        return Row("data set", name, check_data_set(name, rule), rule.digest)
    except VerificationError as exc:
        return Row("data set", name, None, rule.digest, exc.message)


def _unlocked(policy: Policy) -> dict[str, EnvironmentRule]:
    return {name: replace(rule, digest=None) for name, rule in policy.environments.items()}


def _unlocked_data(policy: Policy) -> dict[str, DataSetRule]:
    return {name: replace(rule, digest=None) for name, rule in policy.data_sets.items()}


def _read(path: Path) -> Policy:
    with storage_errors(f"read the policy {path}"):
        return parse_policy_yaml(path.read_bytes()[: MAX_POLICY_BYTES + 1], name=str(path))


def _tell(rows: list[Row]) -> None:
    click.echo(
        json.dumps(
            {"ok": not any(row.problem for row in rows), "items": [{**vars(row), "state": row.state} for row in rows]}, indent=2
        )
    )
