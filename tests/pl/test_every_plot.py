"""Every plot as a picture: nothing cut off or on top of something else, legible, with units, in colours all can tell.

What is asserted holds for any version of matplotlib and of its fonts, which a stored picture does not.
"""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.legend import Legend
from matplotlib.ticker import ScalarFormatter

import scfast
from tests.pl.gallery import GALLERY

#: A letter in points at least; contrast of text to what is behind it, level AA of the accessibility guidelines.
SMALLEST, CONTRAST = 6.0, 4.5
#: Inches of a figure at most; at 200 dots to the inch less than a picture may have.
WIDEST, TALLEST = 24.0, 60.0
#: Differences of colours (CIE 1976): seen at a glance side by side in small marks.
APART = 15.0
#: What needs no unit: counts of something named, ratios, cosines, ranks and scores.
UNITLESS = (
    "cosine", "share", "layer", "head", "precision", "recall", "step", "log10 p", "macro-F1", "Pearson", "rank",
    "predicted", "true class", "scaled", "genes", "tokens", "attention", "relevance", "weight of the edge", "score",
    "change of the edge",
)  # fmt: skip
#: Plots that look otherwise where groups are many; the others have so many panels, of which one stands for all.
MANY = ("attention_shift", "confusion", "key_genes", "perturbation", "regulator", "rollout")
#: Colour blindness, as matrices on linear light: Viénot, Brettel & Mollon (1999), in sRGB.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


def figure_of(drawn):
    return (drawn[0] if isinstance(drawn, list) else drawn).get_figure(root=True)


def picture(figure):
    """Draw, and return the pixels [height, width], each a number 0xRRGGBB."""
    figure.canvas.draw()
    red, green, blue, _ = np.moveaxis(np.asarray(figure.canvas.buffer_rgba()), -1, 0).astype(np.uint32)
    return red << 16 | green << 8 | blue


def shown_texts(figure):
    """Texts that are drawn, and their boxes in pixels."""
    texts = [*figure.texts, *(part for part in (figure._supxlabel, figure._suptitle) if part)]
    texts += [text for legend in figure.legends for text in legend.texts]
    for axes in figure.axes:
        for child in axes.get_children():
            if isinstance(child, plt.Text):
                texts.append(child)
            elif isinstance(child, Legend):
                texts += child.texts
            elif isinstance(child, Axis) and axes.axison and child.get_visible():
                low, high = sorted(child.get_view_interval())
                places = child.get_ticklocs()
                ticks = zip(child.get_ticklabels(), places, strict=False)
                texts += [child.label, *(label for label, at in ticks if low - 1e-9 <= at <= high + 1e-9)]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent()) for text in dict.fromkeys(texts)]


