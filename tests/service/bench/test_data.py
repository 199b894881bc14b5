"""What a file of pairs becomes: groups, whatever number of sources they have."""

import json

from PIL import Image

from jrm_service.bench.data import read_data


def test_pairs_of_equal_sources_and_instruction_are_a_group(tmp_path):
    for name, shade in (("a", 0), ("b", 50), ("c", 100)):
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / f"{name}.png")
    rows = [
        {"edited": "c.png", "instruction": "a cat"},
        {"source": "a.png", "edited": "b.png", "instruction": "a cat"},
        {"source": ["a.png", "b.png"], "edited": "c.png", "instruction": "a cat"},
        {"source": ["a.png"], "edited": "c.png", "instruction": "a cat"},
        {"source": ["b.png", "a.png"], "edited": "c.png", "instruction": "a cat"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = read_data(tmp_path / "pairs.jsonl", ["instruction_following"])
    shades = [[image.getpixel((0, 0))[0] for image in group.sources] for group in groups.read()]
    assert shades == [[], [0], [0, 50], [50, 0]]
    assert [len(group.edits) for group in groups.read()] == [1, 2, 1, 1]
    assert groups.number == 4
