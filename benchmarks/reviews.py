"""Old labels in new words: sentiment of films, then goods, messages and editorials, beside what people try first.

    python benchmarks/reviews.py [--contestants ridge_all er perdure …] [--memory 100] [--seeds 0] [--again NAME …]
        [--out var/bench/reviews]

Two labels, six sessions: three of film reviews, then one each of product reviews, tweets and newspaper editorials;
after each session all that has come is evaluated. No constant was tuned to these rows: every contestant has those of
CLINC150. But two of Perdure's rules were found on a like draw of them: that an undecided challenger is asked again by
what has come since, and that an update distils what the adapter itself answered; its learning rate, how it weighs an
adapter and that it distils replayed rows alone were chosen on other rows of the same sources, and a run of this very
benchmark showed that negative flips must be judged beyond chance; another, that an adapter's first update in halves may
lag, which other draws then confirmed. Texts and ratings are those of Hutto and Gilbert,
"VADER", ICWSM 2014, as their Python package ships them (MIT licence); it is downloaded, checked and unpacked under
--out. Rows with a mean rating of at least 0.5 either way are taken. Writes benchmarks/results/reviews.json; what is
finished is not run again, whatever the code is by now (each run says its commit; --again NAME … runs it anew).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import perdure
import perdure_replay
from backtest_clinc import commit, processor
from contestants.backbone import Backbone
from contestants.base import Context, Order, Rows, Session
from contestants.child import Task
from contestants.committed import Committed, note, noted
from contestants.contest import Given, Run, Unavailable, contend, finished, read_run, whole, write_run
from contestants.entrants import ENTRANTS
from contestants.features import FrozenFeatures
from contestants.recipe import Recipe
from contestants.results import lines, results, table
from continual import code_digest
from perdure.errors import UsageError

RESULTS = Path(__file__).parent / "results"
PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("movieReviewSnippets", "movieReviewSnippets", "movieReviewSnippets", "amazonReviewSnippets", "tweets")
SOURCES += ("nytEditorialSnippets",)
STREAM, EVALUATION = 1000, 400
"""Rows of a session to learn from, and to be evaluated on."""
LEAST = 0.5
"""Mean rating, from −4 to 4, from which a row has a label; what is nearer to 0 has none."""
ORDER = "reviews"
MODEL = "all-MiniLM-L6-v2"
CONTESTANTS = ("ncm", "slda_all", "ridge_all", "naive_lora", "er", "er_ewc", "joint_lora", "perdure")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", choices=list(ENTRANTS), default=list(CONTESTANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of what is drawn, and of the contestants")
    parser.add_argument("--memory", type=int, default=100, help="samples kept of a class")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", nargs="+", choices=list(ENTRANTS), default=[], help="run these anew")
    parser.add_argument("--out", type=Path, default=Path("var/bench/reviews"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    try:
        texts = rated(package(options.out))
    except UsageError as error:
        sys.exit(f"reviews.py: {error}")
    file = options.results / "reviews.json"
    committed = Committed(file)
    runs = {run.given.name: run for run in committed.runs}
    backbone = Backbone(MODEL)
    taken = {
        "commit": commit(),
        "threads": options.threads,
        "processor": processor(),
    }
    for seed in options.seeds:
        order = dealt(texts, seed)
        for name in options.contestants:
            given = Given(name, ORDER, seed, options.memory, "test", {"package": PACKAGE, "model": MODEL})
            if given.name in runs and name not in options.again:
                continue
            run = None if name in options.again else read_run(given, options.out)
            if run is None:
                run = take(given, order, backbone, options)
                note(run, options.out, taken)
                write_run(run, options.out)
            runs[given.name] = run
    found = results(
        list(runs.values()),
        setup={"command": "python benchmarks/reviews.py", "cores": os.cpu_count(), **taken},
        about={run.given.contestant: ENTRANTS[run.given.contestant].about for run in runs.values()},
        memory=options.memory,
        ceilings=[name for name, entrant in ENTRANTS.items() if entrant.keeps_all],
        taken=lambda run: committed.taken(run) or noted(run, options.out) or taken,
    )
    # The goals are CLINC150's.
    del found["goals"]
    options.results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**found, "recipe": asdict(Recipe())}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(table(list(runs.values())))))
    print(f"written to {file}")


def take(given: Given, order: Order, backbone: Backbone, options: argparse.Namespace) -> Run:
    """One run, from its beginning."""
    entrant = ENTRANTS[given.contestant]
    try:
        if entrant.start is not None:
            # What another code began is not gone on with: the run would be of both, or be the old one under a new name.
            folder = options.out / "work" / f"{given.name}-{code_digest(perdure, perdure_replay)}"
            task = Task(order, given.memory, given.seed, MODEL, options.threads, Recipe(), folder, options.out.parent)
            return finished(given, entrant.start(task))
    except Unavailable as error:
        return Run(given, None, missing=str(error))
    features = FrozenFeatures(backbone, options.out / "features", all_layers=entrant.all_layers)
    if not entrant.trains:
        features.prepare(text for session in order.sessions for text in session.rows.texts)
        features.prepare(text for rows in order.evaluation for text in rows.texts)
    assert entrant.make is not None
    contestant = entrant.make(Context(backbone, features, given.memory, given.seed, Recipe()))
    asked = whole(order) if entrant.keeps_all else order
    outcome = contend(contestant, asked, features, memory=None if entrant.keeps_all else given.memory)
    print(f"{given.name}  acc {outcome.figures().acc:.4f}", flush=True)
    return finished(given, outcome)


def package(folder: Path) -> bytes:
    """The inner archive of the package's source distribution, downloaded once.

    Raises:
        UsageError: it cannot be downloaded, or is not the one that was used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{PACKAGE.replace('==', '-')}.tar.gz"
    path = folder / name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run(
            [*command, "--no-build-isolation", "--dest", str(folder), PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not path.exists():
            raise UsageError(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[-300:]}. Put {name} into {folder}")
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise UsageError(f"{path} has the hash {digest[:16]}…, not {SHA256[:16]}…: delete it, and run this again")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        inner = archive.extractfile(f"{name.removesuffix('.tar.gz')}/{INNER}")
        assert inner is not None
        return inner.read()


def rated(archive: bytes) -> dict[str, list[tuple[str, str]]]:
    """Texts and labels of each source, in the order of its file; a text of both labels, or said twice, once."""
    found: dict[str, list[tuple[str, str]]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for source in dict.fromkeys(SOURCES):
            file = files.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert file is not None
            read = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
            found[source] = list(dict(labelled(read)).items())
    return found


def labelled(lines: Iterator[str] | io.TextIOWrapper) -> Iterator[tuple[str, str]]:
    """Text and label of each row `id, rating, text` that is rated clearly."""
    for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        if len(row) == 3 and abs(float(row[1])) >= LEAST:
            yield row[2], "positive" if float(row[1]) > 0 else "negative"


def dealt(texts: dict[str, list[tuple[str, str]]], seed: int) -> Order:
    """Six sessions, drawn by `seed`."""
    rng = random.Random(seed)
    decks = {source: rng.sample(rows, len(rows)) for source, rows in texts.items()}
    sessions, evaluation = [], []
    for number, source in enumerate(SOURCES):
        taken, decks[source] = decks[source][: STREAM + EVALUATION], decks[source][STREAM + EVALUATION :]
        sessions.append(Session(number, rows_of(taken[:STREAM])))
        evaluation.append(rows_of(taken[STREAM:]))
    return Order(ORDER, seed, tuple(sessions), tuple(evaluation))


def rows_of(pairs: Sequence[tuple[str, str]]) -> Rows:
    return Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


if __name__ == "__main__":
    main()
