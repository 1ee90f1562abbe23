import itertools
import json

import numpy as np
import pytest
from PIL import Image

from onediff_jax import cli
from onediff_jax.commands import check_data, make_shards

CONFIG = """
from onediff_jax.train.config import base_config

def get_config():
    config = base_config()
    config.model.update(channels=8)
    config.codec.factor = 2
    config.text.update(vocabulary=60, length=9)
    config.data.sources.photos = dict(kind="folder", path="{path}", validation=2)
    config.data.tasks = dict(text2image=1.0, depth2image=1.0, image_inpainting=0.0)
    config.data.row = (dict(views=1, tokens=17), dict(views=2, tokens=9, count=2))
    return config
"""


@pytest.fixture
def folder(tmp_path):
    """Twelve images of 16 x 16, or 16 x 8 where 4 divides their number, with depth."""
    (tmp_path / "photos" / "depth").mkdir(parents=True)
    lines = []
    for i in range(12):
        image = np.full((16, 8 if i % 4 == 0 else 16, 3), 20 * i, np.uint8)
        for name in (f"{i}.png", f"depth/{i}.png"):
            Image.fromarray(image).save(tmp_path / "photos" / name)
        text = "word " * (12 if i == 5 else 2)
        lines.append({"file_name": f"{i}.png", "text": text.strip(), "depth": f"depth/{i}.png"})
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.py").write_text(CONFIG.format(path=tmp_path / "photos"))
    return tmp_path


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """All rows of these tests have the same padding, and each takes a while."""
    monkeypatch.setattr(check_data, "PADDING_ROWS", 2)


def check(folder, *options):
    return cli.main(["check_data", "--config", str(folder / "config.py"), *options])


def report(folder, *options):
    file = folder / "report.json"
    status = check(folder, "--json", str(file), *options)
    return status, json.loads(file.read_text())


def test_whole_data_is_counted_by_task_and_size(folder, capsys):
    status, found = report(folder)
    assert status == 0 and found["faults"] == []
    assert found["records"] == {"photos text2image": 10, "photos depth2image": 10}
    assert found["sizes"] == {"16 x 16": 16, "16 x 8": 4}  # 0 and 6 are held out
    said = capsys.readouterr().out
    assert "photos text2image" in said and "padding:" in said


def test_the_mixture_is_a_table_of_all_sources(folder, capsys):
    status, found = report(folder)
    assert status == 0
    depth, text = found["mixture"]
    # A row has an example of one view and two of two; a batch eight rows of ten records.
    assert text == dict(task="text2image", source="photos", share=1 / 3, records=10, epochs=800)
    assert depth["task"] == "depth2image" and depth["share"] == pytest.approx(2 / 3)
    said = capsys.readouterr().out
    assert "epochs in 1,000 steps" in said
    (line,) = [line for line in said.splitlines() if "depth2image │" in line]
    assert line.split()[3::2] == ["photos", "66.7%", "10", "1,600"]
    assert report(folder, "--split", "validation")[1]["mixture"] == []


def test_padding_is_what_the_grids_leave_empty(folder):
    # No grid has 17 tokens, so 16 of them are used; 9 are 3 x 3.
    _, found = report(folder)
    one, two = (slot["padding"] for slot in found["padding"])
    assert one == pytest.approx(1 / 17) and two == 0


def test_prompts_that_will_be_cut_are_counted(folder):
    _, found = report(folder)
    assert found["captions"]["longest"] > 9
    assert found["captions"]["cut"] == pytest.approx(2 / 20)  # of two tasks


def test_faults_are_listed_with_their_line_and_the_status_says_so(folder, capsys):
    (folder / "photos" / "depth" / "3.png").write_bytes(b"x")
    Image.new("RGB", (2, 2)).save(folder / "photos" / "4.png")
    status, found = report(folder)
    assert status == 1
    faults = [(f["task"], f["place"].split("/")[-1], f["reason"]) for f in found["faults"]]
    assert [fault[:2] for fault in faults] == [
        ("text2image", "metadata.jsonl, line 5"),
        ("depth2image", "metadata.jsonl, line 4"),
        ("depth2image", "metadata.jsonl, line 5"),
    ]
    assert "image is 2 x 2" in faults[0][2] and "depth depth/3.png cannot be read" in faults[1][2]
    assert found["records"] == {"photos text2image": 9, "photos depth2image": 8}
    said = capsys.readouterr().out
    assert said.count("bad record: ") == 3 and "(2)" in said
    (folder / "photos" / "7.png").unlink()
    status = check(folder)  # a file that is gone is refused before anything is read
    assert status == 1 and "line 8: there is no file '7.png'" in capsys.readouterr().err


