"""What each can do, and how that was found out."""

from __future__ import annotations

NO_METHOD = "no: there is no such method"
NEVER = "no: it holds datasets and indices in memory"

ABILITIES: dict[str, dict[str, str]] = {
    "keeps a bound as it goes": {
        "perdure": "yes: per label",
        "faiss": "no: it keeps all it is given; HNSW cannot remove",
        "avalanche": "yes: in all, per class with ClassBalancedBuffer; tensors of which one row stays are held whole",
        "renate": "yes: in all; tensors of which one row stays are held whole",
    },
    "every position has the same chance": {
        "perdure": "yes: tests/replay/test_replay_reservoir.py",
        "faiss": "no choice is made",
        "avalanche": "yes: random weights, the greatest stay",
        "renate": "no: ReservoirBuffer draws below the count without the item itself, so late ones stay more often; "
        "GreedyClassBalancingBuffer takes in every item that comes",
    },
    "the same memory whatever the order": {
        "perdure": "yes: tests/replay/test_replay_order_free.py",
        "faiss": "flat: the same set; HNSW: another graph",
        "avalanche": "no: random numbers in the order of arrival",
        "renate": "no: random numbers in the order of arrival",
    },
    "the same row twice is kept once": {
        "perdure": "yes: `same_rows_twice`",
        "faiss": "no: tried, `same_rows_twice`",
        "avalanche": "no: tried, `same_rows_twice`",
        "renate": "no: tried, `same_rows_twice`",
    },
    "survives a kill at any write": {
        "perdure": "yes: tests/replay/test_replay_kill.py",
        "faiss": "no: write_index writes the file in place",
        "avalanche": f"{NEVER}; a pickle of ours was timed",
        "renate": "no: a file for each sample, then the state, in place",
    },
    "forgets a person": {
        "perdure": "yes: tests/replay/test_replay_forget.py",
        "faiss": "by id from a flat index; HNSW cannot",
        "avalanche": NO_METHOD,
        "renate": NO_METHOD,
    },
    "takes a correction of a label": {
        "perdure": "yes: tests/replay/test_replay_join.py",
        "faiss": "has no labels",
        "avalanche": NO_METHOD,
        "renate": NO_METHOD,
    },
    "knows how far the stream is read": {
        "perdure": "yes: offsets change with the samples, in one transaction",
        "faiss": NO_METHOD,
        "avalanche": NO_METHOD,
        "renate": "no: it counts what was offered",
    },
    "merges with another": {
        "perdure": "yes: tests/replay/test_replay_assembly.py",
        "faiss": "yes: merge_from, for flat indexes",
        "avalanche": NO_METHOD,
        "renate": NO_METHOD,
    },
    "keeps the text": {
        "perdure": "yes",
        "faiss": "no",
        "avalanche": "not as tensors of one size; a dataset of ours could",
        "renate": "no: tensors of a fixed size only",
    },
    "finds neighbours": {
        "perdure": "yes: exact, and anew after each change",
        "faiss": "yes",
        "avalanche": NO_METHOD,
        "renate": NO_METHOD,
    },
    "trains on images, audio, any tensor": {
        "perdure": "no: texts only",
        "faiss": "vectors only",
        "avalanche": "yes",
        "renate": "yes",
    },
}
