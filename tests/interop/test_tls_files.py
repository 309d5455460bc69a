"""Certificates and keys as people make them: what cannot be used is named, with the command that makes it usable."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import PATIENCE, Server, eventually, metric, scrape

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing: apt-get install openssl")

REQUEST = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server.key"
SELF_SIGNED = f"{REQUEST} -x509 -out server.pem"
NOT_CA = "-addext basicConstraints=critical,CA:FALSE"
NAME = "-addext subjectAltName=DNS:localhost"
GOOD = f"{SELF_SIGNED} -days 90 {NOT_CA} {NAME}"


class Files:
    """A folder of files, and what a server says of them."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self.folder = folder

    def openssl(self, *commands: str) -> None:
        for command in commands:
            ran = subprocess.run(
                ["openssl", *command.split()], cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
            )
            assert ran.returncode == 0, f"openssl {command}: {ran.stderr}"

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def settings(self, **settings: str) -> dict[str, str]:
        paths = {"tls_certificate": "server.pem", "tls_key": "server.key"} | settings
        return {name: str(self[path]) for name, path in paths.items() if path}

    def check(self, **settings: str) -> subprocess.CompletedProcess:
        variables = {f"TIDEGATE_{name.upper()}": path for name, path in self.settings(**settings).items()}
        # Without the variables of the tests themselves.
        others = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        return self.run("check-config", env=others | variables)

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [self.binary, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)

    def flags(self, **settings: str) -> list[str]:
        return [f"--{name.replace('_', '-')}={path}" for name, path in self.settings(**settings).items()]

    def refused(self, *words: str, **settings: str) -> str:
        """Checks that neither a check nor a server takes the files, and that both say why. Returns what they said."""
        checked = self.check(**settings)
        assert checked.returncode == 2, checked.stdout + checked.stderr
        served = self.run("serve", "--listen=127.0.0.1:0", *self.flags(**settings))
        assert served.returncode == 2, served.stdout + served.stderr
        for said in (checked.stderr, served.stderr):
            for word in words:
                assert word in said, f"{word!r} is not in: {said}"
        return checked.stderr + served.stderr

    def warned(self, *words: str, **settings: str) -> None:
        """Checks that a check and a server warn, and take the files."""
        checked = self.check(**settings)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        with self["log"].open("wb") as log, Server(self.binary, *self.flags(**settings), log=log):
            pass
        logged = self["log"].read_text()
        for word in words:
            assert any("warning: " in line and word in line for line in checked.stderr.splitlines()), checked.stderr
            assert any(" WARN " in line and word in line for line in logged.splitlines()), logged

    def silent(self, **settings: str) -> None:
        """Checks that there is nothing to say."""
        checked = self.check(**settings)
        assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr


@pytest.fixture
def files(binary: str, tmp_path: Path) -> Files:
    return Files(binary, tmp_path)


KEYS = {
    "pkcs8": "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out server.key",
    "with parameters": "ecparam -name prime256v1 -genkey -out server.key",
    "p384": "ecparam -name secp384r1 -genkey -noout -out server.key",
    "rsa": "genrsa -out server.key 2048",
    "traditional rsa": "genrsa -traditional -out server.key 2048",
    "ed25519": "genpkey -algorithm ed25519 -out server.key",
}


@pytest.mark.parametrize("key", KEYS)
def test_good_files_are_taken_without_a_word(files, key):
    files.openssl(KEYS[key], f"req -x509 -key server.key -subj /CN=localhost -days 90 {NOT_CA} {NAME} -out server.pem")
    files.silent()
    # Windows' line ends, text around the blocks, and key and certificate in one file.
    both = files["server.pem"].read_bytes() + b"Bag Attributes\n  localKeyID: 01\n" + files["server.key"].read_bytes()
    files["both.pem"].write_bytes(both.replace(b"\n", b"\r\n"))
    files.silent(tls_certificate="both.pem", tls_key="both.pem")


def pkcs12(files: Files) -> None:
    files.openssl("pkcs12 -export -in server.pem -inkey server.key -out server.p12 -passout pass:x")


def openssh(files: Files) -> None:
    head = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    files["openssh.key"].write_bytes(head)


