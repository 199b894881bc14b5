"""Every pod keeps the Pod Security Standard "restricted", and a few rules of our own."""

from helm.chart import every_case, pods, render

ALLOWED_VOLUMES = {"configMap", "csi", "emptyDir", "image", "persistentVolumeClaim", "secret"}


def every_pod(values):
    found = pods(render(values))
    assert found
    return [pod["spec"] for _, pod in found]


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


@every_case
def test_a_pod_is_the_user_of_the_image_and_nobody_else(case):
    for pod in every_pod(case):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001, 10001, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))


@every_case
def test_a_container_can_gain_no_privilege_and_write_nothing_but_its_volumes(case):
    for container in [one for pod in every_pod(case) for one in containers(pod)]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@every_case
def test_volumes_are_of_the_allowed_kinds_and_all_that_are_written_to_have_a_size(case):
    for pod in every_pod(case):
        for volume in pod.get("volumes", []):
            (kind,) = set(volume) - {"name"}
            assert kind in ALLOWED_VOLUMES
            assert kind != "emptyDir" or volume["emptyDir"]["sizeLimit"]


@every_case
def test_every_mount_has_its_volume_and_every_volume_its_mount(case):
    for pod in every_pod(case):
        mounted = {mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


@every_case
def test_no_pod_has_a_token_or_the_variables_of_other_services(case):
    for pod in every_pod(case):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


@every_case
def test_rights_of_the_service_account_are_for_what_reads_checkpoints(case):
    """A cloud gives rights by the account's name, whether or not the pod has a token of the cluster."""
    for name, pod in pods(render(case)):
        ours = name.endswith(("-score", "-explain"))
        assert pod["spec"]["serviceAccountName"] == ("rl-jrm" if ours else "default")


@every_case
def test_every_container_says_what_it_needs(case):
    """In a namespace with quotas, a container without requests and limits is refused."""
    for container in [one for pod in every_pod(case) for one in containers(pod)]:
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"].keys() >= {"memory"}


@every_case
def test_no_image_moves(case):
    for container in [one for pod in every_pod(case) for one in containers(pod)]:
        name, _, tag = container["image"].rpartition(":")
        assert name
        assert tag not in ("", "latest")


@every_case
def test_no_variable_is_given_twice(case):
    """Server-side apply, which Helm 4 uses, refuses a container with one."""
    for container in [one for pod in every_pod(case) for one in containers(pod)]:
        names = [variable["name"] for variable in container.get("env", [])]
        assert len(set(names)) == len(names)
