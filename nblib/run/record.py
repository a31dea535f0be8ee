"""Keep a small record of a finished run in git: outputs/reference/<profile>/ and the tables of README.md."""

import re
import shutil
from pathlib import Path
from typing import Any

from nblib.files import ROOT, atomic_folder, read_json, write_json, write_text
from nblib.run.layers import BadRequest
from nblib.run.progress import clock
from nblib.speed.rows import large_sentence, search_table, strongest
from nblib.tables import pipe_table

COLUMNS = {
    "system": "system",
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_100": "recall@100",
    "flops": "FLOPS",
    "d_nnz": "terms per document",
    "diff_vs_bm25-tokens": "against bm25-tokens",
    "p_holm_vs_bm25-tokens": "p (Holm)",
    "diff_vs_bm25": "against bm25",
    "p_holm_vs_bm25": "p (Holm)",
}
SWEEPS = {"08_pareto": "table_pareto.md", "13_ablation": "table_ablation.md"}  # written by the notebook
CLUSTER, CLUSTER_TABLES = "07_opensearch", ("table_parity.md", "table_ndcg.md", "table_load.md")
SUMMARY = "12"  # the notebook whose rows stand for its whole profile
KEPT = ("notebook", "profile", "params", "git", "packages", "device", "seed", "wall_s", "peak_gib", "status")


def record(folder: Path, profile: str, reference: Path, readme: Path) -> Path:
    """Copy metrics, figures, tables and facts of each step, and rewrite the README's block of this profile.

    Args:
        folder: outputs/<profile> of a run whose steps are all done.
        profile: its name.
        reference: outputs/reference.
        readme: file with the lines `<!-- <profile> -->` and `<!-- /<profile> -->`; what stands between
            them is replaced by the results, between those of `<profile> cluster` by the tables of 07, and of
            `<profile> notebooks` by the table of the notebooks. A README without them is left alone.

    Returns:
        reference / profile.

    Raises:
        BadRequest: a step is not done, or there is nothing to record.
    """
    steps = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/manifest.json"))}
    if not steps:
        raise BadRequest(f"no run in {folder}: run the profile first")
    unfinished = [name for name, manifest in steps.items() if manifest["status"] != "ok"]
    if unfinished:
        raise BadRequest(f"{', '.join(unfinished)} of {folder} not done: run the profile again first")
    with atomic_folder(reference / profile) as tmp:
        for name, manifest in steps.items():
            _copy_step(folder / name, tmp / name)
            if name.startswith(SUMMARY):
                shutil.copyfile(folder / name / "metrics.json", tmp / "metrics.json")
            write_json(tmp / name / "run.json", {key: manifest[key] for key in KEPT if key in manifest})
    if readme.exists():
        text = replace_block(readme.read_text(encoding="utf-8"), profile, block(folder, steps))
        if CLUSTER in steps:
            there = [(folder / CLUSTER / "figures" / name).read_text("utf-8") for name in CLUSTER_TABLES]
            text = replace_block(text, f"{profile} cluster", "\n".join(there))
        table = notebook_table(steps, readme.parent / "notebooks")
        write_text(readme, replace_block(text, f"{profile} notebooks", table))
    return reference / profile


def _copy_step(source: Path, target: Path) -> None:
    target.mkdir()
    figures = source / "figures"
    for file in [source / "metrics.json", *sorted(figures.glob("*.png")), *sorted(figures.glob("table_*"))]:
        if file.exists():
            shutil.copyfile(file, target / file.name)


