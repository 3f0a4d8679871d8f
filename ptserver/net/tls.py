"""TLS between machines: the folder of keys that one end has, and what is said when the ends do not go together.

    folder = cert.pem key.pem [ca.pem] [token]     of the end that listens
           | ca.pem [cert.pem key.pem] [token]     of the end that connects

`ptserver keys` makes both; files of another origin, or links to them, do as well. The end that connects wants a
certificate of `ca.pem` for the name that it connects to. The end that listens wants a certificate of its `ca.pem`, if
it has one (mutual TLS), and the token, if it has one. Only TLS 1.3 is spoken.

Not trusted: the peer, until the handshake is over. Nothing here waits longer than it is told to.
"""

import os
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ptserver.errors import (
    ConnectError,
    ConnectionLostError,
    KeysError,
    ProtocolError,
    RefusedError,
    UntrustedError,
)
from ptserver.net.connection import linger, refuse
from ptserver.net.tls_stream import TlsStream

MIN_TOKEN_CHARACTERS = 16
CERTIFICATE, KEY, AUTHORITY, TOKEN = "cert.pem", "key.pem", "ca.pem", "token"

_HANDSHAKE_RECORD = 0x16  # the first byte of a TLS client; a frame of ours begins with 0
_OUR_FRAME = 0x00
_ALERT_SECONDS = 1.0


@dataclass(frozen=True)
class Keys:
    """What one end has of keys. mutual: whether both ends show certificates; token: "" without one."""

    context: ssl.SSLContext
    mutual: bool
    token: str


def listening_keys(folder: str | Path) -> Keys:
    """Return the keys of the end that listens.

    Raises:
        KeysError: a file is missing, unreadable, readable by others, or not what it should be.
    """
    where = Path(folder)
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    _load_certificate(context, where)
    mutual = (where / AUTHORITY).exists()
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authority(context, where)
    return Keys(context, mutual, _read_token(where))


def connecting_keys(folder: str | Path) -> Keys:
    """Return the keys of the end that connects. Raises: as :func:`listening_keys`."""
    where = Path(folder)
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_authority(context, where)
    mutual = (where / CERTIFICATE).exists()
    if mutual:
        _load_certificate(context, where)
    return Keys(context, mutual, _read_token(where))


def one_time_listening_keys(certificate: str, key: str) -> Keys:
    """Return the keys of an end that listens and shows *certificate*, in PEM, as its *key*; all may connect."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    fd = os.memfd_create("keys", os.MFD_CLOEXEC)  # the library reads files alone
    try:
        os.write(fd, (certificate + key).encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return Keys(context, mutual=False, token="")


def one_time_connecting_keys(certificate: str) -> Keys:
    """Return the keys of an end that connects to who shows *certificate*, in PEM, and to nobody else.

    Raises:
        KeysError: it is none.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=certificate)
    except ssl.SSLError as error:
        raise KeysError("what the peer is to show is no certificate in PEM form") from error
    return Keys(context, mutual=False, token="")


def accept_tls(sock: socket.socket, keys: Keys, timeout: float) -> TlsStream:
    """Return the accepted *sock* under TLS, within *timeout* seconds; close it if that fails.

    Raises:
        RefusedError: the peer does not speak TLS, and was told so.
        UntrustedError: it has no certificate that is trusted here.
        ProtocolError: it does something else, or nothing.
        ConnectionLostError: it is gone.
    """
    deadline = time.monotonic() + timeout
    try:
        sock.settimeout(timeout)
        first = sock.recv(1, socket.MSG_PEEK)
    except TimeoutError as error:
        sock.close()
        raise ProtocolError(f"the peer said nothing within {timeout:g} s") from error
    except OSError as error:
        sock.close()
        raise ConnectionLostError(f"the connection broke: {error.strerror or error}") from error
    if first and first[0] == _OUR_FRAME:
        plain = RefusedError("tls", "TLS is wanted here: give the folder of keys with --keys DIR")
        refuse(sock, plain)
        raise plain
    stream = TlsStream(sock, keys.context, None)
    try:
        stream.settimeout(max(deadline - time.monotonic(), 0.001))
        stream.handshake()
    except TimeoutError as error:
        stream.close()
        raise ProtocolError(f"the peer did not complete its TLS handshake within {timeout:g} s") from error
    except ssl.SSLError as error:
        linger(sock, time.monotonic() + _ALERT_SECONDS)
        stream.close()
        _raise_for_peer_of_listener(error)
    except OSError as error:
        stream.close()
        raise ConnectionLostError(f"the connection broke: {error.strerror or error}") from error
    return stream


