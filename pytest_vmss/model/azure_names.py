"""The property names that Azure has, so that a name that it has not is told from one (A6).

Microsoft.Compute/virtualMachineScaleSets of 2025-04-01 with all that is inside it, and
Microsoft.Network/loadBalancers; what is modelled here is among them.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable

from pytest_vmss.secrecy import plain_name

__all__ = ["is_azure_name", "is_slip", "nearest"]

_SCALE_SETS = """
    actionOnDiskDelay additionalCapabilities additionalDiskProperties additionalUnattendContent
    addProxyAgentExtension adminPassword adminUsername allInstancesDown allocationStrategy
    allowExtensionOperations applicationGatewayBackendAddressPools applicationProfile
    applicationSecurityGroups assessmentMode automaticallyApprove automaticByPlatformSettings
    automaticOSUpgradePolicy automaticRepairsPolicy automaticSkuMigrationPolicy
    automaticZoneRebalancingPolicy autoUpgradeMinorVersion auxiliaryMode auxiliarySku
    availabilityPolicy baseRegularPriorityCount billingProfile bootDiagnostics burstingEnabled
    bypassPlatformSafetyChecksOnUserSchedule caching capacity capacityReservation
    capacityReservationGroup certificateStore certificateUrl clientId communityGalleryImageId
    componentName computerNamePrefix configurationReference constrainedMaximumCapacity content
    createdAt createdBy createdByType createOption customData dataDisks defaultAction
    deleteOption diagnosticsProfile diffDiskSettings disableAutomaticRollback
    disableCapacityReservationAssignment disablePasswordAuthentication disableTcpStateTracking
    diskAccessId diskApiVersion diskControllerType diskEncryptionSet diskIOPSReadOnly
    diskIOPSReadWrite diskMBpsReadOnly diskMBpsReadWrite diskSizeGB dnsServers dnsSettings
    domainNameLabel domainNameLabelScope doNotRunExtensionsOnOverprovisionedVMs enable
    enableAcceleratedNetworking enableAutomaticOSUpgrade enableAutomaticUpdates
    enableAutomaticUpgrade enableCrossZoneUpgrade enabled enableFips1403Encryption enableFpga
    enableFullCaching enableHotpatching enableIPForwarding enableVMAgentPlatformUpdates
    encryptionAtHost encryptionIdentity etag eventGridAndResourceGraph evictionPolicy
    exactVersion excludeExtensions excludeZones expiryDuration extendedLocation extensionProfile
    extensions extensionsTimeBudget externalHealthPolicy firstPartyServiceTagId forceDeletion
    forceUpdateTag galleryApplications gracePeriod hardwareProfile healthProbe
    hibernationEnabled highSpeedInterconnectPlacement hostGroup id identity idleTimeoutInMinutes
    image imageReference imds includeZones interconnectBlock interconnectBlockProfile
    interconnectGroup interconnectGroupProfile inVMAccessControlProfileReferenceId
    ipConfigurations ipTags ipTagType isOverridable keyData keyIncarnationId lastModifiedAt
    lastModifiedBy lastModifiedByType licenseType lifecycleHooks lifecycleHooksProfile
    linuxConfiguration listeners loadBalancerBackendAddressPools loadBalancerInboundNatPools
    location logicalSectorSize lun managedDisk managedDiskProperties maxBatchInstancePercent
    maxInstancePercentPerZonePolicy maxPrice maxShares maxSurge maxUnhealthyInstancePercent
    maxUnhealthyUpgradedInstancePercent maxZoneCount mode name networkAccessPolicy
    networkApiVersion networkInterfaceConfigurations networkProfile networkSecurityGroup
    notBeforeTimeout offer operationRecoverySettings optimizedForFrequentAttach option
    orchestrationMode order osDisk osImageNotificationProfile osProfile osRollingUpgradeDeferral
    osType overprovision packageReferenceId passName patchMode patchSettings path
    pauseTimeBetweenBatches performancePlus placement plan platformFaultDomainCount primary
    principalId prioritizeUnhealthyInstances prioritizeUnhealthyVMs priority priorityMixPolicy
    privateIPAddressPrefixLength privateIPAddressVersion processorMode product promotionCode
    properties protectedSettings protectedSettingsFromKeyVault protocol provisionAfterExtensions
    provisioningState provisionVMAgent proximityPlacementGroup proxyAgentSettings
    publicIPAddressConfiguration publicIPAddressVersion publicIPPrefix publicKeys publisher rank
    rebalanceBehavior rebalanceStrategy rebootSetting regularPriorityPercentageAboveBase
    reimageRecoveryPolicy repairAction requireGuestProvisionSignal resiliencyPolicy
    resilientVMCreationPolicy resilientVMDeletionPolicy restartRecoveryPolicy restoreTimeout
    rollbackFailedInstancesOnPolicyBreach rollingUpgradePolicy rules scaleInPolicy
    scheduledEventsAdditionalPublishingTargets scheduledEventsApiVersion scheduledEventsPolicy
    scheduledEventsProfile secrets secretUrl secureBootEnabled securityEncryptionType
    securityPostureReference securityProfile securityType serviceArtifactReference settingName
    settings sharedGalleryImageId singlePlacementGroup sku skuProfile sourceVault
    spotRestorePolicy ssh startRecoveryPolicy storageAccountType storageFaultDomainAlignment
    storageProfile storageUri subgroups subnet suppressFailures systemData tag tags tenantId
    terminateNotificationProfile tier timeCreated timeZone treatFailureAsDeploymentFailure type
    typeHandlerVersion uefiSettings ultraSSDEnabled uniqueId upgradePolicy uri useLocalFileRules
    userAssignedIdentities userAssignedIdentityResourceId userData userInitiatedReboot
    userInitiatedRedeploy useRollingUpgradePolicy value vaultCertificates vCPUsAvailable
    vCPUsPerCore version vhdContainers virtualMachineProfile vmSizeProperties vmSizes
    vTpmEnabled waitDuration windowsConfiguration winRM wireServer writeAcceleratorEnabled
    zonalPlatformFaultDomainAlignMode zoneAllocationPolicy zoneBalance zonePlacementPolicy zones
