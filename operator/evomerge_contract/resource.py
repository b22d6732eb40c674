"""What the two kinds of resources are called in Kubernetes."""

from typing import Literal, get_args

ApiVersion = Literal["evomerge.dev/v1alpha1"]
EvoMergeKind = Literal["EvoMerge"]

API_VERSION: ApiVersion = get_args(ApiVersion)[0]
GROUP, VERSION = API_VERSION.split("/")
EVOMERGE: EvoMergeKind = get_args(EvoMergeKind)[0]
EVOMERGES = f"{EVOMERGE.lower()}s"
MERGE_CANDIDATE = "MergeCandidate"
MERGE_CANDIDATES = f"{MERGE_CANDIDATE.lower()}s"
