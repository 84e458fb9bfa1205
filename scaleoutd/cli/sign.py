# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl sign` and `verify`: a person's signature on a project, and its proof.

The development mode lives in development.py; its names can be had from here too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click

from scaleoutd.cli.development import development_project, development_root_path, development_signer, resign_if_changed
from scaleoutd.cli.diff import fingerprint
from scaleoutd.cli.progress import Progress
from scaleoutd.cli.signer import PASSPHRASE_OPTION, SSH_KEY_OPTION, SSHSIG_OPTION, Signer, signers_of
from scaleoutd.cli.signing import (
    Terms,
    changed_files,
    locate_project,
    make_manifest,
    now,
    read_folder,
    read_unverified,
    unsigned_envelope,
    write_envelope,
)
from scaleoutd.core.clock import Floors, utc_text
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES, STATEMENT_TYPE, Envelope, parse_envelope, to_sign
from scaleoutd.core.manifest import Expected, Manifest, VerifiedManifest, verify_manifest
from scaleoutd.core.policy import Policy, parse_duration, parse_policy_yaml
from scaleoutd.core.sshsig import NAMESPACE
from scaleoutd.core.trust import TrustRoot
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError, VerificationError
from scaleoutd.runner.hashing import Difference
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import Proven, check_project, read_envelope, refuse

__all__ = ["development_project", "development_root_path", "development_signer", "resign_if_changed", "sign", "verify"]

DAY_S = 86_400


