# SPDX-License-Identifier: Apache-2.0
"""Every error of the project, in one tree.

ScaleoutError                      code, message, hint; exit status 1
├─ ConfigError                     the administrator's files or flags are wrong; exit 78 (EX_CONFIG), systemd must not restart
├─ FormatError                     bytes of somebody else do not parse; never retried; exit 65 (EX_DATAERR)
├─ VerificationError               proof failed: signature, digest, version, date; never retried; exit 65
├─ PolicyDeniedError               proven, but the policy does not allow it; exit 77 (EX_NOPERM)
├─ SandboxError                    the step could not be run as demanded; exit 71 (EX_OSERR)
│   ├─ KernelSupportError          this kernel or host cannot prove a demanded outcome
│   ├─ LaunchError                 an inner stage failed: no run
│   ├─ WorkloadError               the step itself failed: exit status, missing output
│   └─ LimitExceededError          a limit of the plan was reached
├─ OutputError                     what the step produced may not leave; exit 65
├─ StorageError                    a file could not be read or made durable; exit 74 (EX_IOERR)
│   └─ LedgerError                 no record, so no work
├─ PeerError                       another room broke the protocol or went away
└─ TransportError                  the network or the combiner; retried with back-off; exit 69 (EX_UNAVAILABLE)
    └─ CredentialError             who we are was refused; not retried without a change; exit 77

The class says what the caller does next.  The code is stable, goes to the trail and to the combiner, and is listed in
`CODES` with its meaning: an unknown code is a bug.  The message reads "cannot …: cause" with expected and found; the
hint says what a person does next.
"""

from __future__ import annotations

from collections.abc import Mapping

