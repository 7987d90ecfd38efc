"""Carries out `cairn.private` in one round of a task: per-record gradients and clipping by Opacus, noise and batches of our own.

Opacus' PrivacyEngine is not used: its noise and its batches come from PyTorch's generator, and its secure mode needs
torchcsprng, which nobody maintains.

What a task does beside its private loop cannot be seen from here. These mistakes are found: a step of the optimizer that
was handed in instead of the private one, or on batches of the loader that was handed in; more steps than were asked
for; and an entry of the model, whether it travels or stays, that was changed by anything but a private optimizer.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opacus.data_loader import dtype_safe, shape_safe, wrap_collate_with_empty
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from cairn.errors import UsageError
from cairn.tasks.loader import TaskFailed, task_code
from cairn.tasks.partial import differing, is_plain
from cairn.tasks.private import UNDER_WAY, Privacy
from cairn.tasks.secure_noise import PoissonSampler, gaussian

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class PrivateTraining:
    """The private loops of one round of a model, which has been loaded. A copy of the model is kept."""

    def __init__(self, privacy: Privacy, model: nn.Module) -> None:
        self._privacy = privacy
        self._model = model
        with task_code("model's state_dict"):
            state = model.state_dict()
        self._base = {
            name: value.detach().clone() for name, value in state.items() if is_plain(value)
        }
        self._trained: set[str] = set()
        self._wrapped: GradSampleModule | None = None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Have `cairn.private` work inside. Raises TaskFailed at the end where the training was not private."""
        token = UNDER_WAY.set(self)
        try:
            with warnings.catch_warnings():
                # Opacus' hook of the first layer: its gradients are right without one of the input.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                yield
        finally:
            UNDER_WAY.reset(token)
            self._unwrap()
        if not self._trained:
            raise TaskFailed(
                "the task trained without cairn.private, which this owner's file demands (private); nothing leaves"
            )
        if changed := self._changed():
            raise TaskFailed(
                f"training changed {changed}, which the optimizer of cairn.private does not train, so that it is without"
                " noise; nothing leaves"
            )

    def begin(
        self, model: nn.Module, optimizer: Optimizer, loader: "DataLoader[Any]", epochs: int
    ) -> "tuple[nn.Module, Optimizer, DataLoader[Any]]":
        """What `cairn.private` does and raises."""
        self._unwrap()
        _check_model(model)
        trained = self._named(model, optimizer)
        batches = _checked_batches(loader, epochs)
        if changed := self._changed():
            raise UsageError(
                f"cairn.private: {changed} is not that of the round's model any more; it was changed without noise"
                " before the call"
            )
        self._wrapped = wrapped = _wrap(model)
        self._privacy.spend(1 / batches, epochs * batches)
        self._trained |= trained
        sampler = PoissonSampler(len(loader.dataset), batches)  # type: ignore[arg-type]  # _checked_batches looked
        steps = _Steps(epochs * batches, sampler)
        expected = len(loader.dataset) / batches  # type: ignore[arg-type]  # as above
        private = _PrivateOptimizer(optimizer, self._privacy, expected, steps)
        return wrapped, private, _drawn_by(sampler, loader)

    def _named(self, model: nn.Module, optimizer: Optimizer) -> set[str]:
        """The names, in the round's model, of what the optimizer trains."""
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        if isinstance(optimizer, DPOptimizer) or not trained <= set(model.parameters()):
            raise UsageError(
                "cairn.private: give it a plain optimizer of this model's own parameters, such as"
                " optim.SGD(model.parameters(), lr=0.1)"
            )
        names = {
            name
            for name, parameter in self._model.named_parameters(remove_duplicate=False)
            if parameter in trained and parameter.requires_grad
        }
        if not names:
            raise UsageError(
                "cairn.private: the optimizer trains nothing of the model that the round's train was given"
            )
        return names

    def _changed(self) -> str | None:
        """The first entry of the model that has other values than at first, of those that no private loop trains."""
        changed = (name for name in differing(self._base, self._model.state_dict()))
        return next((name for name in changed if name not in self._trained), None)

    def _unwrap(self) -> None:
        """Take Opacus' hooks off the model, which the task may train or return again."""
        if self._wrapped is not None:
            self._wrapped.to_standard_module()
            self._wrapped = None


