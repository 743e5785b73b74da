"""Which precision fits which machine, with machines that are made up; trainings and trained runs keep to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_helpers import TINY, Outcome, train

from leanmask import devices
from leanmask.config import apply_overrides
from leanmask.devices import (
    Capability,
    Precision,
    capability,
    channels_last,
    inference_precision,
    machine,
    settle_precision,
)
from leanmask.errors import ConfigError
from leanmask.machine_check import Findings, Trial
from leanmask.models.mask_rcnn import MaskRCNN
from leanmask.models.spec import is_depthwise
from leanmask.run import resume
from leanmask.settings import resolve
from leanmask.settling import settle

CPU = torch.device("cpu")
NATIVE = Capability("cpu", "Some Xeon", "AVX512", frozenset({"avx512_bf16"}), native_bf16=True)
AVX2 = Capability("cpu", "Some laptop", "AVX2")
OLD_GPU = Capability("cuda", "Tesla T4", "CUDA 7.5", native_bf16=False)
OLD_MAC = Capability("mps", "Apple GPU", "MPS", native_bf16=False, takes_bf16=False)

# Flags of the processor, whether oneDNN says that it takes bf16, ONEDNN_MAX_CPU_ISA; what it multiplies natively then.
PROCESSORS: dict[str, tuple[dict[str, Any], bool, str | None, set[str]]] = {
    "avx2": ({"avx2": True}, False, None, set()),
    "avx512 without bf16 is emulated, though oneDNN takes it": ({"avx512_f": True}, True, None, set()),
    "avx512_bf16": ({"avx512_bf16": True}, True, None, {"avx512_bf16"}),
    "amx": ({"avx512_bf16": True, "amx_bf16": True}, True, None, {"avx512_bf16", "amx_bf16"}),
    "amx held to avx512": ({"avx512_bf16": True, "amx_bf16": True}, True, "AVX512_CORE_BF16", {"avx512_bf16"}),
    "avx512_bf16 held to avx512": ({"avx512_bf16": True}, True, "avx512_core", set()),
    "avx512_bf16 held to avx2": ({"avx512_bf16": True}, False, "AVX2", set()),
    "avx_ne_convert only converts": ({"avx_ne_convert": True}, True, None, set()),
    "arm with bf16": ({"architecture": "aarch64"}, True, None, {"arm_bf16"}),
    "arm without": ({"architecture": "aarch64"}, False, None, set()),
}


@pytest.mark.parametrize(("flags", "takes", "limit", "native"), PROCESSORS.values(), ids=PROCESSORS)
def test_processors(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], takes: bool, limit: str | None, native: set[str]
) -> None:
    known = {"architecture": "x86_64", "cpu_name": "Some CPU", **flags}
    monkeypatch.setattr(devices.torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(devices.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: takes)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    found = capability(CPU)
    assert (found.name, found.instructions, found.native_bf16) == ("Some CPU", native, bool(native))
    assert settle_precision("auto", CPU) == ("bf16" if native else "fp32", None)
    assert all(instruction in str(found) for instruction in native)


@pytest.mark.parametrize(
    ("here", "depthwise", "expected"),
    [
        (NATIVE, False, "bf16"),
        (NATIVE, True, "fp32"),
        (dataclasses.replace(NATIVE, instructions=frozenset({"avx512_bf16", "amx_bf16"})), True, "bf16"),
        (dataclasses.replace(NATIVE, kind="cuda"), True, "bf16"),
        (AVX2, False, "fp32"),
    ],
)
def test_depthwise_networks_stay_in_fp32_where_bf16_is_slower(
    monkeypatch: pytest.MonkeyPatch, here: Capability, depthwise: bool, expected: str
) -> None:
    monkeypatch.setattr(devices, "capability", lambda device: here)
    assert settle_precision("auto", CPU, depthwise) == (expected, None)
    assert inference_precision("bf16", CPU, depthwise) == expected
    assert [is_depthwise(name) for name in ("lite0", "timm:mobilenetv3_small_050", "resnet50")] == [True, True, False]


def test_a_torch_without_onednn_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.backends.mkldnn, "is_available", lambda: False)
    assert not capability(CPU).native_bf16


@pytest.mark.parametrize(
    ("compute", "emulates", "expected"),
    [
        ((7, 5), True, (False, True)),
        ((8, 0), True, (True, True)),
        ((9, 0), True, (True, True)),
        ((3, 5), False, (False, False)),
    ],
)
def test_gpus_of_nvidia(
    monkeypatch: pytest.MonkeyPatch, compute: tuple[int, int], emulates: bool, expected: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: emulates)
    found = capability(torch.device("cuda"))
    assert (found.native_bf16, found.takes_bf16) == expected
    assert str(found) == f"CUDA {compute[0]}.{compute[1]}"


@pytest.mark.parametrize("new", [True, False])
def test_macs(monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: new)
    found = capability(torch.device("mps"))
    assert (found.native_bf16, found.takes_bf16) == (new, new)


def test_an_unknown_kind_of_device_gets_fp32() -> None:
    assert settle_precision("auto", torch.device("meta")) == ("fp32", None)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Capability], None]:
    """Puts this process on a made-up machine."""

    def put(here: Capability) -> None:
        monkeypatch.setattr(devices, "capability", lambda device: here)
        monkeypatch.setattr(devices, "emulation_cost", lambda device: 45.0)

    return put


def test_the_choice(on: Callable[[Capability], None]) -> None:
    on(NATIVE)
    assert [settle_precision(asked, CPU) for asked in ("auto", "fp32", "bf16")] == [
        ("bf16", None),
        ("fp32", None),
        ("bf16", None),
    ]
    for emulating in (AVX2, OLD_GPU):
        on(emulating)
        assert settle_precision("auto", CPU) == ("fp32", None)
        precision, note = settle_precision("bf16", CPU)
        assert precision == "bf16"
        assert note is not None
        assert emulating.name in note
        assert "45.0 times" in note
    on(OLD_MAC)
    assert settle_precision("auto", CPU) == ("fp32", None)
    with pytest.raises(ConfigError, match=r"train\.precision is bf16, which Apple GPU"):
        settle_precision("bf16", CPU)


def test_a_trained_network_is_used_in_bf16_only_where_it_was_trained_so_and_it_is_native(
    on: Callable[[Capability], None],
) -> None:
    used = {}
    for here in (NATIVE, AVX2):
        on(here)
        used[here.name] = [inference_precision(trained, CPU) for trained in ("bf16", "fp32")]
    assert used == {NATIVE.name: ["bf16", "fp32"], AVX2.name: ["fp32", "fp32"]}


def test_the_measured_cost_of_emulation_is_a_ratio() -> None:
    assert 0.01 < devices.emulation_cost(CPU) < 1000


@pytest.mark.parametrize(("here", "precision"), [(NATIVE, "bf16"), (AVX2, "fp32")])
def test_settled_settings_have_nothing_left_open_and_stay(
    on: Callable[[Capability], None], here: Capability, precision: str
) -> None:
    on(here)
    model = {"name": "mask_rcnn", "backbone": "tiny"}
    open_settings = resolve({"data": {"path": "."}, "model": model, "method": "supervised"})
    settled, notes = settle(open_settings)
    assert (settled.train.precision, notes) == (precision, ())
    assert isinstance(settled.train.channels_last, bool)
    again, notes = settle(settled)
    assert (again, notes) == (settled, ())


def test_choices_of_a_person_stay(on: Callable[[Capability], None]) -> None:
    on(AVX2)
    settings = {"data": {"path": "."}, "model": "mask_rcnn", "method": "supervised"}
    for layout in (True, False):
        own = {**settings, "train": {"precision": "bf16", "channels_last": layout}}
        settled, notes = settle(resolve(own))
        assert (settled.train.precision, settled.train.channels_last) == ("bf16", layout)
        assert len(notes) == 1


def test_a_run_keeps_its_precision_on_another_machine_and_is_used_in_that_of_the_machine(
    on: Callable[[Capability], None],
    leanmask: Callable[..., Outcome],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins where bf16 is native and goes on where it is emulated."""
    on(NATIVE)
    told: list[str] = []
    settings = apply_overrides(TINY, ["method.name=supervised", "train.steps=1", "model.backbone=tiny"])
    run = tmp_path / "run"
    train(digits, run, settings=settings, tell=told.append)
    assert told == []
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]
    assert written["precision"] == "bf16"
    used: list[bool] = []

    def watch(self: MaskRCNN, images: torch.Tensor) -> list[torch.Tensor]:
        used.append(torch.is_autocast_enabled("cpu"))
        return features(self, images)

    features = MaskRCNN.features
    image = next(path for path in sorted((digits / "images").rglob("*")) if path.is_file())
    monkeypatch.setattr(MaskRCNN, "features", watch)
    for here, lower in ((NATIVE, True), (AVX2, False)):
        on(here)
        out = tmp_path / here.level
        assert leanmask("evaluate", run, digits, "--json").code == 0
        assert leanmask("predict", run, image, "--out", out / "predicted", "--json").code == 0
        assert leanmask("pseudo", run, image, "--out", out / "pseudo.json", "--json").code == 0
        assert set(used) == {lower}
        used.clear()
    resume(run, tell=told.append)
    assert len(told) == 1
    assert "Some laptop" in told[0]
    assert "45.0 times" in told[0]


