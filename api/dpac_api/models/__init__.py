"""What is said over the wire: the single source for provider checks, REST validation, OpenAPI, CLI and policy.

Times are RFC 3339 in UTC, durations and sizes are canonical strings
(`quantities`), byte counts are integers. Models refuse unknown fields and are
immutable.
"""

from dpac_api.models.checkpoints import (
    Checkpoint,
    CheckpointAvailability,
    CheckpointPage,
    CheckpointRange,
    CheckpointRequest,
    Cut,
)
from dpac_api.models.fields import SECTOR_BYTES, AbsolutePath, Model, Name, Owner, RequestId, Selector, Tag, Uid
from dpac_api.models.groups import (
    DirectorySpec,
    Group,
    GroupSpec,
    JournalSpec,
    MemberOutputs,
    MemberSpec,
    PutGroup,
    Role,
    VolumeSpec,
)
from dpac_api.models.legs import AsyncLegSpec, LegSpec, RetentionSpec
from dpac_api.models.mounts import Mount, MountRequest
from dpac_api.models.operations import (
    DrillReport,
    DrillRequest,
    MemberDrill,
    Operation,
    OperationStep,
    Phase,
    RestoreReport,
    RestoreRequest,
    VerifyFinding,
    VerifyReport,
    VerifyRequest,
)
from dpac_api.models.site import API_VERSION, API_VERSION_OLDEST, NewToken, SiteInfo, TokenInfo
from dpac_api.models.status import Condition, DataState, GroupStatus, LegStatus, MemberStatus, SlaState
from dpac_api.models.targets import (
    FilesystemTargetSpec,
    PutTarget,
    S3TargetSpec,
    Target,
    TargetCheck,
    TargetSpec,
    target_spec_of,
)

__all__ = [
    "API_VERSION",
    "API_VERSION_OLDEST",
    "SECTOR_BYTES",
    "AbsolutePath",
    "AsyncLegSpec",
    "Checkpoint",
    "CheckpointAvailability",
    "CheckpointPage",
    "CheckpointRange",
    "CheckpointRequest",
    "Condition",
    "Cut",
    "DataState",
    "DirectorySpec",
    "DrillReport",
    "DrillRequest",
    "FilesystemTargetSpec",
    "Group",
    "GroupSpec",
    "GroupStatus",
    "JournalSpec",
    "LegSpec",
    "LegStatus",
    "MemberDrill",
    "MemberOutputs",
    "MemberSpec",
    "MemberStatus",
    "Model",
    "Mount",
    "MountRequest",
    "Name",
    "NewToken",
    "Operation",
    "OperationStep",
    "Owner",
    "Phase",
    "PutGroup",
    "PutTarget",
    "RequestId",
    "RestoreReport",
    "RestoreRequest",
    "RetentionSpec",
    "Role",
    "S3TargetSpec",
    "Selector",
    "SiteInfo",
    "SlaState",
    "Tag",
    "Target",
    "TargetCheck",
    "TargetSpec",
    "TokenInfo",
    "Uid",
    "VerifyFinding",
    "VerifyReport",
    "VerifyRequest",
    "VolumeSpec",
    "target_spec_of",
]
