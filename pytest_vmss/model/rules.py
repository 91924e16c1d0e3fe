"""Validates rules between the parts of a model, with Azure's codes and messages (A6, C5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice

from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.health import is_application_health
from pytest_vmss.model.load_balancer import LoadBalancer, Probe, last_name, served_rules
from pytest_vmss.model.ports import host_port
from pytest_vmss.model.review import setting_of
from pytest_vmss.model.scale_set import Extension, ImageReference, PatchSettings, ScaleSetModel
from pytest_vmss.model.sequencing import check_sequence
from pytest_vmss.model.service_fabric import (
    Cluster,
    check_service_fabric,
    is_durable,
    reads_setting,
)
from pytest_vmss.model.sizes import VmSize, find_size, nearest_sizes
from pytest_vmss.secrecy import mask, quote
from pytest_vmss.untrusted import listed

__all__ = ["check_model", "model_warnings"]

#: Validation stops after this many problems.
_MOST_PROBLEMS = 100
_GROUP_SIZE = 100
_LONG_INTERVAL_S = 120
_FIRST_API_VERSION = "2018-10-01"
#: Since this version Windows' own updates rule out automatic OS upgrade (C6).
_WINDOWS_API_VERSION = "2019-03-01"

#: What the names of Windows images' publishers begin with.
_WINDOWS_PUBLISHERS = ("microsoftwindows", "microsoftsqlserver", "microsoftvisualstudio")

_PROFILE = "$.virtualMachineProfile"
_AUTOMATIC = "$.upgradePolicy.automaticOSUpgradePolicy.enableAutomaticOSUpgrade"


def check_model(
    model: ScaleSetModel,
    *,
    probe: Probe | None,
    sizes: Mapping[str, tuple[int, int]],
    extension_types: frozenset[tuple[str, str]],
    clusters: list[Cluster] | None = None,
    balancer: LoadBalancer | None = None,
    own_size: VmSize | None = None,
    left_out: Collection[str] = (),
    unread_settings: Sequence[ModelProblem] = (),
) -> list[ModelProblem]:
    """Returns the problems of a model whose values are each valid; at most the first 100.

    Args:
        model: The scale set.
        probe: The load-balancer probe that it names.
        sizes: The user's own VM sizes: name to (vCPUs, MiB).
        extension_types: Known extensions: (publisher, type) in lower case.
        clusters: Service Fabric clusters in the same template.
        balancer: The load balancer in front of it.
        own_size: The size that its instances get whatever it says (A3).
        left_out: Names of extensions, in lower case, that may be left out (P4).
        unread_settings: Settings of extensions that have no value here (P1).
    """
    problems = chain(
        _check_windows(model),
        _check_size(model, sizes) if own_size is None else (),
        _check_image(model),
        _check_disks(model),
        _check_probe(probe),
        _check_extensions(model, extension_types, left_out),
        _check_unread(model, unread_settings, extension_types),
        _check_placement(model),
        _check_balancer(model, balancer),
        _check_probe_in_use(model, balancer),
        _check_rolling_mode(model),
        _check_repairs(model),
        _check_automatic_upgrade(model, clusters or []),
    )
    return list(islice(problems, _MOST_PROBLEMS))


def _check_windows(model: ScaleSetModel) -> Iterator[ModelProblem]:
    """Refuses a set of Windows guests, at the first sign of them (A8)."""
    profile, reference = model.virtual_machine_profile, model.image_reference
    signs = {
        f"{_PROFILE}.storageProfile.osDisk.osType": (
            profile.storage_profile.os_disk.os_type == "Windows"
        ),
        f"{_PROFILE}.osProfile.windowsConfiguration": (
            profile.os_profile.windows_configuration is not None
        ),
        f"{_PROFILE}.storageProfile.imageReference.publisher": (
            (reference.publisher or "").lower().startswith(_WINDOWS_PUBLISHERS)
        ),
    }
    for path in [path for path, found in signs.items() if found][:1]:
        yield ModelProblem(
            path,
            "OSTypeNotSupported",
            "asks for Windows guests, and only Linux guests can be run here: no machine is built "
            "for Windows, and no cloudbase-init is fed; rehearse with a Linux image, and leave "
            "windowsConfiguration and osType Windows out",
        )


def _check_size(
    model: ScaleSetModel, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[ModelProblem]:
    if find_size(model.sku.name, sizes) is None:
        near = listed(nearest_sizes(model.sku.name, sizes))
        yield ModelProblem(
            "$.sku.name",
            "InvalidParameter",
            f"the size {quote(model.sku.name)} is not known here; the nearest are: {near}; add "
            "your own with the ini option vmss_sizes (vmss --set 'sizes.NAME = [VCPUS, MIB]'), or "
            "run every set in one size of the lab's own with --vmss-size (vmss --size)",
        )


def _check_image(model: ScaleSetModel) -> Iterator[ModelProblem]:
    reference = model.image_reference
    path = f"{_PROFILE}.storageProfile.imageReference"
    if reference.id is not None:
        if reference.version is not None:
            yield ModelProblem(
                path, "InvalidParameter", "has both an id and a version; Azure takes one of them"
            )
    elif not (reference.publisher and reference.offer and reference.sku and reference.version):
        yield ModelProblem(
            path, "InvalidParameter", "needs an id, or publisher, offer, sku and version"
        )


def _check_disks(model: ScaleSetModel) -> Iterator[ModelProblem]:
    disks = model.data_disks
    counts = Counter(disk.lun for disk in disks)
    for index, disk in enumerate(disks):
        path = f"{_PROFILE}.storageProfile.dataDisks[{index}]"
        if counts[disk.lun] > 1:
            yield ModelProblem(
                f"{path}.lun", "InvalidParameter", f"LUN {disk.lun} is used more than once"
            )
        if disk.create_option != "Empty":
            yield ModelProblem(
                f"{path}.createOption",
                "InvalidParameter",
                f"only Empty data disks can be made here; given {disk.create_option!r}",
            )
        elif disk.disk_size_gb is None:
            yield ModelProblem(
                f"{path}.diskSizeGB", "InvalidParameter", "is required for an Empty data disk"
            )


def _check_probe(probe: Probe | None) -> Iterator[ModelProblem]:
    if probe is None:
        return
    path = f"the probe {quote(probe.name)}"
    if probe.protocol == "Tcp" and probe.request_path:
        yield ModelProblem(
            f"{path}.requestPath", "InvalidParameter", "is not allowed for the protocol Tcp"
        )
    if probe.protocol != "Tcp" and not (probe.request_path or "").startswith("/"):
        yield ModelProblem(
            f"{path}.requestPath",
            "InvalidParameter",
            f"the protocol {probe.protocol} needs a path that starts with '/'; "
            f"given {quote(probe.request_path)}",
        )


def _check_extensions(
    model: ScaleSetModel, known: frozenset[tuple[str, str]], left_out: Collection[str]
) -> Iterator[ModelProblem]:
    counts = Counter(extension.name.lower() for extension in model.extensions)
    names = ", ".join(sorted("/".join(pair) for pair in known))
    for index, extension in enumerate(model.extensions):
        path = f"{_PROFILE}.extensionProfile.extensions[{index}]"
        if counts[extension.name.lower()] > 1:
            yield ModelProblem(
                f"{path}.name", "InvalidParameter", f"{extension.name!r} is used more than once"
            )
        if is_application_health(extension) and extension.type.lower().endswith("windows"):
            yield ModelProblem(
                f"{path}.type",
                "OSTypeNotSupported",
                "ApplicationHealthWindows is for Windows guests, and only Linux guests can be run "
                "here; use ApplicationHealthLinux, with the same settings",
            )
        elif not _is_handled(extension, known) and extension.name.lower() not in left_out:
            yield ModelProblem(
                f"{path}.type",
                "ArtifactNotFound",
                f"no handler for the extension {_called(extension)} here; there are: {names}; "
                "register one (register, register_package), or leave such extensions out with "
                "--vmss-unknown-extensions skip (vmss --unknown-extensions skip)",
            )
    if max(counts.values(), default=0) <= 1:
        yield from check_sequence(model.extensions)


def _is_handled(extension: Extension, known: frozenset[tuple[str, str]]) -> bool:
    return (extension.publisher.lower(), extension.type.lower()) in known


def _check_unread(
    model: ScaleSetModel,
    unread: Sequence[ModelProblem],
    known: frozenset[tuple[str, str]],
) -> Iterator[ModelProblem]:
    """Yields the settings without a value that a handler would read (P1)."""
    for problem in unread:
        index, name = setting_of(problem)
        extension = model.extensions[index]
        if _is_handled(extension, known) and reads_setting(extension, name):
            yield ModelProblem(
                problem.path,
                problem.code,
                f"{problem.message}; give it by a parameter, or in its place",
            )


def _called(extension: Extension) -> str:
    return f"{mask(extension.publisher)}/{mask(extension.type)}"


def _is_latest(reference: ImageReference) -> bool:
    if reference.id is not None:
        return "/versions/" not in reference.id.lower()
    return (reference.version or "").lower() == "latest"


def _health_sources(model: ScaleSetModel) -> tuple[bool, bool]:
    """Whether a model names a health probe, and whether it has the Application Health extension."""
    network = model.virtual_machine_profile.network_profile
    has_probe = network is not None and network.health_probe is not None
    return has_probe, any(is_application_health(extension) for extension in model.extensions)


def _check_placement(model: ScaleSetModel) -> Iterator[ModelProblem]:
    if model.single_placement_group and model.sku.capacity > _GROUP_SIZE:
        yield ModelProblem(
            "$.sku.capacity",
            "InvalidParameter",
            f"a set with singlePlacementGroup has {_GROUP_SIZE} instances at most; "
            f"given {model.sku.capacity}: set singlePlacementGroup to false",
        )


def _check_balancer(model: ScaleSetModel, balancer: LoadBalancer | None) -> Iterator[ModelProblem]:
    """Checks a load balancer's SKU and rules against the set (F2)."""
    if balancer is None:
        return
    several = model.single_placement_group is False or model.sku.capacity > _GROUP_SIZE
    if several and balancer.sku is not None and balancer.sku.name == "Basic":
        yield ModelProblem(
            f"the load balancer {quote(balancer.title)}.sku.name",
            "BadRequest",
            "a set of several placement groups needs a Standard load balancer; given Basic",
        )
    names = {probe.name.lower() for probe in balancer.probes}
    for rule in balancer.load_balancing_rules:
        path = f"the load balancer {quote(balancer.title)}.loadBalancingRules[{rule.name!r}]"
        if rule.probe is not None and last_name(rule.probe.id).lower() not in names:
            yield ModelProblem(
                f"{path}.probe.id",
                "InvalidResourceReference",
                "names no probe of this load balancer; there are: "
                + listed(mask(probe.name) for probe in balancer.probes),
            )
    yield from _check_frontends(model, balancer)


