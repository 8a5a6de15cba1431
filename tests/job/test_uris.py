"""The one parser of places: what is taken, as it is written, and everything that is refused, without a secret in the message."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from job import uris
from job.config import Config
from job.config_sources import load_config
from job.errors import ConfigError
from tests.conftest import REPOSITORY, S3, Finished, RunJob, job_environment

TEXT = [
    ("", "must not be empty"),
    (" {}", "must not begin or end with a blank or line break"),
    ("{} ", "must not begin or end with a blank or line break"),
    ("{}\n", "must not begin or end with a blank or line break"),
    ("{}\r\n", "must not begin or end with a blank or line break"),
    ("{}\u00a0", "must not begin or end with a blank or line break"),
    ("{}\x00x", "must hold no line break, control or invisible character"),
    ("{}\tx", "must hold no line break, control or invisible character"),
    ("{}\nx", "must hold no line break, control or invisible character"),
    ("{}\u200bx", "must hold no line break, control or invisible character"),
    ("{}\\x", r"must hold no \\; folders are separated by /"),
]
"""Refused in every place -> the rule."""

STORES = [
    ("out", "must start with file:, s3://, gs:// or az:// and name a folder or bucket; a folder is file:out"),
    ("~/out", "must start with file:, .* a folder is file:~/out"),
    ("file:", "must name a folder"),
    ("file: ", "must not begin or end with a blank"),
    ("file: ./out", "must name a folder"),
    ("file://", "must be file:/absolute or file:./relative or file:~/below-home, with no host"),
    ("file://host/out", "with no host"),
    ("file://~/out", "with no host"),
    ("file:C:/out", "must not be a Windows path"),
    ("file:///C:/out", "must not be a Windows path"),
    ("file:C:\\out", "must not be a Windows path"),
    ("file:~nobody-of-this-name/out", "must be an absolute path, as there is no user nobody-of-this-name"),
    ("file:./" + "n" * 256, "must be at most 4095 bytes long, and each name in it 255"),
    ("file:./" + "é" * 128, "must be at most 4095 bytes long, and each name in it 255"),
    ("FILE:./out", "not with FILE:; here it is called file:"),
    ("S3://bucket", "not with S3:; here it is called s3:"),
    ("s3a://bucket", "not with s3a:; here it is called s3:"),
    ("gcs://bucket", "not with gcs:; here it is called gs:"),
    ("abfss://bucket", "not with abfss:; here it is called az:"),
    ("hdfs://host/x", "must start with file:, s3://, gs:// or az://, not with hdfs:$"),
    ("https://bucket.s3.amazonaws.com/x", "not with https:$"),
    ("s3:", "must be s3://BUCKET or s3://BUCKET/PREFIX"),
    ("s3:bucket/x", "must be s3://BUCKET"),
    ("s3:/bucket/x", "must be s3://BUCKET"),
    ("s3://", "must be s3://BUCKET"),
    ("s3:///x", "must be s3://BUCKET"),
    ("s3://..", "must be s3://BUCKET"),
    ("s3://bucket:9000/x", "must be s3://BUCKET"),
    ("s3://bucket?x", "must be s3://BUCKET"),
    ("s3://[::1]/x", "must be s3://BUCKET"),
    ("s3://arn:aws:s3:eu-west-1:1234:accesspoint/x", "must be s3://BUCKET"),
    ("az://bücket/x", "must be az://BUCKET"),
    ("s3://bucket/a#1", "must hold no #, which others decode or cut off"),
    ("s3://bucket/a?x=1", r"must hold no \?"),
    ("gs://bucket/a%20b", "must hold no %"),
    ("s3://bucket/a%2e%2e/b", "must hold no %"),
    ("s3://bucket/..", r"must hold no empty name, \. or \.\. in its prefix"),
    ("s3://bucket/a/../b", "must hold no empty name"),
    ("s3://bucket/./a", "must hold no empty name"),
    ("s3://bucket/a//b", "must hold no empty name"),
    ("s3://bucket//", "must hold no empty name"),
    ("s3://KEY:secret@bucket/x", "must hold no credentials"),
    ("s3://KEY:sec/ret@bucket/x", "must hold no credentials"),
    ("az://secret@account/x", "must hold no credentials"),
]

URLS = [
    "host:9000",
    "HTTP://host",
    "ftp://host",
    "http:host",
    "http:///x",
    "http://:9000",
    "http://host:99999",
    "http://host:port",
    "http://host 9000",
    "http://host/a b",
    "http://me:canary@host",
    "http://me:can/ary@host",
    "http://[::1",
    "http://host?canary",
    "http://host/#x",
    "http://münchen",
    "http://'host'",
    "http://${HOST}:9000",
    "http://host/ü",
    "http://host/a/../b",
    "http://host/./a",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a working folder beside it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class TestFolders:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("out", "{work}/out"),
            ("./out", "{work}/out"),
            ("../out", "{work}/../out"),
            ("/tmp/out/", "/tmp/out"),
            ("/tmp/a/../out", "/tmp/out"),
            ("//tmp//out", "/tmp/out"),
            (".", "{work}"),
            ("~", "{home}"),
            ("~/out", "{home}/out"),
            ("~root/out", "/root/out"),
            ("./~/out", "{work}/~/out"),
            ("out/~", "{work}/out/~"),
            ("a b/c#d?e%20f@g", "{work}/a b/c#d?e%20f@g"),
            ("./a:b", "{work}/a:b"),
            ("é/日本", "{work}/é/日本"),
        ],
    )
    def test_path_and_file_uri_name_the_same_folder(self, text: str, expected: str, home: Path) -> None:
        folder = Path(os.path.abspath(expected.format(home=home, work=Path.cwd())))
        assert uris.parse_folder(text) == folder
        assert uris.parse_folder(uris.to_store_uri(text)) == folder
        assert uris.check_store_uri(uris.to_store_uri(text)) == uris.to_store_uri(text)

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [("file://./out", "{work}/out"), ("file:///tmp/out", "/tmp/out"), ("file:../work", "{work}")],
    )
    def test_slashes_after_the_scheme(self, uri: str, expected: str) -> None:
        assert str(uris.parse_folder(uri)) == expected.format(work=Path.cwd())

    def test_relative_path_stays_relative_where_no_store_is_meant(self) -> None:
        assert uris.parse_path("a/b") == Path("a/b")

    @pytest.mark.parametrize("value", ["", "relative"])
    def test_home_that_is_no_folder_is_refused(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", value)
        with pytest.raises(ValueError, match="must be an absolute path, as HOME is none; set HOME"):
            uris.parse_path("~/out")

    def test_user_without_a_home_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 54_321)
        with pytest.raises(ValueError, match=r"as the home folder of this user is not known; or write \./~/out"):
            uris.parse_path("~/out")

    def test_relative_path_in_a_folder_that_was_removed_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "work").rmdir()
        assert uris.parse_folder("/tmp/out") == Path("/tmp/out")
        with pytest.raises(ValueError, match="relative to the working folder, which was removed"):
            uris.parse_folder("out")

    @pytest.mark.parametrize("text", ["s3://bucket/x", "https://host/x", "x:y", "S3://bucket"])
    def test_what_cannot_be_a_path_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="must be a path of this machine, not a URI"):
            uris.parse_path(text)


class TestStores:
    @pytest.mark.parametrize(
        "uri",
        ["s3://b", "s3://b/", "gs://b_1.c/x/y", "az://$web/x", "s3://B/a b/é=1+2@3:4,5&6", "s3://b/.a/..b", "file:out"],
    )
    def test_uri_is_taken_as_it_is_written(self, uri: str) -> None:
        assert uris.check_store_uri(uri) == uri == uris.check_place(uri)

    @pytest.mark.parametrize(("uri", "rule"), STORES)
    def test_uri_that_others_would_read_differently_is_refused(self, uri: str, rule: str) -> None:
        with pytest.raises(ValueError, match=rule):
            uris.check_store_uri(uri)

    @pytest.mark.parametrize(("form", "rule"), TEXT)
    @pytest.mark.parametrize("place", ["file:./out", "s3://bucket/x", "./out", "http://host/x"])
    def test_blanks_and_control_characters_are_refused_everywhere(self, place: str, form: str, rule: str) -> None:
        parse: Callable[[str], object] = uris.check_url if place.startswith("http") else uris.check_place
        with pytest.raises(ValueError, match=rule):
            parse(form.format(place))


class TestUrls:
    @pytest.mark.parametrize(
        "url", ["http://a", "https://b:9000/", "http://c/v1/s3", "http://[::1]:9000", "http://my_host"]
    )
    def test_address_of_a_service_is_taken(self, url: str) -> None:
        assert uris.check_url(url) == url

    @pytest.mark.parametrize("url", URLS)
    def test_everything_else_is_refused(self, url: str) -> None:
        with pytest.raises(
            ValueError, match="must be a URL that starts with http:// or https:// and holds no credentials"
        ):
            uris.check_url(url)


class TestShown:
    @pytest.mark.parametrize(
        "text",
        [
            "s3://KEY:canary@bucket/x",
            "s3://KEY:can/ary@bucket/x",
            "s3://KEY:can@ary@bucket",
            "s3://canary@bucket",
            "s3a://KEY:canary\n@bucket",
            "http:me:canary@host",
            "me:canary@host:9000",
            "https://host/x?X-Amz-Signature=canary",
            "az://container/x?sv=1&sig=canary",
        ],
    )
    def test_no_secret_is_shown(self, text: str) -> None:
        assert "canary" not in uris.shown(text)
        assert "canary" not in uris.shown([text])
        assert "\n" not in uris.shown(text)

    @pytest.mark.parametrize("text", ["s3://bucket/x", "a@b", "./a/b@c", "3", "file:./what?"])
    def test_what_holds_none_is_shown_as_it_is(self, text: str) -> None:
        assert uris.shown(text) == repr(text)


PATH_SETTINGS = ("data.cache_dir", "observe.termination_log")
URL_SETTINGS = ("store.endpoint", "observe.pushgateway_url")


class TestSettings:
    @pytest.mark.parametrize("name", PATH_SETTINGS)
    def test_home_means_the_same_in_every_path_setting(self, name: str, home: Path) -> None:
        section, field = name.split(".")
        for text in ("~/x", "file:~/x"):
            assert getattr(getattr(load_config([f"--{name}={text}"]).config, section), field) == home / "x"

    def test_downloads_of_tfds_may_be_below_the_home(self, home: Path) -> None:
        for text in ("~/x", "file:~/x"):
            data = load_config([f"--data.uri={text}"]).config.data
            assert (data.uri, data.downloads_dir) == (text, home / "x")  # the run id holds the setting as it was given

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (
                ["--store.uri=s3a://KEY:canary@b/x"],
                r"^store\.uri: must start with .*, received 's3a://\*\*\*@b/x' \[--store",
            ),
            (
                ["--data.source=idx", "--data.uri=https://u:canary@h/x"],
                r"^data\.uri: must start with .*'https://\*\*\*@h/x'",
            ),
            (
                ["--data.uri=gs://bucket/x"],
                r"^data: uri must be a folder of this machine with source=tfds, received 'gs://",
            ),
            *(
                ([f"--{name}=s3://b/x"], rf"^{name}: must be a path of this machine, not a URI")
                for name in PATH_SETTINGS
            ),
            *(
                ([f"--{name}=http://me:canary@h"], rf"^{name}: must be a URL .*'http://\*\*\*@h'")
                for name in URL_SETTINGS
            ),
        ],
    )
    def test_refusal_names_the_setting_and_hides_the_secret(self, flags: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            load_config(flags)
        assert "canary" not in str(refused.value)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("name", ["store.uri", *PATH_SETTINGS, "data.uri", *URL_SETTINGS])
    def test_line_break_of_a_secret_is_refused(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As `echo ... | base64` makes it."""
        place = "http://a" if name in URL_SETTINGS else "file:./a"
        monkeypatch.setenv("MNIST_" + name.upper().replace(".", "__"), f"{place}\n")
        with pytest.raises(ConfigError, match=rf"^{name}: must be one line without control characters, received"):
            load_config([])

    def test_what_the_chart_refuses_the_job_refuses_too(self) -> None:
        schema = Config.model_json_schema()["$defs"]["StoreSection"]["properties"]
        chart = json.loads((REPOSITORY / "charts/mnist-train/values.schema.json").read_text("utf-8"))
        assert chart["properties"]["store"]["properties"]["uri"]["pattern"] == schema["uri"]["pattern"]
        for uri in ("file:./out", "s3://b", "s3://b/", "gs://b_1.c/x/y/", "az://$web/x", "s3://B/a b/é=1+2@3:4,5&6"):
            assert re.search(uris.STORE_PATTERN, uri)
        for uri in (
            "s3a://b",
            "S3://b",
            "https://b",
            "s3://",
            "s3://b:1/x",
            "s3://b/a#1",
            "s3://b/a//b",
            "s3://b\n",
            "out",
        ):
            assert not re.fullmatch(uris.STORE_PATTERN, uri)
            with pytest.raises(ValueError, match="must"):
                uris.check_store_uri(uri)
        for url in (
            "host:9000",
            "HTTP://host",
            "http:///x",
            "http://host 9000",
            "http://me:canary@host",
            "http://host?canary",
        ):
            assert not re.fullmatch(uris.URL_PATTERN, url)


