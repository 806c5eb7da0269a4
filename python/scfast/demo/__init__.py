"""The demonstration: real blood cells, a transformer trained on them, and the genes it attends to."""

from scfast.demo.analysis import Findings, analyse
from scfast.demo.figures import draw_marker_ranks, draw_training
from scfast.demo.markers import MARKERS, marker_ranks

__all__ = ["MARKERS", "Findings", "analyse", "draw_marker_ranks", "draw_training", "marker_ranks"]
