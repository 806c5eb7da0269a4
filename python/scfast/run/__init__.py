"""Running a model over many cells: the plan, the memory it may take, and the loop."""

from scfast.run.counts import Counts
from scfast.run.device import default_device, resolve_device
from scfast.run.equal_length import EqualLength
from scfast.run.ledger import Ledger, OtherRunError
from scfast.run.memory import DEFAULT_MEMORY, parse_memory, token_budget
from scfast.run.plan import Plan, make_plan
from scfast.run.planner import Planned, PlannedRun, planning
from scfast.run.runner import Results, TokenSurvey, run, survey
from scfast.run.shards import PartDone, ShardedRun
from scfast.run.stages import Clock, Times
from scfast.run.stopping import Stopped
from scfast.run.store import Store, current_store, granted_memory, resumable
from scfast.run.stored import StoredCounts

__all__ = [
    "DEFAULT_MEMORY",
    "Clock",
    "Counts",
    "EqualLength",
    "Ledger",
    "OtherRunError",
    "PartDone",
    "Plan",
    "Planned",
    "PlannedRun",
    "Results",
    "ShardedRun",
    "Stopped",
    "Store",
    "StoredCounts",
    "Times",
    "TokenSurvey",
    "current_store",
    "default_device",
    "granted_memory",
    "make_plan",
    "parse_memory",
    "planning",
    "resolve_device",
    "resumable",
    "run",
    "survey",
    "token_budget",
]
