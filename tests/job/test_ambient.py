"""What libraries read from the environment: owned, recorded or refused, and never a way to another bucket or result."""

import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job import ambient
from job.config import StoreSection
from job.errors import ConfigError
from job.runs.lineage import Lineage, bits_depend_on
from job.store.open import folder_opener, open_store
from job.store.store import Store
from tests.conftest import QUICK, REPOSITORY, S3, RunJob

ELSEWHERE = "http://127.0.0.1:9"
"""Where nobody listens: a request that goes there fails."""
QUIET = {"deadline_seconds": 2.0, "timeout_seconds": 2.0}


def named_in_table() -> Iterator[str]:
    for row in ambient.TABLE:
        yield from row.names.split()


class TestTable:
    def test_no_name_has_two_rows(self) -> None:
        names = list(named_in_table())
        assert sorted(set(names)) == sorted(names)

    def test_row_of_its_own_goes_before_the_family(self) -> None:
        environ = {"TF_CPP_VMODULE": "a=1", "TF_XLA_FLAGS": "--x", "TF_CONFIG": "{}", "TF_ENABLE_ONEDNN_OPTS": "1"}
        assert list(ambient.recorded(environ)) == ["TF_CPP_VMODULE", "TF_XLA_FLAGS"]
        assert [ambient.decides_bits(name) for name in ("TF_CPP_VMODULE", "TF_XLA_FLAGS")] == [False, True]

    def test_another_value_than_our_default_is_recorded(self) -> None:
        assert ambient.recorded({"TF_ENABLE_ONEDNN_OPTS": "0"}) == {"TF_ENABLE_ONEDNN_OPTS": "0"}

    def test_password_of_a_proxy_and_credentials_are_not_recorded(self) -> None:
        environ = {
            "HTTPS_PROXY": "http://u:canary@proxy:3128",
            "AWS_SECRET_ACCESS_KEY": "canary",
            "AWS_SESSION_TOKEN": "canary",
        }
        assert ambient.recorded(environ) == {"HTTPS_PROXY": "http://***@proxy:3128"}

    @pytest.mark.parametrize(
        "name", ["TF_VAR_password", "TF_TOKEN_host", "TF_CLI_CONFIG_FILE", "NVIDIA_API_KEY", "TF_X_SECRET"]
    )
    def test_secret_in_a_family_of_names_is_not_recorded(self, name: str) -> None:
        assert ambient.recorded({name: "canary"}) == {}


class TestOwned:
    @pytest.mark.parametrize(
        "name",
        [
            "KERAS_MAX_EPOCHS",
            "KERAS_NNX_ENABLED",
            "TF2_BEHAVIOR",
            "TF_USE_LEGACY_KERAS",
            "TF_FUNCTION_JIT_COMPILE_DEFAULT",
            "TF_NUM_INTRAOP_THREADS",
            "PROMETHEUS_MULTIPROC_DIR",
            "TFDS_DATA_DIR",
            "TFDS_RETRY_TRIES",
        ],
    )
    def test_variable_is_removed(self, name: str) -> None:
        environ = {name: "x", "OTHER": "y"}
        ambient.take_over(environ)
        assert name not in environ
        assert environ["OTHER"] == "y"

    def test_backend_is_set_and_defaults_give_way(self) -> None:
        environ = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "0"}
        ambient.take_over(environ)
        assert environ["KERAS_BACKEND"] == "tensorflow"
        assert environ["TF_CPP_MIN_LOG_LEVEL"] == "0"


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("TF_SET_ONEDNN_FPMATH_MODE", "BF16"),
            ("ONEDNN_DEFAULT_FPMATH_MODE", "any"),
            ("DNNL_DEFAULT_FPMATH_MODE", "tf32"),
            ("TF_XLA_FLAGS", "--tf_xla_auto_jit=2"),
            ("TF_XLA_FLAGS", "--tf_xla_cpu_global_jit --tf_xla_auto_jit=fusible"),
        ],
    )
    def test_other_arithmetic_than_the_settings_say(self, name: str, value: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"^{name}: .*received {re.escape(repr(value))}"):
            ambient.check({name: value, "KERAS_HOME": str(tmp_path)})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"epsilon": 0.001}', r"epsilon must be .* 1e-07.*; received 0\.001"),
            ('{"epsilon": 1}', r"epsilon must be .*; received 1;"),
            ('{"floatx": "float16"}', r'floatx must be .* "float32".*; received "float16"'),
            ('{"floatx": "bfloat16"}', r'floatx must be .*; received "bfloat16"'),
            ('{"image_data_format": "channels_first"}', r'.*"channels_last".*; received "channels_first"'),
            ("[]", r"floatx must be .*; received \[\]"),
        ],
    )
    def test_file_of_keras_with_other_values(self, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "keras.json").write_text(content)
        with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}/keras.json: {message}") as refused:
            ambient.check({"KERAS_HOME": str(tmp_path)})
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        "content",
        ["{", "", '{"backend": "jax"}', '{"floatx": "float32", "epsilon": 1e-07, "backend": "torch", "other": 1}'],
    )
    def test_file_that_changes_nothing_is_fine(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "keras.json").write_text(content)
        ambient.check(
            {"KERAS_HOME": str(tmp_path), "TF_XLA_FLAGS": "--tf_xla_auto_jit=0", "TF_SET_ONEDNN_FPMATH_MODE": "STRICT"}
        )

    def test_run_is_refused_before_anything_is_read(self, run_job: RunJob, tmp_path: Path) -> None:
        (tmp_path / "keras.json").write_text('{"epsilon": 0.1}')
        done = run_job("run", *QUICK, env={"KERAS_HOME": str(tmp_path)})
        assert (done.code, not (tmp_path / "out").exists()) == (64, True)
        assert "keras.json: epsilon must be Keras' default 1e-07" in done.error

    @pytest.mark.parametrize(
        ("uri", "name"),
        [
            ("s3://bucket/x", "AWS_ENDPOINT"),
            ("s3://bucket/x", "AWS_endpoint"),
            ("gs://bucket/x", "GOOGLE_BASE_URL"),
            ("az://bucket/x", "AZURE_ENDPOINT"),
            ("az://bucket/x", "AZURE_STORAGE_ENDPOINT"),
            ("gs://bucket/x", "SERVICE_ACCOUNT"),
        ],
    )
    def test_variable_that_would_move_a_store(self, uri: str, name: str) -> None:
        environ = {
            "AWS_SKIP_SIGNATURE": "1",
            "GOOGLE_SKIP_SIGNATURE": "1",
            "AZURE_STORAGE_ACCOUNT_KEY": "a",
            name: ELSEWHERE,
        }
        with pytest.raises(ConfigError, match=f"^{name}: obstore "):
            open_store(StoreSection(uri=uri), environ=environ)

    def test_variable_of_another_scheme_is_nobodys_business(self) -> None:
        environ = {
            "AWS_SKIP_SIGNATURE": "1",
            "GOOGLE_BASE_URL": ELSEWHERE,
            "AZURE_ENDPOINT": ELSEWHERE,
            "SERVICE_ACCOUNT": "x",
        }
        open_store(StoreSection(uri="s3://bucket/x"), environ=environ)

    def test_emulator_beside_an_endpoint(self) -> None:
        config = StoreSection(uri="az://bucket", endpoint=ELSEWHERE)
        with pytest.raises(ConfigError, match=r"AZURE_STORAGE_USE_EMULATOR: .*store\.endpoint would not be used"):
            open_store(config, environ={"AZURE_STORAGE_USE_EMULATOR": "true"})


