"""Observables: what can be computed while a model runs, without its attention maps."""

from scfast.observables.base import BatchInfo, Observable
from scfast.observables.entropy import Entropy
from scfast.observables.hidden_states import HiddenStates
from scfast.observables.received import Received
from scfast.observables.rollout import Rollout

__all__ = ["BatchInfo", "Entropy", "HiddenStates", "Observable", "Received", "Rollout"]
