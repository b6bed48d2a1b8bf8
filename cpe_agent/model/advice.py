"""What is to be done about a condition?

By its type, one sentence without the stop; "" where the condition's own words say it, because it depends on the case.
A test holds every type in the code to this table. `status` prints it below the first condition of a type.
"""

from __future__ import annotations

from collections.abc import Mapping

ADVICE: Mapping[str, str] = {
    "BudgetNear": "",
    "BudgetSpent": "",
    "BundleBarred": "",
    "BundleDown": "bring an uplink back: the tables above say which is down; if all are up, look at the hub",
    "BundleSilent": "",
    "CaptivePortal": "",
    "CertificateExpiring": "",
    "CharonConflict": "",
    "CharonFailed": "",
    "ClockUntrusted": "",
    "ClockWrong": "",
    "ControllerUnreachable": "nothing is lost meanwhile; look at the uplinks, then at the controller's machine",
    "DocumentExpired": "",
    "DocumentPending": "wait: in a minute or two it is confirmed, or taken back by itself",
    "DocumentRejected": "mend network.yaml and apply it again; this site goes on under the document before",
    "DocumentReverted": "",
    "Draining": "",
    "EnrolmentRefused": "",
    "IdentityDuplicated": "",
    "LanCheckFailed": "look at that LAN's cable and switch, and at the machine that is asked",
    "LanMissing": "plug that interface in, or write its name as `ip link` has it into network.yaml",
    "LanUnaddressed": "",
    "NameUnknown": "",
    "NoDocument": "look at ControllerUnreachable and DocumentRejected; if there is none, apply a network.yaml",
    "NotEnrolled": "",
    "PathDegraded": "",
    "PathDown": "if others over its uplink are up, look at the hub; else at the uplink: cable, SIM, power",
    "PathFlapping": "",
    "PeerDown": "",
    "PeerNotReady": "look at that hub: it is being drained, has no document, or a LAN of it is not well",
    "ServerNotAsked": "",
    "ServerSilent": "",
    "SiteRevoked": "",
    "TargetFailed": "it is tried again; if it stays, send the output of `cpe-agent support-bundle`",
    "TokenExpired": "",
    "TokenReplaced": "",
    "TokenUnknown": "",
    "TokenUnreadable": "",
    "TokenUsed": "",
    "TunnelDeviceMissing": "it comes with charon: systemctl restart cpe-charon",
    "UplinkConflict": "give uplinks different subnets, and none that a LAN has; often in the modem's own settings",
    "UplinkDown": "plug the cable in, or look at the modem: SIM, antenna, power",
    "UplinkFound": "",
    "UplinkMissing": "",
    "UplinkNoGateway": "",
    "UplinkUnaddressed": "look at its DHCP client, modem or PPPoE session; a fixed address is the system's to set",
}
