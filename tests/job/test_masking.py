"""What is taken for a credential, and what is not."""

import base64
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from job.masking import forget, is_secret_name, masked, remember, remember_environment

pytestmark = pytest.mark.security("S10")


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
            ("sent eyJhbGciOi.J9eyJ.abc-_", "sent ***"),
            ("-----BEGIN RSA PRIVATE KEY-----\nab\n-----END RSA PRIVATE KEY-----.", "***."),
            ('{"private_key": "a\\"b", "type": "x"}', '{"private_key": "***", "type": "x"}'),
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
        ],
    )
    def test_other_text_stays(self, text: str) -> None:
        assert masked(text) == text

    @pytest.mark.parametrize("part", ["//a:", "?token", "//a", "eyJaaaaa.", "-----BEGIN ", "a:"])
    def test_hostile_text_takes_no_long_time(self, part: str) -> None:
        before = time.process_time()
        masked(part * (200_000 // len(part)))
        assert time.process_time() - before < 5


class TestRemembered:
    SECRET = "wJalrXUtn/FEMI+K7MDENG="

    @pytest.mark.parametrize(
        "written",
        [
            SECRET,
            SECRET[:16],
            urllib.parse.quote(SECRET, safe=""),
            base64.b64encode(SECRET.encode()).decode(),
            base64.b64encode(f"u:{SECRET}".encode()).decode(),
        ],
        ids=["whole", "cut", "quoted", "base64", "base64 of more"],
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
        remember('{"private_key_id": "0123456789ab", "client_email": "me@example.org"}', "sv=2022&sig=abcdefghij")
        assert masked("0123456789ab of me@example.org, abcdefghij") == "*** of me@example.org, ***"

    def test_short_values_and_paths_stay(self) -> None:
        remember_environment({"AWS_SECRET_ACCESS_KEY": "test", "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token"})
        assert masked("test_accuracy /no/such/token") == "test_accuracy /no/such/token"

    def test_names(self) -> None:
        secret = [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "NVIDIA_API_KEY",
            "TF_ENCRYPTION",
            "PGPASSWORD",
            "NPM_AUTH",
        ]
        public = [
            "AWS_ACCESS_KEY_ID",
            "AWS_ENDPOINT_URL",
            "PWD",
            "OLDPWD",
            "AZURE_CREDENTIAL_TYPE",
            "XLA_FLAGS",
            "AWS_ROLE_ARN",
        ]
        assert [name for name in (*secret, *public) if is_secret_name(name)] == secret