class TestCommands:
    """Through the program: one line, exit 64, and nothing made."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("fetch", "--to=s3://bucket/x"), "--to: must be a path of this machine, not a URI"),
            (("fetch", "--to="), "--to: must not be empty"),
            (("report", "r", "--to=x.html\n"), "--to: must not begin or end with a blank"),
            (
                ("reproduce", "r", "--to=s3a://K:canary@b"),
                "--to: must start with .*, not with s3a:; here it is called s3:",
            ),
            (("data", "prepare", "--to=s3://b/x#1"), "--to: must hold no #"),
            (("data", "prepare", "--to=m", "--from=https://h/x"), "--from: must be a path of this machine"),
            (("data", "prepare", "--to=m", "--from="), "--from: must not be empty"),
            (("store", "check", "--config=s3://b/c.yaml"), "--config: must be a path of this machine"),
            (("store", "check", "--config="), "--config: must not be empty"),
        ],
    )
    def test_bad_place_of_an_option_is_64(
        self, run_job: RunJob, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        before = sorted(tmp_path.iterdir())
        done = run_job(*arguments)

        assert (done.code, len(done.error.splitlines())) == (64, 1)
        assert re.search(message, done.error)
        assert "canary" not in done.stdout + done.stderr
        assert sorted(tmp_path.iterdir()) == before

    def test_home_means_the_same_in_every_option(self, run_job: RunJob, small_idx: Path, home: Path) -> None:
        small_idx.rename(home / "idx")
        (home / "settings.yaml").write_text(
            "store: {uri: 'file:~/store'}\ndata: {source: idx, dataset: mine, uri: ~/idx}\n"
        )
        settings = "--config=~/settings.yaml"

        assert "file:" + str(home / "store") in run_job("store", "check", settings).stdout
        assert "320 + 100 examples" in run_job("data", "check", settings).stdout
        assert "320 + 100 examples" in run_job("data", "check", settings, "--data.uri=file:~/idx").stdout

    def test_mirror_is_made_and_read_below_the_home(self, run_job: RunJob, mnist_dir: Path, home: Path) -> None:
        done = run_job("data", "prepare", f"--from={mnist_dir}", "--to=~/my mirror")

        assert done.code == 0, done.stderr
        assert f"written to file:{home}/my mirror; use --data.source=idx --data.uri='~/my mirror'" in done.stdout
        assert run_job("data", "check", "--data.source=idx", "--data.uri=~/my mirror").code == 0

    def test_missing_file_of_a_mirror_names_the_option(self, run_job: RunJob) -> None:
        done = run_job("data", "prepare", "--from=nowhere", "--to=m")

        assert done.code == 66
        assert "--from: nowhere/train-images-idx3-ubyte.gz does not exist; name the folder that holds" in done.error

    @pytest.mark.parametrize(
        "arguments",
        [("fetch", "--to=place"), ("fetch", "--to=place/below"), ("data", "check", "--data.cache_dir=place")],
    )
    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_what_stands_in_the_way_of_a_folder_is_66(
        self, run_job: RunJob, tmp_path: Path, arguments: tuple[str, ...], kind: str
    ) -> None:
        if kind == "file":
            (tmp_path / "place").write_bytes(b"precious")
        else:
            (tmp_path / "place").symlink_to("/no/such/volume")
        done = run_job(*arguments)

        assert done.code == 66
        said = (
            "a file stands where a folder is needed"
            if kind == "file"
            else "is a link to /no/such/volume, which is no folder"
        )
        assert re.search(rf"(--to|data\.cache_dir): place:? {said}", done.error)

    @pytest.mark.parametrize("command", [("store", "check"), ("runs",)])
    def test_store_in_a_folder_that_was_removed_is_64(
        self, run_job: RunJob, tmp_path: Path, command: tuple[str, ...]
    ) -> None:
        (tmp_path / "gone").mkdir()
        prefix = ("sh", "-c", f'cd {tmp_path}/gone; rmdir {tmp_path}/gone; PYTHONPATH={REPOSITORY} exec "$@"', "sh")
        done = run_job(*command, prefix=prefix)

        assert done.code == 64
        assert "store.uri: is relative to the working folder, which was removed" in done.error

    def test_scripts_run_takes_relative_paths_from_the_callers_folder(self, tmp_path: Path, home: Path) -> None:
        """Started through a link, and with a CDPATH that has a `scripts` of its own."""
        (home / "scripts").mkdir()
        (tmp_path / "linked").symlink_to(REPOSITORY / "scripts" / "run")
        (tmp_path / "work" / "c.yaml").write_text("data: {source: idx, dataset: mine, uri: below/idx}")
        done = subprocess.run(
            ["../linked", "--config=c.yaml", "--store.uri=file:below/out", "--observe.termination_log=message"],
            cwd=tmp_path / "work",
            env=job_environment({"CDPATH": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

        assert done.returncode == 66, done.stderr
        assert "data.uri: below/idx/train-images-idx3-ubyte.gz does not exist" in done.stderr
        assert json.loads((tmp_path / "work" / "message").read_text())["code"] == 66

    @pytest.mark.parametrize("prefix", ["pre#1", "pre?x=1", "a/../b", "..", "a%20b", "a//b", "a\tb"])
    def test_prefix_that_would_be_stored_elsewhere_is_64_before_any_request(
        self, run_job: RunJob, s3: S3, prefix: str
    ) -> None:
        done: Finished = run_job(
            *("store", "check", f"--store.endpoint={s3.endpoint}", "--store.region=us-east-1"),
            env={**s3.env, "MNIST_STORE__URI": f"s3://{s3.bucket}/{prefix}"},
        )
        assert done.code == 64
        assert re.search("store.uri: must (hold no|be one line)", done.error)