CODES: dict[str, str] = {
    # configuration
    "config-invalid": "a flag, file or environment variable has a value that cannot be used",
    "config-missing": "a file or value that is needed is not there",
    # formats
    "json-invalid": "JSON that is not strict: syntax, duplicate key, number out of range, too deep or too large",
    "yaml-invalid": "YAML that is not plain: duplicate or unknown key, alias, tag, wrong type",
    "record-invalid": "a value has a missing, unknown or wrongly typed field",
    "envelope-invalid": "a DSSE envelope that cannot be parsed or has the wrong payload type",
    "key-invalid": "a public or private key that cannot be used",
    "manifest-invalid": "a manifest that contradicts itself or has a forbidden file name",
    "container-invalid": "a model container that cannot be read or claims to be another model",
    "checkpoint-invalid": "a signed checkpoint of the trail that cannot be parsed or verified",
    "event-invalid": "an audit event of an unknown type, from the wrong room, or too large",
    # proof
    "manifest-missing": "the project has no signed manifest",
    "signature-threshold": "fewer valid signatures of distinct trusted keys than the trust root asks for",
    "signature-invalid": "a signature does not verify",
    "trust-root-invalid": "the trust root is not signed, expired, or breaks the chain",
    "key-revoked": "a signature was made with a revoked key",
    "manifest-expired": "the manifest's expiry has passed",
    "manifest-not-yet-valid": "the manifest's not-before lies ahead",
    "manifest-replayed": "the manifest is older than one that was accepted before",
    "manifest-revoked": "the manifest's digest is on the revocation list",
    "clock-set-back": "the clock shows a time before one that was seen already",
    "file-changed": "a file's bytes differ from the manifest",
    "file-missing": "a file of the manifest is not in the project",
    "file-extra": "a file is in the project but not in the manifest",
    "file-mode": "a file's mode differs from the manifest, or it is setuid, or writable where it may not be",
    "file-type": "a symlink, FIFO, socket, device or hard link where a regular file is demanded",
    "file-name": "a file name that is not UTF-8, escapes the folder or collides with another",
    "project-mismatch": "the manifest is of another project than the policy names",
    "policy-mismatch": "the policy in force is not the one that was signed or rendered",
    "environment-mismatch": "the interpreter or its packages differ from their digest",
    "data-set-mismatch": "a data set differs from its digest or is not there",
    # policy
    "task-type-denied": "the policy or the project has no such step",
    "importer-project": "the project registers callbacks from a startup file; this node runs commands",
    "session-denied": "the policy does not allow this session or combiner",
    "budget-exhausted": "the purpose budget of runs is used up",
    "outside-hours": "the policy allows no run at this hour",
    "approval-needed": "the session waits for the approval of a second person",
    "approval-refused": "who approves is not a second person, or none whom the policy names",
    "model-format-denied": "the model's format is not on the policy's list",
    "settings-denied": "client_settings do not match the schema of the policy",
    "run-repeated": "this correlation id was run before",
    "paused": "the node was paused by its administrator",
    "command-refused": "the room does not take this command, or not now",
    "replaced": "a newer task took the place of this one",
    # sandbox
    "kernel-support": "the kernel or host cannot prove an outcome that the policy demands",
    "namespaces-denied": "this host gives us no namespaces, which hold the step",
    "launch-failed": "a stage before the exec of the step failed",
    "device-missing": "a device that the policy grants is not there, or not open to every user",
    "step-unavailable": "no step instance could be reached",
    "step-failed": "the step ended with a non-zero status",
    "step-killed": "the step was ended by a signal",
    "step-cancelled": "the task was interrupted by the combiner or an operator",
    "limit-wall-clock": "the step ran longer than its wall-clock limit",
    "limit-cpu": "the step used more processor time than its limit",
    "limit-memory": "the step used more memory than its limit",
    "limit-processes": "the step tried to have more processes than its limit",
    "limit-file-size": "the step wrote a file larger than its limit",
    "limit-scratch": "the step wrote more to its scratch folder than its limit",
    "limit-output": "an output of the step is larger than its limit",
    "limit-stdout": "the step printed more than its limit; the rest was dropped",
    "limit-model": "the model is larger than its limit",
    # outputs
    "output-missing": "the step did not write a file that its contract demands",
    "output-invalid": "an output is not what the contract demands",
    "output-unsafe": "an output is a link, device or other thing that is not a plain file",
    "output-not-finite": "an updated model has a NaN or an infinity",
    "output-shape": "an updated model has other names, shapes or types than the model received",
    "output-norm": "an updated model lies further from the model received than the policy allows",
    "metrics-invalid": "metrics or metadata are not a flat JSON object of allowed keys and finite numbers",
    # storage and trail
    "storage-failed": "a file could not be read, written or synchronised",
    "storage-full": "there is not enough free space",
    "state-corrupt": "a state file of a room is damaged",
    "ledger-unavailable": "the ledger cannot record, so nothing runs and nothing leaves",
    "trail-broken": "the audit trail does not verify",
    # rooms
    "peer-protocol": "another room sent a packet that the protocol does not allow",
    "peer-closed": "another room closed the connection",
    "peer-timeout": "another room did not answer in time",
    "peer-denied": "another room is not who it must be",
    # network
    "transport-failed": "the combiner or API could not be reached or broke off",
    "transport-refused": "the combiner or API answered with an error",
    "tls-required": "a plaintext address, or a server that asks for plaintext",
    "tls-server-untrusted": "the server's certificate is not of the configured CA",
    "tls-server-expired": "the server's certificate is expired or not yet valid",
    "tls-server-name": "the server's certificate is for another host name",
    "tls-failed": "the TLS handshake failed for another reason",
    "client-certificate-refused": "the server refused the connection right after the handshake: client certificate?",
    "client-certificate-missing": "mTLS is demanded and no client certificate is configured",
    "client-certificate-invalid": "the client certificate cannot be used: expired, not yet valid, or not of the key",
    "token-refused": "the API refused the token",
    "token-invalid": "the token is not a JWT of a usable kind",
    "assignment-refused": "the API refused to assign a combiner",
    "version-refused": "the combiner refused this client's version",
    "download-corrupt": "a model did not arrive as its checksum says",
    "upload-refused": "the combiner refused the update",
    "task-unknown": "the combiner sent a task that this client cannot do",
    # ours
    "internal": "a bug in scaleoutd",
}


