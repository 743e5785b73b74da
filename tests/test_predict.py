"""`predict` on files as people have them, and what its results are good for afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_helpers import Outcome

from leanmask.data.convert.translate import ConvertOptions, convert
from leanmask.data.layout import locate
from leanmask.data.predictions import read_predictions
from leanmask.errors import ConfigError, DataError
from leanmask.inference.predict import PredictOptions, evaluate, predict
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]
RESULTS = "coco_instances_results.json"
ALL = PredictOptions(score=0.0, overlays=False)


def photo(path: Path, size: tuple[int, int] = (50, 40), **more: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **more)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two good files, of which one is turned, and two that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(folder / "a.jpg", exif=exif)
    photo(folder / "b.png")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("no image")
    return folder


def test_broken_files_are_skipped_and_listed(
    leanmask: Cli, trained: TrainSummary, photos: Path, tmp_path: Path
) -> None:
    done = leanmask("predict", trained.folder, photos, "--out", tmp_path / "p", "--score", 0)
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "objects on 2 images" in said
    assert f"2 files could not be read: {photos / 'cut.jpg'}, {photos / 'text.png'}" in said
    told = json.loads((tmp_path / "p" / "images.json").read_text())
    names = {row["id"]: row["file_name"] for row in told["images"]}
    assert sorted(names.values()) == ["a.jpg", "b.png"]
    assert {row["image_id"] for row in json.loads((tmp_path / "p" / RESULTS).read_text())} <= names.keys()
    assert len(list((tmp_path / "p" / "overlays").iterdir())) == 2, "the turned one, too"
    alone = leanmask("predict", trained.folder, photos / "text.png", photos / "cut.jpg", "--out", tmp_path / "q")
    assert alone.code != 0
    assert "none of the 2 files can be read as an image" in alone.err
    assert not (tmp_path / "q").exists()


def test_nothing_found_says_what_was_seen(trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    seen = predict(trained.folder, [photos / "b.png"], tmp_path / "all", ALL)
    rows = json.loads(seen.results.read_text())
    assert rows, "even a network of three steps predicts something"
    best = max(row["score"] for row in rows)
    assert seen.best_score == pytest.approx(best)
    strict = predict(trained.folder, [photos / "b.png"], tmp_path / "strict", PredictOptions(score=1.0, overlays=False))
    assert (strict.objects, strict.best_score) == (0, pytest.approx(best))
    assert f"no object has a score of at least 1 (--score); the best that was seen has {best:.2f}" in strict.to_text()
    assert strict.to_json()["best_score"] == strict.best_score
    assert "best that was seen" not in seen.to_text()


def test_sizes_are_of_the_pictures_as_shown(trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    predict(trained.folder, [photos], tmp_path / "p", ALL)
    told = json.loads((tmp_path / "p" / "images.json").read_text())
    assert {row["file_name"]: (row["width"], row["height"]) for row in told["images"]} == {
        "a.jpg": (40, 50),
        "b.png": (50, 40),
    }
    sizes = {row["id"]: [row["height"], row["width"]] for row in told["images"]}
    for row in json.loads((tmp_path / "p" / RESULTS).read_text()):
        assert row["segmentation"]["size"] == sizes[row["image_id"]]


@pytest.mark.parametrize(
    ("longest", "side", "said"), [(2000, 2000, True), (None, 2400, False), (0, 2400, False), (4000, 2400, False)]
)
def test_pictures_of_large_images_are_reduced_and_it_is_said(
    trained: TrainSummary, tmp_path: Path, longest: int | None, side: int, said: bool
) -> None:
    large = photo(tmp_path / "large.jpg", (2400, 300))
    done = predict(trained.folder, [large], tmp_path / "p", PredictOptions(overlay_px=longest))
    with Image.open(next((tmp_path / "p" / "overlays").iterdir())) as drawn:
        assert max(drawn.size) == side
    assert ("longest side at most 2000 px; --overlay-px 0" in done.to_text()) == said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": 5}, "score is 5; allowed: 0 to 1"),
        ({"score": float("nan")}, "score is nan; allowed: 0 to 1"),
        ({"score": "0.3"}, "score is '0.3'; allowed: a number"),
        ({"overlay_px": -1}, "overlay_px is -1; allowed: 0 or more"),
        ({"overlay_px": 1.5}, "overlay_px is 1.5; allowed: a whole number or None"),
        ({"batch_size": True}, "batch_size is True; allowed: a whole number"),
        ({"overlays": "no"}, "overlays is 'no'; allowed: True or False"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        PredictOptions(**wrong)


# --- what the results are good for


@pytest.fixture(scope="module")
def predicted(trained: TrainSummary, sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the run finds on the validation images, in another order and in another folder."""
    out = tmp_path_factory.mktemp("predicted")
    val = locate(sparse)["val"]
    assert val.annotations is not None
    content = json.loads(val.annotations.read_text())
    files = [val.images / row["file_name"] for row in content["images"]]
    return predict(trained.folder, files[::-1], out / "p", ALL).results


