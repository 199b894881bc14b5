"""Which image, which devices, which nodes."""

from helm.chart import of_role, pod, render, server
from support.cases import each

GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
DIGEST = "sha256:" + "ab" * 32


@each(
    ("values", "image"),
    [
        ({}, "jrm-serve:0.2.0-cpu"),
        ({"score": {"gpus": 1}}, "jrm-serve:0.2.0-gpu"),
        ({"image": {"tag": "next"}, "score": {"gpus": 1}}, "jrm-serve:next"),
        (
            {"image": {"repository": "r.example.com:5000/jrm", "tag": "x", "digest": DIGEST}},
            f"r.example.com:5000/jrm@{DIGEST}",
        ),
    ],
)
def test_a_digest_wins_over_a_tag_and_a_tag_over_the_version(values, image):
    assert server(values)["image"] == image


def test_roles_have_the_image_of_their_devices():
    values = {"explain": {"enabled": True}}
    assert [server(values, role)["image"] for role in ("score", "explain")] == [
        "jrm-serve:0.2.0-cpu",
        "jrm-serve:0.2.0-gpu",
    ]


def test_a_gpu_is_asked_for_beside_what_the_values_ask():
    resources = server({"score": {"gpus": 2, "resources": {"limits": {"memory": "32Gi"}}}})["resources"]
    assert resources["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 2}
    assert resources["requests"]["nvidia.com/gpu"] == 2


def test_a_slice_of_a_gpu_has_a_name_of_its_own():
    values = {"gpu": {"resource": "nvidia.com/mig-3g.40gb"}, "score": {"gpus": 1}}
    assert server(values)["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    assert pod(values)["tolerations"] == [GPU_TAINT]


def test_a_cpu_pod_asks_for_no_gpu_and_goes_to_no_gpu_node():
    assert all("gpu" not in name for part in server()["resources"].values() for name in part)
    assert "tolerations" not in pod()


def test_the_taint_of_gpu_nodes_is_tolerated_beside_others():
    own = {"key": "team", "operator": "Exists"}
    assert pod({"score": {"gpus": 1, "tolerations": [own]}})["tolerations"] == [own, GPU_TAINT]
    assert "tolerations" not in pod({"score": {"gpus": 1}, "gpu": {"taint": ""}})


def test_the_taint_has_the_name_that_the_cluster_gave_it():
    (toleration,) = pod({"score": {"gpus": 1}, "gpu": {"taint": "example.com/accelerator"}})["tolerations"]
    assert toleration == GPU_TAINT | {"key": "example.com/accelerator"}


def test_pods_are_spread_by_their_own_labels():
    (constraint,) = pod()["topologySpreadConstraints"]
    template = of_role(render(), "Deployment", "score")["spec"]["template"]
    assert constraint["labelSelector"] == {"matchLabels": template["metadata"]["labels"]}
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_a_selector_of_ones_own_is_left_alone():
    own = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    assert pod({"score": {"topologySpreadConstraints": [own]}})["topologySpreadConstraints"] == [own]


def test_shared_memory_is_memory_and_has_a_size():
    (volume,) = [one for one in pod({"volumes": {"shm": "8Gi"}})["volumes"] if one["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in server()["volumeMounts"]


def test_labels_and_annotations_of_ones_own_do_not_replace_the_charts():
    labels = {"app.kubernetes.io/component": "mine", "team": "rl"}
    values = {"score": {"podLabels": labels, "podAnnotations": {"owner": "rl"}}}
    metadata = of_role(render(values), "Deployment", "score")["spec"]["template"]["metadata"]
    assert metadata["labels"]["app.kubernetes.io/component"] == "score"
    assert metadata["labels"]["team"] == "rl"
    assert set(metadata["annotations"]) == {"owner", "checksum/config"}
