"""Corrected categories: fusing opinions, what CLIP reads, where it looks; with tiny random CLIPs made on the spot."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.errors import ConfigError
from leanmask.labels.clip import ClipJudge, cell_weights, clip_judge, open_clip_judge, pool_inside
from leanmask.labels.clip_encoders import OpenClip, TransformersClip
from leanmask.labels.correct import CategoryJudge, box_crops, corrected, fuse
from leanmask.labels.judges import JudgeOptions, load_judge
from leanmask.labels.prompts import class_logits, prompts_from_file, prompts_from_names
from leanmask.labels.weigh import correction_weight
from leanmask.masks import Crops, Grids
from leanmask.methods.base import TrainingFacts
from leanmask.methods.pldc import PLDC, PLDCConfig
from leanmask.records import Instances

NAMES = ("cat", "tabby cat", "dog")
WORDS = ("a", "photo", "of", "cat", "dog", "tabby", ".", "furry")


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP of 16 x 16 px and 8 px patches, with whole words as its vocabulary; anything else is unknown."""
    from transformers import CLIPConfig, CLIPModel

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    merges = []
    for word in WORDS:  # every merge on the way to a whole word
        parts = [*word[:-1], word[-1] + "</w>"]
        for part in parts:
            vocabulary.setdefault(part, len(vocabulary))
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            vocabulary.setdefault(parts[0], len(vocabulary))
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=12)
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


def objects(count: int, seed: int = 0, crops: bool = False) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 3 + torch.rand(count, 2, generator=generator) * 10], 1)
    masks: Grids | Crops = Grids(torch.rand(count, 7, 7, generator=generator), boxes)
    if crops:
        regions = torch.cat([boxes[:, :2].long(), torch.full((count, 2), 6)], 1)
        masks = Crops(torch.rand(count * 36, generator=generator), regions)
    return Instances(
        boxes=boxes,
        categories=torch.zeros(count, dtype=torch.int64),
        supervision=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count),
        masks=masks,
    )


share = st.floats(0, 1, width=32)


