"""Promise S10: canaries in every place that may hold a credential are in nothing that the programs write."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.canaries import Echo, Ended, Programs, canary, echo, everything_below, leaks_of
from tests.conftest import QUICK, RunJob

pytestmark = pytest.mark.security("S10")

_VARIABLES = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "GOOGLE_BEARER_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_TOKEN",
    "TF_VAR_db_password",
    "TF_HTTP_PASSWORD",
    "TF_TOKEN_app_terraform_io",
    "NVIDIA_API_KEY",
    "CUDA_PASSWD",
    "NCCL_AUTH",
    "OMP_SECRET",
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "XLA_PRIVATE",
    "PGPASSWORD",
]
_URIS = [
    "HTTPS_PROXY",
    "ALL_PROXY",
    "AZURITE_BLOB_STORAGE_URL",
    "AWS_ENDPOINT_URL",
    "DATABASE_URL",
    "NCCL_NET_URL",
    "TF_MIRROR",
    "MALLOC_URL",
    "LD_LIBRARY_PATH",
]
SECRETS = {
    name: canary(name)
    for name in (*_VARIABLES, *_URIS, "key file", "token file", "SAS", "account key", "hcl", "setting")
}
"""Place -> the secret that is there."""


def _environ(folder: Path) -> dict[str, str]:
    """All of them at once; nothing here is sent anywhere but to a server of this machine."""
    key_file, token_file = folder / "key.json", folder / "token"
    pem = f"-----BEGIN PRIVATE KEY-----\n{SECRETS['key file']}\n-----END PRIVATE KEY-----\n"
    key_file.write_text(
        json.dumps({"type": "service_account", "private_key": pem, "private_key_id": "", "client_email": "a@b"})
    )
    token_file.write_text(SECRETS["token file"])
    return {
        **{name: SECRETS[name] for name in _VARIABLES},
        **{name: f"http://user:{SECRETS[name].replace('%', '%25')}@127.0.0.1:9/x" for name in _URIS},
        "NO_PROXY": "127.0.0.1",
        "AWS_ACCESS_KEY_ID": "some-key-id",
        "AWS_SSE_CUSTOMER_KEY_BASE64": "",
        "GOOGLE_APPLICATION_CREDENTIALS": str(key_file),
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(SECRETS["account key"].encode()).decode(),
        "AZURE_FEDERATED_TOKEN_FILE": str(token_file),
        "TF_ENCRYPTION": f'key_provider "pbkdf2" "k" {{ passphrase = "{SECRETS["hcl"]}" }}',
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with echo() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canaries")


@pytest.fixture(scope="module")
def programs(folder: Path) -> Iterator[Programs]:
    made = Programs(folder)
    yield made
    made.close()


_FAST = ("--store.deadline_seconds=3", "--store.timeout_seconds=3")


def _check(ended: Ended, folder: Path) -> None:
    """Nothing leaks to the terminal, nor into a file that is not one of those that hold the secrets."""
    assert not leaks_of(SECRETS, ended.output), ended.text
    (folder / "key.json").unlink()
    (folder / "token").unlink()
    assert not leaks_of(SECRETS, everything_below(folder))


def _run(
    programs: Programs, folder: Path, *arguments: str, environ: Mapping[str, str] | None = None, is_client: bool = False
) -> Ended:
    ended = programs.run(arguments, _environ(folder) | dict(environ or {}), is_client=is_client)
    _check(ended, folder)
    return ended


class TestStores:
    """What obstore says of a refusal quotes the reply, and some replies quote the request with its headers."""

    @pytest.mark.parametrize("status", [400, 403, 500])
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_reply_that_repeats_the_request(
        self, programs: Programs, folder: Path, server: Echo, scheme: str, status: int
    ) -> None:
        server.status = status
        environ = {"GOOGLE_APPLICATION_CREDENTIALS": "", "GOOGLE_SKIP_SIGNATURE": "1"} if scheme == "gs" else {}
        ended = _run(
            programs,
            folder,
            "store",
            "check",
            *_FAST,
            f"--store.uri={scheme}://b",
            f"--store.endpoint={server.url}",
            environ=environ,
        )
        assert ended.code in (64, 69, 77)

    def test_redirect_to_a_signed_address(self, programs: Programs, folder: Path, server: Echo) -> None:
        server.status, server.location = (
            301,
            f"http://u:{SECRETS['setting']}@127.0.0.1:9/?X-Amz-Signature={SECRETS['setting']}",
        )
        ended = _run(programs, folder, "store", "check", *_FAST, "--store.uri=s3://b", f"--store.endpoint={server.url}")
        assert ended.code == 64

    @pytest.mark.parametrize(
        "environ",
        [
            {"AWS_SECRET_ACCESS_KEY": SECRETS["AWS_SECRET_ACCESS_KEY"] + "\n"},
            {"AWS_ENDPOINT": f"http://u:p@{SECRETS['setting']}@h"},
            {"AWS_ENDPOINT": f"http://u:p/{SECRETS['setting']}@h"},
            {"AWS_ENDPOINT": f"http://h/?X-Amz-Signature={SECRETS['setting']}"},
            {"AWS_ENDPOINT_URL_S3": f"http://u:{SECRETS['setting']}@h:9"},
        ],
        ids=["line break", "two @", "slash", "signed", "endpoint"],
    )
    def test_value_that_cannot_be_used(self, programs: Programs, folder: Path, environ: dict[str, str]) -> None:
        assert _run(programs, folder, "store", "check", *_FAST, "--store.uri=s3://b", environ=environ).code in (64, 77)

    @pytest.mark.parametrize(
        "name", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"]
    )
    @pytest.mark.parametrize(
        "content",
        [
            json.dumps(
                {"type": "service_account", "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRETS['setting']}\n"}
            ),
            f'{{"type":"service_account","private_key":{SECRETS["setting"]}',
            f'"{SECRETS["setting"]}"',
            SECRETS["setting"],
        ],
        ids=["key", "damaged", "text", "token"],
    )
    def test_content_of_a_key_file_in_the_place_of_its_path(
        self, programs: Programs, folder: Path, server: Echo, name: str, content: str
    ) -> None:
        environ = {"GOOGLE_APPLICATION_CREDENTIALS": "", "GOOGLE_BEARER_TOKEN": ""} | {name: content}
        ended = _run(
            programs,
            folder,
            "store",
            "check",
            *_FAST,
            "--store.uri=gs://b",
            f"--store.endpoint={server.url}",
            environ=environ,
        )
        assert ended.code in (64, 77)

    def test_key_file_whose_parser_quotes_it(self, programs: Programs, folder: Path) -> None:
        (folder / "odd.json").write_text(json.dumps(SECRETS["setting"]))
        environ = {"GOOGLE_APPLICATION_CREDENTIALS": str(folder / "odd.json"), "GOOGLE_BEARER_TOKEN": ""}
        ended = programs.run(["store", "check", *_FAST, "--store.uri=gs://b"], _environ(folder) | environ)
        (folder / "odd.json").unlink()
        _check(ended, folder)
        assert ended.code == 77


_PLACES = (f"s3://k:{SECRETS['setting']}@b", f"https://h/?X-Amz-Signature={SECRETS['setting']}")


class TestSettings:
    @pytest.mark.parametrize("place", _PLACES, ids=["userinfo", "signed"])
    @pytest.mark.parametrize(
        "line",
        [
            "{}",
            "{} run",
            "show {}",
            "runs --last {}",
            "runs -o {}",
            "gc --older-than {}",
            "runs --config {}",
            "data prepare --to {}",
            "rollback --why {}",
            "config show -store.uri={}",
            "config show --stor.uri={}",
            "config show --store.uri={}",
            "config show --store.region={}",
            "config show --run.id={}",
            "config show --train.epochs={}",
            "config show --data.uri={}",
            "config show --data.source=a.b:c --data.args={{u:'{}'}}",
            "config show --observe.pushgateway_url={}",
            "run --observe.pushgateway_url={} --observe.log_format=json",
            "run --observe.termination_log=said --promotion.model_name={}",
        ],
    )
    def test_credentials_in_any_argument_are_refused(
        self, programs: Programs, folder: Path, line: str, place: str
    ) -> None:
        assert _run(programs, folder, *line.format(place).split()).code in (64, 66)

    @pytest.mark.parametrize(
        "text",
        [
            "store:\n  uri: s3://k:{}@b: x\n",
            "store:\n  uri: s3://k:{0}@b\n  uri: s3://k:{0}@b\n",
            "data:\n  source: a.b:c\n  args: {{u: [postgres://k:{}@b]}}\n",
            "data:\n  source: a.b:c\n  args: {{headers: {{Authorization: Bearer {}}}}}\n",
            'data:\n  source: a.b:c\n  args: {{headers: {{Cookie: "sid={}"}}}}\n',
            "data:\n  source: a.b:c\n  args: {{db: [{{password: {}}}]}}\n",
            "model:\n  build: a.b:c\n  args: {{'http://k:{}@b': 1}}\n",
            "s3://k:{}@b: {{}}\n",
            "store: s3://k:{}@b\n",
            "store:\n  uri: '" + "x" * 40 + " s3://k:{0}@b\n",
        ],
    )
    def test_credentials_in_a_file_are_refused(self, programs: Programs, folder: Path, text: str) -> None:
        (folder / "c.yaml").write_text(text.format(SECRETS["setting"]))
        ended = programs.run(["config", "show", "--config", "c.yaml"], _environ(folder))
        (folder / "c.yaml").unlink()
        _check(ended, folder)
        assert ended.code == 64

    def test_secret_of_the_environment_in_a_setting_is_refused(self, programs: Programs, folder: Path) -> None:
        ended = _run(programs, folder, "config", "show", f"--store.region={SECRETS['HF_TOKEN']}")
        assert ended.code == 64
        assert "store.region: must hold no credentials" in ended.text

    @pytest.mark.parametrize(
        "args", ["{headers: {Authorization: 'ApiKey a1', n: 1}}", "{password: 1234}", "{Cookie: 'sid=a1'}"]
    )
    def test_argument_whose_key_says_that_it_is_a_secret(self, programs: Programs, folder: Path, args: str) -> None:
        (folder / "c.yaml").write_text(f"data:\n  source: a.b:c\n  args: {args}\n")
        line, environ = ["config", "show", "--data.source=a.b:c"], {"MNIST_DATA__ARGS": args}
        for ended in (
            programs.run([*line[:2], "--config=c.yaml"], {}),
            programs.run([*line, f"--data.args={args}"], {}),
            programs.run(line, environ),
        ):
            assert ended.code == 64
            assert "data.args: must hold no credentials" in ended.text
            assert "a1" not in ended.text

    @pytest.mark.parametrize(
        "args",
        [
            "{cookie: chocolate}",
            "{authorization: none}",
            "{note: basic resnet50}",
            "{uri: 'http://h/?page_token_size=10&primary_key=id'}",
            "{path: /data/eyjafjallajokull, other: /mnt//team@corp/x}",
            "{api_key_env: OPENAI_API_KEY, api_key: $API_KEY, token_file: /run/secrets/token, pad_token: '[PAD1]'}",
        ],
    )
    def test_honest_argument_is_shown_as_it_is(self, programs: Programs, args: str) -> None:
        ended = programs.run(["config", "show", "--data.source=a.b:c", f"--data.args={args}"], {})
        assert ended.code == 0
        assert yaml.safe_load(ended.text)["data"]["args"] == yaml.safe_load(args)

    def test_variables(self, programs: Programs, folder: Path) -> None:
        for name in ("MNIST_STORE__URI", f"MNIST_{_PLACES[0]}"):
            assert _run(programs, folder, "config", "show", environ={name: _PLACES[0]}).code == 64


class TestRuns:
    _SOURCE = """
