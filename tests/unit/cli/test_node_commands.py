# SPDX-License-Identifier: Apache-2.0
"""Commands of an installed node below a temporary root: configuration, certificate, project, enrollment; a real CA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from scaleoutd.cli.scaleoutctl import scaleoutctl
from scaleoutd.core import clock, records, strictjson
from scaleoutd.devcombiner.ca import CertificateAuthority
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError, VerificationError
from tests.e2e.site import Project

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter another root (chroot)")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "srv/data").mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), root / "usr/bin/python3")
    return root


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "ca")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "heart", name="heart")
    made.write()
    made.sign()
    return made


def run(root: Path, *words: str, **more: Any) -> Result:
    return CliRunner().invoke(scaleoutctl, [*words, "--root", str(root)], standalone_mode=False, **more)


def told(root: Path, *words: str, **more: Any) -> dict[str, Any]:
    result = run(root, *words, "--json", **more)
    if result.exception is not None:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def files(root: Path, folder: str = "etc") -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / folder).rglob("*")) if path.is_file()}


def init(root: Path, project: Project, *more: str, url: str = "https://api.example.org") -> dict[str, Any]:
    trust_root = project.folder.parent / "root.json"
    if not trust_root.exists():
        project.write_trust_root(trust_root)
    words = ["--api-url", url, "--name", "ward-7", "--project", "heart", "--trust-root", str(trust_root)]
    return told(root, "config", "init", *words, "--data", "samples=/srv/data", *more)


# --- config -------------------------------------------------------------------------------------------------------


def test_init_writes_what_check_takes_and_puts_the_policy_into_force(root: Path, project: Project) -> None:
    assert init(root, project)["changed"] is True
    assert told(root, "config", "check") == {"ok": True, "api_url": "https://api.example.org"}
    shown = told(root, "policy", "show")
    assert shown["current"] is True and shown["policy"]["data_sets"] == {"samples": {"path": "/srv/data", "mode": "none"}}
    assert "etc/scaleoutd/trust/1.json" in files(root)
    assert init(root, project) == {"changed": False, "written": False, "files": []}


def test_init_does_not_overwrite(root: Path, project: Project) -> None:
    init(root, project)
    before = files(root)
    with pytest.raises(ConfigError, match="says something else"):
        init(root, project, url="https://other.example.org")
    assert files(root) == before
    init(root, project, "--force", url="https://other.example.org")
    assert told(root, "config", "check")["api_url"] == "https://other.example.org"


def test_init_with_a_policy_that_cannot_be_used_writes_nothing(root: Path, project: Project) -> None:
    with pytest.raises(ConfigError, match="not found"):
        init(root, project, "--data", "other=/srv/nothing")
    assert not files(root) or not [name for name in files(root) if name.startswith("etc/scaleoutd")]


def test_init_check_writes_nothing(root: Path, project: Project) -> None:
    result = run(root, "config", "init", "--api-url", "https://a.example.org", "--check", "--json")
    assert result.return_value == 1 and json.loads(result.stdout)["written"] is False
    assert not (root / "etc/scaleoutd").exists()


@pytest.mark.parametrize("url", ["http://a.example.org", "https://u@a.example.org", "https://a b"])
def test_init_refuses_an_address_that_is_none(root: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        told(root, "config", "init", "--api-url", url)
    assert not (root / "etc").exists()


def test_show_names_file_line_and_column(root: Path, project: Project) -> None:
    init(root, project)
    (root / "etc/scaleoutd/scaleoutd.d").mkdir()
    (root / "etc/scaleoutd/scaleoutd.d/50-log.yaml").write_text("log:\n  level: DEBUG\n")
    shown = told(root, "config", "show", "--origin")
    assert shown["log.level"] == {"value": "DEBUG", "origin": f"{root}/etc/scaleoutd/scaleoutd.d/50-log.yaml:2:3"}
    assert shown["log.format"]["origin"] == "default"


# --- identity -----------------------------------------------------------------------------------------------------


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def sign(folder: Path, request: Path) -> tuple[Path, Path]:
    """The site's CA at work; its certificate, and the one for `request` with the extensions of a client."""
    authority, key, certificate, extensions = (folder / name for name in ("site.pem", "site.key", "ward-7.pem", "client.ext"))
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", key)
    openssl("req", "-x509", *new, "-out", authority, "-subj", "/O=Site/CN=Site CA", "-days", "900")
    extensions.write_text("extendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE\n")
    openssl(
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        authority,
        "-CAkey",
        key,
        "-days",
        "90",
        "-extfile",
        extensions,
        "-out",
        certificate,
    )
    return authority, certificate