def _check_frontends(model: ScaleSetModel, balancer: LoadBalancer) -> Iterator[ModelProblem]:
    path = f"the load balancer {quote(balancer.title)}.loadBalancingRules"
    rules = balancer.load_balancing_rules
    for rule in rules:
        if {rule.protocol == "All", rule.frontend_port == 0, rule.backend_port == 0} == {
            True,
            False,
        }:
            yield ModelProblem(
                f"{path}[{rule.name!r}]",
                "InvalidParameter",
                f"has the protocol {rule.protocol} and the ports {rule.frontend_port} and "
                f"{rule.backend_port}; the protocol All goes with 0 for both, and 0 with All",
            )
    taken = Counter(
        (rule.frontend, rule.frontend_port, protocol)
        for rule in rules
        for protocol in (("Tcp", "Udp") if rule.protocol == "All" else (rule.protocol,))
    )
    for (_, port, protocol), count in taken.items():
        if count > 1:
            yield ModelProblem(
                path,
                "InvalidParameter",
                f"{count} rules have the frontend port {port} for {protocol} on one frontend",
            )
    for name, count in Counter(rule.name.lower() for rule in rules).items():
        if count > 1:
            yield ModelProblem(path, "InvalidParameter", f"{count} rules have the name {name!r}")
    # URLs must not change, so conflicts are rejected instead of mapping to another port.
    by_host: dict[int, list[int]] = {}
    for port in sorted(rule.frontend_port for rule in served_rules(balancer, model)):
        by_host.setdefault(host_port(port), []).append(port)
    for port, (first, *others) in by_host.items():
        if others:
            yield ModelProblem(
                path,
                "InvalidParameter",
                f"the frontend ports {first} and {others[0]} would both be port {port} of the "
                "host, for below 1024 it takes 10000 more; use another one",
            )