def test_rows_say_what_they_were_measured_on(on: Callable[[Capability], None]) -> None:
    on(NATIVE)
    row = json.loads(json.dumps(machine()))
    assert row.keys() == {"cores", "threads", "capability", "precision", "processor", "torch"}
    assert (row["capability"], row["precision"], row["processor"]) == ("AVX512 avx512_bf16", "bf16", "Some Xeon")
    assert row["threads"] == torch.get_num_threads()
    assert machine("fp32")["precision"] == "fp32"
    on(AVX2)
    assert (machine()["capability"], machine()["precision"]) == ("AVX2", "fp32")


@pytest.mark.parametrize(
    ("device", "precision", "last"),
    [("cpu", "fp32", True), ("cpu", "bf16", True), ("cuda", "bf16", True), ("cuda", "fp32", False)],
)
def test_channels_are_last_where_that_is_faster(
    on: Callable[[Capability], None], device: str, precision: str, last: bool
) -> None:
    on(NATIVE)
    assert channels_last(precision, torch.device(device)) == last


def test_full_convolutions_with_avx2_keep_the_usual_order(on: Callable[[Capability], None]) -> None:
    on(AVX2)
    assert [channels_last("fp32", CPU, depthwise) for depthwise in (False, True)] == [False, True]


VERDICTS: dict[str, tuple[Capability, str, dict[str, float | str], list[str]]] = {
    "emulated": (AVX2, "fp32", {"fp32": 0.1, "bf16": 4.5}, ["use fp32", "emulated", "45.0 times"]),
    "native": (NATIVE, "bf16", {"fp32": 0.2, "bf16": 0.1}, ["use bf16", "2.0 times"]),
    "the rule is wrong here": (
        NATIVE,
        "fp32",
        {"fp32": 0.2, "bf16": 0.1},
        ["bf16 was quicker", "train.precision=bf16"],
    ),
    "not to be had": (OLD_MAC, "fp32", {"fp32": 0.1, "bf16": "no such thing"}, ["use fp32", "bf16 is not to be had"]),
    "broken": (AVX2, "fp32", {"fp32": "out of memory", "bf16": 4.5}, ["nothing can be trained", "out of memory"]),
}


@pytest.mark.parametrize(("here", "chosen", "steps", "says"), VERDICTS.values(), ids=VERDICTS)
def test_the_doctor_says_which_precision_to_use(
    here: Capability, chosen: Precision, steps: dict[str, float | str], says: list[str]
) -> None:
    trial = Trial(here, chosen, steps)
    assert all(words in trial.verdict for words in says)
    findings = Findings({}, {}, {"cpu": trial})
    assert findings.ok == isinstance(steps[chosen], float)
    assert trial.verdict in findings.to_text()
