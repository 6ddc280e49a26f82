"""Several classifiers of one recipe as one: the mean of their probabilities.

The layers that all members have in common, such as a frozen backbone, are held and run once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from cxr.models import classifier
from cxr.models.classifier import Classifier
from cxr.recipes import Recipe


class Ensemble(nn.Module):
    """Classifiers with the same layers, used as a `Classifier` is.

    The softmax of its outputs is the mean of the members' probabilities. Its features and middle
    maps are the mean of those of the members, so that they are as many as those of one.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        """Share what the members have in common.

        Args:
            members: of recipes that differ in nothing but their seed; changed: they hold the same
                leading layers where these have the same tensors.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_shared = _num_equal(members)
        """Number of leading layers before the dense ones that all members have in common."""
        for name in list(members[0].layers)[: self.num_shared]:
            for member in members[1:]:
                member.set_submodule(name, members[0].get_submodule(name))

    @property
    def classifiers(self) -> list[Classifier]:
        """The members, as what they are."""
        return [cast(Classifier, member) for member in self.members]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logarithms of the mean probabilities, float32 (N, 2), of images as for `Classifier`."""
        return self.score(images)[0]

    def score(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `Classifier.score`, and the outputs of each member, float32 (N, members, 2)."""
        members = self.classifiers
        num_pooled = members[0].num_pooled
        shared, seen = members[0].look(images, 0, self.num_shared)
        if self.num_shared == num_pooled:
            maps = [shared] * len(members)
            features = shared.mean(dim=(2, 3))
        else:
            looks = [member.look(shared, self.num_shared, num_pooled) for member in members]
            maps = [last for last, _ in looks]
            features = torch.stack([last.mean(dim=(2, 3)) for last in maps]).mean(dim=0)
            means = zip(*(own for _, own in looks), strict=True)
            seen += [torch.stack(own).mean(dim=0) for own in means]
        outputs = torch.stack(
            [member.part(num_pooled)(part) for member, part in zip(members, maps, strict=True)],
            dim=1,
        )
        return average(outputs), features, torch.cat(seen, dim=1), outputs

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors by their names in a checkpoint.

        They are `shared.NAME` where all members have them in common, and else `members.0.NAME`,
        with the name of the classifier's tensor.
        """
        layers = list(self.classifiers[0].layers)[: self.num_shared]
        shared = tuple(f"{name}." for name in layers)
        return {
            f"shared.{name}" if name.startswith(shared) else f"members.{number}.{name}": tensor
            for number, member in enumerate(self.classifiers)
            for name, tensor in member.state_dict().items()
        }


def build(recipes: Sequence[Recipe], state: Mapping[str, torch.Tensor]) -> Ensemble:
    """An ensemble with its weights.

    Args:
        recipes: of the members.
        state: as `Ensemble.state` returns it.

    Raises:
        SettingsError: a recipe cannot be built.
        RuntimeError: the tensors are not those of the members.
    """
    members = []
    for number, recipe in enumerate(recipes):
        member = classifier.skeleton(recipe).to_empty(device="cpu")
        own = (f"members.{number}.", "shared.")
        member.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for prefix in own
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
        )
        members.append(member)
    return Ensemble(members)


def average(outputs: torch.Tensor) -> torch.Tensor:
    """Logarithms of the mean of probabilities, exact where these are too near to 0 or 1 for it.

    Args:
        outputs: of the members before softmax, float32 (N, members, classes).

    Returns:
        float32 (N, classes).
    """
    return outputs.log_softmax(dim=2).logsumexp(dim=1) - math.log(outputs.shape[1])


def _num_equal(members: Sequence[Classifier]) -> int:
    first, *others = (list(member.layers.values()) for member in members)
    for number in range(members[0].num_pooled):
        state = first[number].state_dict()
        for layers in others:
            other = layers[number].state_dict()
            if any(not torch.equal(tensor, other[name]) for name, tensor in state.items()):
                return number
    return members[0].num_pooled
