"""R17: each exit code, made in a real pod, and what the Job makes of it. The table is printed."""

from tests.e2e.cluster import Namespace, Object
from tests.e2e.conftest import keys_in

_NO_BUCKET = "s3://no-such-bucket/x"


def test_every_exit_code_ends_the_job_as_the_contract_says(ns: Namespace, s3: Object) -> None:
    keys = keys_in(ns)
    wrong = keys_in(ns, name="wrong-keys", keys={"AWS_ACCESS_KEY_ID": "e2e-key", "AWS_SECRET_ACCESS_KEY": "wrong"})
    files = {f"{name}.gz": "not an IDX file" for name in _IDX}
    ns.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad-idx"}, "data": files})
    mounted = {
        "extraVolumes": [{"name": "idx", "configMap": {"name": "bad-idx"}}],
        "extraVolumeMounts": [{"name": "idx", "mountPath": "/idx"}],
    }
    store = {"store": s3} | keys
    ns.install("first", store, {"run": {"id": f"{ns.name}.same"}})
    causes: list[tuple[str, int, str, int, Object]] = [
        ("committed", 0, "Complete", 1, store | {"run": {"suffix": "ok"}}),
        (
            "bad config",
            64,
            "PodFailurePolicy",
            1,
            store | {"model": {"args": {"width": 3}}},  # the chart does not know that only an own model has arguments
        ),
        ("corrupt data", 65, "PodFailurePolicy", 1, store | mounted | {"data": {"source": "idx", "uri": "/idx"}}),
        ("missing data", 66, "PodFailurePolicy", 1, store | {"data": {"source": "idx", "uri": "/nowhere"}}),
        ("missing bucket", 66, "PodFailurePolicy", 1, keys | {"store": s3 | {"uri": _NO_BUCKET}}),
        (
            "store unreachable",
            69,
            "BackoffLimitExceeded",
            2,
            keys | {"store": s3 | {"endpoint": "http://127.0.0.1:9", "deadline_seconds": 3}},
        ),
        (
            "loss not finite",
            70,
            "PodFailurePolicy",
            1,
            store | {"train": {"learning_rate": 1e6}, "model": {"activation": "relu"}},
        ),
        ("stalled", 74, "BackoffLimitExceeded", 2, store | {"observe": {"stall_timeout_seconds": 0.01}}),
        ("wrong keys", 77, "PodFailurePolicy", 1, {"store": s3} | wrong),
        ("no keys", 77, "PodFailurePolicy", 1, {"store": s3}),
    ]
    jobs = [ns.install(f"case-{index}", values) for index, (*_, values) in enumerate(causes)]
    assert ns.wait_for_end(_job_of(ns, "first")) == "Complete"
    causes.append(("same id, other settings", 73, "PodFailurePolicy", 1, {}))
    jobs.append(ns.install("other", store, {"run": {"id": f"{ns.name}.same"}, "train": {"epochs": 3}}))

    seen, expected = [], []
    for (cause, code, outcome, num_pods, _), job in zip(causes, jobs, strict=True):
        found = ns.wait_for_end(job)
        ended = ns.ended(job)
        seen.append((cause, [(end.code, end.message.get("code")) for end in ended], found))
        expected.append((cause, [(code, code)] * num_pods, outcome))
        print(f"| {cause} | {code} | {found} | {len(ended)} | {ended[-1].message.get('reason', '')[:90]} |")
    assert seen == expected


def _job_of(ns: Namespace, release: str) -> str:
    return str(ns.get("job", "-l", f"app.kubernetes.io/instance={release}")[0]["metadata"]["name"])


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
