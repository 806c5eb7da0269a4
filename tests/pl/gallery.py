"""Results of every tool that a plot draws, on toy cells, in as many groups as one likes; names as atlases have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

import scfast
from scfast.train.scores import classification_scores
from tests.toy import BACKEND, toy_adata, toy_source

#: Groups that the tools really see; further ones are copies under names of their own.
OLD = ["B/plasma", "Mono", "T"]
KINDS = (
    "CD8-positive, alpha-beta T cell",
    "naive B cell",
    "NK",
    "classical monocyte",
    "plasmacytoid dendritic cell",
)
REFERENCE = {"G0": ["G1", "G2", "G9"], "G4": ["G1", "G11"], "G5": ["G2", "G8"]}


def names(n: int) -> list[str]:
    """``n`` different names of groups."""
    return [f"{KINDS[i % 5]} {i // 5 + 1}" if i > 4 else KINDS[i] for i in range(n)]


@cache
def of_tools() -> Any:
    """Toy cells after the tools."""
    adata, model, other = toy_adata(60), toy_source(cls=True), toy_source(cls=True, seed=5)
    adata.obs["type"] = adata.obs["type"].fillna("T")  # the toy has a cell without
    grouped = {"groupby": "type", "backend": BACKEND}
    scfast.tl.rollout(adata, model, null="untrained", **grouped)
    scfast.tl.received(adata, model, null="untrained", **grouped)
    scfast.tl.rollout_matrix(adata, model, genes=[f"G{i}" for i in (0, 1, 2, 4, 5)], **grouped)
    scfast.tl.rank_profile(adata, {"base": model, "tuned": other}, genes=["G0", "G5"], **grouped)
    scfast.tl.attention_shift(adata, model, other, **grouped)
    scfast.tl.key_genes(adata, model, null="untrained", highlight=["G0", "G5"], **grouped)
    scfast.tl.similarity(
        adata, model, genes=[f"G{i}" for i in range(30) if i % 7 != 3], cell="cell0", min_cells=1, **grouped
    )
    clusters = {f"G{i}": f"Lymphoid tissue - adaptive immunity {i % 3}" for i in range(30)}
    scfast.tl.prevalence(adata, clusters, n_bootstrap=20, n_permutations=20)
    scfast.tl.enrich(
        adata,
        {f"HALLMARK_INTERFERON_GAMMA_RESPONSE_{i}": [f"G{j}" for j in range(i, i + 9)] for i in range(8)},
        top=8,
    )
    scfast.tl.probe(adata, model, ["type", "donor"], folds=3, backend=BACKEND)
    scfast.tl.grn(adata, model, min_cells=1, n_blocks=3, compare=("T", "Mono"), **grouped)
    scfast.tl.regulator(adata, "G0", network="all", reference=REFERENCE, top=12)
    scfast.tl.grn_score(adata, REFERENCE, n_null=5)
    scfast.tl.compare_de(adata, key="rollout", top=[5])
    adata.uns["relevance"] = {name: adata.uns["rollout"][name] for name in ("table", "groups", "params")}
    rng = np.random.default_rng(0)
    heads = pd.DataFrame(np.argwhere(np.ones((3, 12, 12))), columns=["group", "layer", "head"])
    heads["group"] = pd.Categorical.from_codes(heads["group"].to_numpy(), OLD)
    heads["weighted"] = rng.random(len(heads))
    adata.uns["attention_norms"] = {"heads": heads, "groups": adata.uns["rollout"]["groups"]}
    return adata


@cache
def results(n: int) -> Any:
    """The same with ``n`` groups in every result."""
    adata = of_tools().copy()
    adata.uns = {key: _widened(key, value, names(n)) for key, value in adata.uns.items()}
    _widen_others(adata.uns, names(n))
    return adata


def _widened(key: str, value: Any, new: list[str]) -> Any:
    """Tables by group, whose rows are repeated under the new names."""
    if isinstance(value, pd.DataFrame):
        if list(value.index[-3:]) == OLD:
            wide = (
                value.iloc[-3:].iloc[[i % 3 for i in range(len(new))]].set_axis(pd.Index(new, name="group"))
            )
            return pd.concat([value.iloc[:-3], wide])
        for column in {"group", "network"} & set(value.columns):
            parts = dict(iter(value.groupby(value[column].astype(str), sort=False)))
            others = [part for name, part in parts.items() if name not in OLD]
            if set(OLD) <= set(parts):
                wide = [parts[OLD[i % 3]].assign(**{column: name}) for i, name in enumerate(new)]
                value = pd.concat([*others, *wide], ignore_index=True)
                order = [name for name in parts if name not in OLD]
                value[column] = pd.Categorical(value[column], [*order, *new])
        return value
    if isinstance(value, Mapping):
        return {name: part if name == "params" else _widened(key, part, new) for name, part in value.items()}
    return value


def _widen_others(uns: dict[str, Any], new: list[str]) -> None:
    """Arrays with a row per group, and tables with a column per group."""
    copies = [i % 3 for i in range(len(new))]
    matrix, similarity, table = uns["rollout_matrix"], uns["similarity"], uns["key_genes"]["table"]
    matrix["mean"], matrix["group_names"] = matrix["mean"][copies], np.array(new)
    similarity["map"] = similarity["map"][copies]
    similarity["token_counts"] = similarity["token_counts"][[0, *(1 + i for i in copies)]]
    similarity["token_groups"] = np.array(["all", *new])
    ranks = {
        f"rank_{name}": table[f"rank_{OLD[i].replace('/', '|')}"] for i, name in zip(copies, new, strict=True)
    }
    kept = table.drop(columns=[f"rank_{name.replace('/', '|')}" for name in OLD])
    uns["key_genes"]["table"] = pd.concat([kept, pd.DataFrame(ranks)], axis=1)
    heat = uns["regulator"]["influenced"]
    wide = {name: heat["all"] * (1 + i) / 2 for i, name in zip(copies, new, strict=True)}
    uns["regulator"]["influenced"] = pd.concat([heat[["gene", "value", "all"]], pd.DataFrame(wide)], axis=1)
    labels = {f"label {name}": part for name, part in zip(new, [uns["probe"]] * len(new), strict=True)}
    one = uns["probe"]["table"][(uns["probe"]["table"]["label"] == "donor").to_numpy()]
    uns["probe"]["table"] = pd.concat([one.assign(label=label) for label in labels], ignore_index=True)
    uns["probe"]["labels"] = uns["probe"]["labels"].loc[["donor"] * len(new)].set_axis(list(labels))


def log_of(n: int) -> dict[str, Any]:
    """The log of a fine-tuned model that tells ``n`` classes apart."""
    confusion = np.random.default_rng(0).integers(0, 900, (n, n)) + 4000 * np.eye(n, dtype=int)
    return {"settings": {"classes": names(n)}, "test": classification_scores(confusion, names(n), 0)}


def training_logs(n: int) -> dict[str, Any]:
    """As many logs of training."""
    history = [
        {"step": 50 * i, "train_loss": 3 + 4 / (1 + i), "held_out_loss": 3.5 + 4 / (1 + i)} for i in range(20)
    ]
    return {
        name: {"settings": {}, "history": [h | {"held_out_loss": h["held_out_loss"] + k / 20} for h in history],
               "baseline": {"loss": 5.0 + k / 40}}
        for k, name in enumerate(names(n))
    }  # fmt: skip


def perturbed(n: int) -> dict[str, Any]:
    """The log of a model whose predictions of ``n`` perturbations were scored."""
    rng = np.random.default_rng(0)
    metrics = ("pearson", "pearson_change", "pearson_top", "pearson_change_top")
    methods = (
        "model",
        "perceptron",
        "sum of single effects",
        "mean of training perturbations",
        "half of the cells",
    )
    scores = [
        {"seed": 0, "perturbation": f"P{i}", "context": "c", "method": method, **dict.fromkeys(metrics, rng.random())}
        for i in range(n) for method in methods
    ]  # fmt: skip
    return {"settings": {"seed": 0}, "scores": scores}


#: Plot -> its figure for n groups (classes, perturbations, models), drawn with the defaults of a user.
GALLERY: dict[str, Callable[[int], Any]] = {
    "attention_norms": lambda n: scfast.pl.attention_norms(results(n)),
    "attention_shift": lambda n: scfast.pl.attention_shift(results(n)),
    "clustermap": lambda n: scfast.pl.clustermap(results(n)),
    "compare_de": lambda n: scfast.pl.compare_de(results(n)),
    "confusion": lambda n: scfast.pl.confusion(log_of(n)),
    "enrich": lambda n: scfast.pl.enrich(results(n)),
    "grn": lambda n: scfast.pl.grn(results(n)),
    "grn_score": lambda n: scfast.pl.grn_score(results(n)),
    "key_genes": lambda n: scfast.pl.key_genes(results(n)),
    "layer_map": lambda n: scfast.pl.layer_map(results(n)),
    "perturbation": lambda n: scfast.pl.perturbation(perturbed(n)),
    "prevalence": lambda n: scfast.pl.prevalence(results(n)),
    "probe": lambda n: scfast.pl.probe(results(n)),
    "rank_profile": lambda n: scfast.pl.rank_profile(results(n)),
    "received": lambda n: scfast.pl.received(results(n)),
    "regulator": lambda n: scfast.pl.regulator(results(n)),
    "relevance": lambda n: scfast.pl.relevance(results(n)),
    "rollout": lambda n: scfast.pl.rollout(results(n)),
    "rollout_matrix": lambda n: scfast.pl.rollout_matrix(results(n)),
    "similarity_distribution": lambda n: scfast.pl.similarity_distribution(results(n)),
    "similarity_heatmap": lambda n: scfast.pl.similarity_heatmap(results(n)),
    "training": lambda n: scfast.pl.training(training_logs(min(n, 6))),
}
