"""Makes the keys of a server and of those who may connect to it: a CA, certificates of it, or a token.

    DIR/ca/cert.pem key.pem              the CA; its key signs further certificates, and no machine needs it to run
    DIR/server/cert.pem key.pem ca.pem   copy this to the end that listens     (with a token: cert.pem key.pem token)
    DIR/client/cert.pem key.pem ca.pem   copy this to the end that connects    (with a token: ca.pem token)

Files are 0600 and folders 0700 from the moment they exist, and nothing is ever overwritten. Keys are on the curve
P-256, which every TLS 1.3 peer has. `ptserver.net.tls` reads the folders.
"""

import contextlib
import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ptserver.errors import KeysError
from ptserver.net.tls import AUTHORITY, CERTIFICATE, KEY, TOKEN

#: The names by which a server is always reached from its own machine.
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_DNS_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
)
_CLOCK_SKEW = datetime.timedelta(hours=1)
_TOKEN_BYTES = 32


def make_keys(folder: str | Path, names: Sequence[str], *, days: int, token: bool) -> None:
    """Make a folder of keys for a server that is reached by *names*, host names and addresses.

    days: how long certificates are valid; the CA's is so ten times as long. token: let who connects prove itself by
    a token instead of a certificate.

    Raises:
        KeysError: *folder* has keys already, cannot be written, or a name is none.
    """
    where = Path(folder)
    alternatives = [_alternative(name) for name in dict.fromkeys((*names, *_OWN_NAMES))]
    with _told(where):
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca_key, ca = _make_authority(days * 10)
        _write(where / "ca", {CERTIFICATE: _pem(ca), KEY: _key_pem(ca_key)})
        key, certificate = _issue(ca_key, ca, names[0], alternatives, days, ExtendedKeyUsageOID.SERVER_AUTH)
        server = {CERTIFICATE: _pem(certificate), KEY: _key_pem(key)}
        if token:
            secret = f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n".encode()
            _write(where / "server", server | {TOKEN: secret})
            _write(where / "client", {AUTHORITY: _pem(ca), TOKEN: secret})
        else:
            _write(where / "server", server | {AUTHORITY: _pem(ca)})
            _write(where / "client", _client(ca_key, ca, "client", days))


def one_time_certificate(name: str) -> tuple[str, str]:
    """Return a certificate for *name* that vouches for itself, and its key, in PEM: for who is told it beforehand.

    It is valid at all times, since the clocks of two machines may differ.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 2))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256())).decode(), _key_pem(key).decode()


def add_client(folder: str | Path, name: str, *, days: int) -> Path:
    """Make one more folder for an end that connects, by the CA that is in *folder*; return the new folder.

    Raises:
        KeysError: there is no CA, or such a client already.
    """
    where = Path(folder)
    if not _DNS_NAME.fullmatch(name) or name in ("ca", "server"):
        raise KeysError(
            f"{name!r} cannot name a client: letters, digits, '-' and '.' can, but for 'ca' and 'server'"
        )
    with _told(where):
        authority = (where / "ca" / CERTIFICATE).read_bytes()
        key = (where / "ca" / KEY).read_bytes()
        try:
            ca = x509.load_pem_x509_certificate(authority)
            ca_key = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise KeysError(f"{where / 'ca'} holds no CA of `ptserver keys`") from error
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
            raise KeysError(f"{where / 'ca'} holds no CA of `ptserver keys`")
        _write(where / name, _client(ca_key, ca, name, days))
    return where / name


def _client(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, name: str, days: int
) -> dict[str, bytes]:
    key, certificate = _issue(ca_key, ca, name, [x509.DNSName(name)], days, ExtendedKeyUsageOID.CLIENT_AUTH)
    return {CERTIFICATE: _pem(certificate), KEY: _key_pem(key), AUTHORITY: _pem(ca)}


def _make_authority(days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"ptserver CA {secrets.token_hex(4)}")
    builder = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def _issue(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    days: int,
    purpose: x509.ObjectIdentifier,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    builder = (
        _builder(_name(name), ca.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    return key, builder.sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    if not _DNS_NAME.fullmatch(name):
        raise KeysError(f"{name!r} is neither a host name nor an address (without a port)")
    return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        fd = os.open(
            folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "wb") as file:
            file.write(data)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise KeysError(
            f"{error.filename} is there already, and keys are not overwritten: take another folder"
        ) from error
    except OSError as error:
        raise KeysError(f"cannot make keys in {folder}: {error.filename}: {error.strerror}") from error
