"""What is taken for a credential, and what is not."""

import base64
import html
import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.config import describe_fields
from job.masking import forget, is_secret_name, masked, remember, remember_environment, without_secrets

pytestmark = pytest.mark.security("S10")

_SECRET_NAMES = """
AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN NVIDIA_API_KEY TF_ENCRYPTION PGPASSWORD NPM_AUTH DB_PASS_FILE TLS_KEY_FILE AUTH
SSH_KEY_PATH PGPASSFILE DB_PW DBPWD DB_CREDS DOCKER_AUTH_CONFIG AWS_SHARED_CREDENTIALS_FILE AccountKey clientSecret
client-secret X-Amz-Signature TF_TOKEN_app_terraform_io AZURE_STORAGE_KEY private_key_id
"""
_PUBLIC_NAMES = """
AWS_ACCESS_KEY_ID AWS_ENDPOINT_URL PWD OLDPWD AZURE_CREDENTIAL_TYPE XLA_FLAGS AWS_ROLE_ARN TOKENIZER_NAME SECRET_NAME
TOKEN_SERVICE_SERVICE_HOST SORT_KEY primary_key page_token_size num_tokens pad_token COMPASS SSH_AUTH_SOCK
"""


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    forget()
    yield
    forget()


class TestForms:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("at s3://key:se/c@r'et@bucket/x now", "at s3://***@bucket/x now"),
            ("at https://token@host", "at https://***@host"),
            ("run --aws-secret-access-key=wJalrXUtnFEMI7 x", "run --aws-secret-access-key=*** x"),
            ("user:secret@proxy:3128", "***@proxy:3128"),
            (
                "GET http://h/b?list-type=2&X-Amz-Signature=ab12&x=1",
                "GET http://h/b?list-type=2&X-Amz-Signature=***&x=1",
            ),
            ("http://h/b?sv=1&sig=a%2Fb", "http://h/b?sv=1&sig=***"),
            ('"http://h/b?sv=1\\u0026sig=a"', '"http://h/b?sv=1\\u0026sig=***"'),
            ("<SessionToken>abc</SessionToken>", "<SessionToken>***</SessionToken>"),
            ("Authorization: Bearer abc", "Authorization: Bearer ***"),
            ('{"authorization": "Basic dTpw"}', '{"authorization": "Basic ***"}'),
            ("x-amz-security-token: abc", "x-amz-security-token: ***"),
            ("sent eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_", "sent ***"),
            ("-----BEGIN RSA PRIVATE KEY-----\nab\n-----END RSA PRIVATE KEY-----.", "***."),
            ('{"private_key": "a\\"b", "type": "x"}', '{"private_key": "***", "type": "x"}'),
            (
                '{"a": "{\\"client_secret\\": \\"x\\", \\"b\\": 1}"}',
                '{"a": "{\\"client_secret\\": \\"***\\", \\"b\\": 1}"}',
            ),
            ("Authorization: SharedKey acct:SIG", "Authorization: ***"),
            ("Authorization: token ghp_1", "Authorization: ***"),
            ("authorization: ApiKey abc\nnext: 1", "authorization: ***\nnext: 1"),
            ("Proxy-Authorization: NTLM TlRMTVNT", "Proxy-Authorization: ***"),
            ('Authorization: Digest username="u", response="abc"\nnext', "Authorization: ***\nnext"),
            ("'Authorization': 'Digest response=\"abc\"', 'next': 1", "'Authorization': '***', 'next': 1"),
            ("Cookie: lang=en; session=SECRET", "Cookie: ***"),
            ("{headers: {Authorization: Bearer abc, Cookie: a=b}}", "{headers: {Authorization: Bearer ***}}"),
            ("used basic dXNlcjpwYXNz", "used basic ***"),
            ("mysql: password=hunter2, user=me", "mysql: password=***, user=me"),
            ("a;AccountKey=abc1+/==;EndpointSuffix=x", "a;AccountKey=***;EndpointSuffix=x"),
            ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nab\n-----END PGP PRIVATE KEY BLOCK-----.", "***."),
        ],
    )
    def test_credential_is_masked_once_and_for_all(self, text: str, expected: str) -> None:
        assert masked(text) == expected
        assert masked(expected) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "registry:5000/mnist-train:1.2@sha256:0123456789abcdef",
            "image python:3.12@sha256:0123",
            "GET http://127.0.0.1:9000/bucket/checks/1?list-type=2&prefix=runs",
            "store.endpoint: must be http://host:9000, write me@example.org",
            "Basic authentication, bearer token",
            "train.tokens=3; key=checks/1",
            "{cookie: chocolate}",
            "{authorization: none, b: 1}",
            '{"note": "basic resnet50", "authorization": 3, "max_token": 3, "token": null, "auth": {"a": 1}}',
            "http://h/?page_token_size=10&primary_key=id",
            "/data/eyjafjallajokull eyjafjalla-net.v1",
            "/mnt//team@corp/x",
            "http://host:9000/a@b",
            "token: unexpected end; wrong password: try again",
            "api_key: OPENAI_API_KEY, api_key=$API_KEY, secret_file: /run/secrets/x, pad_token: [PAD1]",
        ],
    )
    def test_other_text_stays(self, text: str) -> None:
        assert masked(text) == text

    _HOSTILE = (
        *(
            "//a:",
            "?token",
            "//a",
            "eyJaaaaa.",
            "eyJaaaaa",
            "-eyJa",
            "-----BEGIN ",
            "-----BEGIN PRIVATE KEY-----",
            "a:",
            "a",
        ),
        *(
            "password=",
            'password="',
            'token: "',
            '\\\\"',
            "a=",
            "cookie:",
            'cookie:"',
            "Passw0rd",
            "basic abcd",
            "<Password>",
            "@//",
        ),
    )

    @pytest.mark.parametrize("part", _HOSTILE)
    def test_hostile_text_takes_no_long_time(self, part: str) -> None:
        remember("Passw0rd", "Passw0rdPassw0rdPassw0rd")
        before = time.process_time()
        masked(part * (200_000 // len(part)))
        assert time.process_time() - before < 5


class TestRemembered:
    SECRET = "wJalrXUtn/FEMI+K7>M?DENG="

    @pytest.mark.parametrize(
        "written",
        [
            SECRET,
            SECRET[:16],
            urllib.parse.quote(SECRET, safe=""),
            base64.b64encode(SECRET.encode()).decode(),
            base64.b64encode(f"u:{SECRET}".encode()).decode(),
            base64.urlsafe_b64encode(f"u:{SECRET}".encode()).decode(),
            urllib.parse.quote(SECRET),
            urllib.parse.quote(SECRET, safe="")
            .lower()
            .replace("wjalrxutn", "wJalrXUtn")
            .replace("femi", "FEMI")
            .replace("k7%3em%3fdeng", "K7%3eM%3fDENG"),
            urllib.parse.quote(urllib.parse.quote(SECRET, safe="")),
            SECRET.replace("/", "\\/").replace("+", "\\u002b"),
            SECRET.replace("/", "\\\\/").replace("+", "\\\\u002B"),
            html.escape(SECRET),
        ],
    )
    def test_value_is_masked_in_every_form(self, written: str) -> None:
        remember_environment({"AWS_SECRET_ACCESS_KEY": self.SECRET})
        assert self.SECRET[:8] not in masked(f"<{written}>")
        assert written[4:16] not in masked(f"<{written}>")

    def test_proxy_password_is_known_as_a_header_has_it(self) -> None:
        remember_environment({"HTTPS_PROXY": "http://me:pass%2Fword1@proxy"})
        header = base64.b64encode(b"me:pass/word1").decode()
        assert header not in masked(header)

    def test_values_of_a_key_file_and_of_a_shared_access_signature(self) -> None:
        remember('{"private_key_id": "0123456789ab", "client_email": "me@example.org"}', "sv=2022&sig=abcdefghi9")
        assert masked("0123456789ab of me@example.org, abcdefghi9") == "*** of me@example.org, ***"

    def test_short_values_and_paths_stay(self) -> None:
        remember_environment({"AWS_SECRET_ACCESS_KEY": "test", "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token"})
        assert masked("test_accuracy /no/such/token") == "test_accuracy /no/such/token"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("API_AUTHORIZATION", "Bearer Qz7secret9"),
            ("BASIC_AUTH", "user:Qz7secret9"),
            ("AUTH", "Basic " + base64.b64encode(b"user:Qz7secret9").decode()),
            ("DB_DSN", "postgres://user:Qz7secret9@host/db"),
            ("DB_DSN", "user:Qz7secret9@tcp(host:3306)/db"),
            ("CONNECTION_STRING", "Server=x;Password=Qz7secret9;Database=y"),
            ("DB_PW", "Qz7secret9"),
            ("DBPWD", "Qz7secret9"),
            ("DB_CREDS", '{"password": "Qz7secret9"}'),
            ("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"h": {"auth": base64.b64encode(b"me:Qz7secret9").decode()}}})),
            ("DB_SECRET", json.dumps({"engine": "postgres", "inner": json.dumps({"apiKey": "Qz7secret9"})})),
        ],
    )
    def test_secret_within_a_value(self, name: str, value: str) -> None:
        remember_environment({name: value})
        assert "Qz7secret9" not in masked("cannot log in with Qz7secret9")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("DB_PASS_FILE", "Qz7secret9\n"),
            ("SSH_KEY_PATH", "-----BEGIN X-----\nQz7secret9Qz7secret9\n-----END X-----\n"),
            ("TLS_KEY_FILE", "-----BEGIN X-----\nQz7secret9Qz7secret9\n-----END X-----\n"),
            ("PGPASSFILE", "# all\nhost:5432:db:me:Qz7secret9\n"),
            (
                "AWS_SHARED_CREDENTIALS_FILE",
                "[training]\naws_access_key_id = AKIA\naws_secret_access_key = Qz7secret9\n",
            ),
            ("APP_SECRET_FILE", "engine: postgres\ndatabase:\n  password: 'Qz7secret9'\n"),
        ],
    )
    def test_secret_within_a_file(self, tmp_path: Path, name: str, content: str) -> None:
        file = tmp_path / "file"
        file.write_text(content)
        remember_environment({name: str(file)})
        text = f"engine: postgres at {file} of [training]"
        assert masked(f"{text} Qz7secret9Qz7secret9") in (f"{text} ***", f"{text} ******")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("DB_SECRET", json.dumps({"engine": "postgresql1", "dbname": "training1", "password": "Qz7secret9"})),
            ("TOKENIZER_NAME", "wordpiece1"),
            ("SECRET_NAME", "mnist-store1"),
            ("TOKEN_SERVICE_SERVICE_HOST", "10.96.0.17"),
            ("TOKEN_SERVICE_PORT_80_TCP", "tcp://10.96.0.17:80"),
            ("SORT_KEY", "accuracy-1"),
            ("PGPASSWORD", "test_accuracy"),
            ("DB_PASSWORD", "postgres"),
            ("DATABASE_URL", "postgres://training1@host/db"),
        ],
    )
    def test_what_is_no_secret_stays(self, name: str, value: str) -> None:
        remember_environment({name: value})
        text = "training1 wordpiece1 mnist-store1 10.96.0.17 accuracy-1 postgresql1 test_accuracy postgres"
        assert masked(text) == text

    @pytest.mark.parametrize(
        ("names", "expected"), [(_SECRET_NAMES, True), (_PUBLIC_NAMES, False)], ids=["secret", "public"]
    )
    def test_names(self, names: str, expected: bool) -> None:
        assert [name for name in names.split() if is_secret_name(name) != expected] == []

    def test_no_setting_and_no_word_of_ours_is_taken_for_a_secret(self) -> None:
        for name, default, _ in describe_fields():
            section, _, field = name.partition(".")
            assert not is_secret_name(field)
            remember(section, field, default if default.isalpha() else "")
            assert masked(f"{name} {field} {default}") == f"{name} {field} {default}"

    def test_values_without_secrets_keep_their_keys(self) -> None:
        value = {
            "headers": {"Authorization": "Bearer a1", "Cookie": "sid=1"},
            "n": [1, {"password": 12, "token": None}],
        }
        expected = {"headers": {"Authorization": "***", "Cookie": "***"}, "n": [1, {"password": "***", "token": None}]}
        assert without_secrets(value) == expected
