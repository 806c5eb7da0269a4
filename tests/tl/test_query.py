import numpy as np
import pandas as pd
import pytest

from scfast.tl._query import where_rows

TABLE = pd.DataFrame(
    {
        "drug": pd.Categorical(["Nutlin", "DMSO", "Nutlin", "a & b"]),
        "dose": [0.0, 1.25, 12.5, np.nan],
        "batch": [1, 2, 3, 4],
        "donor": ["101", "107", "101", None],
        "cell type": ["B", "T", "B", "NK"],
        "passed": [True, False, True, True],
    }
)


@pytest.mark.parametrize(
    "condition",
    [
        "drug == 'Nutlin'",
        'drug != "Nutlin"',
        "dose > 1",
        "dose >= 1.25 and batch < 3",
        "dose > 1 & batch < 3",
        "dose > 1 | batch == 1",
        "not drug == 'Nutlin' or dose == 0",
        "~(batch == 1)",
        "0 < dose < 5",
        "drug in ['DMSO', 'a & b']",
        "donor not in ['101']",
        "batch in (1, 4)",
        "`cell type` == 'B'",
        "`cell type` == 'B' & passed",
        "passed",
        "not passed",
        "passed == True",
        "drug == 'a & b'",
        "dose > -1",
        "batch > dose",
        "donor == 'none of them'",
        "(drug == 'Nutlin' and (dose < 1 or batch == 3))",
    ],
)
def test_conditions_mean_what_pandas_means(condition):
    expected = TABLE.index.isin(TABLE.query(condition).index)
    assert np.array_equal(where_rows(TABLE, condition), expected)


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("__import__('os').system('true')", "a function call"),
        ("drug.__class__ == 'x'", "an attribute, 'drug.__class__'"),
        ("drug.str.startswith('N')", "a function call"),
        ("drug[0] == 'N'", "an index"),
        ("drug == open('x')", "a function call"),
        ("drug in list(drug)", "a function call"),
        ("batch + 1 == 2", "arithmetic"),
        ("batch == 9 ** 9 ** 9", "arithmetic"),
        ("(lambda: 0)() == 0", "a function call"),
        ("[x for x in (1,)] == 1", "ListComp"),
        ("drug == f'{dose}'", "a formatted string"),
        ("(y := 1) == batch", "an assignment"),
        ("drug == ('x' if passed else 'y')", "a conditional"),
        ("drug == b'x'", "Constant"),
        ("drug == None", "Constant"),
        ("drug is 'x'", "use =="),
        ("drug in 'Nutlin'", "a list of values"),
        ("'x'", "Constant"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*with.*literal:SyntaxWarning")
def test_anything_else_is_refused_by_name(condition, what):
    with pytest.raises(ValueError, match="is refused") as refusal:
        where_rows(TABLE, condition)
    assert what in str(refusal.value)


@pytest.mark.parametrize(
    "condition", ["", "drug ==", "drug == 'x", "@x == 1", "import os", "a; b", "x = 1", "(" * 500, "\0"]
)
def test_what_cannot_be_read(condition):
    with pytest.raises(ValueError, match="cannot be read"):
        where_rows(TABLE, condition)


def test_deep_nesting_is_refused_and_does_not_crash():
    with pytest.raises(ValueError, match="cannot be read"):
        where_rows(TABLE, "not " * 100_000 + "passed")


@pytest.mark.parametrize(
    ("condition", "kind", "message"),
    [
        ("colour == 'red'", KeyError, "there is no column 'colour' in ['drug', 'dose'"),
        ("`cell kind` == 'red'", KeyError, "there is no column 'cell kind'"),
        ("donor == 101", ValueError, "compares donor, which is text, with 101, a number: put quotes"),
        ("dose == '1.25'", ValueError, "compares '1.25', which is text, with dose, a number"),
        ("donor < '105'", ValueError, "donor has missing values"),
        ("drug", ValueError, "drug alone is no condition"),
    ],
)
def test_mistakes_are_named(condition, kind, message):
    with pytest.raises(kind) as mistake:
        where_rows(TABLE, condition)
    assert message in mistake.value.args[0]


def test_an_empty_list_holds_nothing():
    assert not where_rows(TABLE, "drug in []").any()
    assert where_rows(TABLE, "drug not in []").all()