def _check_probe_in_use(
    model: ScaleSetModel, balancer: LoadBalancer | None
) -> Iterator[ModelProblem]:
    """A probe must be used by a rule, or it checks something other than the set's traffic."""
    network = model.virtual_machine_profile.network_profile
    if balancer is None or network is None or network.health_probe is None:
        return
    name = last_name(network.health_probe.id).lower()
    used = {last_name(rule.probe.id) for rule in balancer.load_balancing_rules if rule.probe}
    if name not in {entry.lower() for entry in used}:
        rules = listed(rule.name for rule in balancer.load_balancing_rules)
        yield ModelProblem(
            f"{_PROFILE}.networkProfile.healthProbe.id",
            "CannotUseInactiveHealthProbe",
            f"VM scale set {model.name} cannot use probe {mask(name)} as a HealthProbe because load "
            "balancing rules that send traffic to this scale set IPs do not use this probe. "
            "Please add load balancing rules that use this probe and try again. (the load "
            f"balancer's rules: {rules})",
        )


def model_warnings(probe: Probe | None) -> list[str]:
    """Returns warnings about what Azure accepts but warns about (F2)."""
    if probe is None or probe.interval_in_seconds < _LONG_INTERVAL_S:
        return []
    told = (
        f"the probe {quote(probe.name)} looks every {probe.interval_in_seconds} s; an interval of "
        "2 minutes or more is too long for upgrades to see trouble in time"
    )
    return [told]


