"""Tables say what the rows say."""

from nblib.evaluate import metrics_row, score_run
from nblib.significance import compare_with
from nblib.tables import cost_table, per_query_table, relevance_table, write_table


def test_the_table_says_what_the_rows_say(tmp_path):
    qrels = {"q0": {"d1": 1}, "q1": {"d2": 1}, "q2": {"d3": 1, "d0": 0}}
    runs = {"bm25": {"q0": {"d1": 1.0}}, "dense": {f"q{i}": {f"d{i + 1}": 1.0} for i in range(3)}}
    rows, per_query, name_of_set = [], {}, "a|b"
    for name, run in runs.items():
        per_query[name_of_set, name] = score_run(qrels, run)
        cost = {}
        if name == "bm25":
            cost = {"flops": 1.234, "index_bytes": 2_500_000}
            cost |= {"queries_per_s_1": 1234.4, "queries_per_s_2": 2100.0}
            cost |= {"query_ms_p50": 0.25, "query_ms_p99": 1.5}
        rules = {"top_k": 10, "ignore_identical_ids": True}
        rows.append(metrics_row(name_of_set, "test", name, per_query[name_of_set, name], cost, 5, **rules))
    relevance, cost = relevance_table(compare_with(rows, per_query, "bm25")), cost_table(rows)
    assert relevance["nDCG@10"].tolist() == relevance["MAP"].tolist() == [".333", "1.000"]
    # Differences 0, 1, 1: of the four sign patterns of the two ones, two are as far from 0.
    assert relevance["against bm25"].tolist() == ["", "+.667 [+.000, +1.000] p=.500"]
    assert cost["FLOPS"].tolist() == ["1.23", ""] and cost["index MB"].tolist() == ["2.5", ""]
    assert cost["queries/s (1 / 2 / 4 threads)"].tolist() == ["1,234 / 2,100", ""]
    assert cost["query ms (p50 / p99)"].tolist() == ["0.25 / 1.50", ""]

    write_table(relevance, tmp_path / "out" / "table")
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| dataset | system | nDCG@10 |") and set(markdown[1]) <= set("| -")
    assert len(markdown) == 4 and all(line.count(" | ") == markdown[0].count(" | ") for line in markdown)
    assert "a\\|b" in markdown[2]
    assert (tmp_path / "out" / "table.csv").read_text().count("\n") == 3
    every = per_query_table(per_query)
    assert len(every) == 6 and every.groupby("system")["ndcg_at_10"].mean()["dense"] == 1.0