def store_in(s3: S3, monkeypatch: pytest.MonkeyPatch, *, endpoint: str | None, **environ: str) -> Store:
    """The bucket of the URI, as opened with variables that obstore reads by itself."""
    for name, value in {**s3.env, **environ}.items():
        monkeypatch.setenv(name, value)
    config = StoreSection(uri=f"s3://{s3.bucket}/pre", endpoint=endpoint, deadline_seconds=2, timeout_seconds=2)
    return open_store(config, environ=os.environ)


def keys_of(s3: S3) -> list[str]:
    with urllib.request.urlopen(f"{s3.endpoint}/{s3.bucket}?list-type=2", timeout=10) as reply:
        return re.findall("<Key>(.*?)</Key>", reply.read().decode())


class TestBucket:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AWS_ENDPOINT_URL_S3", ELSEWHERE),
            ("AWS_ENDPOINT_URL", ELSEWHERE),
            ("AWS_ENDPOINT", ELSEWHERE),
            ("AWS_BUCKET", "other"),
            ("AWS_BUCKET_NAME", "other"),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"),
            ("AWS_S3_EXPRESS", "true"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
            ("AWS_CONDITIONAL_PUT", "disabled"),
            ("AWS_PROXY_URL", ELSEWHERE),
            ("AWS_TIMEOUT", "1ns"),
            ("AZURE_ENDPOINT", ELSEWHERE),
            ("GOOGLE_BUCKET", "other"),
        ],
    )
    def test_no_variable_moves_the_objects_of_a_store(
        self, name: str, value: str, s3: S3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_in(s3, monkeypatch, endpoint=s3.endpoint, **{name: value})
        store.create("runs/a", b"x")
        assert keys_of(s3) == ["pre/runs/a"]
        assert store.get("runs/a") == b"x"

    def test_endpoint_of_the_environment_keeps_the_bucket(self, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        environ = {
            "AWS_ENDPOINT_URL_S3": s3.endpoint,
            "AWS_ENDPOINT_URL": ELSEWHERE,
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        }
        store_in(s3, monkeypatch, endpoint=None, **environ).create("runs/a", b"x")
        assert keys_of(s3) == ["pre/runs/a"]

    def test_bucket_is_in_the_host_without_path_style(self, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        """obstore alone would leave it out of the address, and write into a bucket that is called like the first folder."""
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        port = s3.endpoint.rpartition(":")[2]
        config = StoreSection(uri=f"s3://{s3.bucket}/pre", endpoint=f"http://localhost:{port}", path_style=False)
        store = open_store(config.model_copy(update={"deadline_seconds": 2}), environ=os.environ)
        assert f"{s3.bucket}.localhost" in address_of(store)

    @pytest.mark.parametrize(
        ("own", "other", "has_endpoint"),
        [
            ("s3://a/x", "s3://b/y", True),
            ("file:./x", "s3://b/y", True),
            ("s3://a/x", "gs://b/y", False),
            ("gs://a/x", "s3://b/y", False),
            ("az://a/x", "gs://b/y", False),
            ("file:./x", "gs://b/y", False),
        ],
    )
    def test_server_of_one_scheme_is_not_used_for_another(self, own: str, other: str, has_endpoint: bool) -> None:
        environ = {"AWS_SKIP_SIGNATURE": "1", "GOOGLE_SKIP_SIGNATURE": "1", "AZURE_STORAGE_ACCOUNT_KEY": "a"}
        config = StoreSection(uri=own, endpoint=ELSEWHERE, region="eu-central-1", path_style=True)
        opened = folder_opener(config, environ=environ)(other)
        assert isinstance(opened, Store)
        assert (ELSEWHERE in address_of(opened)) == has_endpoint
        assert ("eu-central-1" in address_of(opened)) == has_endpoint


def address_of(store: Store) -> str:
    """What obstore was told of the server."""
    return str(store._backend._store.config)  # type: ignore[attr-defined]


class TestRecorded:
    def test_bits_depend_on_it_and_old_records_have_none(self) -> None:
        old: dict[str, Any] = {"packages": {}, "threads": {}, "instruction_sets": [], "devices": []}
        old |= dict.fromkeys(("machine", "onednn_max_cpu_isa", "compile"), "")
        before, now = Lineage.of(old), Lineage.of(old | {"environment": {"XLA_FLAGS": "--f", "OMP_NUM_THREADS": "1"}})
        assert "environment" not in bits_depend_on(before)
        assert bits_depend_on(now)["environment"] == {"XLA_FLAGS": "--f"}

    @pytest.mark.tf
    def test_variables_change_no_bit_or_stand_in_attempt_json(self, run_job: RunJob, tmp_path: Path) -> None:
        environ = {
            "KERAS_BACKEND": "jax",
            "KERAS_MAX_EPOCHS": "x",
            "TF2_BEHAVIOR": "0",
            "TF_USE_LEGACY_KERAS": "1",
            "TFDS_RETRY_TRIES": "x",
            "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
            "PYTHONHASHSEED": "3",
            "OMP_NUM_THREADS": "1",
        }
        plain = run_job("run", *QUICK, "--run.id=a")
        odd = run_job("run", *QUICK, "--run.id=b", env=environ)
        assert (plain.code, odd.code) == (0, 0), odd.stderr
        assert plain.event("commit.done")["weights_digest"] == odd.event("commit.done")["weights_digest"]
        attempt = next((tmp_path / "out/runs/b/attempts").glob("*/attempt.json")).read_text()
        assert '"OMP_NUM_THREADS":"1"' in attempt
        assert '"PYTHONHASHSEED":"3"' in attempt
        assert "KERAS_BACKEND" not in attempt


NOBODY = (
    *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=+dac_read_search"),
    *(
        "--ambient-caps=+dac_read_search",
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        "CUDA_VISIBLE_DEVICES=",
        "PYTHONDONTWRITEBYTECODE=1",
    ),
    f"PYTHONPATH={REPOSITORY}",
)
"""A user id that /etc/passwd does not have, without HOME, as in OpenShift; it may read where the tests' Python lies."""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
class TestNobody:
    @pytest.fixture(autouse=True)
    def _may_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (("config", "show"), 0, "cache_dir: null"),
            (("data", "check", "--data.source=digits"), 0, "digits: 1437 + 360 examples"),
            (("store", "check"), 0, "create, read, list and delete work"),
            (("store", "check", "--store.uri=gs://b/x"), 77, "no credentials found"),
            (("runs",), 0, "RUN"),
        ],
    )
    def test_commands_need_no_home(self, arguments: tuple[str, ...], code: int, text: str, run_job: RunJob) -> None:
        done = run_job(*arguments, prefix=NOBODY)
        assert done.code == code, done.stderr
        assert text in done.stdout + done.stderr

    @pytest.mark.tf
    def test_a_run_needs_no_home(self, run_job: RunJob) -> None:
        assert run_job("run", *QUICK, prefix=NOBODY).code == 0


class TestTemporaryFolder:
    def test_holds_what_libraries_leave_and_is_gone_afterwards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with ambient.own_temporary_folder():
            _, left = tempfile.mkstemp(prefix="__autograph_generated_file")
            assert Path(left).parent.parent == tmp_path == ambient.temporary_root()
        assert not list(tmp_path.iterdir())
        assert tempfile.gettempdir() == str(tmp_path) == str(ambient.temporary_root())

    def test_is_done_without_where_none_can_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        with ambient.own_temporary_folder():
            assert ambient.temporary_root() == tmp_path / "absent"