def parameters(files: Files) -> None:
    files.openssl("ecparam -name prime256v1 -out parameters.pem")


def base64_of_pem(files: Files) -> None:
    files.openssl("base64 -A -in server.key -out once.more", "base64 -A -in server.pem -out pem.once.more")


def two_keys(files: Files) -> None:
    files.openssl("ecparam -name prime256v1 -genkey -noout -out other.key")
    files["two.key"].write_bytes(files["server.key"].read_bytes() + files["other.key"].read_bytes())


def one_line(files: Files) -> None:
    files["one.line"].write_text(files["server.key"].read_text().replace("\n", "\\n"))


def utf16(files: Files) -> None:
    files["utf16.key"].write_bytes(files["server.key"].read_text().encode("utf-16"))


def cut(files: Files) -> None:
    files["cut.key"].write_bytes(files["server.key"].read_bytes()[:-20])
    files["cut.pem"].write_bytes(files["server.pem"].read_bytes()[:200])


def garbage(files: Files) -> None:
    files["empty"].write_bytes(b" \n")
    files["text"].write_bytes(b"the key is in the safe\n")
    files["binary"].write_bytes(bytes(range(256)))
    files["jks"].write_bytes(b"\xfe\xed\xfe\xed\x00\x00\x00\x02")
    files["ssh.pub"].write_bytes(b"ssh-ed25519 AAAA me@here\n")
    files["page"].write_bytes(b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nx\n-----END PGP PRIVATE KEY BLOCK-----\n")


BAD_KEYS = {
    "encrypted": ("pkcs8 -topk8 -in server.key -passout pass:x -out bad", "bad", ["is encrypted", "openssl pkey -in"]),
    "encrypted traditionally": (
        "ec -aes128 -in server.key -passout pass:x -out bad",
        "bad",
        ["is encrypted", "openssl pkey -in"],
    ),
    "der": ("pkey -in server.key -outform DER -out bad", "bad", ["in DER", "openssl pkey -inform DER -in"]),
    "traditional der": ("ec -in server.key -outform DER -out bad", "bad", ["in DER", "openssl pkey -inform DER -in"]),
    "encrypted der": (
        "pkcs8 -topk8 -in server.key -passout pass:x -outform DER -out bad",
        "bad",
        ["encrypted, in DER", "openssl pkcs8 -inform DER"],
    ),
    "public": ("pkey -in server.key -pubout -out bad", "bad", ["a public key", "no private key"]),
    "public der": ("pkey -in server.key -pubout -outform DER -out bad", "bad", ["a public key in DER, and no private key"]),
    "request": (f"{REQUEST} -out bad", "bad", ["a request for a certificate", "no private key"]),
    "pkcs12": (pkcs12, "server.p12", ["is PKCS#12", "openssl pkcs12 -in", "-nocerts -nodes"]),
    "openssh": (openssh, "openssh.key", ["OpenSSH", "ssh-keygen"]),
    "only parameters": (parameters, "parameters.pem", ["only parameters", "private key is missing"]),
    "base64 twice": (base64_of_pem, "once.more", ["base64 once more", "base64 -d"]),
    "two": (two_keys, "two.key", ["has 2 private keys"]),
    "one line": (one_line, "one.line", ["line 1: something else is in the line of `-----BEGIN`"]),
    "utf-16": (utf16, "utf16.key", ["UTF-16"]),
    "cut": (cut, "cut.key", ["is damaged", "-----END"]),
    "certificate": ("x509 -in server.pem -out bad", "bad", ["a certificate, and no private key", "swapped?"]),
    "no signatures": ("genpkey -algorithm X25519 -out bad", "bad", ["the key cannot be used", "use one of RSA"]),
    "short": ("genrsa -out bad 1024", "bad", ["the key cannot be used", "use one of RSA with 2048"]),
    "empty": (garbage, "empty", ["is empty", "private key"]),
    "text": (garbage, "text", ["no private key in PEM", "-----BEGIN PRIVATE KEY-----"]),
    "binary": (garbage, "binary", ["binary data of a form that is not known"]),
    "java": (garbage, "jks", ["key store of Java", "keytool"]),
    "ssh": (garbage, "ssh.pub", ["public key of OpenSSH"]),
    "pgp": (garbage, "page", ["PGP PRIVATE KEY BLOCK", "no private key"]),
}


def make(files: Files, how: str | Callable[[Files], None]) -> None:
    files.openssl(GOOD)
    if callable(how):
        how(files)
    else:
        files.openssl(how)


@pytest.mark.parametrize("name", BAD_KEYS)
def test_unusable_key_is_named_with_the_way_out(files, name):
    how, path, words = BAD_KEYS[name]
    make(files, how)
    if name == "request":
        # Its command made another key for the certificate.
        files.openssl(f"req -x509 -key server.key -subj /CN=localhost {NOT_CA} {NAME} -out server.pem")
    said = files.refused(str(files[path]), *words, tls_key=path)
    # Of the key itself there is no word.
    secrets = re.findall(r"[A-Za-z0-9+/]{40,}", files["server.key"].read_text())
    assert secrets and not [secret for secret in secrets if secret[:12] in said]


def indented(files: Files) -> None:
    lines = files["server.pem"].read_text().splitlines()
    files["indented.pem"].write_text("\n".join("    " + line for line in lines))


def with_list(files: Files) -> None:
    text = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"
    files["with.crl"].write_text(files["server.pem"].read_text() + text)


BAD_CERTIFICATES = {
    "der": ("x509 -in server.pem -outform DER -out bad", "bad", ["a certificate in DER", "openssl x509 -inform DER -in"]),
    "pkcs7": ("crl2pkcs7 -nocrl -certfile server.pem -out bad", "bad", ["PKCS#7", "openssl pkcs7 -in"]),
    "pkcs7 der": (
        "crl2pkcs7 -nocrl -certfile server.pem -outform DER -out bad",
        "bad",
        ["PKCS#7", "openssl pkcs7 -inform DER -in"],
    ),
    "pkcs12": (pkcs12, "server.p12", ["is PKCS#12", "openssl pkcs12 -in", "-nokeys"]),
    "trusted": ("x509 -in server.pem -trustout -out bad", "bad", ["openssl's own", "openssl x509 -in"]),
    "key": ("pkey -in server.key -out bad", "bad", ["a private key, and no certificate", "swapped?"]),
    "request": ("x509 -x509toreq -in server.pem -signkey server.key -out bad", "bad", ["a request for a certificate"]),
    "request der": (
        "req -new -key server.key -subj /CN=x -outform DER -out bad",
        "bad",
        ["a request for a certificate in DER, and no certificate"],
    ),
    "cut": (cut, "cut.pem", ["is damaged"]),
    "indented": (indented, "indented.pem", ["line 1: the beginning of a block is indented: remove the white space before it"]),
    "with a list": (with_list, "with.crl", ["list of revoked certificates, which has no effect here"]),
    "base64 twice": (base64_of_pem, "pem.once.more", ["base64 once more"]),
    "empty": (garbage, "empty", ["is empty"]),
}


@pytest.mark.parametrize("name", BAD_CERTIFICATES)
@pytest.mark.parametrize("setting", ["tls_certificate", "tls_client_ca"])
def test_unusable_certificate_is_named_with_the_way_out(files, name, setting):
    how, path, words = BAD_CERTIFICATES[name]
    make(files, how)
    files.refused(str(files[path]), *words, **{setting: path})


def test_key_of_another_certificate_is_named(files):
    files.openssl(GOOD)
    files["first.key"].write_bytes(files["server.key"].read_bytes())
    files.openssl(GOOD)
    files.refused("does not match the key in", "first.key", "openssl pkey -in", "openssl x509 -in", tls_key="first.key")


def sign(files: Files, name: str, issuer: str, extensions: str, *options: str) -> None:
    """Makes a certificate that another one signs."""
    files["extensions"].write_text(extensions)
    files.openssl(
        f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr",
        f"x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days 90 "
        f"-extfile extensions -out {name}.pem {' '.join(options)}",
    )


LEAF = "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:localhost\n"


@pytest.fixture
def chain(files: Files) -> Files:
    """Makes `root`, `middle` and `leaf`, each signed by the one before."""
    files.openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=root -keyout root.key -out root.pem"
    )
    sign(files, "middle", "root", "basicConstraints=critical,CA:TRUE\n")
    sign(files, "leaf", "middle", LEAF)
    return files