class _Steps:
    """Counts the steps of a loop: no more than were asked for, each on a batch of its own."""

    def __init__(self, most: int, sampler: PoissonSampler) -> None:
        self._most = most
        self._sampler = sampler
        self._taken = 0

    def take(self) -> None:
        self._taken += 1
        if self._taken > self._most:
            raise UsageError(
                f"cairn.private: this is one step more than the {self._most} that were asked for; pass it the"
                " number of epochs that the loop runs"
            )
        if self._taken > self._sampler.drawn:
            raise UsageError(
                "cairn.private: a step was taken on a batch that the returned loader did not draw; take one step for"
                " each batch of that loader"
            )


class _PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no annotations
    """Opacus' optimizer, which clips and sums, with noise from the operating system."""

    def __init__(
        self, optimizer: Optimizer, privacy: Privacy, expected_batch: float, steps: _Steps
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=0.0,  # of its own noise
            max_grad_norm=privacy.clip,
            expected_batch_size=expected_batch,
        )
        self._std = privacy.noise * privacy.clip
        self._steps = steps
        self._in_step = False
        optimizer.register_step_pre_hook(self._refuse_alone)

    def add_noise(self) -> None:
        """Add it to the clipped sum, in float64, before that is divided by the expected size of a batch."""
        super().add_noise()  # without noise: it looks that each gradient is used once
        for parameter in self.params:
            noise = gaussian(parameter.grad.shape, self._std).to(parameter.grad.device)
            parameter.grad.copy_(parameter.grad.double() + noise)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        self._steps.take()
        self._in_step = True
        return bool(super().pre_step(closure))

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Have it called with the noisy gradient, as `cairn.prox` needs it."""
        return self.original_optimizer.register_step_pre_hook(hook)

    def _refuse_alone(self, *_: object) -> None:
        if not self._in_step:
            raise UsageError(
                "cairn.private: the loop steps the optimizer that was handed in; step the one that was returned"
            )
        self._in_step = False


def _check_model(model: nn.Module) -> None:
    if any(name.startswith("scaffold_c/") for name, _ in model.named_buffers()):
        raise UsageError(
            "cairn.private: the model has control variates of cairn.scaffold, which private training does not keep"
            " up; leave cairn.control_variates out"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.training:
            raise UsageError(
                f"cairn.private: the model's {name or 'whole'} is a {type(module).__name__}, which mixes the records of a"
                " batch, so that none has a gradient of its own; use nn.GroupNorm or nn.LayerNorm in its place"
            )
    if errors := ModuleValidator.validate(model, strict=False):
        raise UsageError(f"cairn.private: Opacus cannot train the model: {errors[0]}")


def _wrap(model: nn.Module) -> GradSampleModule:
    try:
        wrapped = GradSampleModule(model)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(f"cairn.private: Opacus cannot train the model: {error}") from None
    wrapped.forbid_grad_accumulation()
    return wrapped


def _checked_batches(loader: "DataLoader[Any]", epochs: int) -> int:
    if type(epochs) is not int or epochs < 1:
        raise UsageError(f"cairn.private: epochs is {epochs!r}, expected a whole number from 1 on")
    if isinstance(loader.dataset, IterableDataset) or not len(loader):
        raise UsageError(
            "cairn.private: the loader's dataset has no length or is empty; each record must be drawn with a known"
            " probability, so give it a dataset such as TensorDataset"
        )
    draws_all = isinstance(loader.sampler, RandomSampler | SequentialSampler)
    if not draws_all or type(loader.batch_sampler) not in {BatchSampler, type(None)}:
        raise UsageError(
            "cairn.private: the loader has a sampler of its own, which may leave records out, and every record of its"
            " dataset would be drawn; leave it away, and give it a Subset of the dataset where some are to be left out"
        )
    if not isinstance(loader.dataset[0], tuple | list):
        raise UsageError(
            "cairn.private: an item of the loader's dataset is no tuple of tensors, so that an empty batch has no"
            " shape; give it a dataset such as TensorDataset"
        )
    return len(loader)


def _drawn_by(sampler: PoissonSampler, loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """The same loader, but for which items make a batch."""
    item = loader.dataset[0]
    collate = wrap_collate_with_empty(
        collate_fn=loader.collate_fn,
        sample_empty_shapes=[(0, *shape_safe(part)) for part in item],
        dtypes=[dtype_safe(part) for part in item],
    )
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