@given(seed=st.integers(0, 10**6), weight=share, count=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_fused_probabilities_are_a_distribution_between_both(seed: int, weight: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.rand(count, 3, generator=generator) / 4  # the rest is background
    judge = torch.rand(count, 3, generator=generator).softmax(1)
    fused = fuse(teacher, judge, weight)
    torch.testing.assert_close(fused.sum(1), torch.ones(count))
    for row in range(count):
        for column in range(3):
            own = teacher[row, column] / teacher[row].sum()
            expected = weight * judge[row, column] + (1 - weight) * own
            assert fused[row, column].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_judge_has_the_last_word_at_first_and_none_at_the_end() -> None:
    teacher, judge = torch.tensor([[0.3, 0.2]]), torch.tensor([[0.05, 0.95]])
    instances = objects(1).replace(class_probabilities=teacher)
    first = corrected(instances, fuse(teacher, judge, correction_weight(10, 10, 100)))
    last = corrected(instances, fuse(teacher, judge, correction_weight(100, 10, 100)))
    assert (first.categories.item(), last.categories.item()) == (1, 0)
    assert last.class_probabilities is not None
    torch.testing.assert_close(last.class_probabilities, torch.tensor([[0.6, 0.4]]))
    assert torch.equal(fuse(torch.zeros(1, 2), judge, 0.0), torch.full((1, 2), 0.5))
    assert len(corrected(instances[torch.tensor([False])], fuse(teacher[:0], judge[:0], 0.5))) == 0


@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_class_logits_are_the_naive_loop(seed: int, counts: list[int]) -> None:
    logits = torch.randn(3, sum(counts), generator=torch.Generator().manual_seed(seed)) * 10
    found = class_logits(logits, counts)
    assert found.shape == (3, len(counts))
    for row in range(3):
        start = 0
        for column, count in enumerate(counts):
            own = logits[row, start : start + count].tolist()
            top = max(own)
            total = sum(math.exp(value - top) for value in own)
            expected = sum(value * math.exp(value - top) / total for value in own)
            assert found[row, column].item() == pytest.approx(expected, abs=1e-3)
            assert min(own) - 1e-3 <= found[row, column].item() <= top + 1e-3
            start += count


def test_box_crops_are_squares_around_the_boxes() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 8:16, 10:14] = 1.0
    images[1] = 0.5
    whole, tall = torch.full((1, 4), math.nan), torch.tensor([[10.0, 8, 14, 16]])
    crops = box_crops(images, [tall, whole], side_px=8, margin=0.0)
    assert crops.shape == (2, 3, 8, 8)
    torch.testing.assert_close(crops[0, 0].mean(0)[2:6], torch.ones(4), atol=0.2, rtol=0)
    assert crops[0, 0, :, [0, 7]].max() < 0.3
    torch.testing.assert_close(crops[1, :, 1:7, 1:7], torch.full((3, 6, 6), 0.5))
    assert box_crops(images, [tall[:0], tall[:0]], 8, 0.1).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("look", ["boxes", "masks"])
def test_clip_gives_probabilities_and_the_same_again(clip: Path, look: str) -> None:
    judge: CategoryJudge = clip_judge(str(clip), NAMES, look=look)  # type: ignore[arg-type]
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    instances = [objects(4), objects(0), objects(2, seed=1, crops=True)]
    found = judge(images, instances)
    assert [tuple(each.shape) for each in found] == [(4, 3), (0, 3), (2, 3)]
    for each in found:
        torch.testing.assert_close(each.sum(1), torch.ones(len(each)))
    again = clip_judge(str(clip), NAMES, look=look)(images, instances)  # type: ignore[arg-type]
    alone = judge(images[2:], instances[2:])
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    torch.testing.assert_close(alone[0], found[2])
    assert [len(each) for each in judge(images[:1], [objects(0)])] == [0]
    assert not found[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        lower = judge(images, instances)
    torch.testing.assert_close(lower[0], found[0], atol=0.1, rtol=0)


def test_clip_looks_where_it_is_told(clip: Path) -> None:
    judge = clip_judge(str(clip), NAMES, look="boxes")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    here = objects(1).replace(boxes=torch.tensor([[4.0, 4, 12, 12]]))
    elsewhere = images.clone()
    elsewhere[:, :, 20:, 20:] = 0
    assert torch.equal(judge(images, [here])[0], judge(elsewhere, [here])[0])
    changed = images.clone()
    changed[:, :, 4:12, 4:12] = 0
    assert not torch.equal(judge(images, [here])[0], judge(changed, [here])[0])


def test_clip_is_transformers_own(clip: Path) -> None:
    """A cut-out of the whole image gives what CLIPModel itself says of the image, normalised as CLIP wants it."""
    from transformers import CLIPModel, CLIPTokenizer

    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    whole = objects(1).replace(boxes=torch.tensor([[0.0, 0, 16, 16]]))
    judge = ClipJudge(TransformersClip(str(clip)), NAMES, prompts_from_names(NAMES), "boxes", margin=0.0)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    tokens = tokenizer([f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt")
    assert tokenizer("a photo of a cat")["input_ids"] == [
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<|startoftext|>", "a</w>", "photo</w>", "of</w>", "a</w>", "cat</w>", "<|endoftext|>")
    ]
    with torch.no_grad():
        expected = model(**tokens, pixel_values=(image - mean) / std).logits_per_image.softmax(1)
    torch.testing.assert_close(judge(image, [whole])[0], expected, atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 10**6), crops=st.booleans())
@settings(max_examples=25, deadline=None)
def test_mask_pooling_is_the_naive_loop(seed: int, crops: bool) -> None:
    canvas, size = (24, 32), (3, 4)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, *size, generator=generator)
    regions = torch.tensor([[2, 3, 10, 7], [20, 10, 12, 14], [5, 5, 1, 1]])
    parts = [(torch.rand(h, w, generator=generator) > 0.4).float() for _, _, w, h in regions.tolist()]
    masks: Grids | Crops = Crops.join(parts, regions)
    dense = torch.zeros(3, *canvas)
    for image, part, (x, y, w, h) in zip(dense, parts, regions.tolist(), strict=True):
        image[y : y + h, x : x + w] = part
    if not crops:
        coarse = (torch.rand(3, 4, 4, generator=generator) > 0.4).float()
        boxes = torch.tensor([[0.0, 0, 8, 8], [4, 12, 20, 24], [24, 0, 32, 16]])
        masks = Grids(coarse, boxes)
        dense = torch.zeros(3, *canvas)
        for image, grid, (x0, y0, x1, y1) in zip(dense, coarse, boxes.long().tolist(), strict=True):
            tall, wide = (y1 - y0) // 4, (x1 - x0) // 4
            image[y0:y1, x0:x1] = grid.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
    weights = cell_weights(masks, canvas, size)
    found = pool_inside(features, weights)
    for image, row, pooled in zip(dense, weights, found, strict=True):
        total, count = torch.zeros(5), 0.0
        for y in range(canvas[0]):
            for x in range(canvas[1]):
                total += image[y, x] * features[:, y // 8, x // 8]
                count += image[y, x].item()
        assert row.sum().item() == pytest.approx(count, abs=1e-3)
        torch.testing.assert_close(pooled, total / max(count, 1e-6), atol=1e-4, rtol=1e-4)


def test_an_object_without_a_mask_has_no_opinion(clip: Path) -> None:
    judge = clip_judge(str(clip), NAMES, look="masks")
    instances = objects(2).replace(masks=Crops(torch.ones(16), torch.tensor([[0, 0, 0, 0], [1, 1, 4, 4]])))
    found = judge(torch.rand(1, 3, 32, 32), [instances])[0]
    torch.testing.assert_close(found[0], torch.full((3,), 1 / 3))
    assert not torch.allclose(found[1], torch.full((3,), 1 / 3), atol=1e-4)
    unknown = objects(1).replace(masks=Grids(torch.ones(1, 7, 7), torch.full((1, 4), math.nan)))
    torch.testing.assert_close(judge(torch.rand(1, 3, 32, 32), [unknown])[0][0], torch.full((3,), 1 / 3))


def test_where_clip_looks_is_a_setting(clip: Path) -> None:
    for look in ("boxes", "masks"):
        judge = load_judge(f"clip:{clip}", NAMES, JudgeOptions(look=look))  # type: ignore[arg-type]
        assert isinstance(judge, ClipJudge)
        assert judge.look == look
    assert load_judge(f"clip:{clip}", NAMES).look == "boxes"  # type: ignore[attr-defined]
    facts = TrainingFacts(10, objects_per_class=(1, 1, 1), class_names=NAMES, labelled_images=1)
    assert PLDC(PLDCConfig(judge=f"clip:{clip}", judge_look="masks"), facts).judge.look == "masks"  # type: ignore[union-attr]


def test_a_network_without_a_feature_map_is_refused_when_the_judge_is_built(clip: Path) -> None:
    class Flat(TransformersClip):
        """Like an open_clip ViT: says what an image is, not where."""

        def features(self, pixels: torch.Tensor) -> torch.Tensor:
            return OpenClip.features(SimpleNamespace(module=SimpleNamespace(visual=None)), pixels)  # type: ignore[arg-type]

    prompts = prompts_from_names(NAMES)
    with pytest.raises(ConfigError, match="no feature map to pool; take a ConvNeXt, or judge_look=boxes"):
        ClipJudge(Flat(str(clip)), NAMES, prompts, "masks")
    assert ClipJudge(Flat(str(clip)), NAMES, prompts, "boxes").look == "boxes"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_descriptions_are_read_as_written_in_the_order_of_the_classes(tmp_path: Path, clip: Path, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_text(json.dumps({"dog": ["a dog .", "a furry dog"], "tabby cat": "a tabby cat", "cat": ["a cat"]}))
    assert prompts_from_file(path, NAMES) == (("a cat",), ("a tabby cat",), ("a dog .", "a furry dog"))
    found = clip_judge(str(clip), NAMES, path)(torch.rand(1, 3, 32, 32), [objects(2)])[0]
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cta": ["a cat"]}', "describes 'cta', which is no class of the data; did you mean 'cat'"),
        ('{"cat": ["a cat"], "tabby cat": ["a tabby"]}', "does not describe class 'dog'"),
        ('{"cat": ["a cat"], "tabby cat": [], "dog": ["a dog"]}', "description of 'tabby cat' without any text"),
        ('{"cat": ["a cat"], "tabby cat": [" "], "dog": ["a dog"]}', "description of 'tabby cat' without any text"),
        ('{"cat": 3, "tabby cat": ["a"], "dog": ["a"]}', "descriptions of 'cat' must be a list of sentences"),
        ('["cat"]', "must hold {class name: [descriptions]}, found list"),
        ("{", "no valid YAML or JSON"),
    ],
)
def test_descriptions_that_do_not_fit_are_errors(tmp_path: Path, content: str, message: str) -> None:
    for suffix in (".json", ".yaml"):
        path = tmp_path / f"texts{suffix}"
        path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            prompts_from_file(path, NAMES)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read descriptions"):
        prompts_from_file(tmp_path / "none.yaml", NAMES)


def test_a_class_that_clip_cannot_read_is_an_error(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class 1 has no name"):
        clip_judge(str(clip), ("cat", " "))
    with pytest.raises(ConfigError, match="class name '\\?\\?' has nothing that this CLIP can read"):
        clip_judge(str(clip), ("cat", "??"))
    path = tmp_path / "texts.yaml"
    path.write_text(json.dumps({"cat": ["??"]}))
    with pytest.raises(ConfigError, match="the description '\\?\\?' of class 'cat' has nothing"):
        clip_judge(str(clip), ("cat",), path)
    path.write_text(json.dumps({"cat": ["a furry " * 8]}))
    with pytest.raises(ConfigError, match="'cat' has 16 tokens, and this CLIP reads 14"):
        clip_judge(str(clip), ("cat",), path)


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot load CLIP"):
        clip_judge(str(tmp_path / "empty"), NAMES)


def test_open_clip_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install 'leanmask\[open-clip\]'"):
        open_clip_judge("ViT-B-32/openai", NAMES)


def test_open_clip_pools_a_convnext(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "image_size": 64,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny_convnext.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    source = f"tiny_convnext/{tmp_path / 'weights.pt'}"
    torch.save(open_clip.create_model("tiny_convnext").state_dict(), tmp_path / "weights.pt")
    judge = open_clip_judge(source, NAMES)
    images = torch.rand(2, 3, 64, 96)
    found = judge(images, [objects(3), objects(0)])
    assert [tuple(each.shape) for each in found] == [(3, 3), (0, 3)]
    torch.testing.assert_close(found[0].sum(1), torch.ones(3))
    # Pooled over the whole image, the features are those of the image itself.
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = judge.encoder.features(pixels)
        pooled = pool_inside(features[0], torch.ones(1, *features.shape[2:]))
        torch.testing.assert_close(judge.encoder.project(pooled), judge.encoder.cut_outs(pixels), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="class 1 has no name"):
        open_clip_judge(source, ("cat", ""))
    with pytest.raises(ConfigError, match="names no weights"):
        open_clip_judge("tiny_convnext", NAMES)
    for wrong in ("no_such_model/openai", "tiny_convnext/no_such_weights"):
        with pytest.raises(ConfigError, match=f"cannot load CLIP '{wrong}'"):
            open_clip_judge(wrong, NAMES)