class ScaleoutError(Exception):
    """Root of the tree.  `code` must be a key of `CODES`; `facts` are what of the message stands in fields of its own on record
    (file, expected, found).  `reported_by` is the room that said so, "" for our own."""

    default_code = "internal"
    exit_status = 1
    reported_by = ""  # the room that refused, when it was not this one

    def __init__(self, message: str, *, code: str | None = None, hint: str = "", facts: Mapping[str, str] | None = None) -> None:
        self.code = code or self.default_code
        if self.code not in CODES:
            raise AssertionError(f"error code {self.code!r} is not in scaleoutd.errors.CODES")
        self.message = message
        self.hint = hint
        self.facts = dict(facts or {})
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class ConfigError(ScaleoutError):
    default_code = "config-invalid"
    exit_status = 78


class FormatError(ScaleoutError):
    default_code = "record-invalid"
    exit_status = 65


class VerificationError(ScaleoutError):
    default_code = "signature-invalid"
    exit_status = 65


class PolicyDeniedError(ScaleoutError):
    default_code = "task-type-denied"
    exit_status = 77


class SandboxError(ScaleoutError):
    default_code = "launch-failed"
    exit_status = 71


class KernelSupportError(SandboxError):
    default_code = "kernel-support"


class LaunchError(SandboxError):
    default_code = "launch-failed"


class WorkloadError(SandboxError):
    default_code = "step-failed"
    exit_status = 1


class LimitExceededError(SandboxError):
    default_code = "limit-wall-clock"
    exit_status = 1


class OutputError(ScaleoutError):
    default_code = "output-invalid"
    exit_status = 65


class StorageError(ScaleoutError):
    default_code = "storage-failed"
    exit_status = 74


class LedgerError(StorageError):
    default_code = "ledger-unavailable"


class PeerError(ScaleoutError):
    default_code = "peer-protocol"


class TransportError(ScaleoutError):
    default_code = "transport-failed"
    exit_status = 69


class CredentialError(TransportError):
    default_code = "token-refused"
    exit_status = 77


def from_code(code: str, message: str, hint: str = "") -> ScaleoutError:
    """The error that another room reported as `code`, in its class here; an unknown code becomes `internal`."""
    if code not in CODES:
        return ScaleoutError(f"{message} (unknown code {code!r})", code="internal", hint=hint)
    return _CLASS_OF.get(code, ScaleoutError)(message, code=code, hint=hint)


def _classes() -> dict[str, type[ScaleoutError]]:
    groups: list[tuple[type[ScaleoutError], str]] = [
        (ConfigError, "config-invalid config-missing"),
        (
            FormatError,
            "json-invalid yaml-invalid record-invalid envelope-invalid key-invalid manifest-invalid container-invalid"
            " checkpoint-invalid event-invalid",
        ),
        (
            VerificationError,
            "manifest-missing signature-threshold signature-invalid trust-root-invalid key-revoked"
            " manifest-expired manifest-not-yet-valid manifest-replayed manifest-revoked clock-set-back"
            " file-changed file-missing file-extra file-mode file-type file-name project-mismatch"
            " policy-mismatch environment-mismatch data-set-mismatch trail-broken",
        ),
        (
            PolicyDeniedError,
            "task-type-denied importer-project session-denied budget-exhausted model-format-denied settings-denied run-repeated"
            " paused command-refused replaced outside-hours approval-needed approval-refused",
        ),
        (KernelSupportError, "kernel-support namespaces-denied"),
        (LaunchError, "launch-failed step-unavailable"),
        (WorkloadError, "step-failed step-killed step-cancelled"),
        (
            LimitExceededError,
            "limit-wall-clock limit-cpu limit-memory limit-processes limit-file-size limit-scratch"
            " limit-output limit-stdout limit-model",
        ),
        (OutputError, "output-missing output-invalid output-unsafe output-not-finite output-shape output-norm metrics-invalid"),
        (StorageError, "storage-failed storage-full state-corrupt"),
        (LedgerError, "ledger-unavailable"),
        (PeerError, "peer-protocol peer-closed peer-timeout peer-denied"),
        (
            TransportError,
            "transport-failed transport-refused tls-required tls-server-untrusted tls-server-expired"
            " tls-server-name tls-failed download-corrupt upload-refused task-unknown",
        ),
        (
            CredentialError,
            "client-certificate-refused client-certificate-missing client-certificate-invalid"
            " token-refused token-invalid assignment-refused version-refused",
        ),
    ]
    return {code: cls for cls, codes in groups for code in codes.split()}


_CLASS_OF = _classes()
