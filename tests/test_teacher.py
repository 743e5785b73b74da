"""The EMA teacher against a naive loop, and at its limits."""

from __future__ import annotations

import engine_fakes as fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanmask.engine.teacher import Teacher


def moved(student: fakes.FakeModel, seed: int) -> fakes.FakeModel:
    """The student with other weights and other running statistics, as after a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    student.train().features(torch.rand(2, 3, 8, 8, generator=generator))
    return student


@settings(max_examples=20, deadline=None)
@given(momentum=st.floats(0, 1), seed=st.integers(0, 1000))
def test_following_is_the_naive_average(momentum: float, seed: int) -> None:
    student = fakes.FakeModel()
    teacher = Teacher(student)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    moved(student, seed)
    teacher.follow(student, momentum)
    for name, new in student.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * new if new.is_floating_point() else new
        torch.testing.assert_close(teacher.model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    student = fakes.FakeModel()
    teacher = Teacher(student)
    moved(student, 1)
    moved(student, 2)
    teacher.follow(student, 0.75)
    norm, followed = student.norm, teacher.model.norm
    torch.testing.assert_close(followed.running_mean, 0.25 * norm.running_mean)
    torch.testing.assert_close(followed.running_var, 0.75 + 0.25 * norm.running_var)
    assert followed.num_batches_tracked == norm.num_batches_tracked == 2


def test_momentum_zero_is_a_copy_to_the_last_bit_and_one_stands_still() -> None:
    student = fakes.FakeModel()
    teacher = Teacher(student)
    before = {name: value.clone() for name, value in teacher.model.named_parameters()}
    moved(student, 3)
    teacher.follow(student, 1.0)
    assert fakes.same(before, dict(teacher.model.named_parameters()))
    teacher.follow(student, 0.0)
    assert fakes.same(student.state_dict(), teacher.model.state_dict())


def test_the_teacher_shares_nothing_takes_no_gradient_and_stays_in_eval_mode() -> None:
    student = fakes.FakeModel().train()
    teacher = Teacher(student)
    assert not teacher.model.training
    assert student.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    ours = {value.data_ptr() for value in student.state_dict().values()}
    assert ours.isdisjoint(value.data_ptr() for value in teacher.model.state_dict().values())


def test_the_average_is_kept_in_float32_for_a_student_of_half_precision() -> None:
    student = fakes.FakeModel().to(torch.bfloat16)
    teacher = Teacher(student)
    weight = teacher.model.backbone.weight
    assert weight.dtype == torch.float32
    with torch.no_grad():
        student.backbone.weight.add_(1.0)
    before = weight.clone()
    for _ in range(10):
        teacher.follow(student, 0.9999)
    assert bool((weight > before).all()), "steps of 1e-4 are lost in bfloat16"


def test_constants_with_infinities_do_not_become_nan() -> None:
    student = fakes.FakeModel()
    student.register_buffer("limits", torch.tensor([0.0, float("inf"), -float("inf")]))
    teacher = Teacher(student)
    teacher.follow(student, 0.5)
    assert torch.equal(teacher.model.limits, student.limits)


def test_following_another_model_is_our_own_mistake() -> None:
    teacher = Teacher(fakes.FakeModel())
    other = fakes.FakeModel()
    other.more = nn.Linear(2, 2)
    with pytest.raises(AssertionError):
        teacher.follow(other, 0.5)
