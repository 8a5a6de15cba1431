"""Objects as the chart and the Job controller make them."""

from k8s.shapes import Object

LABELS = {"app.kubernetes.io/name": "mnist-train", "app.kubernetes.io/instance": "train"}


def template(*, name: str = "train", schedule: str = "0 3 * * *", release: str = "train", workers: int = 1) -> Object:
    """A CronJob as the chart makes it."""
    labels = LABELS | {"app.kubernetes.io/instance": release}
    arguments = ["run", "--run.id=ml.$(JOB_NAME)", "--store.uri=s3://b/p", "--train.epochs=3"]
    container: Object = {"name": "train", "image": "i", "args": arguments, "resources": {}}
    if workers > 1:
        container["env"] = [{"name": "TF_CONFIG", "value": f"$(JOB_NAME)-0.{name}-workers:2222"}]
    pod: Object = {
        "containers": [container],
        "terminationGracePeriodSeconds": 60,
    }
    spec: Object = {"template": {"metadata": {"labels": labels}, "spec": pod}}
    if workers > 1:
        arguments.append(f"--cluster.workers={workers}")
        pod["subdomain"] = f"{name}-workers"
        spec |= {
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            "backoffLimitPerIndex": 6,
            "maxFailedIndexes": 0,
            "podReplacementPolicy": "Failed",
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        }
    return {
        "metadata": {"name": name, "namespace": "ml", "labels": labels},
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def end(job: Object, *, kind: str = "Complete", reason: str = "") -> None:
    """What the Job controller writes at a Job's end."""
    condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": "2026-11-24T03:01:00Z"}
    job["status"] = {"conditions": [condition]}