def connect_tls(sock: socket.socket, keys: Keys, name: str, timeout: float = 10.0) -> TlsStream:
    """Return the connected *sock* under TLS, within *timeout* seconds; close it if that fails.

    name: the host name or address that the peer's certificate must be for.

    Raises:
        UntrustedError: the peer's certificate is not trusted, or not for *name*.
        ProtocolError: the peer does not speak TLS 1.3.
        ConnectError: it says nothing.
        ConnectionLostError: it is gone.
    """
    stream = TlsStream(sock, keys.context, name)
    try:
        stream.settimeout(timeout)
        stream.handshake()
    except TimeoutError as error:
        stream.close()
        raise ConnectError(f"{name} says nothing for {timeout:g} s; does it speak TLS?") from error
    except ssl.SSLError as error:
        stream.close()
        _raise_for_peer_of_connector(error, name)
    except OSError as error:
        stream.close()
        raise ConnectionLostError(
            f"{name} closed the connection during the TLS handshake: {error.strerror or error}"
        ) from error
    return stream


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load_certificate(context: ssl.SSLContext, folder: Path) -> None:
    certificate, key = folder / CERTIFICATE, folder / KEY
    _check_readable(certificate)
    _check_secret(key)

    def no_passphrase() -> NoReturn:
        raise KeysError(f"the key {key} is encrypted: give it without a passphrase, in a file of mode 0600")

    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise KeysError(f"{key} is not the key of {certificate}") from error
        raise KeysError(f"{certificate} or {key} is no certificate or key in PEM form") from error


def _load_authority(context: ssl.SSLContext, folder: Path) -> None:
    authority = folder / AUTHORITY
    _check_readable(authority)
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise KeysError(f"{authority} holds no certificates in PEM form") from error


def _read_token(folder: Path) -> str:
    path = folder / TOKEN
    if not path.exists():
        return ""
    _check_secret(path)
    token = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise KeysError(f"the token in {path} has {len(token)} characters, fewer than {MIN_TOKEN_CHARACTERS}")
    return token


def _check_readable(path: Path) -> os.stat_result:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno())
    except OSError as error:
        raise KeysError(
            f"cannot read {path}: {error.strerror}; `ptserver keys` makes a folder of keys"
        ) from error


def _check_secret(path: Path) -> None:
    mode = _check_readable(path).st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeysError(
            f"{path} is open to others (mode {stat.S_IMODE(mode):04o}), so it is no secret: chmod 600 {path}"
        )


def _raise_for_peer_of_listener(error: ssl.SSLError) -> NoReturn:
    reason = error.reason or ""
    if "PEER_DID_NOT_RETURN" in reason:
        raise UntrustedError("the peer shows no certificate") from error
    if isinstance(error, ssl.SSLCertVerificationError):
        raise UntrustedError(f"the peer's certificate is not trusted: {error.verify_message}") from error
    if "ALERT" in reason:
        raise UntrustedError(
            f"the peer does not accept our certificate: {reason.lower().replace('_', ' ')}"
        ) from error
    raise ProtocolError(f"the TLS handshake failed: {reason.lower().replace('_', ' ') or error}") from error


def _raise_for_peer_of_connector(error: ssl.SSLError, name: str) -> NoReturn:
    if isinstance(error, ssl.SSLCertVerificationError):
        match error.verify_code:
            case 10:  # X509_V_ERR_CERT_HAS_EXPIRED; all from <openssl/x509_vfy.h>
                what = f"the certificate of {name} has expired: make new keys with `ptserver keys`"
            case 9:  # X509_V_ERR_CERT_NOT_YET_VALID
                what = f"the certificate of {name} is not valid yet: is the clock of this machine right?"
            case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
                what = f"the certificate there is not for {name}: connect by a name that was given to `ptserver keys`"
            case _:
                what = f"the certificate of {name} is of another CA than {AUTHORITY} says ({error.verify_message})"
        raise UntrustedError(what) from error
    reason = error.reason or ""
    if "WRONG_VERSION" in reason or "RECORD" in reason or "PACKET" in reason:
        raise ProtocolError(
            f"{name} does not speak TLS: start it with --keys DIR, or leave --keys out on this machine"
        ) from error
    raise ProtocolError(
        f"{name} does not take our TLS 1.3: {reason.lower().replace('_', ' ') or error}"
    ) from error
