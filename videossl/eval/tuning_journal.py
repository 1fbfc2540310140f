"""The settings that a search has tried, on disk line by line: a search that was cut off goes on from it.

The first line says what the scores depend on besides the protocol; each other line is one protocol with its scores.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from videossl.errors import UserError
from videossl.eval.protocol import Protocol
from videossl.eval.tuning import Scores, SequenceScore


class TuningJournal:
    """Scores by protocol, of this search and of one before it that depended on the same.

    Raises UserError if the file is of a search that depended on something else, or is no journal.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, object]) -> None:
        self.path = path
        self._scores: dict[str, Scores] = {}
        lines = path.read_text().splitlines() if path.is_file() else []
        records = _whole_records(lines)
        if lines and not (records and isinstance(records[0], dict)):
            raise UserError(f"{path} is no journal of a search: choose another --out")
        if records:
            self._check(records[0], depends_on)
        for record in records[1:]:
            sequences = {
                name: SequenceScore(tuple(value["J"]), tuple(value["F"]))
                for name, value in record["sequences"].items()
            }
            self._scores[_key(record["protocol"])] = Scores(sequences)
        # Written anew: a line that was cut off would spoil the one after it.
        kept = records or [dict(depends_on)]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def get(self, protocol: Protocol) -> Scores | None:
        """What the protocol reached; None if it was not tried."""
        return self._scores.get(_key(protocol.as_dict()))

    def add(self, protocol: Protocol, scores: Scores) -> None:
        """Holds what a protocol reached, on disk when this returns."""
        self._scores[_key(protocol.as_dict())] = scores
        sequences = {name: {"J": s.j, "F": s.f} for name, s in scores.sequences.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"protocol": protocol.as_dict(), "sequences": sequences}) + "\n")

    def _check(self, found: Mapping[str, object], depends_on: Mapping[str, object]) -> None:
        other = [key for key, value in depends_on.items() if found.get(key) != value]
        if other:
            raise UserError(
                f"{self.path} is of a search with another {', '.join(other)}: choose another --out, or delete that folder"
            )


def _whole_records(lines: Sequence[str]) -> list[dict]:
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # the last line of a search that was killed while it wrote
            break
    return records


def _key(protocol: Mapping[str, object]) -> str:
    """Equal for protocols that do the same; where they come from is not part of it."""
    same = {key: value for key, value in protocol.items() if key != "source"}
    return json.dumps(same, sort_keys=True)
