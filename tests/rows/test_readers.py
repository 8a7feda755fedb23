"""Lists in JSON files are read piece by piece, so that no file is held in memory."""

import io
import json
import random
import tracemalloc

import pytest

from fusion_vlm.rows import readers
from fusion_vlm.rows.readers import JsonRows, find_entries


@pytest.mark.parametrize("piece", [24, 31, 57])
def test_pieces_change_nothing(piece, monkeypatch):
    """Entries, numbers and multi-byte characters lie across the borders of pieces."""
    monkeypatch.setattr(readers, "PIECE_BYTES", piece)
    rng = random.Random(piece)
    for _ in range(200):
        kinds = ({"a": "\u00e9" * rng.randint(0, 40)}, 12345, -4.5e10, None, [1, [2, "]"]], {})
        values = [rng.choice(kinds) for _ in range(rng.randint(0, 9))]
        text = json.dumps(values, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
        data = rng.choice(["", "\ufeff", " \n" * 20]).encode() + text.encode()
        found = list(find_entries(io.BytesIO(data), "rows.json"))
        assert [json.loads(data[start:end]) for start, end, _ in found] == values
        assert [number for _, _, number in found] == list(range(1, len(values) + 1))
        for broken in (data[:-1], data + b"[1]", data[: len(data) // 2]):
            with pytest.raises(ValueError, match=r"rows\.json"):
                list(find_entries(io.BytesIO(broken), "rows.json"))


def test_memory_does_not_hold_the_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": str(number), "text": "x" * 1000} for number in range(20_000)]))
    tracemalloc.start()
    assert sum(1 for _ in JsonRows(path, "rows.json").values()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000 < path.stat().st_size
