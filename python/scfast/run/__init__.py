"""Running a model over many cells: the plan, the memory it may take, and the loop."""

from scfast.run.counts import Counts
from scfast.run.memory import parse_memory, token_budget
from scfast.run.plan import Plan, make_plan
from scfast.run.runner import TokenSurvey, run, survey

__all__ = ["Counts", "Plan", "TokenSurvey", "make_plan", "parse_memory", "run", "survey", "token_budget"]