def _check_rolling_mode(model: ScaleSetModel) -> Iterator[ModelProblem]:
    if model.upgrade_policy.mode == "Rolling" and not any(_health_sources(model)):
        yield ModelProblem(
            "$.upgradePolicy.mode",
            "BadRequest",
            "Rolling Upgrade mode is not supported for this Virtual Machine Scale Set because a "
            "health probe or health extension was not provided.",
        )


def _check_repairs(model: ScaleSetModel) -> Iterator[ModelProblem]:
    """Checks that automatic repairs have exactly one health source, as Azure demands (K1)."""
    policy = model.automatic_repairs_policy
    if policy is None or not policy.enabled:
        return
    sources = _health_sources(model)
    feature = "Automatic repairs not supported for this Virtual Machine Scale Set because"
    if not any(sources):
        yield ModelProblem(
            "$.automaticRepairsPolicy.enabled",
            "BadRequest",
            f"{feature} a health probe or health extension was not provided.",
        )
    if all(sources):
        yield ModelProblem(
            "$.automaticRepairsPolicy.enabled",
            "BadRequest",
            f"{feature} both a health probe and a health extension were provided. Remove the "
            "health probe or health extension prior to enabling automatic repairs.",
        )


def _check_automatic_upgrade(
    model: ScaleSetModel, clusters: list[Cluster]
) -> Iterator[ModelProblem]:
    """Checks the requirements of automatic OS upgrade (C5-C7)."""
    if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
        return
    yield from _check_api_version(model)
    yield from _check_health_source(model)
    yield from _check_patching(model)
    yield from check_service_fabric(model, clusters)
    if not _is_latest(model.image_reference):
        yield ModelProblem(
            f"{_PROFILE}.storageProfile.imageReference",
            "BadRequest",
            "automatic OS upgrade needs the image version 'latest' "
            "(of a gallery: an image id without a version)",
        )


def _check_api_version(model: ScaleSetModel) -> Iterator[ModelProblem]:
    # Dates in this form sort as strings; a suffix such as -preview sorts after its date.
    if model.api_version is not None and model.api_version < _FIRST_API_VERSION:
        yield ModelProblem(
            "$.apiVersion",
            "BadRequest",
            f"automatic OS upgrade needs the API version {_FIRST_API_VERSION} or later; "
            f"given {mask(model.api_version)}",
        )


def _check_health_source(model: ScaleSetModel) -> Iterator[ModelProblem]:
    has_probe, has_extension = _health_sources(model)
    feature = "Automatic OS Upgrade is not supported for this Virtual Machine Scale Set because"
    if is_durable(model):  # Service Fabric takes care of its health
        if has_probe:
            yield ModelProblem(
                f"{_PROFILE}.networkProfile.healthProbe",
                "BadRequest",
                f"{feature} a health probe was provided beside the Service Fabric extension, "
                "whose durability Silver or Gold already decides on health. Remove the health "
                "probe prior to enabling automatic OS upgrade.",
            )
        return
    if not has_probe and not has_extension:
        yield ModelProblem(
            _AUTOMATIC,
            "BadRequest",
            f"{feature} a health probe or health extension was not specified.",
        )
    if has_probe and has_extension:
        yield ModelProblem(
            _AUTOMATIC,
            "BadRequest",
            f"{feature} both a health probe and a health extension were provided. Remove the "
            "health probe or health extension prior to enabling automatic OS upgrade.",
        )


def _check_patching(model: ScaleSetModel) -> Iterator[ModelProblem]:
    """Nothing but the image may update the OS."""
    profile = model.virtual_machine_profile.os_profile
    windows, linux = profile.windows_configuration, profile.linux_configuration
    old_api = model.api_version is not None and model.api_version < _WINDOWS_API_VERSION
    if windows is not None and windows.enable_automatic_updates is not False and not old_api:
        yield ModelProblem(
            f"{_PROFILE}.osProfile.windowsConfiguration.enableAutomaticUpdates",
            "BadRequest",
            "must be false (absent means true) where automatic OS upgrade is enabled: an image "
            "brings its updates",
        )
    settings: dict[str, PatchSettings | None] = {
        "windowsConfiguration": windows.patch_settings if windows else None,
        "linuxConfiguration": linux.patch_settings if linux else None,
    }
    for name, patching in settings.items():
        if patching is not None and (patching.patch_mode or "").lower() == "automaticbyplatform":
            yield ModelProblem(
                f"{_PROFILE}.osProfile.{name}.patchSettings.patchMode",
                "BadRequest",
                "must not be AutomaticByPlatform where automatic OS upgrade is enabled",
            )