def join(files: Files, *names: str) -> str:
    path = f"{'-'.join(names)}.chain"
    files[path].write_text("".join(files[f"{name}.pem"].read_text() for name in names))
    return path


def test_chain_in_order_is_taken_and_any_other_is_named(chain):
    for names in (["leaf"], ["leaf", "middle"], ["leaf", "middle", "root"]):
        chain.silent(tls_certificate=join(chain, *names), tls_key="leaf.key")
    for names, place in ((["middle", "leaf"], 2), (["root", "middle", "leaf"], 3)):
        words = ["out of order", f"is that of certificate {place} of the file"]
        chain.refused(*words, tls_certificate=join(chain, *names), tls_key="leaf.key")
    for names in (["leaf", "root"], ["leaf", "root", "middle"]):
        words = ["out of order", "has not issued certificate 1", "CN=middle"]
        chain.warned(*words, tls_certificate=join(chain, *names), tls_key="leaf.key")


def test_certificate_of_version_1_is_refused(files):
    """As the first command of many tutorials makes it: `openssl x509 -req` without a file of extensions."""
    files.openssl(f"{REQUEST} -out server.csr", "x509 -req -in server.csr -signkey server.key -days 90 -out server.pem")
    files.refused("version 1", "subjectAltName")


def test_short_rsa_key_and_odd_curves_are_refused(files):
    for key, words in {
        "genrsa -out server.key 1024": ["RSA with 1024 bits"],
        "ecparam -name secp256k1 -genkey -noout -out server.key": ["elliptic curve 1.3.132.0.10"],
        "genpkey -algorithm ed448 -out server.key": ["the key cannot be used"],
    }.items():
        files.openssl(key, f"req -x509 -key server.key -subj /CN=localhost {NOT_CA} {NAME} -out server.pem")
        files.refused(*words, "of RSA with 2048 to 8192 bits")


