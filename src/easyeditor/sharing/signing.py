"""Signatures of manifests by SSH keys, made and checked by OpenSSH's ``ssh-keygen -Y``.

An engineer has such a key, in a file, an agent or a hardware token, and knows the public keys of
colleagues; git signs commits in the same way. So there is no key format, no random number and no
cryptography of our own, and whoever has no EasyEdit checks a signature with ``ssh-keygen`` alone.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from easyeditor.errors import SignatureError
from easyeditor.sharing.manifest import MANIFEST, SIGNATURE

NAMESPACE = "easyedit-manifest"
"""A signature made for another purpose does not count."""
SIGNER = "signer"
TOOL = "ssh-keygen"
MAX_KEY_BYTES = 64 * 2**10


def sign_manifest(folder: Path, key: Path) -> Path:
    """Sign the manifest of ``folder``; returns the signature's file.

    Args:
        folder: with a manifest.
        key: file of the private key, or of the public one whose private one an agent holds.

    Raises:
        SignatureError: there is no such key, or OpenSSH is missing or refuses.
    """
    if not key.is_file():
        raise SignatureError(f"No key file {str(key)!r}. Make one: {TOOL} -t ed25519 -f {key}.")
    (folder / SIGNATURE).unlink(missing_ok=True)
    manifest = folder.absolute() / MANIFEST
    arguments = ["-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key.absolute()), str(manifest)]
    done = _run(arguments)
    if done.returncode != 0 or not (folder / SIGNATURE).is_file():
        raise SignatureError(
            f"{key} cannot sign: {_reason(done)}. Name the file of a private SSH key, e.g. "
            "~/.ssh/id_ed25519."
        )
    return folder / SIGNATURE


def check_signature(folder: Path, key: Path) -> None:
    """Make sure that the manifest of ``folder`` was signed by the owner of a key.

    Args:
        folder: with a manifest and its signature.
        key: file of the public key, as ``id_ed25519.pub``; several lines are several keys, any of
            which may have signed.

    Raises:
        SignatureError: it was not signed, or by another key, or changed since.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(f"{folder} is not signed: it has no {SIGNATURE}.")
    lines = _public_keys(key)
    with tempfile.TemporaryDirectory() as scratch:
        signers = Path(scratch) / "signers"
        allowed = (f'{SIGNER} namespaces="{NAMESPACE}" {line}\n' for line in lines)
        signers.write_text("".join(allowed), encoding="utf-8")
        arguments = ["-Y", "verify", "-f", str(signers), "-I", SIGNER, "-n", NAMESPACE]
        arguments += ["-s", str(signature.absolute())]
        done = _run(arguments, (folder / MANIFEST).read_bytes())
    if done.returncode != 0:
        raise SignatureError(
            f"The signature of {folder} is not of {key}, or the manifest was changed after it was "
            f"signed ({_reason(done)}). Do not use the files; ask who wrote them."
        )


def _public_keys(key: Path) -> list[str]:
    try:
        content = key.read_bytes()[:MAX_KEY_BYTES].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"The public key {str(key)!r} cannot be read: {error}.") from None
    lines = [" ".join(line.split()[:2]) for line in content.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    if "PRIVATE KEY" in content or not all(len(line.split()) == 2 for line in lines) or not lines:
        raise SignatureError(
            f"{key} holds no public SSH key. Name the file that ends in .pub; a signature is "
            "checked with the public key of who signed."
        )
    return lines


def _run(arguments: list[str], stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    tool = shutil.which(TOOL)
    if tool is None:
        raise SignatureError(
            f"Signatures are made and checked by {TOOL}, which is not installed. Install OpenSSH "
            "8.1 or newer (package openssh-client)."
        )
    return subprocess.run([tool, *arguments], input=stdin, capture_output=True, check=False)


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr or done.stdout).decode(errors="replace").strip()
    return text.splitlines()[-1].rstrip(".") if text else f"{TOOL} ended with {done.returncode}"