def test_the_key_is_made_here_and_the_certificate_of_the_sites_ca_is_installed(root: Path, tmp_path: Path) -> None:
    first = told(root, "identity", "csr", "--name", "ward-7", "--out", str(tmp_path / "ward-7.csr"))
    again = told(root, "identity", "csr", "--name", "ward-7", "--out", str(tmp_path / "again.csr"))
    assert (first["changed"], again["changed"]) == (True, False)
    pending = root / "etc/scaleoutd/request/client.key"
    assert pending.stat().st_mode & 0o777 == 0o600
    authority, certificate = sign(tmp_path, tmp_path / "ward-7.csr")
    installed = told(root, "identity", "install", str(certificate), "--ca", str(authority))
    assert installed["changed"] is True and "ward-7" in installed["subject"]
    key = root / "etc/scaleoutd/identity/client.key"
    assert key.stat().st_mode & 0o777 == 0o600 and not pending.exists()
    assert told(root, "identity", "install", str(certificate))["changed"] is False
    assert told(root, "identity", "show")["status"] == 0


def test_a_bad_pair_is_refused_and_the_old_one_stays(root: Path, ca: CertificateAuthority, tmp_path: Path) -> None:
    good, expired, other = ca.issue_client("ward-7"), ca.issue_client("old", expired=True), ca.issue_client("other")
    stranger = CertificateAuthority(tmp_path / "stranger").issue_client("ward-7")
    server = ca.issue_server("server")
    authority = str(ca.ca_file)
    told(root, "identity", "install", str(good.certificate), "--key", str(good.key), "--ca", authority)
    before = files(root)
    bad = [
        (good.certificate, other.key),
        (expired.certificate, expired.key),
        (stranger.certificate, stranger.key),
        (server.certificate, server.key),
    ]
    for certificate, key in bad:
        with pytest.raises(CredentialError) as caught:
            told(root, "identity", "install", str(certificate), "--key", str(key))
        assert caught.value.code == "client-certificate-invalid"
        assert files(root) == before
    with pytest.raises(ScaleoutError):
        told(root, "identity", "install", str(other.certificate))  # for no key of this node
    assert told(root, "identity", "install", str(other.certificate), "--key", str(other.key))["changed"] is True


def test_a_key_with_a_password_is_refused(root: Path, ca: CertificateAuthority, tmp_path: Path) -> None:
    good = ca.issue_client("ward-7")
    locked = tmp_path / "locked.key"
    openssl("pkcs8", "-topk8", "-in", good.key, "-out", locked, "-passout", "pass:secret")
    with pytest.raises(CredentialError, match="password"):
        told(root, "identity", "install", str(good.certificate), "--key", str(locked), "--ca", str(ca.ca_file))


def test_a_key_that_others_can_read_is_shown(root: Path, ca: CertificateAuthority) -> None:
    good = ca.issue_client("ward-7")
    told(root, "identity", "install", str(good.certificate), "--key", str(good.key), "--ca", str(ca.ca_file))
    (root / "etc/scaleoutd/identity/client.key").chmod(0o640)
    result = run(root, "identity", "show", "--json")
    assert result.return_value == 2 and "mode 0640" in json.loads(result.stdout)["problem"]
    # Installing it again puts the mode right.
    assert told(root, "identity", "install", str(good.certificate), "--key", str(good.key))["changed"] is True
    assert run(root, "identity", "show").return_value == 1  # the demo's certificates end soon


# --- project ------------------------------------------------------------------------------------------------------


def current(root: Path) -> str:
    return (root / "var/lib/scaleoutd/project/current/train.py").read_text()


def test_a_project_is_proven_installed_and_rolled_back(root: Path, project: Project) -> None:
    init(root, project)
    first = told(root, "project", "install", str(project.folder))
    assert first["changed"] is True and first["release"].startswith("0001-")
    assert told(root, "project", "install", str(project.folder))["changed"] is False
    (project.folder / "train.py").write_text("print('two')\n")
    project.version = 2
    project.sign()
    assert told(root, "project", "install", str(project.folder))["version"] == 2
    assert "two" in current(root)
    assert [row["state"] for row in told(root, "project", "show")["releases"]] == ["previous", "current"]
    assert told(root, "project", "rollback")["version"] == 1
    assert "two" not in current(root)


def test_a_rollback_below_what_ran_is_refused(root: Path, project: Project) -> None:
    init(root, project)
    told(root, "project", "install", str(project.folder))
    project.version = 2
    project.sign()
    told(root, "project", "install", str(project.folder))
    floors = root / "var/lib/scaleoutd/runner/floors.json"
    floors.parent.mkdir()
    floors.write_bytes(strictjson.canonical(records.encode(clock.Floors(0, 1, {"heart": 2}))))
    before = current(root)
    with pytest.raises(VerificationError) as caught:
        told(root, "project", "rollback")
    assert caught.value.code == "manifest-replayed" and "sign" in caught.value.hint.lower()
    assert current(root) == before
    floors.unlink()
    assert told(root, "project", "rollback")["version"] == 1  # the control