"""
#: The names that only load balancers have, and what surrounds a resource in templates and answers.
_OTHERS = """
    allocatedOutboundPorts apiVersion backendAddressPool backendAddressPools
    backendIPConfigurations backendPort comments condition connectionTracking copy dependsOn
    disableOutboundSnat drainPeriodInSeconds enableFloatingIP enableTcpReset
    frontendIPConfiguration frontendIPConfigurations frontendPort frontendPortRangeEnd
    frontendPortRangeStart gatewayLoadBalancer inboundNatPools inboundNatRules instanceView
    intervalInSeconds kind loadBalancerBackendAddresses loadBalancerFrontendIPConfigurations
    loadBalancingRules loadDistribution managedBy managedByExtended noHealthyBackendsBehavior
    numberOfProbes outboundRules port privateIPAddress privateIPAllocationMethod probe probes
    probeThreshold publicIPAddress requestPath resourceGroup resourceGuid resources scope
    syncMode typePropertiesType virtualMachineExtensionType virtualNetwork vmId
"""
_NAMES = {name.lower(): name for name in (*_SCALE_SETS.split(), *_OTHERS.split())}

#: How similar a name must be to be taken for a misspelling, from 0 to 1.
_SIMILAR = 0.8
#: The most characters in which a slip of the fingers differs from the name that was meant.
_SLIP = 2
_MANY = re.compile(r"ies$")
#: No name of Azure is longer; comparing takes quadratic time.
_LONGEST = 80


def is_azure_name(name: str) -> bool:
    """Whether Azure has a property of this name somewhere in a scale set or load balancer."""
    return name.lower() in _NAMES


def nearest(name: str, names: Iterable[str] | None = None) -> str:
    """Returns the name that a misspelt one was probably meant to be; empty if none is near.

    Args:
        name: The name as it was written.
        names: The names that come into question; all of Azure's by default.
    """
    known = _NAMES if names is None else {each.lower(): each for each in names}
    if len(name) > _LONGEST:
        return ""
    found = difflib.get_close_matches(name.lower(), known, 1, _SIMILAR)
    return known[found[0]] if found else ""


def is_slip(name: str, meant: str) -> bool:
    """Whether a name was probably meant to be another one, and is not another name by itself.

    A slip adds, drops or changes two characters at most, puts some into another order, or says many
    for one. Another word, such as ``Count`` for ``Percent``, may be of a property that Azure has
    got since.
    """
    one, other = (_MANY.sub("y", plain_name(each)) for each in (name, meant))
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    changed = sum(
        max(end - start, other_end - other_start)
        for tag, start, end, other_start, other_end in matcher.get_opcodes()
        if tag != "equal"
    )
    letters, wanted = Counter(one), Counter(other)
    moved = (letters - wanted).total() + (wanted - letters).total()
    return changed <= _SLIP or moved <= 1