import os
def load(**how):
    raise ValueError(f"cannot log in with {os.environ['PGPASSWORD']} at {os.environ['DATABASE_URL']}")
"""

    @pytest.mark.parametrize("log_format", ["json", "text"])
    def test_error_of_own_code(self, programs: Programs, folder: Path, log_format: str) -> None:
        (folder / "own_source.py").write_text(self._SOURCE)
        environ = {"PYTHONPATH": str(folder)}
        settings = (
            "--data.source=own_source:load",
            "--observe.termination_log=said",
            f"--observe.log_format={log_format}",
        )
        ended = _run(programs, folder, "data", "check", *settings, environ=environ)
        assert ended.code == 64
        assert "cannot log in with *** at http://***@127.0.0.1:9/x" in ended.text

    @pytest.mark.tf
    def test_whole_run(self, run_job: RunJob, tmp_path: Path, server: Echo, folder: Path) -> None:
        server.status, server.bodies = 403, []
        settings = (*QUICK, "--run.id=r", "--train.epochs=1", "--observe.termination_log=said")
        environ = _environ(folder)
        done = run_job("run", *settings, f"--observe.pushgateway_url={server.url}", env=environ)
        said: dict[str, Any] = json.loads((tmp_path / "said").read_text())
        assert (done.code, said["outcome"]) == (0, "committed")
        names = set(
            json.loads(next((tmp_path / "out/runs/r/attempts").glob("*/attempt.json")).read_text())["environment"]
        )
        assert {"HTTPS_PROXY", "AWS_ENDPOINT_URL", "LD_LIBRARY_PATH"} <= names
        assert not names & {"TF_ENCRYPTION", "TF_HTTP_PASSWORD", "NVIDIA_API_KEY", "CUDA_PASSWD", "NCCL_AUTH"}
        written = everything_below(tmp_path) + done.stdout.encode() + done.stderr.encode() + b"".join(server.bodies)
        assert server.bodies
        assert not leaks_of(SECRETS, written)

    _MODEL = """
