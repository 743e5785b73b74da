"""Retrieval: exact neighbours, growth beyond, near-duplicates, copies of known images, resuming, another's index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import Outcome
from safetensors.torch import save_file

from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate_unlabelled
from leanmask.data.views.augment import fitted_frame
from leanmask.data.views.canvas import draw_canvas
from leanmask.errors import CheckpointError, ConfigError, DataError, RunError
from leanmask.geometry import transform_boxes
from leanmask.inference.predict import load
from leanmask.retrieval import index as index_module
from leanmask.retrieval.embed import crop_of, load_embedder
from leanmask.retrieval.index import best_images, build_index, cells_for, chunked, near_duplicates, open_index, unit
from leanmask.retrieval.retrieve import RetrieveOptions, retrieve
from leanmask.retrieval.store import Pool, centre_of, claim, embed_pool, read_chunks, read_rows
from leanmask.summary import TrainSummary


def vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_exact_neighbours_are_those_of_a_loop(tmp_path: Path) -> None:
    pool, queries = vectors(300), vectors(5, seed=1)
    about = build_index(iter([pool[:100], pool[100:]]), ("m", 300, 16), tmp_path)
    assert about.kind == "exact"
    scores, places = open_index(tmp_path).search(queries, 7, "m")
    cosine = unit(queries) @ unit(pool).T
    assert (places == np.argsort(-cosine, axis=1)[:, :7]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, places, 1), atol=1e-5)
    assert open_index(tmp_path).search(queries, 1000, "m")[1].shape == (5, 300)
    with pytest.raises(ConfigError, match="made with m, the queries with n"):
        open_index(tmp_path).search(queries, 7, "n")
    with pytest.raises(ConfigError, match="the queries have 3 numbers, the index 16"):
        open_index(tmp_path).search(queries[:, :3], 7, "m")


def test_what_all_vectors_share_is_no_likeness(tmp_path: Path) -> None:
    shared = np.full(16, 30, dtype=np.float32)
    pool, queries = vectors(300) + shared, vectors(5, seed=1) + shared
    pool[7] = 0  # a file that cannot be read
    assert near_duplicates(pool, 0.98).sum() > 290
    about = build_index(chunked(pool), ("m", 300, 16), tmp_path, pool[pool.any(1)].mean(0))
    assert not near_duplicates(about.directions(pool), 0.98).any()
    found = open_index(tmp_path)
    assert found.about == about
    scores, places = found.search(queries, 300, "m")
    cosine = unit(queries - pool[pool.any(1)].mean(0)) @ unit(pool - pool[pool.any(1)].mean(0)).T
    cosine[:, 7] = 0
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, places, 1), atol=1e-5)
    assert (np.diff(scores) <= 1e-6).all()


def test_beyond_the_limit_an_index_of_cells_finds_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(index_module, "cells_for", lambda count: 16)
    pool = vectors(2000)
    about = build_index(chunked(pool), ("m", 2000, 16), tmp_path)
    assert about.kind == "ivf-pq"
    found = open_index(tmp_path).search(pool[:200], 10, "m")[1]
    assert (found == np.arange(200)[:, None]).any(1).mean() > 0.8  # each is its own neighbour
    assert cells_for(10**9) == 131_072


def test_a_changed_pool_and_no_index_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 embeddings came instead of 12"):
        build_index(iter([vectors(10)]), ("m", 12, 16), tmp_path)
    with pytest.raises(DataError, match="holds no index"):
        open_index(tmp_path / "none")
    build_index(iter([vectors(12)]), ("m", 12, 16), tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "index.f32", 100)
    with pytest.raises(DataError, match="holds no index that can be read: mmap length"):
        open_index(tmp_path / "cut")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "index.f32").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write the index .*No space left"):
        build_index(iter([vectors(12)]), ("m", 12, 16), tmp_path)


def test_nothing_is_never_found_among_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(index_module, "cells_for", lambda count: 16)
    pool = vectors(3000)
    pool[::3] = 0
    build_index(iter([pool[:1500], pool[1500:]]), ("m", 3000, 16), tmp_path)
    found = open_index(tmp_path).search(pool[1:601:3], 20, "m")[1]
    assert not (found[found >= 0] % 3 == 0).any()
    assert (found == np.arange(1, 601, 3)[:, None]).any(1).mean() > 0.8  # numbers are still the pool's


def test_an_index_of_cells_needs_something_to_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(index_module, "cells_for", lambda count: 16)
    pool = np.zeros((3000, 16), dtype=np.float32)
    pool[2700:2900] = vectors(200)
    with pytest.raises(DataError, match="200 of 3000 embeddings are of something"):
        build_index(chunked(pool), ("m", 3000, 16), tmp_path)
    pool[2000:2900] = vectors(900)
    build_index(iter([pool[:1000], pool[1000:]]), ("m", 3000, 16), tmp_path)
    found = open_index(tmp_path).search(pool[2000:2200], 20, "m")[1]
    assert (found == np.arange(2000, 2200)[:, None]).any(1).mean() > 0.8


@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.integers(1, 60), st.integers(0, 2**31), st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_exact_search_in_blocks_is_that_in_one(
    count: int, queries: int, neighbours: int, at_once: int, seed: int, twins: bool
) -> None:
    pool, asked = vectors(count, 4, seed), vectors(queries, 4, seed + 1)
    if twins:
        pool[count // 2] = pool[0]
    wanted = min(neighbours, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "COMPARED_AT_ONCE", at_once)
        scores, places = index_module._nearest(pool, asked, wanted)
    products = asked @ pool.T
    assert places.shape == (queries, wanted)
    assert all(len(set(row)) == wanted for row in places.tolist())
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :wanted], atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(products, places, 1), atol=1e-5)


def test_the_nearest_images_are_those_of_their_nearest_vectors() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.5, 0.4], [0.85, 0.6, 0.2, -0.1, 0.0]])
    images = np.array([[4, 4, 2, 7, 1], [2, 4, 9, 5, -1]])
    assert best_images(scores, images, 2) == {4: (0.9, 0), 2: (0.85, 1)}
    assert best_images(scores, images, 5) == {4: (0.9, 0), 2: (0.85, 1), 7: (0.5, 0), 1: (0.4, 0), 9: (0.2, 1)}


def test_near_duplicates() -> None:
    pool = vectors(50, 32)
    twice = np.concatenate([pool, pool[:3] * 2 + 1e-4, pool[10:11]])
    assert np.flatnonzero(near_duplicates(twice, 0.98)).tolist() == [50, 51, 52, 53]
    assert not near_duplicates(pool, 0.999).any()
    assert near_duplicates(np.zeros((0, 4), dtype=np.float32), 0.9).shape == (0,)


class Eyes:
    """An embedder that sees the mean colour, and counts what it sees."""

    name, vectors, seen = "eyes", 1, 0

    def __call__(self, pictures: Any) -> np.ndarray:
        self.seen += len(pictures)
        colours = [np.asarray(picture.convert("RGB")).mean((0, 1)) for picture in pictures]
        return np.stack(colours)[:, None].astype(np.float32)

    def objects(self, picture: Any, boxes: Any, margin: float) -> np.ndarray:
        return self([crop_of(picture, box, margin) for box in boxes])[:, 0]


@pytest.fixture
def colours(tmp_path: Path) -> tuple[Path, ...]:
    paths = []
    for number in range(7):
        path = tmp_path / "pool" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10 + number, 9), (40 * number, 0, 10)).save(path)
        paths.append(path)
    paths[3].write_bytes(b"no picture")
    return tuple(paths)


def test_shares_join_in_order_and_resume(colours: tuple[Path, ...], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    whole = Pool(colours, folder / "one")
    claim(whole, Eyes())
    dimension = embed_pool(whole, Eyes(), 2, lambda done, total: None)
    expected = np.concatenate(list(read_chunks(whole, dimension)))
    assert expected[:, 0].tolist() == [0, 40, 80, 0, 160, 200, 240]
    for rank in range(3):
        part = Pool(colours, folder / "three", rank, 3)
        claim(part, Eyes())
        embed_pool(part, Eyes(), 2, lambda done, total: None)
    np.testing.assert_array_equal(np.concatenate(list(read_chunks(part, dimension))), expected)
    np.testing.assert_array_equal(read_rows(part, dimension, np.array([5, 0])), expected[[5, 0]])
    for damage, told in (
        (lambda: part.file(1).write_bytes(b"1234" * 5), "cut short"),
        (part.file(1).unlink, "No such"),
    ):
        damage()
        with pytest.raises(RunError, match=rf"cannot read embeddings from .*embeddings-2-of-3.f32: .*{told}"):
            build_index(read_chunks(part, dimension), ("eyes", part.rows, dimension), tmp_path / "damaged")
    # Killed in the middle of a row: what is whole stays, the rest is made again.
    file = whole.file(0)
    file.write_bytes(file.read_bytes()[: 4 * dimension * 4 + 5])
    eyes = Eyes()
    embed_pool(whole, eyes, 2, lambda done, total: None)
    assert eyes.seen == 1 + 3
    np.testing.assert_array_equal(np.concatenate(list(read_chunks(whole, dimension))), expected)
    eyes.name = "others"
    with pytest.raises(ConfigError, match=r"another model \(eyes, now others\)"):
        claim(whole, eyes)
    with pytest.raises(ConfigError, match="other images"):
        claim(Pool(colours[:2], whole.folder), Eyes())


class Pairs(Eyes):
    """Two vectors per picture; nothing is the second of a dark one."""

    name, vectors = "pairs", 2

    def __call__(self, pictures: Any) -> np.ndarray:
        one = super().__call__(pictures)
        return np.concatenate([one, np.where(one[:, :, :1] > 100, one[:, :, ::-1], 0)], axis=1)


def test_several_vectors_of_an_image(colours: tuple[Path, ...], tmp_path: Path) -> None:
    expected = np.concatenate([Pairs()([Image.open(path)]) for number, path in enumerate(colours) if number != 3])
    expected = np.insert(expected, 3, 0, axis=0).reshape(14, 3)
    for rank in range(2):
        part = Pool(colours, tmp_path / "two", rank, 2, vectors=2)
        part.folder.mkdir(exist_ok=True)
        embed_pool(part, Pairs(), 3, lambda done, total: None)
    file = part.file(0)
    file.write_bytes(file.read_bytes()[: 3 * 4 * 5])  # killed within the third of its images
    embed_pool(Pool(colours, part.folder, 0, 2, vectors=2), Pairs(), 3, lambda done, total: None)
    np.testing.assert_array_equal(np.concatenate(list(read_chunks(part, 3))), expected)
    np.testing.assert_array_equal(read_rows(part, 3, np.array([13, 8, 1])), expected[[13, 8, 1]])
    assert part.rows == 14
    assert not centre_of(part, 3).any()  # too few to tell what is common to all


def test_an_own_network_sees_objects(trained: TrainSummary, tail: Path) -> None:
    embedder = load_embedder(str(trained.folder), device="cpu")
    files = sorted((tail / "unlabelled").glob("*.jpg"))[:2]
    pictures = [Image.open(files[0]).convert("RGB"), Image.open(files[1]).convert("RGB").resize((60, 90))]
    rows = embedder(pictures)
    assert rows.shape[:2] == (2, embedder.vectors)
    model, side = load(trained.folder, device="cpu").model, load(trained.folder).config.data.image_size
    for picture, own in zip(pictures, rows, strict=True):
        frame = fitted_frame((picture.height, picture.width), side)
        image = torch.from_numpy(draw_canvas(picture, frame)).permute(2, 0, 1)[None].float() / 255
        found = model.predict(image, [frame.content_box])[0]
        count = int(own.any(1).sum())
        assert 0 < count <= len(found)
        best = transform_boxes(found.boxes[:1].double().numpy(), frame.inverse)
        box = tuple(best[0].tolist())
        np.testing.assert_allclose(embedder.objects(picture, [box], 0.2)[0], own[0], atol=1e-3, rtol=1e-3)
        assert not own[count:].any()


def test_crops() -> None:
    picture = Image.new("RGB", (100, 60))
    assert crop_of(picture, (40, 20, 60, 30), 0.0).size == (21, 21)
    assert crop_of(picture, (90, 50, 100, 60), 1.0).size == (20, 20)  # cut at the corner
    assert crop_of(picture, (5, 5, 5, 5), 0.0).size == (1, 1)


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "tail"
    write_digits(out, DigitsSpec(train=20, tune=0, val=4, unlabelled=6, size_px=64, longtail=True))
    return out


def test_the_runs_own_network_finds_images(
    trained: TrainSummary, tail: Path, tmp_path: Path, leanmask: Callable[..., Outcome]
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(tail / "unlabelled", pool)
    copied = sorted((tail / "images").glob("val_*.jpg"))[0]
    shutil.copy(copied, pool / "copy.jpg")  # of a validation image
    first = sorted(pool.glob("unlabelled_*.jpg"))[0]
    shutil.copy(first, pool / "twice.jpg")
    (pool / "broken.jpg").write_bytes(b"broken")
    out, review = tmp_path / "found.json", tmp_path / "sheet.html"
    told = ("retrieve", tail, "--pool", pool, "--model", trained.folder, "--neighbours", 9)
    done = leanmask(*told, "--out", out, "--review", review, "--duplicates", 0.99999, "--json")
    assert done.code == 0, done.err
    summary, content = json.loads(done.out), json.loads(out.read_text())
    assert (summary["known"], summary["duplicates"], summary["pool"]) == (1, 1, 9)
    assert summary["images"] == len(content["images"]) == 6
    assert all(image["exhaustive"] is False for image in content["images"])
    assert "copy.jpg" not in out.read_text()
    assert locate_unlabelled(out).annotations == out
    assert Path(content["images"][0]["file_name"]).is_file()
    assert "data:image/jpeg" in review.read_text()
    assert any("no object to look for" in note for note in summary["notes"])
    again = leanmask(*told, "--out", out)
    assert (again.code, "never overwritten" in again.err) == (2, True)
    other = leanmask(
        *told, "--out", tmp_path / "b.json", "--index", tmp_path / "found.index", "--duplicates", 1, "--json"
    )
    assert json.loads(other.out)["images"] >= 6  # the index is used again


def test_not_every_image_is_like_every_other(trained: TrainSummary, tail: Path, tmp_path: Path) -> None:
    """Pooled features of an own backbone all point one way: about no centre one image of the pool was left."""
    write_digits(tmp_path / "more", DigitsSpec(train=1, tune=0, val=0, unlabelled=40, size_px=64))
    options = RetrieveOptions(model=str(trained.folder), neighbours=4)
    found = retrieve(tail, tmp_path / "more" / "unlabelled", tmp_path / "found.json", options)
    assert found.images > 4
    assert found.duplicates <= 2


def test_mistakes_are_sentences(trained: TrainSummary, tail: Path, tmp_path: Path) -> None:
    def look(**given: Any) -> None:
        settings = {"model": str(trained.folder)} | given
        retrieve(tail, tail / "unlabelled", tmp_path / "out.json", RetrieveOptions(**settings))

    with pytest.raises(DataError, match=r"no class 'sevn'.*did you mean 'seven'"):
        look(classes=("sevn",))
    with pytest.raises(DataError, match="none of the classes nine has an object"):
        look(classes=("nine",))
    with pytest.raises(ConfigError, match="name the weights of timm:vit_small_patch14_dinov2"):
        look(model="timm:vit_small_patch14_dinov2")
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        look(model="timm:vit_small_patch14_dinov2", weights="none.pth")
    with pytest.raises(CheckpointError, match="is no folder; save the model there"):
        look(model="transformers:facebook/dinov2-small")
    with pytest.raises(DataError, match="is no folder of images"):
        retrieve(tail, tmp_path / "nowhere", tmp_path / "out.json")
    (tmp_path / "out.json").write_text("")
    with pytest.raises(RunError, match="never overwritten"):
        look()


def test_models_of_timm_and_transformers(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0)
    path = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    pictures = [Image.new("RGB", (40, 30), (200, 10, 10)), Image.new("RGB", (30, 50), (10, 10, 200))]
    found = load_embedder("timm:resnet10t", str(path), "cpu")
    assert found(pictures).shape == (2, 1, network.num_features)
    assert str(path) in found.name
    small = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    Dinov2Model(small).save_pretrained(tmp_path / "dino")
    assert load_embedder(f"transformers:{tmp_path / 'dino'}", device="cpu")(pictures).shape == (2, 1, 32)