def linear(colour):
    colour = np.asarray(colour, dtype=float)
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def lab(colour):
    """A colour of linear light in CIE L*a*b*, white D65."""
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    share = np.clip(np.asarray(matrix) @ colour / [0.95047, 1.0, 1.08883], 0, None)
    x, y, z = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one, other, matrix):
    seen = [lab(np.clip(np.asarray(matrix) @ linear(to_rgb(colour)), 0, 1)) for colour in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def look(colour_of):
    """What else than its colour tells a mark of a legend: its line, marker, or kind."""
    kind = type(colour_of).__name__
    if kind != "Line2D":
        return kind
    return colour_of.get_linestyle(), str(colour_of.get_marker()), colour_of.get_linewidth() > 1


def colour_of(handle):
    for name in ("get_facecolor", "get_color", "get_edgecolor"):
        if hasattr(handle, name) and len(colours := to_rgba_array(getattr(handle, name)())):
            return tuple(colours[0][:3])
    return None


def problems(figure):
    """Everything that is wrong with a figure, in words."""
    width, height = figure.get_size_inches()
    found = (
        [] if width <= WIDEST and height <= TALLEST else [f"the figure has {width:.0f} x {height:.0f} inches"]
    )
    if found:
        return found
    pixels = picture(figure)
    texts = shown_texts(figure)
    page = figure.bbox.padded(1.5)
    found += [f"{text.get_text()!r} has letters of {text.get_fontsize():.1f} points" for text, _ in texts
              if text.get_fontsize() < SMALLEST - 1e-6]  # fmt: skip
    found += [f"{text.get_text()!r} is cut off" for text, box in texts
              if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1]  # fmt: skip
    return [
        *found,
        *overlaps(texts),
        *pale(texts, pixels),
        *without_unit(figure),
        *alike(figure),
        *covered(figure, texts),
    ]


def overlaps(texts):
    """Pairs of texts on top of each other; slanted ones are compared as what they are, not as their boxes."""
    shapes = np.array([corners(text, box) for text, box in texts])  # [T, 4, 2]
    low, high = shapes.min(1), shapes.max(1)
    meet = (low[:, None] < high[None] - 1).all(-1) & (low[None] < high[:, None] - 1).all(-1)
    for i, j in np.argwhere(np.triu(meet, 1)):
        if apart(shapes[i], shapes[j]) < -1.0:
            yield f"{texts[i][0].get_text()!r} and {texts[j][0].get_text()!r} are on top of each other"


def corners(text, box):
    angle = text.get_rotation() % 180
    if min(angle % 90, 90 - angle % 90) < 1:
        return np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
    # width w and height h of the text itself, from those of its box
    sine, cosine = np.abs(np.sin(np.radians(angle))), np.abs(np.cos(np.radians(angle)))
    h = text.get_fontsize() * text.get_figure(root=True).dpi / 72
    w = max((box.width - h * sine) / cosine, (box.height - h * cosine) / sine, h)
    turn = np.radians(angle)
    along, up = (
        np.array([np.cos(turn), np.sin(turn)]) * w / 2,
        np.array([-np.sin(turn), np.cos(turn)]) * h / 2,
    )
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    return np.array([middle - along - up, middle + along - up, middle + along + up, middle - along + up])


def apart(one, other):
    """Pixels between two rectangles along the side that separates them best; less than 0 where they meet."""
    best = -np.inf
    for shape in (one, other):
        for side in (shape[1] - shape[0], shape[3] - shape[0]):
            axis = side / max(np.linalg.norm(side), 1e-9)
            a, b = one @ axis, other @ axis
            best = max(best, a.min() - b.max(), b.min() - a.max())
    return best


def pale(texts, pixels):
    """Texts that stand out too little from the commonest colour behind them."""
    for text, box in texts:
        rows = slice(int(max(0, len(pixels) - box.y1)), int(max(1, len(pixels) - box.y0)) + 1)
        behind = pixels[rows, int(max(0, box.x0)) : int(box.x1) + 1]
        if not behind.size or len(text.get_text()) < 2:
            continue
        colours, count = np.unique(behind, return_counts=True)
        ground = (colours[count.argmax()] >> np.array([16, 8, 0]) & 255) / 255
        if (ratio := contrast(to_rgb(text.get_color()), ground)) < CONTRAST:
            yield f"{text.get_text()!r} has a contrast of {ratio:.1f}"


def without_unit(figure):
    """Scales of numbers of which no label, here or on the same side of the figure, says what they are."""
    for axes in figure.axes:
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            ticks = [
                label for label in axis.get_ticklabels() if label.get_visible() and label.get_text().strip()
            ]
            numbers = isinstance(axis.get_major_formatter(), ScalarFormatter)
            if not axes.axison or not axis.get_visible() or not ticks or not numbers:
                continue
            label = axis.get_label_text() or " ".join(
                other.get_xlabel() if name == "x" else other.get_ylabel()
                for other in figure.axes
                if other is not axes
            )
            if not label.strip():
                yield f"the {name} axis of {axes.get_title(loc='left')!r} has no label"
            elif "(" not in label and "$" not in label and not any(word in label for word in UNITLESS):
                yield f"the label {label!r} has no unit"


def alike(figure):
    """Marks of one legend that look the same to some eyes."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for legend in legends:
        marks = [
            (handle, text.get_text())
            for handle, text in zip(legend.legend_handles, legend.texts, strict=True)
        ]
        for (one, name), (other, second) in itertools.combinations(marks, 2):
            if look(one) != look(other) or colour_of(one) is None or colour_of(other) is None:
                continue
            for vision, matrix in VISION.items():
                if (far := difference(colour_of(one), colour_of(other), matrix)) < APART:
                    yield f"{name!r} and {second!r} look alike with {vision}: {far:.0f}"


def covered(figure, texts):
    """Legends and axes on top of other axes."""
    panels = [
        (axes, axes.get_title(loc="left") or "axes", axes.get_window_extent().extents.tolist())
        for axes in figure.axes
    ]
    for (_, one, box), (_, other, second) in itertools.combinations(panels, 2):
        if meet(box, second):
            yield f"the panels {one!r} and {other!r} are on top of each other"
    straight = [(text, box.extents.tolist()) for text, box in texts if text.get_rotation() % 90 == 0]
    for (text, box), (axes, _, second) in itertools.product(straight, panels):
        if text.axes not in (axes, None) and meet(box, second):
            yield f"{text.get_text()!r} lies on another panel"
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        for _, name, box in panels:
            if meet(legend.get_window_extent().extents.tolist(), box, height=2):
                yield f"a legend lies on {name!r}"


def meet(one, other, height=1):
    """Whether boxes (x0, y0, x1, y1) share more than a pixel across and ``height`` pixels up."""
    (left, low, right, high), (left2, low2, right2, high2) = one, other
    return left < right2 - 1 and left2 < right - 1 and low < high2 - height and low2 < high - height


def test_what_is_wrong_is_seen():
    figure, (left, right) = plt.subplots(1, 2)
    left.set_xlabel("length")
    left.text(0.1, 0.5, "one text")
    left.text(0.12, 0.5, "another text")
    left.text(0.1, 0.8, "too small", fontsize=4)
    right.set_xlabel("tokens")
    right.text(0.9, 0.5, "a text that leaves the page")
    right.text(0.1, 0.8, "hardly there", color="#cccccc")
    right.plot([0, 1], [0, 1], color="#d00000", label="red")
    right.plot([0, 1], [1, 0], color="#cd0505", label="also red")
    right.legend()
    found = "\n".join(problems(figure))
    plt.close(figure)
    for words in (
        "on top of each other", "letters of 4.0 points", "is cut off", "'hardly there' has a contrast",
        "'length' has no unit", "has no label", "'red' and 'also red' look alike", "a legend lies on",
    ):  # fmt: skip
        assert words in found, found


def test_every_plot_is_in_the_gallery():
    assert set(GALLERY) == set(scfast.pl.__all__)


@pytest.mark.parametrize("name", list(GALLERY))
def test_five_groups_are_drawn_well(name):
    assert problems(figure_of(GALLERY[name](5))) == []


@pytest.mark.parametrize("name", MANY)
def test_five_hundred_groups_are_drawn_well(name):
    assert problems(figure_of(GALLERY[name](500))) == []