import os
def build(*shape, **how):
    raise RuntimeError("refused: " + os.environ["PGPASSWORD"])
"""

    @pytest.mark.full
    @pytest.mark.tf
    @pytest.mark.parametrize("log_format", ["json", "text"])
    def test_failed_run(self, run_job: RunJob, tmp_path: Path, folder: Path, log_format: str) -> None:
        """In the error of an own model; the log is stored, too."""
        (tmp_path / "own_model.py").write_text(self._MODEL)
        settings = (*QUICK, "--run.id=r", "--model.build=own_model:build", "--observe.termination_log=said")
        environ = _environ(folder) | {"PYTHONPATH": str(tmp_path)}
        done = run_job("run", *settings, f"--observe.log_format={log_format}", env=environ)
        assert done.code != 0
        assert "refused: ***" in json.loads((tmp_path / "said").read_text())["reason"]
        assert not leaks_of(SECRETS, everything_below(tmp_path) + done.stdout.encode() + done.stderr.encode())

    @pytest.mark.full
    @pytest.mark.tf
    def test_stopped_run(self, run_job: RunJob, tmp_path: Path, folder: Path) -> None:
        settings = (*QUICK, "--run.id=r", "--train.epochs=100000", "--observe.termination_log=said")
        done = run_job("run", *settings, env=_environ(folder), prefix=["timeout", "--signal=TERM", "40"])
        assert json.loads((tmp_path / "said").read_text())["outcome"] == "interrupted"
        assert not leaks_of(SECRETS, everything_below(tmp_path) + done.stdout.encode() + done.stderr.encode())

    def test_no_core_file(self, programs: Programs, folder: Path) -> None:
        (folder / "own_limits.py").write_text(
            "import resource\ndef load():\n    raise ValueError(f'core {resource.getrlimit(resource.RLIMIT_CORE)[0]}')\n"
        )
        ended = _run(
            programs, folder, "data", "check", "--data.source=own_limits:load", environ={"PYTHONPATH": str(folder)}
        )
        assert "core 0" in ended.text
