"""Tables of a comparison say what its groups hold."""

import csv
import io
import math

from pipelines.comparison import compare_runs
from pipelines.comparison_groups import Comparison
from pipelines.comparison_tables import csv_text, number_table, score_table
from pipelines.display import markdown_table
from pipelines.tracking_runs import RecordedRun


def run(name: str, schema: str, way: str, **usdr: float) -> RecordedRun:
    """A run with these scores; the mixture has -2 dB, and cSDR is a tenth of uSDR."""
    metrics = {"system/minutes": 10.0, "system/parameters_trained": 1000.0}
    for stem, value in usdr.items():
        metrics |= {f"test/usdr_{stem}": value, f"test/csdr_{stem}": value / 10}
        metrics |= {f"test/usdr_{stem}_mixture": -2.0, f"test/usdr_{stem}_oracle": 9.0}
    tags = {"band_schema": schema, "way": way, "stems": ",".join(usdr)}
    return RecordedRun(
        run_id=name, name=name, status="FINISHED", tags=tags, params={"seed": name[-1]},
        metrics=metrics,
    )  # fmt: skip


def comparison(*by: str) -> Comparison:
    runs = [
        run("a0", "v7", "base", drums=1 / 3),
        run("a1", "v7", "base", drums=2 / 3),
        run("a2", "v7", "base", drums=math.nan),
        run("b0", "v7", "mtl", drums=2.0, bass=1.0),
        run("c0", "generic", "base", drums=math.nan),
        run("d0", "generic", "mtl", drums=1.0, bass=1.004),
    ]
    return compare_runs(runs, {}, by or ("band_schema", "way"))


def test_scores_at_a_glance() -> None:
    table = score_table(comparison(), "usdr")
    assert table.header == ("band_schema", "way", "drums", "bass", "mean", "runs")
    assert table.rows == (
        ("v7", "base", "0.50 ± 0.24 (1 nan)", "", "", "2"),
        ("v7", "mtl", "2.00", "1.00", "1.50", "1"),
        ("generic", "base", "nan", "", "", "0"),
        ("generic", "mtl", "1.00", "1.00", "1.00", "1"),
        ("mixture (floor)", "", "-2.00", "-2.00", "-2.00", ""),
        ("ideal mask (ceiling)", "", "9.00", "9.00", "9.00", ""),
    )
    assert score_table(comparison(), "csdr").rows[1][2] == "0.20"


def test_the_best_of_a_column_are_all_that_show_its_highest_value() -> None:
    # Both show 1.00 for bass; floor and oracle do not compete.
    assert score_table(comparison(), "usdr").best == {(1, 2), (1, 3), (3, 3), (1, 4)}


def test_a_part_begins_with_another_first_value() -> None:
    assert score_table(comparison(), "usdr").rules == (2, 4)
    assert score_table(comparison("way"), "usdr").rules == (2,)


def test_one_stem_has_no_mean_and_one_row_no_best() -> None:
    one = compare_runs([run("a0", "v7", "base", drums=1.0)], {}, ("way",))
    table = score_table(one, "usdr")
    assert table.header == ("way", "drums", "runs")
    assert table.best == set()


def test_runs_that_count_may_differ_between_stems() -> None:
    runs = [run("a0", "v7", "x", drums=1.0), run("a1", "v7", "x", drums=1.0, bass=1.0)]
    assert score_table(compare_runs(runs, {}, ("way",)), "usdr").rows[0][-1] == "1 to 2"


def test_all_numbers_with_two_decimals() -> None:
    header, rows = number_table(comparison())
    first = dict(zip(header, rows[0], strict=True))
    assert (first["stem"], first["runs"], first["nan"], first["trained"]) == ("drums", 3, 1, 1000)
    assert first["uSDR"] == 0.5
    assert first["± uSDR"] == (1 / 18) ** 0.5
    assert rows[1][header.index("± uSDR")] == ""
    line = markdown_table(header, rows).splitlines()[2]
    assert line.startswith("| v7 | base | drums | 3 | 1 | 0.50 | 0.24 | 0.05 | 0.02 | 2.50 |")


def test_the_csv_gives_back_every_digit() -> None:
    compared = comparison()
    records = list(csv.DictReader(io.StringIO(csv_text(compared))))
    assert len(records) == len(compared.groups)
    for record, group in zip(records, compared.groups, strict=True):
        assert (record["band_schema"], record["way"], record["stem"]) == (*group.key, group.stem)
        for measure, scores in group.test.items():
            values = [float(value) for value in record[f"test_{measure}_values"].split(";")]
            assert str(values) == str(list(scores.values))
            assert str(float(record[f"test_{measure}"])) == str(scores.mean)
            assert int(record[f"test_{measure}_nan"]) == scores.nan
            spread = record[f"test_{measure}_spread"]
            assert math.isnan(scores.spread) if spread == "" else float(spread) == scores.spread
        assert str(float(record["gain"])) == str(group.gain.mean)
        assert float(record["test_usdr_mixture"]) == -2.0
        assert float(record["test_usdr_oracle"]) == 9.0
        assert record["seeds"].split(";") == list(group.seeds)
        assert record["run_names"].split(";") == list(group.runs)
    # A third has no short decimal form: what is read back is the value itself.
    assert float(records[0]["test_usdr_values"].split(";")[0]) == 1 / 3
