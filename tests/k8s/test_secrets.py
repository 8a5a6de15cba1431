"""Promise S10 for `mnist-k8s`: what a kubeconfig holds is in no output and in no file that is left."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.canaries import Echo, Ended, Programs, canary, echo, everything_below, leaks_of

pytestmark = pytest.mark.security("S10")

SECRET = canary("kubeconfig")
_PLUGIN = "client.authentication.k8s.io/v1"


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with echo() as made:
        yield made


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    made = Programs(tmp_path_factory.mktemp("client"))
    yield made
    made.close()


def _kubeconfig(server: Echo, user: Mapping[str, Any], cluster: Mapping[str, str] | None = None) -> str:
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url, **(cluster or {})}}],
        "users": [{"name": "u", "user": dict(user)}],
    }
    return yaml.safe_dump(content)


def _run(programs: Programs, folder: Path, text: str, *arguments: str) -> Ended:
    """With files for temporary things of its own; the kubeconfig itself is removed before they are looked at."""
    file = folder / "kubeconfig"
    file.write_text(text)
    (folder / "temporary").mkdir()
    environ = {"TMPDIR": str(folder / "temporary"), "KUBECONFIG": str(file)}
    ended = programs.run(arguments or ("list",), environ, is_client=True)
    assert not leaks_of({"kubeconfig": SECRET}, ended.output + everything_below(folder / "temporary")), ended.text
    assert "Traceback" not in ended.text
    return ended


class TestTokens:
    @pytest.mark.parametrize(
        ("token", "code"), [(SECRET, 77), (f"{SECRET}\n", 77), (f"abc\n{SECRET}", 64), (f"{SECRET}ü", 64)], ids="abcd"
    )
    def test_token(self, programs: Programs, server: Echo, tmp_path: Path, token: str, code: int) -> None:
        ended = _run(programs, tmp_path, _kubeconfig(server, {"token": token}))
        assert ended.code == code

    def test_file_of_a_token_may_end_in_a_line_break(self, programs: Programs, server: Echo, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(f"{SECRET}\n")
        ended = _run(programs, tmp_path, _kubeconfig(server, {"tokenFile": str(tmp_path / "token")}))
        assert ended.code == 77
        assert "authorization: Bearer ***" in ended.text  # it was sent, and the server has repeated it

    @pytest.mark.parametrize(
        "user",
        [
            {"tokenFile": SECRET},
            {"username": "me", "password": SECRET},
            {"auth-provider": {"name": "oidc", "config": {"id-token": f"a.{SECRET}.c", "refresh-token": SECRET}}},
            {
                "auth-provider": {
                    "name": "gcp",
                    "config": {"access-token": f"{SECRET}\n", "expiry": "2099-01-01T00:00:00Z"},
                }
            },
            {"exec": {"apiVersion": _PLUGIN, "command": "sh", "args": ["-c", f'echo "{SECRET}" >&2; exit 1']}},
            {"exec": {"apiVersion": _PLUGIN, "command": "/no/such", "env": [{"name": "API_TOKEN", "value": SECRET}]}},
        ],
        ids=["token as a path", "password", "oidc", "gcp", "plugin fails", "no plugin"],
    )
    def test_other_credentials(self, programs: Programs, server: Echo, tmp_path: Path, user: Mapping[str, Any]) -> None:
        assert _run(programs, tmp_path, _kubeconfig(server, user)).code in (64, 77)

    def test_plugin_without_result_is_said(self, programs: Programs, server: Echo, tmp_path: Path) -> None:
        user = {"exec": {"apiVersion": _PLUGIN, "command": "true"}}
        ended = _run(programs, tmp_path, _kubeconfig(server, user))
        assert ended.code == 64
        assert "the credential plugin true has given no credentials" in ended.text

    def test_key_leaves_no_file(self, programs: Programs, server: Echo, tmp_path: Path) -> None:
        user = {
            f"client-{kind}-data": base64.b64encode(f"{kind} {SECRET}".encode()).decode()
            for kind in ("key", "certificate")
        }
        _run(programs, tmp_path, _kubeconfig(server, user, {"server": "https://127.0.0.1:9"}), "status", "x")
        assert not list((tmp_path / "temporary").iterdir())


class TestHonestUse:
    def test_variable_of_a_plugin_that_names_no_secret_is_not_masked(
        self, programs: Programs, server: Echo, tmp_path: Path
    ) -> None:
        variables = [{"name": "AWS_PROFILE", "value": "training-1"}, {"name": "API_TOKEN", "value": SECRET}]
        user = {"token": "abc", "exec": {"apiVersion": _PLUGIN, "command": "/no/such", "env": variables}}
        ended = _run(programs, tmp_path, _kubeconfig(server, user), "list", "--context", "training-1")
        assert "training-1" in ended.text


class TestAddresses:
    @pytest.mark.parametrize(
        "cluster",
        [
            {"server": f"http://u:{SECRET}@127.0.0.1:99999"},
            {"server": f"http://u:{SECRET}@[::1"},
            {"proxy-url": f"socks9://u:{SECRET}@127.0.0.1:9"},
        ],
        ids=["port", "host", "proxy"],
    )
    def test_address_with_a_password(
        self, programs: Programs, server: Echo, tmp_path: Path, cluster: Mapping[str, str]
    ) -> None:
        assert _run(programs, tmp_path, _kubeconfig(server, {}, cluster)).code in (64, 69)


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        [
            "users:\n- user:\n    token: a: {}\n",
            "users:\n- user:\n    password: *{}\n",
            "users:\n- token: {}\n",
            "{}\n",
        ],
    )
    def test_damaged_file(self, programs: Programs, tmp_path: Path, text: str) -> None:
        plain = SECRET[:16]
        ended = _run(programs, tmp_path, text.format(plain))
        assert ended.code == 64


class TestArguments:
    @pytest.mark.parametrize(
        "line",
        [
            "submit --store.uri={}",
            "submit --stor.uri={}",
            "submit --set {}",
            "status {}",
            "list --context {}",
            "submit --set store.uri={}",
        ],
    )
    def test_credentials_in_an_argument(self, programs: Programs, server: Echo, tmp_path: Path, line: str) -> None:
        ended = _run(programs, tmp_path, _kubeconfig(server, {}), *line.format(f"s3://k:{SECRET}@b").split())
        assert ended.code in (64, 66, 77)
