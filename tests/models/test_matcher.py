"""Names of genes are compared once, not once for every block of cells."""

import pandas as pd

from scfast.models.gene_ids import Matcher


class Found(list):
    def describe(self):
        return f"{len(self)} genes"


def test_names_are_compared_once(monkeypatch):
    asked, compared = [], []
    equals = pd.Index.equals
    monkeypatch.setattr(pd.Index, "equals", lambda self, other: compared.append(1) or equals(self, other))
    matcher = Matcher(lambda var: asked.append(1) or Found(var.index), "toy")
    one, other = (pd.DataFrame(index=["CD3D", "LYZ"]) for _ in range(2))
    first = matcher(one)
    for var in (one, other):
        assert matcher(var) is first
        compared.clear()
        assert matcher(var) is first
        assert not compared, "an index that is known is compared again"
    assert asked == [1]
    assert matcher(pd.DataFrame(index=["CD3D", "MS4A1"])) == ["CD3D", "MS4A1"]


def test_columns_that_change_are_seen():
    matcher = Matcher(lambda var: Found(var["symbol"]), "toy")
    var = pd.DataFrame({"symbol": ["CD3D", "LYZ"]}, index=["a", "b"])
    assert matcher(var) == ["CD3D", "LYZ"]
    var.loc["b", "symbol"] = "MS4A1"  # in place
    assert matcher(var) == ["CD3D", "MS4A1"]
    assert matcher(var[[]].assign(symbol="NKG7")) == ["NKG7", "NKG7"]
