"""What an alert leads to: the dashboards' uids, and the runbooks by their panel."""

from typing import Final

FLEET: Final = "corevital-fleet"
MODEL: Final = "corevital-model"
REQUESTS: Final = "corevital-requests"
ITSELF: Final = "corevital-itself"
RUNBOOKS: Final = "corevital-runbooks"
ORDER: Final = (
    "CorevitalNaNLogits",
    "CorevitalInfLogits",
    "CorevitalStuckInLoops",
    "CorevitalLoopShareHigh",
    "CorevitalHighRiskShareRising",
    "CorevitalEntropyShift",
    "CorevitalTruncationRising",
    "CorevitalTokenLatencyRising",
    "CorevitalFaultBudgetBurn",
    "CorevitalLatencyBudgetBurn",
    "CorevitalTargetDown",
    "CorevitalTargetsAbsent",
    "CorevitalPluginAbsent",
    "CorevitalRequestsUnseen",
    "CorevitalTelemetryLost",
    "CorevitalTelemetryLagging",
    "CorevitalInternalFaults",
    "CorevitalCostHigh",
    "CorevitalTrafficShifted",
    "CorevitalUnobservedSequences",
    "CorevitalInstanceStuckInLoops",
    "CorevitalInstanceLoops",
    "CorevitalInstanceHighRisk",
    "CorevitalInstanceAborts",
    "CorevitalInstanceEntropy",
    "CorevitalWarningShareRising",
    "CorevitalAbortShareHigh",
    "CorevitalRequestsFailing",
    "CorevitalEngineStalled",
    "CorevitalCrashLoop",
    "CorevitalRestarting",
    "CorevitalMostServersDown",
    "CorevitalWatchdog",
    "CorevitalStackPartDown",
    "CorevitalStackPartAbsent",
    "CorevitalCollectorLosing",
    "CorevitalTempoLosing",
    "CorevitalPrometheusFailing",
    "CorevitalAlertsUndelivered",
    "CorevitalGrafanaFailing",
    "CorevitalTargetNeverUp",
    "CorevitalStopsOften",
)
"""An alert's place is the panel number in its ``runbook_url``: append new ones at the end."""
