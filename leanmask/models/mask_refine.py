"""MaskRefineNet (Kim et al. 2023, PointWSSIS, section 3.3): improves a rough mask, whoever made it, from the image
around it and a point on the object.

    image crop + one heat-map per class, with a spot at the point + rough mask --U shape--> background, object

A model like the others: it learns from any data set whose objects have a mask and a rough one (`rough_segmentations`),
and what it predicts for an image are the refined masks of the objects that the image's target names.

Where the authors' code differs from itself or drops something, this does not. A class has the same heat-map channel in
training and in use (class c has channel 3 + 1 + c, the first one stays empty as there); dice is computed per object,
not per image column; crops are stretched to the square in training as in use; pretrained weights of the colours stay
when channels are added. Letters: B images, K objects, C categories, S side of a crop in pixels, H W of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import roi_align

from leanmask.distributed import global_mean
from leanmask.masks import Crops, Grids
from leanmask.models.backbone import NORMS, TORCHVISION_NAMES, normalise
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.base import ClassAxes, Content, Model, Worth, class_positions, finite_zero, only_worth
from leanmask.models.canvas_masks import cell_extents, mean_inside
from leanmask.models.mask_losses import MaskGrid, has_mask, sample_masks
from leanmask.models.mask_refine_network import COLOURS, Encoder, Inputs, UShape, UShapeSize
from leanmask.models.solov2_cells import mass_centres
from leanmask.models.spec import BackboneSpec
from leanmask.models.two_stage import canvas_of
from leanmask.models.weights import load_backbone
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target

SPOT_SIGMA, SPOT_REACH = 6 / 256, 19 / 256  # of the heat-map's spot, as shares of the crop's side (published: 39 x 39)
DICE_EPSILON = 1e-7


@dataclass(frozen=True)
class RefinePreset(UShapeSize):
    """The numbers that `MaskRefineConfig` leaves to the backbone; the defaults are the published ones."""

    size_px: int = 256
    objects_at_once: int = 16


SMALL = RefinePreset(aspp_channels=64, decoder=(64, 48, 32, 32), size_px=96, objects_at_once=32)


class MaskRefineConfig(BackboneConfig):
    """MaskRefineNet. A setting that is null takes the backbone's own value: the published numbers (of ResNet-101),
    smaller ones for small backbones (`tiny`, `lite0` to `lite2`). Published training: Adam, lr 1e-4, batch 16, 200,000
    steps.

    The backbone needs a map at stride 2. Its first convolution sees more than colours: with weights those of the
    colours stay. `norm` is batch for ResNets here, as published.
    """

    PUBLISHED: ClassVar[RefinePreset] = RefinePreset()
    SMALL: ClassVar[RefinePreset] = SMALL

    name: Literal["mask_refine"] = "mask_refine"
    decoder_norm: Literal["batch", "group", "frozen_batch"] | None = Field(
        None, description="of all but the backbone; null = batch with ResNets, else group"
    )
    size_px: int | None = Field(None, ge=32, multiple_of=32, description="side of a crop; null = 256, small 96")
    aspp_channels: int | None = Field(None, ge=8, description="null = 512, small 64")
    dilations: tuple[int, ...] | None = Field(
        None, min_length=1, description="of ASPP's 3 x 3 branches; null = (3, 6, 9)"
    )
    decoder: tuple[int, int, int, int] | None = Field(
        None, description="outputs of the decoder's steps; null = (256, 128, 64, 64), small (64, 48, 32, 32)"
    )
    objects_at_once: int | None = Field(
        None, ge=1, description="most objects per update and process, drawn, and per pass in use; null = 16, small 32"
    )
    crop_scales: tuple[float, float] = Field(
        (1.0, 2.0), description="side of a training crop over that of the rough mask's box, at random in this range"
    )
    crop_scale: float = Field(2.0, ge=1, description="the same in use")

    @classmethod
    def open_values(cls, settings: dict[str, Any]) -> dict[str, Any]:
        name = settings["backbone"]
        found = super().open_values(settings)
        if name in TORCHVISION_NAMES:
            return found | {"norm": "batch", "decoder_norm": "batch"}
        return found | {"decoder_norm": "group"}

    def preset(self) -> RefinePreset:
        """The numbers of the network, as configured."""
        found = self.sizes()
        assert isinstance(found, RefinePreset)
        return found

    def backbone_spec(self) -> BackboneSpec:
        """What to build of these settings; there is no pyramid."""
        return self.spec_of(channels=0)


@dataclass(frozen=True, eq=False)
class RoughObjects:
    """K objects to refine. image_index, object_index, categories: (K,). points: (K, 2) xy. rough: K masks. canvas:
    (H, W).
    """

    image_index: Tensor
    object_index: Tensor
    categories: Tensor
    points: Tensor
    rough: Crops
    canvas: tuple[int, int]

    def __len__(self) -> int:
        return len(self.image_index)

    def __getitem__(self, index: Tensor) -> RoughObjects:
        fields = {name: value[index] for name, value in vars(self).items() if name != "canvas"}
        return RoughObjects(**fields, canvas=self.canvas)


class MaskRefineNet(Model):
    """See the module's text."""

    Config = MaskRefineConfig
    needs_rough = True
    mean: Tensor
    std: Tensor

    def __init__(self, config: MaskRefineConfig, num_classes: int, pretrained: bool = True) -> None:
        """num_classes: foreground categories. pretrained: False skips `config.weights`, for a checkpoint that follows.

        `weights_note` says what was loaded. Raises CheckpointError.
        """
        super().__init__()
        self.config, self.num_classes, self.preset = config, num_classes, config.preset()
        spec = config.backbone_spec()
        self.backbone = Encoder(spec)
        if pretrained:
            wanted = config.weights
            self.weights_note = config.start_note(load_backbone(self.backbone, spec, wanted) if wanted else None)
        self.backbone.widen(self.channels - COLOURS, keep_rest_silent=config.weights is not None)
        assert config.decoder_norm is not None
        self.decoder = UShape(self.backbone.widths, self.preset, NORMS[config.decoder_norm])
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)

    @property
    def channels(self) -> int:
        """Of the input: 3 colours, C + 1 heat-maps, the rough mask. 85 for COCO's 80 classes."""
        return COLOURS + self.num_classes + 1 + 1

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`: the first convolution sees a heat-map for each class."""
        place, _ = self.backbone.first_convolution()
        return {f"backbone.body.{place}.weight": {1: class_positions(self.num_classes, before=COLOURS + 1)}}

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def network(self, inputs: Inputs) -> Tensor:
        """(K, 2, S, S) logits of background and object."""
        said: Tensor = self.decoder(self.backbone(inputs), inputs[0].shape[-1])
        return said

    def inputs(self, images: Tensor, objects: RoughObjects, regions: Tensor) -> Inputs:
        """What the network sees of regions (K, 4) xyxy, each stretched to the square: of the C + 1 heat-maps only that
        of the object's class, and which channel it is.
        """
        side = self.preset.size_px
        places = torch.cat([objects.image_index[:, None].to(regions), regions], dim=1)
        colours = roi_align(normalise(images, self.mean, self.std), places, side, aligned=True)
        spot = spots(objects.points, regions, side)
        rough = (self._sampled(objects.rough, regions, objects.canvas) > 0.5).to(colours)
        return torch.cat([colours, spot[:, None].to(colours), rough[:, None]], dim=1), COLOURS + 1 + objects.categories

    def _sampled(self, crops: Crops, regions: Tensor, canvas: tuple[int, int]) -> Tensor:
        """(K, S, S) masks averaged over the cells of their regions."""
        index = torch.arange(len(crops), device=regions.device)
        return sample_masks(crops, index, regions, MaskGrid(self.preset.size_px, canvas, aligned=True))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Loss "loss_dice" of a random choice of the objects that have a mask and a rough one; and what was said of
        them. See `Model.forward`.
        """
        wanted = [has_mask(target) & has_rough(target) for target in targets]
        objects = rough_objects(targets, canvas_of(images), wanted)
        chosen = torch.randperm(len(objects), device=images.device)[: self.preset.objects_at_once].sort().values
        objects = objects[chosen]
        low, high = self.config.crop_scales
        scales = low + (high - low) * torch.rand(len(objects), device=images.device)
        regions = crop_regions(objects, scales)
        logits = images.new_zeros(0, 2, self.preset.size_px, self.preset.size_px, dtype=torch.float32)
        if len(objects):
            logits = self.network(self.inputs(images, objects, regions))
        truth, trust = self._truth(targets, objects, regions)
        total = (soft_dice_losses(logits, truth) * trust).sum()
        losses = {"loss_dice": global_mean(total, len(objects)) + finite_zero(self)}
        return losses, _predictions(objects, regions, logits)

    def _truth(self, targets: Sequence[Target], objects: RoughObjects, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(K, S, S) true masks of the regions' cells and (K,) weights of their objects."""
        masks, trust = [regions.new_zeros(0, self.preset.size_px, self.preset.size_px)], [regions.new_zeros(0)]
        for image, target in enumerate(targets):
            own = objects.image_index == image
            index = objects.object_index[own]
            crops = target.instances.masks
            if len(index):
                assert isinstance(crops, Crops), "targets carry their masks as crops"
                masks.append(self._sampled(crops[index], regions[own], objects.canvas))
                trust.append(target.instances.weights[index])
        return torch.cat(masks), torch.cat(trust)

    @torch.no_grad()
    def refine(self, images: Tensor, objects: RoughObjects) -> Grids:
        """Probabilities of K refined masks over their regions, batch by batch; where the network finds nothing, the
        rough mask itself (as published).
        """
        regions = crop_regions(objects, torch.full_like(objects.points[:, 0], self.config.crop_scale))
        side = self.preset.size_px
        found = [images.new_zeros(0, side, side, dtype=torch.float32)]
        for rows in torch.arange(len(objects), device=images.device).split(self.preset.objects_at_once):
            if len(rows) == 0:
                continue
            inputs = self.inputs(images, objects[rows], regions[rows])
            values = self.network(inputs).softmax(1)[:, 1]
            empty = values.amax((1, 2), keepdim=True) <= 0.5
            found.append(torch.where(empty, inputs[0][:, -1].float(), values))
        return Grids(torch.cat(found), regions)

    @torch.no_grad()
    def predict_for(
        self, images: Tensor, targets: Sequence[Target], content: Content | None = None, worth: Worth | None = None
    ) -> list[Instances]:
        """Per image the refined masks of the objects that have a rough one, in their order, with ids; score: mean
        probability inside the mask. See `Model.predict_for`.
        """
        wanted = [has_rough(target) for target in targets]
        objects = rough_objects(targets, canvas_of(images), wanted)
        refined = self.refine(images, objects)
        counts = [int(each.sum()) for each in wanted]
        scores = mean_inside(refined.values)
        parts = zip(targets, wanted, refined.values.split(counts), refined.boxes.split(counts), strict=True)
        found = [
            Instances(
                boxes=_tight(values, regions),
                categories=target.instances.categories[rows],
                supervision=torch.full_like(target.instances.categories[rows], int(Supervision.NONE)),
                weights=torch.ones_like(target.instances.weights[rows]),
                scores=own,
                masks=Grids(values, regions),
                ids=None if target.instances.ids is None else target.instances.ids[rows],
            )
            for (target, rows, values, regions), own in zip(parts, scores.split(counts), strict=True)
        ]
        return only_worth(found, worth)

    def predict(self, images: Tensor, content: Content | None = None, worth: Worth | None = None) -> list[Instances]:
        """Nothing: without rough masks there is nothing to refine. See `predict_for`."""
        return [Instances.empty(images.device).replace(scores=images.new_zeros(0)) for _ in images]

    def predict_masks(self, images: Tensor, proposals: Proposals, fine: bool = False) -> MaskPredictions:
        """The refined mask of each box, taken as a rough mask itself; the point is its middle where none is given.
        `fine` changes nothing. See `Model.predict_masks`.
        """
        objects = boxes_as_rough(proposals, canvas_of(images))
        regions = crop_regions(objects, torch.full_like(objects.points[:, 0], self.config.crop_scale))
        logits = images.new_zeros(0, 2, self.preset.size_px, self.preset.size_px, dtype=torch.float32)
        parts = torch.arange(len(objects), device=images.device).split(self.preset.objects_at_once)
        said = [self.network(self.inputs(images, objects[rows], regions[rows])) for rows in parts if len(rows)]
        return _predictions(objects, regions, torch.cat([logits, *said]))


def _predictions(objects: RoughObjects, regions: Tensor, logits: Tensor) -> MaskPredictions:
    return MaskPredictions(
        image_index=objects.image_index,
        boxes=regions,
        object_index=objects.object_index,
        categories=objects.categories,
        logits=logits[:, 1:] - logits[:, :1],
        points=objects.points,
    )


def has_rough(target: Target) -> Tensor:
    """(N,) bool: there is a rough mask, of which something lies on the canvas."""
    rough = target.instances.rough
    if not isinstance(rough, Crops):
        return torch.zeros_like(target.instances.has_mask)
    return (rough.regions[:, 2:] > 0).all(1)


def rough_objects(targets: Sequence[Target], canvas: tuple[int, int], wanted: Sequence[Tensor]) -> RoughObjects:
    """The wanted (N,) objects of every image; the point of one that has none is the mass centre of its rough mask."""
    numbers = [chosen.nonzero()[:, 0] for chosen in wanted]
    images = [torch.full_like(index, image) for image, index in enumerate(numbers)]
    crops = [_rough_of(target, index) for target, index in zip(targets, numbers, strict=True)]
    points = [target.instances.object_points[index] for target, index in zip(targets, numbers, strict=True)]
    categories = [target.instances.categories[index] for target, index in zip(targets, numbers, strict=True)]
    rough, given = Crops.concatenate(crops), torch.cat(points)
    return RoughObjects(
        image_index=torch.cat(images),
        object_index=torch.cat(numbers),
        categories=torch.cat(categories),
        points=torch.where(given.isfinite(), given, mass_centres(rough)),
        rough=rough,
        canvas=canvas,
    )


def _rough_of(target: Target, index: Tensor) -> Crops:
    rough = target.instances.rough
    return rough[index] if isinstance(rough, Crops) else Crops.none(0).to(index.device)


def boxes_as_rough(proposals: Proposals, canvas: tuple[int, int]) -> RoughObjects:
    """Boxes (K, 4) as masks that fill them; whole pixels of the canvas, at least one each."""
    height, width = canvas
    limit = proposals.boxes.new_tensor([width, height])
    low = proposals.boxes[:, :2].floor().clamp(min=0).minimum(limit - 1)
    high = proposals.boxes[:, 2:].ceil().minimum(limit).maximum(low + 1)
    regions = torch.cat([low, high - low], dim=1).long()
    middle = (low + high) / 2
    points = middle if proposals.points is None else torch.where(proposals.points.isfinite(), proposals.points, middle)
    return RoughObjects(
        image_index=proposals.image_index,
        object_index=proposals.object_index,
        categories=proposals.categories,
        points=points.float(),
        rough=Crops(torch.ones(int(regions[:, 2:].prod(1).sum()), dtype=torch.uint8, device=low.device), regions),
        canvas=canvas,
    )


def crop_regions(objects: RoughObjects, scales: Tensor) -> Tensor:
    """(K, 4) xyxy: the rough mask's box, scaled by `scales` (K,) about its centre; where the point lies outside, on
    that side to the point and as far beyond as half the scaled box; cut at the canvas.
    """
    corner, size = objects.rough.regions[:, :2].float(), objects.rough.regions[:, 2:].float()
    centre, half = corner + size / 2, size / 2 * scales[:, None]
    low, high, points = centre - half, centre + half, objects.points
    low = torch.where(points < low, points - half, low)
    high = torch.where(points > high, points + half, high)
    height, width = objects.canvas
    limit = low.new_tensor([width, height])
    return torch.cat([low.clamp(min=0).minimum(limit - 1), high.minimum(limit)], dim=1)


def spots(points: Tensor, regions: Tensor, side: int) -> Tensor:
    """(K, S, S) Gaussian spot of height 1 at the cell that holds each point (K, 2) of the regions (K, 4), cut off at
    the published reach; empty where the point lies outside.
    """
    size = regions[:, 2:] - regions[:, :2]
    cell = ((points - regions[:, :2]) / size * side).floor()
    axis = torch.arange(side, device=points.device)
    away = (axis - cell[..., None]).abs()  # (K, 2, S)
    heights = torch.exp(-0.5 * (away / (SPOT_SIGMA * side)) ** 2) * (away <= round(SPOT_REACH * side))
    inside = ((cell >= 0) & (cell < side)).all(1)
    return heights[:, 1, :, None] * heights[:, 0, None, :] * inside[:, None, None]


def soft_dice_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """(K,) 1 - the mean of both classes' dice, each over all pixels of one object; logits (K, 2, S, S), masks (K, S, S)
    in [0, 1].
    """
    said = logits.float().softmax(1).flatten(2)
    wanted = torch.stack([1 - masks, masks], dim=1).flatten(2).to(said)
    common, size = (said * wanted).sum(2), said.sum(2) + wanted.sum(2)
    return 1 - (2 * common / (size + DICE_EPSILON)).mean(1)


def _tight(values: Tensor, regions: Tensor) -> Tensor:
    """(K, 4) xyxy around what is above 0.5 in grids (K, S, S) over regions (K, 4)."""
    step = (regions[:, 2:] - regions[:, :2]).repeat(1, 2) / values.shape[-1]
    return regions[:, :2].repeat(1, 2) + cell_extents(values > 0.5) * step
