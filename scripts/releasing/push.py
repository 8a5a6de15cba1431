"""Pushes what was built: first it compares all of it with what the registry has, then the image goes, then the chart."""

import json
import os
import re
import tempfile
from pathlib import Path

from releasing.build import Image, Source
from releasing.provenance import PREDICATE_TYPE, sha256_of
from releasing.tools import ReleaseError, attempt, is_local, run

_ABSENT = re.compile(r"no such manifest|manifest unknown|not found|name unknown", re.IGNORECASE)


def compare(registry: str, version: str, image: Image, chart: Path) -> tuple[bool, bool]:
    """Whether the registry has this very image, and this very chart.

    Raises:
        ReleaseError: it has another one under the same version (73), or does not answer (69).
    """
    name = f"{registry}/mnist-train:{version}"
    has_image = _is_same(name, _image_in(name), image.id)
    has_chart = _is_same(f"{registry}/charts/mnist-train:{version}", _chart_in(registry, version), sha256_of(chart))
    return has_image, has_chart


def _is_same(name: str, there: str, here: str) -> bool:
    if there and there != here:
        raise ReleaseError(
            f"{name} must stay what it is, and is another one: {there} there, {here} here; nothing was pushed."
            " Release what is new under the next version",
            code=73,
        )
    return bool(there)


def _image_in(name: str) -> str:
    """The id of an image; of one for several platforms, which has none, its text."""
    flags = ("--insecure",) if is_local(name) else ()
    found = attempt("docker", "manifest", "inspect", *flags, name)
    if found.returncode:
        return _absent(name, found.stderr)
    manifest = json.loads(found.stdout)
    return str(manifest["config"]["digest"] if "config" in manifest else f"{len(manifest['manifests'])} platforms")


def _chart_in(registry: str, version: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        name = f"oci://{registry}/charts/mnist-train"
        found = attempt("helm", "pull", name, "--version", version, "--destination", folder, *_plain_http(registry))
        if found.returncode:
            return _absent(name, found.stderr)
        return sha256_of(Path(folder, f"mnist-train-{version}.tgz"))


def _absent(name: str, said: str) -> str:
    if _ABSENT.search(said):
        return ""
    raise ReleaseError(
        f"{name} could not be asked for; log in with `docker login` and `helm registry login`: {said[-500:]}", code=69
    )


def _plain_http(registry: str) -> tuple[str, ...]:
    return ("--plain-http",) if is_local(registry) else ()


def push_image(registry: str, version: str, image: Image, source: Source) -> str:
    """Push the image of every platform; returns its digest."""
    name = f"{registry}/mnist-train"
    if "," in image.platforms:
        environment = os.environ | {"REVISION": source.revision}
        script = str(source.folder / "scripts" / "image")
        said = run(script, "--platforms", image.platforms, "--push", name, "--tag", image.name, env=environment)
        return _digest_in(said)
    run("docker", "tag", image.name, f"{name}:{version}")
    return _digest_in(run("docker", "push", f"{name}:{version}"))


def push_chart(registry: str, chart: Path) -> str:
    """Push the chart; returns its digest, which is the same for the same chart of the same time."""
    pushed = attempt("helm", "push", str(chart), f"oci://{registry}/charts", *_plain_http(registry))
    if pushed.returncode:
        raise ReleaseError(f"the chart was not pushed; the image was: start again. {pushed.stderr[-500:]}", code=1)
    return _digest_in(pushed.stdout + pushed.stderr)


def _digest_in(said: str) -> str:
    found = re.findall(r"sha256:[0-9a-f]{64}", said)
    if not found:
        raise ReleaseError(f"a push must print a digest, received {said[-500:]!r}; look for it in the registry", code=1)
    return str(found[-1])


def sign_image(registry: str, digest: str, bill: Path, predicate: Path) -> None:
    """Sign an image, its bill of materials and its provenance, when COSIGN_KEY names a key."""
    name = f"{registry}/mnist-train@{digest}"
    _sign("sign", name)
    _sign("attest", "--type", "spdxjson", "--predicate", str(bill), name)
    _sign("attest", "--type", PREDICATE_TYPE, "--predicate", str(predicate), name)


def sign_chart(registry: str, digest: str) -> None:
    """Sign the chart, when COSIGN_KEY names a key."""
    _sign("sign", f"{registry}/charts/mnist-train@{digest}")


def sign_file(file: Path) -> None:
    """Put the signature of a file beside it, when COSIGN_KEY names a key."""
    _sign("sign-blob", "--bundle", f"{file}.sigstore.json", str(file))


def _sign(verb: str, *arguments: str) -> None:
    key = os.environ.get("COSIGN_KEY")
    if key:
        run("cosign", verb, "--yes", "--key", key, *quiet_flags(run("cosign", verb, "--help")), *arguments)


def quiet_flags(known: str) -> list[str]:
    """What keeps signatures out of the public log, by the help of a cosign: 3.1 has --offline for the two flags of before."""
    older = ("--tlog-upload", "--use-signing-config")
    return [f"{flag}=false" for flag in older if flag in known] or ["--offline"]