def test_what_only_some_clients_take_is_warned_of(files):
    # What the very first command of a tutorial makes: an authority, without a name that counts.
    files.openssl(SELF_SIGNED)
    files.warned("CA:TRUE", "names no host in `subjectAltName`")
    files.openssl(f"{SELF_SIGNED} {NOT_CA}")
    files.warned("names no host in `subjectAltName`")
    files.openssl(f"{SELF_SIGNED} {NOT_CA} -addext subjectAltName=email:me@here.example")
    files.warned("names no host in `subjectAltName`")
    files.openssl(f"{GOOD} -addext extendedKeyUsage=clientAuth")
    files.warned("has no `serverAuth`")
    files.openssl(f"{GOOD} -addext keyUsage=keyAgreement")
    files.warned("has no `digitalSignature`")
    files.openssl(f"{GOOD} -sha1")
    files.warned("certificate 1 of the file is signed with SHA-1")
    files.openssl(f"{GOOD} -addext extendedKeyUsage=serverAuth,clientAuth -addext keyUsage=digitalSignature")
    files.silent()


def test_expiry_is_warned_of_in_time(files):
    files.openssl(f"{GOOD} -days 15")
    files.silent()
    files.openssl(f"{GOOD} -days 13")
    files.warned("the certificate expires in 1")


def past(chain: Files, start: str, end: str) -> None:
    """Makes a certificate for a time that is over, or has not begun. `openssl req` cannot."""
    chain["ca.conf"].write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n[p]\n"
        "commonName=supplied\n"
    )
    chain["index"].write_text("")
    chain["index.attr"].write_text("unique_subject = no\n")
    chain["serial"].write_text("1001\n")
    chain["extensions"].write_text(LEAF)
    chain.openssl(
        f"{REQUEST} -out server.csr",
        "ca -config ca.conf -batch -cert root.pem -keyfile root.key -in server.csr -out server.pem -notext "
        f"-extfile extensions -startdate {start} -enddate {end}",
    )


