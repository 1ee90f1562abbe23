import json
import tarfile

import pytest
from picture_packages import NAMES, TOOLS, fetch, fetch_pictures, names_of, refusal
from PIL import Image

pytest_plugins = ("picture_packages",)

TOOL = TOOLS / "fetch_pictures.py"

OTHER_NAMES = [
    ("1f9d1-200d-1f4bb", "technologist", "a technologist"),
    ("1f468-200d-1f33e", "man_farmer", "a male farmer"),
    ("1f469-200d-1f9b0", "woman_red_hair", "a woman with red hair"),
    ("1f6b4-200d-2642-fe0f", "man_biking", "a man biking"),
    ("1f935-200d-2640-fe0f", "woman_in_tuxedo", "a woman in a tuxedo"),
    ("1f937-1f3fb", "person_shrugging_light_skin_tone", "a person shrugging, light skin tone"),
    ("1f468-200d-1f467-200d-1f467", "family_man_girl_girl", "a family of a man and two girls"),
    ("1f46b", "woman_and_man_holding_hands", "a woman and man holding hands"),
    ("1f48f", "kiss", "two people kissing"),
    ("2702-fe0f", "scissors", "scissors"),
    ("1fa93", "axe", "an axe"),
    ("1f984", "unicorn", "a unicorn"),
    ("231b", "hourglass_done", "an hourglass"),
    ("1f509", "speaker_medium_volume", "a speaker at medium volume"),
    ("1f512", "locked", "a closed padlock"),
    ("1f510", "locked_with_key", "a closed padlock with a key"),
    ("0035-fe0f-20e3", "keycap_5", "a blue keycap with the number 5"),
    ("1f18e", "AB_button_(blood_type)", "a blood type button that says AB"),
    ("1f550", "one_o’clock", "a clock showing one o'clock"),
    ("264c", "Leo", "the zodiac sign Leo"),
    ("1f6ad", "no_smoking", "a no smoking sign"),
    ("1f1eb-1f1f7", "France", "the flag of France"),
    ("1f1f3-1f1f1", "Netherlands", "the flag of the Netherlands"),
    ("1f1e6-1f1ec", "Antigua_&_Barbuda", "the flag of Antigua and Barbuda"),
    ("1f3f3-fe0f-200d-1f308", "rainbow_flag", "a rainbow flag"),
]


@pytest.mark.parametrize(("stem", "name", "text"), OTHER_NAMES)
def test_a_name_becomes_words_that_say_what_the_image_shows(stem, name, text):
    assert fetch_pictures.caption(stem, names_of(stem, name)) == text


def test_a_nation_spelt_in_tags_is_found_without_the_end_mark_that_file_names_lack():
    whole = "1f3f4-e0067-e0062-e0065-e006e-e0067-e007f"
    stem = "1f3f4-e0067_e0062_e0065_e006e_e0067"
    assert fetch_pictures.caption(stem, names_of(whole, "England")) == "the flag of England"


@pytest.mark.parametrize(
    ("stem", "name", "skin"),
    [
        ("1f44c-1f3fc", "OK_hand_medium-light_skin_tone", "medium"),
        ("1f44c-1f3fd", "OK_hand_medium_skin_tone", "medium-light"),
        ("1f44c-1f3fe", "OK_hand_medium-dark_skin_tone", "medium-dark"),
        ("1f46b-1f3fd", "woman_and_man_holding_hands_medium_skin_tone", "medium"),
        ("1f468-1f3fc-200d-1f4bb", "man_technologist_medium-light_skin_tone", "medium-light"),
        ("1f6b5-1f3fb", "person_mountain_biking_light_skin_tone", "dark"),
    ],
)
def test_captions_tell_the_skin_that_is_painted_where_the_package_swaps_names(stem, name, skin):
    assert fetch_pictures.caption(stem, names_of(stem, name)).endswith(f", {skin} skin tone")


def test_the_folder_holds_the_untouched_images_their_captions_and_the_licences(
    pip_works, packages, place, capsys
):
    fetch(place)
    lines = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    assert lines == [
        {"file_name": f"{stem}.webp", "text": NAMES[stem][1]} for stem in sorted(NAMES)
    ]
    credits = (place / "ATTRIBUTION.txt").read_text()
    assert "MIT License" in credits and "Microsoft" in credits
    assert "the licence of the names" in credits and credits.endswith("the licence of the order")
    with tarfile.open(packages / "pictures.tgz") as tar:
        for line in lines:
            untouched = tar.extractfile(f"package/assets/{line['file_name']}").read()
            assert (place / line["file_name"]).read_bytes() == untouched
            assert Image.open(place / line["file_name"]).mode == "RGBA"
    said = capsys.readouterr().out.strip()
    assert said.startswith(f"3 captioned images are in {place}.") and said.endswith(
        "--config configs/pictures_tiny.py --workdir runs/pictures_tiny"
    )
    assert [path.name for path in place.parent.iterdir()] == ["pictures"]


def test_a_second_run_fetches_nothing_and_force_fetches_again(npm_does, place, capsys):
    fetch(place)
    capsys.readouterr()
    npm_does("exit 1")
    fetch(place)
    assert capsys.readouterr().out.startswith(f"3 captioned images are in {place} already.")
    assert refusal(capsys, "--out", place, "--force")[0] == 1
    assert len(list(place.iterdir())) == 8  # a --force that fails leaves the old folder
    (place / "2764-fe0f.webp").unlink()
    assert "lacks 1 of its images; --force" in refusal(capsys, "--out", place)[1]


def test_force_replaces_a_folder_with_holes(npm_does, place):
    fetch(place)
    (place / "2764-fe0f.webp").unlink()
    (place / "1f60d.webp").write_bytes(b"broken")
    fetch(place, "--force")
    assert Image.open(place / "1f60d.webp").size == (4, 4)
    assert (place / "2764-fe0f.webp").exists()
    assert [path.name for path in place.parent.iterdir()] == ["pictures"]


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_folder_of_other_files_is_refused_and_kept(npm_does, place, capsys, options):
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    status, line = refusal(capsys, "--out", place, *options)
    assert status == 1 and "thesis.txt" in line and "--out" in line
    assert (place / "thesis.txt").read_text() == "mine"


def test_an_own_file_among_the_images_is_never_deleted(npm_does, place, capsys):
    fetch(place)
    (place / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refusal(capsys, "--out", place, "--force")[1]
    assert (place / "thesis.txt").exists()


def test_without_npm_one_line_says_what_to_install(npm_does, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and "npm is missing; install" in line
    assert not any(place.parent.iterdir())


def test_without_network_one_line_says_so(npm_does, place, capsys):
    npm_does("echo npm error code ENOTFOUND >&2; echo npm error more >&2; exit 1")
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and "(npm error code ENOTFOUND); check the network" in line
    assert not any(place.parent.iterdir())


def test_a_broken_package_is_one_line(npm_does, place, capsys):
    npm_does("echo nonsense > pictures.tgz")
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and line.startswith(f"{place} was not written")
    assert not any(place.parent.iterdir())


def test_ctrl_c_between_two_images_leaves_nothing(npm_does, place, monkeypatch, capsys):
    captions = iter(["the first image"])

    def interrupted(stem, names):
        for text in captions:
            return text
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_pictures, "caption", interrupted)
    assert refusal(capsys, "--out", place) == (130, "Interrupted; nothing was written.")
    assert not any(place.parent.iterdir())