def replace_block(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`, if the text has them."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    return pattern.sub(lambda found: found[1] + content + found[2], text)


def block(folder: Path, steps: dict[str, dict[str, Any]]) -> str:
    """Write the Markdown tables of a run: over all data sets if several, of each, or of its sweeps."""
    if "12_speed" in steps:
        return speed_block(read_json(folder / "12_speed" / "metrics.json"))
    if tables := [folder / name / "figures" / file for name, file in SWEEPS.items() if name in steps]:
        return "\n".join(table.read_text(encoding="utf-8") for table in tables)
    rows = read_json(folder / "05_beir_eval" / "metrics.json") if "05_beir_eval" in steps else []
    table = folder / "05_beir_eval" / "figures" / "table_ndcg.md"
    several = len({row["dataset"] for row in rows}) > 1 and table.exists()
    if several:
        return table.read_text(encoding="utf-8") + "\n" + flops_table(rows)
    lines: list[str] = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        chosen = [row for row in rows if row["dataset"] == dataset]
        names = [key for key in COLUMNS if any(row.get(key) is not None for row in chosen)]
        size = f"{chosen[0]['n_docs']:,} documents, {chosen[0]['n_queries']:,} queries"
        cut = steps["05_beir_eval"]["params"]["max_length"]
        lines += [f"`{dataset}`: {size}, documents cut at {cut} tokens (`bm25`: full text).", ""]
        lines += ["| " + " | ".join(COLUMNS[n] for n in names) + " |", "| --- " * len(names) + "|"]
        lines += ["| " + " | ".join(_cell(row, n) for n in names) + " |" for row in chosen] + [""]
    return "\n".join(lines)


def flops_table(rows: list[dict[str, Any]]) -> str:
    """Write data sets x systems by FLOPS in Markdown, the mean last; systems without FLOPS are left out."""
    flops = {(row["dataset"], row["system"]): row["flops"] for row in rows if row.get("flops") is not None}
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    systems = [s for s in dict.fromkeys(row["system"] for row in rows) if all((d, s) in flops for d in sets)]
    lines = [[d, *(f"{flops[d, s]:.2f}" for s in systems)] for d in sets]
    lines.append(["mean", *(f"{sum(flops[d, s] for d in sets) / len(sets):.2f}" for s in systems)])
    return pipe_table(["FLOPS", *systems], lines)


def speed_block(rows: list[dict[str, Any]]) -> str:
    """Write 12's rows in Markdown, a line for each setting against the strongest peer of it; search apart."""
    head = ["what", "setting", "ours", "peer", "unit", "ratio"]
    head += ["ratio with our settings and kernels at the peer", "ours of the machine's limit"]
    search = [row for row in rows if row["row"].startswith("search_")]
    lines = []
    for (name, regime, dtype), (shipped, tuned) in strongest(rows).items():
        if name.startswith("search_"):
            continue
        cells = [name.replace("_", " "), f"{regime} {dtype}".strip(), _three(shipped["ours"])]
        cells += [_three(shipped["peer"]), shipped["unit"], _three(shipped["ratio"])]
        cells.append(_three(tuned["ratio"]) if tuned else "")
        cells.append(f"{shipped['share']:.0%}" if shipped.get("share") else "")
        lines.append(cells)
    parts = [pipe_table(head, lines)] if lines else []
    parts += [pipe_table(*search_table(search))] if search else []
    large = [row for row in search if row["row"] == "search_large" and "ms_marco_ms" in row]
    return "\n".join(parts + [f"{large_sentence(row)}\n" for row in large])


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def notebook_table(steps: dict[str, dict[str, Any]], notebooks: Path) -> str:
    """Write the Markdown table of a run's notebooks: what each does, its time and memory."""
    lines = ["| notebook | what it does | time | peak memory |", "| --- | --- | --- | --- |"]
    for name, manifest in steps.items():
        link = f"[{name}]({notebooks.name}/{name}.ipynb)"
        what, time = purpose(notebooks / f"{name}.ipynb"), clock(manifest["wall_s"])
        lines.append(f"| {link} | {what} | {time} | {manifest['peak_gib']:.1f} GiB |")
    total = clock(sum(manifest["wall_s"] for manifest in steps.values()))
    device = next(iter(steps.values())).get("device", "")
    return "\n".join([*lines, "", f"All steps: {total} on {device}.", ""])


def purpose(notebook: Path) -> str:
    """Read the sentence below a notebook's title; "" if there is no such notebook."""
    if not notebook.exists():
        return ""
    lines = "".join(read_json(notebook)["cells"][0]["source"]).splitlines()
    return next((line for line in lines[1:] if line.strip()), "")


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    if key.startswith("p_"):
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if key == "d_nnz":
        return f"{value:.0f}"
    return f"{value:+.3f}" if key.startswith("diff") else f"{value:.2f}" if key == "flops" else f"{value:.3f}"


def main(profile: str, outputs: Path) -> Path:
    """Record a profile of `outputs`, or several as in "quick,mine", in this repository."""
    profile = "+".join(name.strip() for name in profile.split(","))  # the name of the run's folder
    return record(outputs / profile, profile, ROOT / "outputs" / "reference", ROOT / "README.md")