@click.command("sign")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
@click.option("--key", "key_files", type=click.Path(path_type=Path), multiple=True, help="Private key (see keygen).")
@SSH_KEY_OPTION
@SSHSIG_OPTION
@PASSPHRASE_OPTION
@click.option("--add", is_flag=True, help="Add a signature to the manifest that is there, if the files are as it says.")
@click.option(
    "--from", "copies", type=click.Path(path_type=Path), multiple=True, help="Take the signatures of a copy; with --add."
)
@click.option("--request", type=click.Path(path_type=Path), help="Write what is to be signed, for ssh-keygen elsewhere.")
@click.option("--name", help="Name of the project; default: as before, or the folder's name.")
@click.option("--version", type=click.IntRange(1), help="Default: one above the manifest that is there.")
@click.option("--expires", default="365d", show_default=True, help="How long from now.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="Bind it to this policy.")
@click.option("--environment", "environments", multiple=True, metavar="ID[=SHA256]", help="Environment that the project expects.")
@click.option("--data-set", "data_sets", multiple=True, metavar="ID[=SHA256]", help="Data set that the project expects.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def sign(
    folder: Path,
    key_files: tuple[Path, ...],
    ssh_keys: tuple[Path, ...],
    ssh_signatures: tuple[Path, ...],
    passphrase_file: Path | None,
    add: bool,
    copies: tuple[Path, ...],
    request: Path | None,
    name: str | None,
    version: int | None,
    expires: str,
    policy_file: Path | None,
    environments: tuple[str, ...],
    data_sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Sign the project in FOLDER: every file, how it is run, and for how long.

    \b
    Examples:
      scaleoutctl sign my-project --key science.key --expires 90d
      scaleoutctl sign my-project --add --ssh-key ~/.ssh/id_ed25519_sk
    """
    named = (*key_files, *ssh_keys, *ssh_signatures)
    signers = signers_of(key_files, passphrase_file, ssh_keys, ssh_signatures) if named or not (request or copies) else []
    project = locate_project(folder)
    if add:
        if name or version or policy_file or environments or data_sets:
            raise ConfigError("cannot add a signature and change the manifest: --add goes with keys and signatures only")
        _add(project, signers, copies, request, as_json=as_json)
        return
    if ssh_signatures or copies:
        raise ConfigError(
            "cannot take a signature for a manifest that is only made now", hint="Use --add with --sshsig and --from."
        )
    policy = _read_policy(policy_file) if policy_file else None
    terms = Terms(
        project=name,
        version=version,
        valid_days=max(1, parse_duration(expires) // DAY_S),
        environments=_expected(environments, policy, "environments"),
        data_sets=_expected(data_sets, policy, "data_sets"),
        policy_sha256=policy.digest() if policy else None,
    )
    _sign_new(project, signers, terms, request, as_json=as_json)


@click.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
@click.option("--trust-root", type=click.Path(path_type=Path), help="File, or folder of 1.json … N.json.")
@click.option("--model-signature", type=click.Path(path_type=Path), help="Signature of OpenSSF model-signing (Sigstore bundle).")
@click.option("--public-key", type=click.Path(path_type=Path), help="Of who signed the model: P-256, PEM.")
@click.option("--certificate-chain", "chain", type=click.Path(path_type=Path), multiple=True, help="CA of who signed the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def verify(
    folder: Path,
    trust_root: Path | None,
    model_signature: Path | None,
    public_key: Path | None,
    chain: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Prove that FOLDER is exactly what was signed.  Exit status 0, or 65 with the first difference.

    With --model-signature FOLDER is checked against a signature of OpenSSF model-signing, for people: no node runs a project
    that is signed so only.

    \b
    Examples:
      scaleoutctl verify my-project --trust-root trust
      scaleoutctl verify my-model --model-signature model.sig --public-key signer.pub
    """
    if model_signature is not None:
        if trust_root is not None or (public_key is None) == (not chain):
            raise click.UsageError("--model-signature goes with either --public-key or --certificate-chain, and no --trust-root")
        # X.509 costs a sixth of the whole process that verifies a small project.
        from scaleoutd.cli.modelfolder import verify_model

        verify_model(folder, model_signature, public_key, chain, as_json=as_json)
        return
    if trust_root is None or public_key is not None or chain:
        raise click.UsageError("Missing option '--trust-root' (or --model-signature with --public-key or --certificate-chain).")
    project = locate_project(folder)
    at = now()
    root = read_trust_root(trust_root, at)
    envelope = read_envelope(project)
    verified = verify_manifest(envelope, root, at, Floors())
    with Progress("reading the project", verified.manifest.size_bytes) as done:
        differences = check_project(Proven(verified, hashlib.sha256(envelope).hexdigest(), project), done)
    if as_json:
        click.echo(json.dumps(_report(verified, root, differences), indent=2))
    else:
        _print_report(verified, root, differences)
    refuse(differences)


def _sign_new(project: Path, signers: list[Signer], terms: Terms, request: Path | None, *, as_json: bool) -> None:
    with Tree(project) as tree:
        found = read_unverified(tree)
        before = found[1] if found else None
        manifest = make_manifest(read_folder(tree), terms, before, now(), project.name)
    envelope = unsigned_envelope(manifest)
    for signer in signers:
        envelope = signer.add_to(envelope)
    write_envelope(project, envelope)
    _write_request(request, envelope)
    changed = changed_files(before, manifest)
    keyids = [signer.key.keyid for signer in signers]
    if as_json:
        click.echo(json.dumps(_signed(manifest, keyids, changed=list(changed))))
        return
    verb = "signed" if signers else "wrote, not yet signed,"
    click.echo(f"{verb} {manifest.project} version {manifest.version}: {len(manifest.files)} files, {manifest.size_bytes} bytes")
    for keyid in keyids:
        click.echo(f"by key {keyid}, until {utc_text(manifest.expires_ms)}")
    if before is not None:
        shown = ", ".join(changed[:10]) or "no file"
        click.echo(f"changed since version {before.version}: {shown}{' …' if len(changed) > 10 else ''}")
    _say_request(request)


def _write_request(request: Path | None, envelope: Envelope) -> None:
    if request is not None:
        replace_file(request, to_sign(envelope), mode=0o644)


def _say_request(request: Path | None) -> None:
    if request is not None:
        click.echo(f"to be signed: ssh-keygen -Y sign -n {NAMESPACE} -f KEY {request}")
        click.echo(f"then here: scaleoutctl sign FOLDER --add --sshsig {request}.sig")


def _signed(manifest: Manifest, keyids: list[str], **more: object) -> dict[str, object]:
    """JSON of `sign`."""
    return {
        "project": manifest.project,
        "version": manifest.version,
        "files": len(manifest.files),
        "size_bytes": manifest.size_bytes,
        "expires_ms": manifest.expires_ms,
        "keyid": keyids[0] if keyids else None,
        "keyids": keyids,
        **more,
    }


def _add(project: Path, signers: list[Signer], copies: tuple[Path, ...], request: Path | None, *, as_json: bool) -> None:
    with Tree(project) as tree:
        found = read_unverified(tree)
    if found is None:
        message = f"cannot add a signature: {project} has no manifest"
        raise ConfigError(message, code="config-missing", hint="Sign it without --add.")
    envelope, manifest = found
    # The second signer vouches for the files that lie here, not for a list that somebody else made.
    unverified = VerifiedManifest(manifest, "", (), {}, 0, manifest.development)
    with Progress("reading the project", manifest.size_bytes) as done:
        refuse(check_project(Proven(unverified, "", project), done))
    for copy in copies:
        envelope = _with_signatures_of(envelope, copy)
    for signer in signers:
        envelope = signer.add_to(envelope)
    write_envelope(project, envelope)
    _write_request(request, envelope)
    keyids = [signer.key.keyid for signer in signers]
    if as_json:
        click.echo(json.dumps(_signed(manifest, keyids, added=True, signatures=len(envelope.signatures))))
        return
    for keyid in keyids:
        click.echo(f"added a signature to {manifest.project} version {manifest.version} by key {keyid}")
    click.echo(
        f"{len(envelope.signatures)} signature(s); fingerprint {fingerprint(hashlib.sha256(envelope.payload).hexdigest())}"
    )
    _say_request(request)


def _with_signatures_of(envelope: Envelope, copy: Path) -> Envelope:
    """Signatures that were added to a copy of the same manifest; whether they count is for `verify` to say."""
    with storage_errors(f"read {copy}"):
        other = parse_envelope(copy.read_bytes()[: MAX_ENVELOPE_BYTES + 1], STATEMENT_TYPE, unsigned=True)
    if other.payload != envelope.payload:
        ours, theirs = (hashlib.sha256(one.payload).hexdigest() for one in (envelope, other))
        raise VerificationError(
            f"cannot take the signatures of {copy}: expected manifest {ours}, found {theirs}",
            code="signature-invalid",
            hint=f"See what differs: `scaleoutctl diff FOLDER {copy}`.",
            facts={"file": str(copy), "expected": ours, "found": theirs},
        )
    known = {item.sig for item in envelope.signatures}
    new = tuple(item for item in other.signatures if item.sig not in known)
    return replace(envelope, signatures=(*envelope.signatures, *new))


def _read_policy(path: Path) -> Policy:
    with storage_errors(f"read the policy {path}"):
        return parse_policy_yaml(path.read_bytes(), name=str(path))


def _expected(options: Iterable[str], policy: Policy | None, kind: str) -> dict[str, Expected] | None:
    """From ID[=SHA256] options, with the policy's digests for ids alone; without options what the policy names."""
    rules = {name: rule.digest for name, rule in getattr(policy, kind).items()} if policy else {}
    chosen = dict(item.partition("=")[::2] for item in options)
    if not chosen:
        return {name: Expected(digest) for name, digest in rules.items()} if policy else None
    return {name: Expected(digest or rules.get(name)) for name, digest in chosen.items()}


def _report(verified: VerifiedManifest, root: TrustRoot, differences: list[Difference]) -> dict[str, object]:
    manifest = verified.manifest
    roles = {role: [{"keyid": keyid, "name": root.key_name(keyid)} for keyid in ids] for role, ids in verified.roles.items()}
    return {
        "verified": not differences,
        "project": manifest.project,
        "version": manifest.version,
        "manifest_sha256": verified.sha256,
        "expires_ms": manifest.expires_ms,
        "files": len(manifest.files),
        "size_bytes": manifest.size_bytes,
        "trust_root": {"version": root.version, "sha256": root.digest(), "development": root.development},
        "roles": roles,
        "differences": [vars(difference) for difference in differences],
    }


def _print_report(verified: VerifiedManifest, root: TrustRoot, differences: list[Difference]) -> None:
    manifest = verified.manifest
    signers = ", ".join(f"{role}: {' + '.join(root.key_name(keyid) for keyid in ids)}" for role, ids in verified.roles.items())
    click.echo(f"{manifest.project} version {manifest.version}, signed ({signers}), valid until {utc_text(manifest.expires_ms)}")
    for difference in differences:
        shown = difference.path.encode("unicode_escape").decode("ascii")
        click.echo(f"  {difference.code:13} {shown}: expected {difference.expected}, found {difference.found}")
    if not differences:
        click.echo(f"all {len(manifest.files)} files are as signed ({manifest.size_bytes} bytes)")