def test_what_is_not_as_signed_is_not_installed(root: Path, project: Project) -> None:
    init(root, project)
    told(root, "project", "install", str(project.folder))
    before = files(root, "var")
    project.version = 2
    project.sign()
    (project.folder / "train.py").write_text("import os\n")
    with pytest.raises(VerificationError) as caught:
        told(root, "project", "install", str(project.folder))
    assert caught.value.code == "file-changed"
    assert files(root, "var") == before
    assert [path.name for path in (root / "var/lib/scaleoutd/project/releases").iterdir()] == [
        row["name"] for row in told(root, "project", "show")["releases"]
    ]
    project.sign()
    assert told(root, "project", "install", str(project.folder))["version"] == 2  # the control


def test_another_project_or_signer_is_not_installed(root: Path, project: Project, tmp_path: Path) -> None:
    init(root, project)
    stranger = Project(tmp_path / "stranger", name="heart")
    stranger.write()
    stranger.sign()
    other = Project(tmp_path / "other", key=project.key, name="lung")
    other.write()
    other.sign()
    for folder in (stranger.folder, other.folder):
        with pytest.raises(VerificationError):
            told(root, "project", "install", str(folder))
    assert not (root / "var/lib/scaleoutd/project").exists()


def test_an_installed_file_that_was_changed_is_put_back(root: Path, project: Project) -> None:
    init(root, project)
    release = told(root, "project", "install", str(project.folder))["release"]
    target = root / "var/lib/scaleoutd/project/releases" / release / "train.py"
    target.chmod(0o644)
    target.write_text("import evil\n")
    (root / "var/lib/scaleoutd/project/current").unlink()
    told(root, "project", "install", str(project.folder))
    assert "evil" not in current(root)


# --- enroll -------------------------------------------------------------------------------------------------------


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    with DevCombiner() as started:
        yield started


@pytest.fixture
def site(root: Path, combiner: DevCombiner, tmp_path: Path) -> Path:
    """A configured root; returns the file with the enrollment token."""
    told(root, "config", "init", "--api-url", combiner.api_url, "--name", "ward-7", "--client-id", "ward-7")
    certificate, key = combiner.issue_client_certificate("ward-7")
    told(root, "identity", "install", str(certificate), "--key", str(key), "--ca", str(combiner.ca_file))
    token = tmp_path / "enrollment"
    token.write_text(combiner.mint_enrollment())
    return token


def test_a_token_is_redeemed_once(root: Path, site: Path, combiner: DevCombiner) -> None:
    assert run(root, "enroll", "--check").return_value == 1
    first = told(root, "enroll", "--token-file", str(site))
    assert first["changed"] is True and first["client_id"]
    token = root / "etc/scaleoutd/identity/token"
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() != site.read_text()
    combiner.stop_grpc()
    assert told(root, "enroll", "--token-file", str(site)) == {**first, "changed": False}  # contacts nobody
    assert run(root, "enroll", "--check").return_value == 0
    shown = told(root, "config", "show")
    assert shown["client.id"] == first["client_id"]


def test_another_token_needs_force(root: Path, site: Path, combiner: DevCombiner) -> None:
    told(root, "enroll", "--token-file", str(site))
    site.write_text(combiner.mint_enrollment())
    with pytest.raises(ConfigError, match="is enrolled as"):
        told(root, "enroll", "--token-file", str(site))
    assert told(root, "enroll", "--token-file", str(site), "--force")["changed"] is True


def test_what_is_no_enrollment_token_is_refused_before_anybody_is_asked(root: Path, site: Path, combiner: DevCombiner) -> None:
    shown = told(root, "enroll", "--token-file", str(site), "--show-token")
    assert shown["kind"] == "enrollment" and "expires" in shown
    good = site.read_text()
    for bad in ("x", combiner.mint_refresh("ward-7")):
        site.write_text(bad)
        with pytest.raises(CredentialError):
            told(root, "enroll", "--token-file", str(site))
    assert not (root / "etc/scaleoutd/identity/token").exists()
    site.write_text(good)
    assert told(root, "enroll", "--token-file", str(site))["changed"] is True


def test_a_token_that_the_server_refuses_changes_nothing(root: Path, site: Path, combiner: DevCombiner) -> None:
    site.write_text(combiner.mint_enrollment(lifetime_s=-10))
    before = files(root)
    with pytest.raises(CredentialError):
        told(root, "enroll", "--token-file", str(site))
    assert files(root) == before


def test_a_token_on_the_command_line_is_no_option(root: Path) -> None:
    with pytest.raises(click.UsageError):
        told(root, "enroll", "--token", "secret")