def test_data_without_one_good_record_is_reported_like_any(folder):
    for file in (folder / "photos").glob("*.png"):
        file.write_bytes(b"x")
    status, found = report(folder)
    assert status == 1 and len(found["faults"]) == 20 and not found["records"]


def test_a_sample_reads_so_many_records_spread_evenly(folder):
    (folder / "photos" / "1.png").write_bytes(b"x")
    status, found = report(folder, "--records", "3")
    assert status == 1 and sum(found["records"].values()) == 4
    assert {fault["record"] for fault in found["faults"]} == {0}
    assert report(folder, "--records", "3", "--split", "validation")[0] == 0


def test_rows_that_the_run_would_refuse_are_an_error(folder, capsys):
    text = (folder / "config.py").read_text()
    packed = "dict(views=3, tokens=9, packed=True, tasks=('depth2image',))"
    (folder / "config.py").write_text(text.replace("dict(views=2, tokens=9, count=2)", packed))
    assert check(folder) == 1
    assert "No examples of [2] views fill a packed slot of 3" in capsys.readouterr().err
    (folder / "photos" / "1.png").write_bytes(b"x")
    assert report(folder)[1]["faults"]  # which count for more


def test_the_sheet_shows_the_views(folder):
    check(folder, "--sheet", str(folder / "sheet.png"))
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    column = sheet[:, 190, 0].tolist()  # through the first view of each row; titles are lower
    seen = [value for value, pixels in itertools.groupby(column) if len(list(pixels)) > 40]
    assert seen == 2 * [20, 80, 160, 220]  # of each task numbers 1, 4, 8 and 11 of 12


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--source", "photo"], 1, "--source photo can be photos"),
        (["--split", "test"], 1, "There is no split 'test'"),
        (["--config.data.tasks.text2imag=1.0"], 1, "text2imag"),
        (["--records", "0"], 2, "records"),
    ],
)
def test_wrong_options_are_one_line(folder, capsys, options, status, said):
    assert check(folder, *options) == status
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_shards_hold_what_their_source_held_without_its_faults(folder, capsys):
    (folder / "photos" / "depth" / "3.png").write_bytes(b"x")
    out = folder / "shards"
    arguments = ["make_shards", "--config", str(folder / "config.py"), f"--out={out}", "--source"]
    assert cli.main([*arguments, "photos"]) == 0
    printed = capsys.readouterr()
    assert "9 train and 2 validation records" in printed.out
    assert "metadata.jsonl, line 4: depth depth/3.png cannot be read" in printed.err
    text = (folder / "config.py").read_text().replace('kind="folder"', 'kind="shards"')
    text = text.replace(str(folder / "photos"), str(out)).replace(", validation=2", "")
    (folder / "config.py").write_text(text)
    status, found = report(folder)
    assert status == 0 and found["records"] == {"photos text2image": 9, "photos depth2image": 9}
    assert cli.main([*arguments, "photos"]) == 1  # never over an existing folder
    assert "is there already" in capsys.readouterr().err
    assert cli.main([*arguments, "photo"]) == 1
    damaged = next(out.glob("train*"))
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    _, found = report(folder)
    assert found["faults"][0]["reason"] == "its content is not what was written; copy it again"


def test_shards_that_are_interrupted_leave_nothing(folder, capsys, monkeypatch):
    def interrupted(source, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_shards, "checked_record_bytes", interrupted)
    before = sorted(folder.iterdir())
    arguments = ["--config", str(folder / "config.py"), "--source", "photos", "--out"]
    assert cli.main(["make_shards", *arguments, str(folder / "deep" / "shards")]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def rate(folder, *options):
    config = str(folder / "config.py")
    return cli.main(["check_data", "--config", config, "--rate=0.3", *options])


def test_the_tool_measures_and_compares(folder, capsys):
    photos = ["--config.data.tasks.depth2image=0.5", "--config.rows=4"]
    assert rate(folder, *photos, "--needed=1") == 0
    said = capsys.readouterr().out
    assert "examples a second: " in said and "times the 1 that the step needs: enough" in said
    slow = ["--latency=0.2", "--hosts=2", "--config.data.reads=1", "--needed=300"]
    assert rate(folder, *photos, *slow) == 1
    said = capsys.readouterr().out
    assert float(said.split()[0]) <= 5.5
    assert "0.0 times the 300 that the step needs: too few: raise data.reads" in said


def test_hosts_that_do_not_share_the_rows_are_refused(folder, capsys):
    assert rate(folder, "--hosts=3", "--config.rows=4") == 1
    assert "--hosts is 3, which does not divide the 4 rows" in capsys.readouterr().err