def test_certificate_that_is_not_valid_now_is_an_error_in_the_log(chain):
    for start, end, words in (
        ("20200101000000Z", "20200201000000Z", "expired at 2020-02-01T00:00:00Z"),
        ("20990101000000Z", "20990201000000Z", "valid from 2099-01-01T00:00:00Z on only"),
    ):
        past(chain, start, end)
        chain.warned(words)
        with chain["log"].open("wb") as log, Server(chain.binary, *chain.flags(), log=log):
            wait_for(chain["log"], words, " ERROR ")


def wait_for(log: Path, *words: str) -> None:
    """Waits for a line of a log with all the words, which a server writes within some seconds."""
    eventually(
        lambda: any(all(word in line for word in words) for line in log.read_text().splitlines()),
        lambda: f"a line with {words!r} in: {log.read_text()}",
    )


def test_reload_names_what_is_wrong_and_keeps_what_was_good(chain, binary):
    chain.openssl(GOOD)
    good = {name: chain[name].read_bytes() for name in ("server.pem", "server.key")}
    log = chain["log"]
    with log.open("ab") as sink, Server(binary, "--log=info", *chain.flags(), log=sink) as server:

        def reload(words: str, level: str) -> None:
            server.process.send_signal(signal.SIGHUP)
            wait_for(log, words, level)
            # The server goes on writing behind what was there, so it is opened for that.
            log.write_text("")

        chain.openssl("pkcs8 -topk8 -in server.key -passout pass:x -out encrypted.key")
        chain["encrypted.key"].replace(chain["server.key"])
        reload("is encrypted", " ERROR ")
        past(chain, "20200101000000Z", "20200201000000Z")
        reload("the previous one, which is valid, stays in force", " ERROR ")
        chain.openssl(f"{SELF_SIGNED} {NAME}")
        reload("CA:TRUE", " WARN ")
        for name, content in good.items():
            chain[name].write_bytes(content)
        reload("certificates reloaded", " INFO ")


def test_expiry_is_a_metric(files, binary):
    files.openssl(f"{GOOD} -days 90")
    with Server(binary, *files.flags(), "--http=127.0.0.1:0") as server:
        expiry = metric(server.http, "tidegate_tls_certificate_expiry_timestamp_seconds")
        assert expiry.is_integer()
        assert abs(expiry - time.time() - 90 * 24 * 3600) < 60
    with Server(binary, "--http=127.0.0.1:0") as server:
        assert "tidegate_tls_certificate_expiry" not in scrape(server.http)


BAD_PUBLIC_KEYS = {
    "private": ("pkey -in server.key -out bad", ["only the issuer of tokens should have", "openssl pkey -in"]),
    "certificate": ("x509 -in server.pem -out bad", ["a certificate, and no public key", "openssl x509 -in", "-pubkey"]),
    "der": ("pkey -in server.key -pubout -outform DER -out bad", ["a public key in DER", "openssl pkey -pubin -inform DER"]),
    "short": ("rsa -in rsa.key -pubout -out bad", ["at least 2048 bits", "has 1024 bits"]),
    "rsa's own": ("rsa -in rsa.key -RSAPublicKey_out -out bad", ["only RSA has", "openssl rsa -RSAPublicKey_in"]),
    "other curve": ("pkey -in p384.key -pubout -out bad", ["P-256"]),
}


@pytest.mark.parametrize("name", BAD_PUBLIC_KEYS)
def test_unusable_key_of_tokens_is_named_with_the_way_out(files, name):
    command, words = BAD_PUBLIC_KEYS[name]
    other_keys = ("genrsa -out rsa.key 1024", "ecparam -name secp384r1 -genkey -noout -out p384.key")
    files.openssl(GOOD, *other_keys, command)
    tokens = ["--auth-jwt-issuer=me", "--auth-jwt-audience=you"]
    served = files.run("serve", "--listen=127.0.0.1:0", *tokens, f"--auth-jwt-public-keys={files['bad']}")
    assert served.returncode == 2
    for word in words:
        assert word in served.stderr, served.stderr
    # Whoever has a public key could sign with it.
    files.openssl("pkey -in server.key -pubout -out public.pem")
    served = files.run("serve", "--listen=127.0.0.1:0", *tokens, f"--auth-jwt-secrets={files['public.pem']}")
    assert served.returncode == 2
    assert "is PEM, and no secret" in served.stderr
