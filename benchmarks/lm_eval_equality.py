"""Our scores of a checkpoint beside those of lm-evaluation-harness, question by question.

    pip install lm_eval    # in an environment of its own, with this project
    python -m benchmarks.lm_eval_equality MODEL DATA --limit 100 [--shots N] [--chat] [--text FILE]

Tasks are described to the harness with its own templates, over the files of DATA. Prints acc and
acc_norm of both, and the largest difference of a log-likelihood.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import tinyqmoe
from exporter.evaluation.journal import Journal

MMLU_TEXT = (
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
    "D. {{choices[3]}}\nAnswer:"
)


def metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": n, "aggregation": "mean", "higher_is_better": True} for n in names]


def lines_task(name: str, data: Path, end: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}" + end,
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": metrics("acc", "acc_norm"),
    }


def as_lines(file: Path, folder: Path) -> str:
    """A file of MMLU as JSON lines, in which all choices are texts; returns its path."""
    with file.open(encoding="utf-8", newline="") as source:
        rows = list(csv.reader(source))[1:]
    lines = (
        json.dumps({"question": row[0], "choices": row[1:5], "answer": int(row[5])}) for row in rows
    )
    written = folder / f"{file.stem}.jsonl"
    written.write_text("\n".join(lines), encoding="utf-8")
    return str(written)


def mmlu_task(subject: str, data: Path, folder: Path) -> dict[str, Any]:
    files = {part: data / "mmlu" / part / f"{subject}_{part}.csv" for part in ("dev", "test")}
    parts = {part: as_lines(file, folder) for part, file in files.items()}
    topic = subject.replace("_", " ")
    return {
        "task": f"mmlu_{subject}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": parts},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about "
        f"{topic}.\n\n",
        "doc_to_text": MMLU_TEXT,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": metrics("acc"),
    }


def harness(model: Any, tasks: list[dict[str, Any]], limit: int, shots: int, chat: bool) -> Any:
    import lm_eval

    return lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        log_samples=True,
    )


def scores_of(journal: Path) -> dict[str, list[float]]:
    """Log-likelihoods by id of the question."""
    read = Journal(journal, resume=True)
    read.close()
    return {item.split()[0]: result["scores"] for (_, item), result in read.results.items()}


def compare_task(model: str, data: Path, name: str, theirs: Any, options: dict[str, Any]) -> None:
    """Prints both results of a task; `theirs` are the harness's results by name of its tasks."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        ours = tinyqmoe.evaluate(model, tasks=[name], data=data, journal=journal, **options)
        scores = scores_of(journal)
    (result,) = ours.tasks
    worst, hits, n = 0.0, 0.0, 0
    for task, samples in theirs["samples"].items():
        for sample in samples:
            key = str(sample["doc_id"])
            mine = scores[f"{task.removeprefix('mmlu_')}/{key}" if name == "mmlu" else key]
            harness_scores = [float(answer[0]) for answer in sample["filtered_resps"]]
            pairs = zip(mine, harness_scores, strict=True)
            worst = max(worst, *(abs(a - b) for a, b in pairs))
            hits, n = hits + sample["acc"], n + 1
    norm = {k: v.get("acc_norm,none") for k, v in theirs["results"].items()}
    print(f"{name}: {n} questions, largest difference of a log-likelihood {worst:.2g}")
    print(f"  acc ours {result.total.acc.value:.4f}, theirs {hits / n:.4f}")
    if result.total.acc_norm:
        print(f"  acc_norm ours {result.total.acc_norm.value:.4f}, theirs {norm[name]:.4f}")


def compare_text(model: str, wrapped: Any, file: Path) -> None:
    """Prints both perplexities of a text in windows of 512 tokens."""
    from lm_eval.api.instance import Instance

    text = file.read_text(encoding="utf-8")
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    wrapped._max_length = 512
    (theirs,) = wrapped.loglikelihood_rolling([request])
    found = tinyqmoe.evaluate(model, text=file, window=wrapped.max_length).text
    assert found is not None
    words = math.exp(-theirs / found.n_words)
    print(f"{file.name}: perplexity of a word, ours {found.score.word_perplexity.value:.6g}")
    print(f"  theirs {words:.6g}, {found.n_windows} windows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, default=5, help="of mmlu")
    parser.add_argument("--tasks", nargs="*", default=["arc_easy", "arc_challenge", "mmlu"])
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(given.model, device="cpu", dtype="float32", batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.tasks:
            mmlu = name == "mmlu"
            found = sorted((given.data / "mmlu" / "test").glob("*_test.csv"))
            subjects = [file.stem.removesuffix("_test") for file in found]
            lines = lines_task(name, given.data, "" if name == "hellaswag" else "\nAnswer:")
            several = [mmlu_task(s, given.data, Path(folder)) for s in subjects if mmlu]
            shots = given.shots if mmlu else 0
            theirs = harness(wrapped, several or [lines], given.limit, shots, given.chat)
            options = {"n_shots": shots, "limit": given.limit, "chat": given.chat}
            compare_task(given.model, given.data, name, theirs, options)
    if given.text:
        compare_text(given.model, wrapped, given.text)


if __name__ == "__main__":
    main()
