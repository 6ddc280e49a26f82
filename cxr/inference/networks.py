"""A network on its way to a process that runs it, as what the engine of that process takes.

Importing this module imports neither engine: a process imports the one that it opens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import ray

from cxr.inference.engine import Engine
from cxr.models.unusual import FeatureOutput
from cxr.recipes import Recipe

if TYPE_CHECKING:
    from cxr.models.checkpoint import Checkpoint
    from cxr.models.classifier import Classifier, State
    from cxr.models.ensemble import Ensemble


class Network(Protocol):
    """What a process is sent of a network."""

    def open(self, threads: int) -> Engine:
        """Load the network, to compute with so many threads where it computes on a CPU."""
        ...


@dataclass(frozen=True)
class OnnxNetwork:
    """A network for CPUs."""

    content: "ray.ObjectRef[bytes]"
    """An ONNX file."""
    output: str
    """Name of the output that the engine returns."""
    appended: FeatureOutput | None = None
    """Name of an output that the engine appends to it."""

    def open(self, threads: int) -> Engine:
        """As `Network.open`."""
        from cxr.inference.onnx_engine import OnnxEngine

        return OnnxEngine(ray.get(self.content), self.output, threads, appended=self.appended)


@dataclass(frozen=True)
class TorchNetwork:
    """A classifier, an ensemble, or the frozen part of a classifier.

    For a GPU, or a CPU that multiplies in bfloat16.
    """

    recipe: Recipe
    state: "ray.ObjectRef[State]"
    """The tensors of what runs, by the classifier's names."""
    frozen: bool
    """Whether only the frozen part runs."""
    gpu: bool
    """Whether to compute on the GPU that Ray assigned to the process."""
    members: tuple[Recipe, ...] = ()
    """Of an ensemble."""
    appended: FeatureOutput | None = None
    """Of a whole classifier or ensemble: what of `score` the engine appends to the logits."""

    def open(self, threads: int) -> Engine:
        """As `Network.open`."""
        import torch

        from cxr.inference.torch_engine import TorchEngine, WithFeatures
        from cxr.models import classifier, ensemble

        torch.set_num_threads(threads)
        tensors: State = ray.get(self.state)
        network: torch.nn.Module
        if self.frozen:
            network = classifier.restore(self.recipe, tensors).prefix
        else:
            model = (
                ensemble.build(self.members, tensors)
                if self.members
                else classifier.restore(self.recipe, tensors)
            )
            network = WithFeatures(model, self.appended) if self.appended else model
        return TorchEngine(network, self.recipe.normalization, gpu=self.gpu)


def send_classifier(
    trained: "Checkpoint", *, gpu: bool, appended: FeatureOutput | None = None
) -> Network:
    """Send a trained classifier, whose engine then returns logits (N, 2), to the cluster.

    Args:
        trained: the classifier.
        gpu: compute on GPUs.
        appended: features that the engine appends: (N, 2 + D).
    """
    if gpu:
        members = tuple(member.recipe for member in trained.members)
        state: ray.ObjectRef[State] = ray.put(trained.model.state())
        return TorchNetwork(trained.recipe, state, frozen=False, gpu=True, members=members,
                            appended=appended)  # fmt: skip
    return OnnxNetwork(ray.put(trained.onnx), "logits", appended)


def send_model(
    recipe: Recipe,
    model: "Classifier | Ensemble",
    members: tuple[Recipe, ...] = (),
    *,
    gpu: bool,
) -> Network:
    """As `send_classifier`, of one that is no checkpoint yet.

    Args:
        recipe: of the classifier.
        model: with its weights.
        members: recipes of an ensemble's members.
        gpu: compute on GPUs.

    Raises:
        CheckpointError: the network cannot be written as ONNX, which CPUs need.
    """
    if gpu:
        return TorchNetwork(recipe, ray.put(model.state()), frozen=False, gpu=True, members=members)
    from cxr.models.export import export

    return OnnxNetwork(ray.put(export(model, recipe, {})), "logits")


def send_frozen_part(recipe: Recipe, model: "Classifier", *, gpu: bool, onnx: bool) -> Network:
    """Send the frozen part of a classifier, whose engine then returns features, to the cluster.

    Args:
        recipe: of the model.
        model: with its weights.
        gpu: compute on GPUs.
        onnx: compute on CPUs by ONNX Runtime.
    """
    if onnx:
        from cxr.models.export import export_prefix

        return OnnxNetwork(ray.put(export_prefix(model, recipe)), "features")
    return TorchNetwork(recipe, ray.put(model.states(frozen=True)), frozen=True, gpu=gpu)
