"""CLIP as a judge needs it, from either library: texts, cut-outs, and features of whole images that are pooled later.

Letters: B images, K cut-outs, N objects, T texts, F feature channels, D dimensions of the shared space.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from leanmask.errors import ConfigError

OPEN_CLIP_MISSING = "open_clip is not installed; pip install 'leanmask[open-clip]', or take a model with clip:"


class Encoder(Protocol):
    """A CLIP network in eval mode. side_px: of a cut-out. stride_px: of a cell of `features`. mean, std: of RGB in
    [0, 1]. context: most tokens of a text, without the two that every text has.
    """

    module: nn.Module
    side_px: int
    stride_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context: int

    def count(self, text: str) -> int:
        """How many known tokens a text has, without the two that every text has."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D), on the network's device."""
        ...

    def cut_outs(self, pixels: Tensor) -> Tensor:
        """(K, D) of normalised (K, 3, side, side)."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """(B, F, H / stride, W / stride) of normalised (B, 3, H, W), multiples of the stride."""
        ...

    def project(self, pooled: Tensor) -> Tensor:
        """(N, D) of averages (N, F) over `features`."""
        ...

    def scale(self) -> Tensor:
        """Scalar that cosines are multiplied with, at most 100."""
        ...


class TransformersClip:
    """A ViT CLIP by `transformers`. `features` are the last layer's patch tokens, which training never tied to the
    texts: cut-outs are what these networks are good at.
    """

    def __init__(self, source: str) -> None:
        """source: hub id or local folder with weights and tokenizer. Raises ConfigError when it cannot be loaded."""
        try:
            self.module: Any = transformers.CLIPModel.from_pretrained(source)
            self.tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(_unloadable(source, error)) from None
        self.module.eval().requires_grad_(False)
        sizes: Any = self.module.config
        self.side_px, self.stride_px = sizes.vision_config.image_size, sizes.vision_config.patch_size
        self.context = sizes.text_config.max_position_embeddings - 2
        self.mean, self.std = _normalisation(source)

    def count(self, text: str) -> int:
        unknown = {self.tokenizer.unk_token_id}
        return sum(token not in unknown for token in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.module.device)
        pooled = self.module.text_model(**tokens).pooler_output
        return self.module.text_projection(pooled)

    def cut_outs(self, pixels: Tensor) -> Tensor:
        pooled = self.module.vision_model(pixel_values=pixels).pooler_output
        return self.module.visual_projection(pooled)

    def features(self, pixels: Tensor) -> Tensor:
        said = self.module.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
        tokens = self.module.vision_model.post_layernorm(said.last_hidden_state[:, 1:])
        rows, columns = (side // self.stride_px for side in pixels.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    def project(self, pooled: Tensor) -> Tensor:
        return self.module.visual_projection(pooled)

    def scale(self) -> Tensor:
        return self.module.logit_scale.exp().clamp(max=100)


class OpenClip:
    """A CLIP by `open_clip`, an optional extra; `features` need a trunk that ends in a map, such as ConvNeXt's."""

    def __init__(self, source: str) -> None:
        """source: MODEL/WEIGHTS such as convnext_large_d_320/laion2b_s29b_b131k_ft_soup (what PL-DC's code runs; the
        paper says ResNet-50) or MODEL/FILE, or hf-hub:... or local-dir:... as open_clip has them.

        Raises ConfigError when the extra is missing or the model cannot be loaded.
        """
        try:
            library: Any = importlib.import_module("open_clip")
        except ImportError:
            raise ConfigError(OPEN_CLIP_MISSING) from None
        own = source.startswith(("hf-hub:", "local-dir:"))
        name, _, weights = (source, "", "") if own else source.partition("/")
        if not own and not weights:
            raise ConfigError(
                f"open_clip '{source}' names no weights; write MODEL/WEIGHTS, or hf-hub: and a repository"
            )
        try:
            self.module: Any = library.create_model(name, pretrained=weights or None)
            self.tokenizer: Any = library.get_tokenizer(name)
        except Exception as error:  # its own, huggingface_hub's, urllib's: all mean that the model is not to be had
            raise ConfigError(_unloadable(source, error)) from None
        self.module.eval().requires_grad_(False)
        known = library.get_model_preprocess_cfg(self.module)
        self.mean, self.std = tuple(known["mean"]), tuple(known["std"])
        self.side_px = int(torch.tensor(known["size"]).max())
        self.context = int(self.module.context_length) - 2
        self.stride_px = 32

    def count(self, text: str) -> int:
        return int((self.tokenizer([text])[0] != 0).sum()) - 2  # what is too long, it cuts

    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts)).to(self.module.logit_scale.device)
        return self.module.encode_text(tokens)

    def cut_outs(self, pixels: Tensor) -> Tensor:
        return self.module.encode_image(pixels)

    def features(self, pixels: Tensor) -> Tensor:
        trunk = getattr(self.module.visual, "trunk", None)
        found = None if trunk is None else trunk.forward_features(pixels)
        if found is None or found.dim() != 4:
            raise ConfigError("this open_clip model has no feature map to pool; take a ConvNeXt, or judge_look=boxes")
        return found

    def project(self, pooled: Tensor) -> Tensor:
        visual = self.module.visual
        return visual.head(visual.trunk.forward_head(pooled[:, :, None, None]))

    def scale(self) -> Tensor:
        return self.module.logit_scale.exp().clamp(max=100)


def _normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that come with a model; OpenAI's, which nearly all have, where nothing comes with it."""
    try:
        processor: Any = transformers.CLIPImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
    return tuple(processor.image_mean), tuple(processor.image_std)


def _unloadable(source: str, error: Exception) -> str:
    found = "" if Path(source).is_dir() else "; no such folder here, so it was looked for on the hub"
    return f"cannot load CLIP '{source}'{found}: {' '.join(str(error).split())[:300]}"
