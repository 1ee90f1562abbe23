import dataclasses

import pytest

from onediff_jax.data.records import SourceSettings
from onediff_jax.data.registry import SOURCES, Scenes
from onediff_jax.data.sources.folder import Folder
from onediff_jax.errors import InputError
from onediff_jax.train.config import settings_help


def test_kinds_of_sources_have_their_names():
    assert (SOURCES["scenes"], SOURCES["folder"]) == (Scenes, Folder)
    assert set(SOURCES) >= {"scenes", *FORMATS}


FORMATS = ("folder", "shards", "tfds", "posed", "coco", "identities")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_setting_of_a_format_is_explained_and_frozen(kind):
    settings = SOURCES[kind]()
    assert settings.path == ""
    for line in settings_help(settings, "x"):
        name, _, said = line.strip().partition("  ")
        assert said.strip() or "path" in name or "= " not in name, line
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.path = "elsewhere"


@pytest.mark.parametrize("kind", ("scenes", *FORMATS, "cache"))
def test_sources_of_every_kind_have_the_same_settings_for_the_mixture(kind):
    settings = SOURCES[kind](tasks=("semantic2image",), weight=2.5, repeats=3)
    assert settings.tasks == ("semanticmap2image",)
    assert issubclass(SOURCES[kind], SourceSettings)
    for wrong, message in (
        (dict(weight=-1.0), "weight is -1.0; .* at least 0"),
        (dict(weight=float("nan")), "weight is nan"),
        (dict(repeats=0), "repeats is 0; .* at least 1"),
        (dict(tasks=("depth2img",)), "no task 'depth2img'; did you mean 'depth2image'"),
    ):
        with pytest.raises(InputError, match=message):
            SOURCES[kind](**wrong)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_without_a_folder_is_refused_when_it_is_opened(kind, tmp_path):
    for path in ("", str(tmp_path / "gone")):
        with pytest.raises(InputError, match=f"There is no folder '{path}'; .*'{kind}'"):
            SOURCES[kind](path=path).open("train")