@pytest.mark.parametrize("to", ["coco", "label-studio", "cvat"])
def test_they_are_converted(predicted: Path, tmp_path: Path, to: str) -> None:
    found = convert(predicted, tmp_path / "out", ConvertOptions(to=to))
    assert found.images == 6
    assert sum(found.objects.values()) == len(json.loads(predicted.read_text()))
    if to == "coco":
        content = json.loads((tmp_path / "out").read_text())
        assert not any(image["exhaustive"] for image in content["images"])
        row = content["annotations"][0]
        assert {"id", "score", "area", "provenance"} <= row.keys()
        assert Path(content["info"]["image_folder"], content["images"][0]["file_name"]).is_file()


def test_nothing_found_is_converted_too(predicted: Path, tmp_path: Path) -> None:
    shutil.copy(predicted.with_name("images.json"), tmp_path / "images.json")
    (tmp_path / RESULTS).write_text("[]")
    found = convert(tmp_path / RESULTS, tmp_path / "out.json")
    assert (found.images, found.objects) == (6, {})


def test_they_are_evaluated_by_file_whatever_their_ids(
    leanmask: Cli, predicted: Path, trained: TrainSummary, sparse: Path, tmp_path: Path
) -> None:
    found = evaluate(predicted, sparse)
    wanted = evaluate(trained.folder, sparse, out=tmp_path / "wanted")
    assert found.metrics == pytest.approx(wanted.metrics, nan_ok=True, abs=1e-9)
    assert found.outcomes == wanted.outcomes
    assert found.notes == wanted.notes
    assert leanmask("evaluate", predicted, sparse).code == 0


def test_what_does_not_match_is_said(predicted: Path, sparse: Path, tmp_path: Path) -> None:
    header = json.loads(predicted.with_name("images.json").read_text())
    rows = json.loads(predicted.read_text())
    lost = header["images"].pop()
    header["images"].append({**lost, "file_name": "stranger.png"})
    header["info"]["score"] = 0.5
    (tmp_path / "images.json").write_text(json.dumps(header))
    (tmp_path / RESULTS).write_text(json.dumps(rows))
    notes = " ".join(evaluate(tmp_path / RESULTS, sparse).notes)
    assert "1 of 6 predicted images are not in instances_val.json" in notes
    assert "1 of 6 images were not predicted" in notes
    assert "a score of at least 0.5 only" in notes
    header["images"] = [{**image, "file_name": f"x{image['id']}.png"} for image in header["images"]]
    (tmp_path / "images.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match="none of the 6 images"):
        evaluate(tmp_path / RESULTS, sparse)
    header["categories"][0]["name"] = "another"
    (tmp_path / "images.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"category id \d+ is 'another' in"):
        evaluate(tmp_path / RESULTS, sparse)


def test_bad_input(predicted: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(predicted.read_text())
    with pytest.raises(DataError, match="names no files and classes"):
        convert(tmp_path / "rows.json", tmp_path / "out.json")
    assert read_predictions(tmp_path / "rows.json") is None
    for header, said in (
        ("[]", "must hold a JSON object"),
        ("{}", "has no lists 'images' and 'categories'"),
        ('{"images": [], "categories": []}', "which images.json beside it does not have"),
    ):
        (tmp_path / "images.json").write_text(header)
        with pytest.raises(DataError, match=said):
            convert(tmp_path / "rows.json", tmp_path / "out.json")
    (tmp_path / "images.json").write_text('{"images": [], "categories": []}')
    (tmp_path / "rows.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="no list of COCO results"):
        read_predictions(tmp_path / "rows.json")
